"""Pickled checkpoints (.ckpt, .pth, .pt, .bin), read without running anything of them.

`torch.save` writes a zip archive: a pickle that describes the tensors, and one uncompressed part for the
values of each. The pickle may name nothing but what `meaning` knows, and is read with a stand-in in the place
of every name, so that no class or function of it is ever imported.
"""

import io
import math
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.hub.files import EIGHT_BITS, LARGEST_HEADER, WeightFile
from pixelwright.hub.prefixes import is_container
from pixelwright.models.folder import shorten

DEEPEST, MOST, MOST_AXES = 4, 100_000, 16
"""Most dicts within one another that are looked through, most tensors in them, most axes of a tensor."""


class Inert:
    """Stands for an object of no interest (a path, a setting): takes what it is given and keeps nothing."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class Dict(dict[Any, Any]):
    """Stands for every kind of dict, filled by a pickle's own steps; other arguments are not copied."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None: ...


_KINDS = ["Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"]
_FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
_WHOLE = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
_STORAGES = {f"{kind}Storage": dtype for kind, dtype in zip(_KINDS, _FLOATS + _WHOLE, strict=True)}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (*_STORAGES.values(), *EIGHT_BITS.values())}
_REBUILD = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_TENSORS: dict[str, Any] = {
    "torch.Size": lambda sizes=(): tuple(sizes[:MOST_AXES]),
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.storage.UntypedStorage": torch.uint8,
    **{f"torch.{name}": dtype for name, dtype in (_STORAGES | _DTYPES).items()},
}
# What training tools leave beside the weights: settings, paths, counters, the state of random numbers.
_DICTS = re.compile(
    r"collections\.(OrderedDict|defaultdict|Counter)|(builtins|__builtin__)\.dict"
    r"|(lightning\.fabric|lightning_fabric)\.utilities\.data\.AttributeDict"
    r"|(pytorch_lightning|lightning\.pytorch)\.utilities\.parsing\.AttributeDict"
)
_INERT = re.compile(
    r"torch\.(device|torch_version\.TorchVersion)|_codecs\.encode|typing\.Any|collections\.deque"
    r"|(builtins|__builtin__)\.(list|int|float|str|bool|tuple|set|complex)|types\.SimpleNamespace"
    r"|datetime\.(datetime|timedelta|date)|easydict\.EasyDict"
    r"|argparse\.Namespace|jsonargparse\._?namespace\.Namespace"
    r"|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path"
    r"|numpy\.(_?core\.multiarray\.(_reconstruct|scalar)|ndarray|dtype)"
    r"|omegaconf\.(base\.(Container)?Metadata|(dict|list)config\.(Dict|List)Config)"
    r"|omegaconf\.nodes\.(Any|Boolean|Bytes|Enum|Float|Integer|Path|String)Node"
    r"|(pytorch_lightning|lightning\.pytorch)\.trainer\.states\.(TrainerFn|TrainerStatus|RunningStage)"
)


def meaning(name: str) -> Any:
    """What stands for a class or function that a pickle names; None if it may not name it."""
    if name in _TENSORS:
        return _TENSORS[name]
    return Dict if _DICTS.fullmatch(name) else Inert if _INERT.fullmatch(name) else None


# What reading a damaged archive or pickle can raise.
_BROKEN: tuple[type[Exception], ...] = (pickle.UnpicklingError, zipfile.BadZipFile, struct.error)
_BROKEN += (RuntimeError, ValueError, TypeError, AttributeError, LookupError, EOFError, OverflowError)
_BROKEN += (MemoryError, OSError)


def open_pickle(path: Path) -> WeightFile:
    """Open a checkpoint that `torch.save` wrote. Raises UserError: a damaged file, or one that could do
    harm."""
    with path.open("rb") as file:
        program, parts = _open_archive(path, file)
        try:
            for opcode, argument, _ in pickletools.genops(program):
                if opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(program):
                    raise ValueError("its pickle numbers more objects than it has")
            tensors = _tensors(_Unpickler(program, parts, path, file).load(), path)
        except UserError:
            raise
        except _BROKEN as error:
            raise UserError(f"{path} is damaged or no checkpoint: {_first_line(error)}") from None
    specs = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    return WeightFile(path, (path,), specs, tensors.__getitem__)


def part_start(file: BinaryIO, part: zipfile.ZipInfo) -> int:
    """Where in a zip archive the bytes of an uncompressed part begin."""
    file.seek(part.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))  # the lengths of what follows the 30 bytes of the header
    return part.header_offset + 30 + int(name) + int(extra)


def _first_line(error: Exception) -> str:
    return shorten((str(error).splitlines() or [type(error).__name__])[0])


def _open_archive(path: Path, file: BinaryIO) -> tuple[bytes, dict[str, zipfile.ZipInfo]]:
    """The pickle and, by their keys, the parts with values. The archive is no larger inside than outside."""
    try:
        archive = zipfile.ZipFile(file)
        members = archive.infolist()
    except _BROKEN as error:
        raise UserError(
            f"{path} is damaged, or written by a PyTorch before 1.6 ({_first_line(error)}); "
            f"get it again, or save its tensors as safetensors where you trust it"
        ) from None
    size, inside = path.stat().st_size, sum(member.file_size for member in members)
    if inside > size or any(m.compress_type != zipfile.ZIP_STORED for m in members):
        parts = f"compressed or overlapping parts ({inside} bytes in a file of {size})"
        raise UserError(f"{path} holds {parts}, which no checkpoint has; it is refused")
    programs = [m for m in members if m.filename.endswith("data.pkl")]
    if len(programs) != 1 or programs[0].file_size > LARGEST_HEADER:
        raise UserError(f"{path} is no PyTorch checkpoint: it needs one data.pkl of reasonable size")
    try:
        program = archive.read(programs[0])
    except _BROKEN as error:
        raise UserError(f"{path} is damaged: {_first_line(error)}") from None
    folder = programs[0].filename.removesuffix("data.pkl") + "data/"
    return program, {m.filename.removeprefix(folder): m for m in members}


class _Unpickler(pickle.Unpickler):
    """Builds what a pickle describes out of what `meaning` gives; tensors share the memory of the file."""

    def __init__(
        self, program: bytes, parts: Mapping[str, zipfile.ZipInfo], path: Path, file: BinaryIO
    ) -> None:
        super().__init__(io.BytesIO(program))
        self._parts, self._path, self._file, self._count = parts, path, file, 0
        self._storages: dict[tuple[str, torch.dtype], Tensor] = {}
        self._bytes = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)

    def find_class(self, module: str, name: str) -> Any:
        if (name := f"{module}.{name}") in _REBUILD:
            return self._tensor
        if (found := meaning(name)) is None:
            asks = f'asks for "{shorten(name)}", through which a pickle can run code'
            remedy = "where you trust the file, load it with that code and save its tensors as safetensors"
            raise UserError(f"{self._path} {asks}: {remedy}")
        return found

    def persistent_load(self, pid: Any) -> Tensor:
        """The values of a storage: "storage", its type, its key, a device and the number of elements."""
        _, dtype, key, _, count = pid
        there = self._parts[key].file_size if key in self._parts else None
        typed = isinstance(dtype, torch.dtype) and isinstance(count, int)
        if not typed or there is None or there != count * dtype.itemsize:
            held = f"should hold {count} values ({dtype}), but has {'no' if there is None else there} bytes"
            raise UserError(f"{self._path} is damaged: part {key} {held}")
        if (key, dtype) not in self._storages:
            start = part_start(self._file, self._parts[key])
            data = self._bytes[start : start + there]
            # torch.save aligns its parts, other writers may not.
            self._storages[key, dtype] = (data.clone() if start % dtype.itemsize else data).view(dtype)
        return self._storages[key, dtype]

    def _tensor(
        self, values: Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *rest: object
    ) -> Tensor:
        """Of either kind; for the newer one, the dtype stands among the rest."""
        values = values.view(next((each for each in rest if isinstance(each, torch.dtype)), values.dtype))
        count, last = math.prod(shape), offset
        last += sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        # A small storage can pose as an endless tensor; a weight has its own bytes.
        if count and max(last + 1, count) > len(values):
            raise UserError(f"{self._path}: a tensor claims the shape {list(shape)} without the bytes for it")
        self._count += 1
        if self._count > MOST:
            raise ValueError(f"it describes more than {MOST} tensors")
        return values.as_strided(shape, stride, values.storage_offset() + offset)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: those of its "state_dict", "model", "ema" and so on, or of itself. Names
    begin with those of the dicts that they are in; only "state_dict" adds nothing."""
    found: dict[str, Tensor] = {}

    def look(value: object, prefix: str, depth: int) -> None:
        if not isinstance(value, dict) or not value or depth > DEEPEST:
            raise UserError(f"{path} holds no state_dict" + (f' under "{prefix[:-1]}"' if prefix else ""))
        inner = {key: part for key, part in value.items() if isinstance(part, dict) and is_container(key)}
        for key, part in inner.items():
            look(part, prefix if key == "state_dict" else f"{prefix}{key}.", depth + 1)
        for key, part in {} if inner else value.items():
            if not isinstance(key, str) or not isinstance(part, Tensor):
                name, kind = shorten(prefix + str(key)), type(part).__name__
                raise UserError(f'{path}: "{name}" in its state_dict is {kind}, not a tensor')
            found[prefix + key] = part
            if len(found) > MOST:  # dicts that share one another
                raise UserError(f"{path} holds more than {MOST} tensors, which no checkpoint does")

    look(content, "", 0)
    return found
