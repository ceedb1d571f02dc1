"""Files that are either whole or not there: written under another name, flushed to the disk, then renamed.

Weights are written tensor by tensor, so that a model need not fit into memory twice, or at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
"""The dtypes weights are kept in, and what a safetensors header calls them."""


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

    Folders above it are made, and removed again on an error. A folder replaces nothing but an empty folder.
    """
    missing = [folder for folder in path.parents if not folder.exists()]  # the innermost comes first
    part = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)  # of an earlier, interrupted run
        yield part
        sync(part)
        os.replace(part, path)
        sync(path.parent)
    except BaseException:
        _remove(part)
        for folder in missing:
            if folder.exists():
                folder.rmdir()
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in memory order; little endian, as every supported platform is."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


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
    for name in names:
        spec = specs[name]
        end = offset + spec.numel() * spec.element_size()
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
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
