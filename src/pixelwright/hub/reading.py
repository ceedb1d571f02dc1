"""Files of weights, opened without reading the weights: names, shapes and dtypes at once, values on demand.

Nothing here knows what the tensors mean. Everything is refused that could run code or take memory out of
proportion to the file: foreign classes in a pickle, compressed archives, endless headers, tensors larger than
their bytes.
"""

from __future__ import annotations

import json
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.files import SAFETENSORS_DTYPES
from pixelwright.models.folder import listing, shorten

INDEX_SUFFIX = ".safetensors.index.json"
PICKLES = (".ckpt", ".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", INDEX_SUFFIX, *PICKLES)
"""The endings of files that can be opened."""

LARGEST_HEADER = 16 << 20
"""Most bytes of a safetensors header, an index, or the pickle in a checkpoint; real ones have below 1 MB."""

_DTYPES = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()}


@dataclass(frozen=True)
class WeightFile:
    """The tensors of one file, or of one set of shards."""

    path: Path
    files: tuple[Path, ...]
    """Every file that belongs to it, `path` first."""
    specs: Mapping[str, Tensor]
    """Name -> a tensor on the meta device, with shape and dtype alone."""
    read: Callable[[str], Tensor]
    """The tensor of a name. It may share memory with the file, so write nothing into it."""


def open_file(path: Path) -> WeightFile:
    """Open a safetensors file, the index of a sharded one, or a pickled checkpoint, by its suffix.

    Raises:
        UserError: an unknown suffix, a damaged file, or one that could do harm.
    """
    if not path.is_file():
        raise UserError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        if path.name.endswith(INDEX_SUFFIX):
            return _open_shards(path)
        if path.suffix == ".safetensors":
            return _open_safetensors(path)
        if path.suffix.lower() in PICKLES:
            return _open_pickle(path)
    except RecursionError:
        raise UserError(f"{path} is damaged: it is nested too deeply") from None
    raise UserError(f"{path} is no file of weights; their names end in {', '.join(SUFFIXES)}")


# --- safetensors -------------------------------------------------------------------------------------------


def _open_safetensors(path: Path) -> WeightFile:
    with path.open("rb") as file:
        start = file.read(8)
    size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= size <= min(LARGEST_HEADER, path.stat().st_size - 8):
        raise UserError(
            f"{path} is damaged or no safetensors file: its header claims {size} bytes of "
            f"{path.stat().st_size} (at most {LARGEST_HEADER} are read)"
        )
    try:
        tensors = safe_open(path, "pt")
        specs = {name: _spec(tensors.get_slice(name)) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"{path} is damaged or no safetensors file: {shorten(str(error).splitlines()[0])}"
        ) from None
    return WeightFile(path, (path,), specs, tensors.get_tensor)


def _spec(part: Any) -> Tensor:
    # Other dtypes are shown as uint8; whether they are wanted is for others to say.
    return torch.empty(part.get_shape(), dtype=_DTYPES.get(part.get_dtype(), torch.uint8), device="meta")


def _open_shards(index: Path) -> WeightFile:
    """An index is JSON: weight_map says for every name which file beside the index holds it."""
    if index.stat().st_size > LARGEST_HEADER:
        raise UserError(f"{index} has {index.stat().st_size} bytes; an index has at most {LARGEST_HEADER}")
    names = shard_names(index)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index} names shards that are not beside it: {listing(map(shorten, missing))}")
    weight_map = _weight_map(index)
    shards = {name: _open_safetensors(index.parent / name) for name in names}
    wrong = [f'"{shorten(key)}"' for key, name in weight_map.items() if key not in shards[name].specs]
    wrong += [
        f'"{shorten(key)}"' for name, s in shards.items() for key in s.specs if weight_map.get(key) != name
    ]
    if wrong:
        raise UserError(f"{index} and its shards disagree on {listing(wrong)}")
    return WeightFile(
        index,
        (index, *(shard.path for shard in shards.values())),
        {key: shards[name].specs[key] for key, name in weight_map.items()},
        lambda key: shards[weight_map[key]].read(key),
    )


def shard_names(index: Path) -> list[str]:
    """The files that an index names, each once. Raises UserError for a broken index or a foreign folder."""
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if not re.fullmatch(r"[\w.\-]+\.safetensors", name):
            raise UserError(f'{index}: "{shorten(name)}" is not the name of a safetensors file beside it')
    return names


def _weight_map(index: Path) -> dict[str, str]:
    try:
        data = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{index} is not readable JSON: {error}") from None
    found = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(v, str) for v in found.values()):
        raise UserError(f'{index} holds no "weight_map" of names and files')
    return found


# --- pickles -----------------------------------------------------------------------------------------------


class Inert:
    """Stands for an object of no interest (a path, a setting): takes what it is given and keeps nothing."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _empty_dict(*_: object) -> dict[object, object]:
    """For a dict that is made by a call."""
    return {}


# Bytes of an element, by the type a pickle gives a storage.
_STORAGES = {
    f"torch.{kind}Storage": width
    for width, kinds in {
        8: ("Double", "Long"),
        4: ("Float", "Int"),
        2: ("Half", "BFloat16", "Short"),
        1: ("Char", "Byte", "Bool"),
    }.items()
    for kind in kinds
}
# All that the pickle of a state_dict is made of. PyTorch's own list is longer.
_TENSOR_PARTS = {
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "_codecs.encode",
    *_STORAGES,
    *(f"torch.{kind}" for kind in ("float64", "float32", "float16", "bfloat16")),
    *(f"torch.{kind}" for kind in ("int64", "int32", "int16", "int8", "uint8", "bool")),
}
# What training tools leave beside it: settings, paths, counters. None of these classes is ever imported; they
# become `Inert`, or a plain dict where the class is one.
_DICTS = {
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
}
_HARMLESS = {
    "argparse.Namespace",
    "jsonargparse._namespace.Namespace",
    "jsonargparse.namespace.Namespace",
    *(
        f"pathlib{inner}.{kind}{system}Path"
        for inner in ("", "._local")
        for kind in ("", "Pure")
        for system in ("Posix", "Windows")
    ),
    "pathlib.Path",
    "typing.Any",
    *(
        f"{module}.{kind}"
        for module in ("builtins", "__builtin__")  # the latter is what protocol 2 calls it
        for kind in ("dict", "list", "int", "float", "str", "bool", "tuple")
    ),
    *(f"omegaconf.base.{kind}" for kind in ("ContainerMetadata", "Metadata")),
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    *(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String")
    ),
    *(
        f"{package}.trainer.states.{kind}"
        for package in ("pytorch_lightning", "lightning.pytorch")
        for kind in ("TrainerFn", "TrainerStatus", "RunningStage")
    ),
}
ALLOWED = frozenset(_TENSOR_PARTS | _DICTS | _HARMLESS | {"collections.defaultdict"})
"""Every class and function that a pickle may name."""


def _open_pickle(path: Path) -> WeightFile:
    _check_archive(path)
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(Inert, n) for n in _HARMLESS]
    stand_ins += [(dict, name) for name in _DICTS]
    stand_ins.append((_empty_dict, "collections.defaultdict"))
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or no checkpoint: {_first_line(error)}") from None
    except (IndexError, EOFError, OverflowError, MemoryError, AssertionError, struct.error) as error:
        raise UserError(f"{path} is damaged or no checkpoint: {_first_line(error)}") from None
    tensors = _state_dict(content, path)
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, path)
    specs = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    return WeightFile(path, (path,), specs, tensors.__getitem__)


def _first_line(error: Exception) -> str:
    return shorten((str(error).splitlines() or [type(error).__name__])[0])


def _check_archive(path: Path) -> None:
    """The archive is not compressed and no larger inside than outside; its pickle names nothing foreign."""
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            members = archive.infolist()
        except _BROKEN_ZIP as error:
            raise UserError(
                f"{path} is damaged, or written by a PyTorch before 1.6 ({_first_line(error)}); "
                f"get it again, or save its tensors as safetensors where you trust it"
            ) from None
        size, inside = path.stat().st_size, sum(member.file_size for member in members)
        if inside > size or any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise UserError(
                f"{path} holds compressed or overlapping parts ({inside} bytes in a file of {size}), "
                f"which no checkpoint has; it is refused"
            )
        programs = [m for m in members if m.filename.endswith("data.pkl")]
        if len(programs) != 1 or programs[0].file_size > LARGEST_HEADER:
            raise UserError(f"{path} is no PyTorch checkpoint: it needs one data.pkl of reasonable size")
        try:
            program = archive.read(programs[0])
        except _BROKEN_ZIP as error:
            raise UserError(f"{path} is damaged: {_first_line(error)}") from None
    folder = programs[0].filename.removesuffix("data.pkl") + "data/"
    _check_program(program, path)
    _check_storages(program, {m.filename.removeprefix(folder): m.file_size for m in members}, path)


# What the reader of archives raises for one that is not in order; the file itself is open by then.
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    struct.error,
    OSError,
)


def _check_program(program: bytes, path: Path) -> None:
    """Refuse a pickle that names anything but `ALLOWED`, before anything of it is run."""
    foreign: dict[str, None] = {}
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "GLOBAL":
                name = str(argument).replace(" ", ".", 1)
                if name not in ALLOWED:
                    foreign[f'"{shorten(name)}"'] = None
            elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "PERSID"):
                raise UserError(f"{path}: its pickle uses {opcode.name}, which torch.save does not write")
    except (ValueError, struct.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged: its pickle is broken ({_first_line(error)})") from None
    if foreign:
        raise UserError(
            f"{path} asks for {listing(foreign)}: a pickle can run code through them, so it is refused. "
            f"If you trust the file, load it where that code is installed and save its tensors as safetensors"
        )


def _check_storages(program: bytes, sizes: Mapping[str, int], path: Path) -> None:
    """Every storage that a pickle names is a part of the archive with just as many bytes.

    PyTorch maps the file and would go on reading in the next part. A storage is named by five values and the
    opcode BINPERSID: "storage", its type, its key, a device and the number of elements.
    """
    memo: dict[object, object] = {}
    recent: deque[object] = deque(maxlen=5)
    for opcode, argument, _ in pickletools.genops(program):
        match opcode.name:
            case "BINUNICODE" | "GLOBAL" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                recent.append(argument)
            case "BINGET" | "LONG_BINGET":
                recent.append(memo.get(argument))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = recent[-1] if recent else None
            case "BINPERSID":
                _, kind, key, _, count = recent if len(recent) == 5 else (None,) * 5
                width = _STORAGES.get(str(kind).replace(" ", "."))
                if width is None or not isinstance(count, int) or sizes.get(str(key)) != width * count:
                    raise UserError(
                        f"{path} is damaged: part {key} should hold {count} values ({kind}), but has "
                        f"{sizes.get(str(key), 'no')} bytes"
                    )


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: its `state_dict` where it has one, else all of it."""
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, (dict, OrderedDict)) or not state:
        raise UserError(f"{path} holds no state_dict")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f'{path}: "{shorten(str(name))}" in its state_dict is {type(value).__name__}, not a tensor'
            )
    return dict(state)


def _check_tensor(name: str, tensor: Tensor, path: Path) -> None:
    """A small storage can pose as an endless tensor (stride 0); a weight has its own bytes."""
    odd = tensor.layout != torch.strided or tensor.device.type != "cpu"
    if odd or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(
            f'{path}: "{shorten(name)}" claims the shape {list(tensor.shape)} without the bytes for it'
        )
