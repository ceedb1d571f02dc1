"""Files that are whole or not there, text that others wrote, digests.

A file is written under another name, flushed to the disk, then renamed. Weights are written tensor by tensor,
so that a model need not fit into memory twice, or at all.
"""

import codecs
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pixelwright.errors import UserError

SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
"""The dtypes weights are kept in, and what a safetensors header calls them."""
_INTEGERS = {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"}
DTYPE_NAMES = {**SAFETENSORS_DTYPES, **_INTEGERS, torch.bool: "BOOL"}
LIMIT = 1 << 30  # bytes of a text, JSON or picture that is read at once
DENSE = 1 << 24, 100  # a larger member of a zip that is packed to less than 1/100 is a bomb, not data
ABANDONED = 86_400  # seconds after which an unfinished file is taken for that of a killed process
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


class WriteError(UserError, OSError):
    """A file that cannot be written because the disk is full or writing there is not allowed."""


def cache_folder() -> Path:
    """Where downloads and indices are kept: $PIXELWRIGHT_CACHE, else pixelwright in the user's cache."""
    if given := os.environ.get("PIXELWRIGHT_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pixelwright"


# --- writing ---
def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file (or fill a folder) under; it becomes `path` at the end, or goes on an error.

    The name is unique: where threads, processes or machines write the same file at once, the last one stays.
    Folders above it are made, and removed again on an error. A folder replaces nothing but an empty folder.

    Raises WriteError: the disk is full, or writing there is not allowed.
    """
    missing = [folder for folder in path.parents if not folder.exists()]  # the innermost comes first
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        sync(part)
        os.replace(part, path)
        sync(path.parent)
    except BaseException as error:
        _remove(part)
        for folder in missing:
            with suppress(OSError):  # never made, or another process has put something into it
                folder.rmdir()
        if isinstance(error, OSError):
            raise_write_error(error, path)
        raise


def raise_write_error(error: OSError, path: Path) -> None:
    """Raise WriteError if `error` says that `path` cannot be written; return if it says something else."""
    ours = error.errno == errno.EROFS or str(path).startswith(str(error.filename))
    ours = ours or str(error.filename).startswith(str(path.parent))
    if error.errno in FULL:
        raise WriteError(f'"{path}" cannot be written ({error.strerror}): make room there') from error
    if error.errno in FORBIDDEN and ours:
        raise WriteError(f'"{path}" cannot be written ({error.strerror}): name another folder') from error


def remove_abandoned(folder: Path, age: float = ABANDONED) -> None:
    """Remove from a folder what killed processes have left of `replacing`, `age` seconds later."""
    for part in folder.glob("*.tmp"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime >= age:
                _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there. Raises WriteError: a file is in its place,
    the disk is full, or writing there is not allowed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise_write_error(error, path)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


# --- reading ---
def read_bytes(path: Path, limit: int = LIMIT) -> bytes:
    """The content of a file. Raises UserError if it cannot be read or is longer than `limit` bytes."""
    try:
        with path.open("rb") as file:
            return read_stream(file, limit, f'"{path}"')
    except OSError as error:
        raise UserError(f'"{path}" cannot be read ({error.strerror or error})') from error


def read_stream(file: Any, limit: int, place: str) -> bytes:
    """The rest of an open file, in pieces. Raises UserError if it is longer than `limit` bytes."""
    pieces, left = [], limit + 1
    while left and (piece := file.read(min(left, 1 << 20))):
        pieces.append(piece)
        left -= len(piece)
    if not left:
        raise UserError(f"{place} is longer than {limit} bytes, the most that is read: split or mend it")
    return b"".join(pieces)


def read_member(archive: zipfile.ZipFile, name: str, limit: int = LIMIT) -> bytes:
    """A member of a zip. Raises UserError if it is longer than `limit` bytes, or packed as only bombs are."""
    info = archive.getinfo(name)
    place = f'"{name}" in "{archive.filename}"'
    size, (least, ratio) = info.file_size, DENSE
    if size > least and size > ratio * info.compress_size:
        raise UserError(f"{place} unpacks from {info.compress_size} to {size} bytes, as no data does")
    with archive.open(info) as file:
        return read_stream(file, limit, place)


def decode_text(data: bytes, place: str) -> str:
    """Text in UTF-8, with or without a byte order mark, or in UTF-16 with one. Raises UserError: it is
    neither; the message names `place` and the line."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
        stop = text.find("\0")
        before = text[:stop]
    except UnicodeDecodeError as error:
        stop, before = error.start, data[: error.start].decode("utf-16" if utf16 else "utf-8", "ignore")
    if stop >= 0:
        number = before.count("\n") + 1
        raise UserError(f"line {number} of {place} is not UTF-8 text: save it as UTF-8")
    return text


def decode_lines(data: bytes, place: str) -> list[str]:
    """The lines of a text, which end in LF or CRLF and in nothing else that Unicode may call a line's end.
    Raises UserError as `decode_text` does, and for a text whose lines end in CR alone."""
    text = decode_text(data, place)
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
    for number, line in enumerate(lines, start=1):
        if "\r" in line:
            text = f"line {number} of {place} holds a CR alone, which ended lines on old Macs"
            raise UserError(f"{text}: save it with LF or CRLF")
    return lines


def read_text(path: Path, limit: int = LIMIT) -> str:
    """The text of a file, as `decode_text` reads it."""
    return decode_text(read_bytes(path, limit), f'"{path}"')


def read_lines(path: Path, limit: int = LIMIT) -> list[str]:
    """The lines of a file, as `decode_lines` reads them."""
    return decode_lines(read_bytes(path, limit), f'"{path}"')


def parse_json(data: bytes | str, place: str) -> Any:
    """A JSON value. Raises UserError, naming `place` and the line, if it is none."""
    text = data if isinstance(data, str) else decode_text(data, place)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError) as error:  # numbers of too many digits, lists too deep
        reason = str(error)
    raise UserError(f"{place} is malformed JSON ({reason})")


def read_json(path: Path, limit: int = LIMIT) -> Any:
    """The JSON value in a file. Raises UserError as `read_bytes` and `parse_json` do."""
    return parse_json(read_bytes(path, limit), f'"{path}"')


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f'"{path}" cannot be read ({error.strerror or error})') from error


def digest(*parts: object) -> str:
    """A name for what is made of `parts`, in 32 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(list(map(str, parts))).encode(), digest_size=16).hexdigest()


# --- weights ---
def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in memory order; little endian, as every supported platform is."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_safetensors(
    path: Path, specs: Mapping[str, Tensor], read: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> None:
    """Replace a safetensors file in one step, holding one tensor at a time.

    Args:
        specs: names, with a tensor of the right shape and dtype each (its values are not looked at).
        read: gives the tensor of a name, of that shape and dtype.
        metadata: texts for the header.
    """
    # The format wants rising offsets without gaps; wide dtypes first keeps every tensor aligned.
    names = sorted(specs, key=lambda name: (-specs[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, spec in ((name, specs[name]) for name in names):
        kind, span = DTYPE_NAMES[spec.dtype], [offset, offset + spec.numel() * spec.element_size()]
        header[name] = {"dtype": kind, "shape": list(spec.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            write_tensor(file, read(name), specs[name])


def write_tensor(file: BinaryIO, tensor: Tensor, spec: Tensor) -> None:
    """Append the bytes of a tensor, which must be what `spec` announced."""
    assert (tensor.shape, tensor.dtype) == (spec.shape, spec.dtype), "a tensor differs from its announcement"
    file.write(raw_bytes(tensor))
