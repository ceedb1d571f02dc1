"""Files of weights, opened without reading the weights: names, shapes and dtypes at once, values on demand.

Nothing here knows what the tensors mean. Everything is refused that could run code or take memory out of
proportion to the file: foreign classes in a pickle, compressed archives, endless headers, tensors larger than
their bytes.
"""

import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.files import DTYPE_NAMES, read_json
from pixelwright.models.folder import CONFIG, WEIGHTS, listing, shorten

INDEX_SUFFIX = ".index.json"
PICKLES = (".ckpt", ".pth", ".pt", ".bin")
ONE_FILE = (".safetensors", *PICKLES)
SUFFIXES = (*ONE_FILE, f".safetensors{INDEX_SUFFIX}", f".bin{INDEX_SUFFIX}")  # of what can be opened

# Most bytes of a safetensors header, an index, or the pickle in a checkpoint; real ones have below 1 MB.
LARGEST_HEADER = 16 << 20
# Known by name, so that they can be refused by name.
EIGHT_BITS = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()} | EIGHT_BITS
# What training tools leave beside the weights.
_STATE_OF_TRAINING = re.compile(
    r"(optimizer|scheduler|sampler|scaler|rng_state|random_states|training_args|dl_state_dict|metadata)(_\d+)?"
    r"\.\w+|.*optim_states\.pt"
)
# Where pipelines and trainers keep the network, its average first, where it is not in the folder itself.
PIPELINE = "model_index.json"  # of a diffusers pipeline
FOLDERS = ("transformer_ema", "unet_ema", "ema", "transformer", "unet", "model", "denoiser", "pytorch_model")


@dataclass(frozen=True)
class WeightFile:
    """The tensors of one file, or of one set of shards."""

    path: Path
    files: tuple[Path, ...]  # every file that belongs to it, `path` first
    specs: Mapping[str, Tensor]  # name -> a tensor on the meta device, with shape and dtype alone
    read: Callable[[str], Tensor]  # it may share memory with the file, so write nothing into it
    widened: str = ""  # which weights of 8 bits are read in another dtype, in words


_SCALES = (".scale_weight", ".weight_scale")  # beside "….weight": one number that multiplies it
_UNUSED = re.compile(r"(.*\.)?(scaled_fp8|scale_input|input_scale)")  # for products in 8 bits


def widen(file: WeightFile) -> WeightFile:
    """A file whose weights in 8 bits (float8), with their scales where there are some, are read in the dtype
    of its other weights, or in bfloat16 where there are none or several. Raises UserError: scales that are
    not one number each."""
    eight = {name for name, spec in file.specs.items() if spec.dtype in EIGHT_BITS.values()}
    if not eight:
        return file
    scales = {
        f"{name.removesuffix(end)}.weight": name
        for name in file.specs
        for end in _SCALES
        if name.endswith(end) and f"{name.removesuffix(end)}.weight" in eight
    }
    for name in scales.values():
        if file.specs[name].numel() != 1:
            shape = list(file.specs[name].shape)
            raise UserError(
                f'{file.path}: "{shorten(name)}" is {shape}; a scale of 8 bits is one number here'
            )
    kept = [name for name in file.specs if name not in scales.values() and not _UNUSED.fullmatch(name)]
    others = {file.specs[name].dtype for name in kept if name not in eight}
    dtype = others.pop() if len(others) == 1 else torch.bfloat16

    def read(name: str) -> Tensor:
        if name not in eight:
            return file.read(name)
        value = file.read(name).to(torch.float32)
        scale = file.read(scales[name]).to(torch.float32).reshape(()) if name in scales else 1.0
        return (value * scale).to(dtype)

    specs = {name: file.specs[name].to(dtype) if name in eight else file.specs[name] for name in kept}
    words = f"; {len(eight)} tensors of 8 bits read as {str(dtype).removeprefix('torch.')}"
    return WeightFile(file.path, file.files, specs, read, words)


def weight_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Folder -> its files of weights, without what training tools leave beside them. `names` have "/"."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        if file.endswith(SUFFIXES) and not _STATE_OF_TRAINING.fullmatch(file):
            found.setdefault(folder, []).append(name)
    return found


def only_weights(names: Sequence[str], place: str) -> str:
    """The one set of weights among file names: an index, or else the only file of weights.

    Those at the top come first, then those in the first of `FOLDERS`, then those of the only other folder.

    Raises UserError: there is none, or more than one.
    """
    folders = weight_names(names)
    order = (*FOLDERS, "") if PIPELINE in names else ("", *FOLDERS)
    folder = next((each for each in (*order, *folders) if each in folders), "")
    every = [name for part in folders.values() for name in part]
    found = folders.get(folder, []) if folder in order else every
    found = [name for name in found if name.endswith(INDEX_SUFFIX)] or found
    if len(found) == 1:
        return found[0]
    if any(name.endswith(".distcp") for name in names):
        remedy = "make one file of it with `accelerate merge-weights`"
        raise UserError(f"{place} is a distributed checkpoint of PyTorch; {remedy}")
    what = f"holds {', '.join(found[:10])}; name one of them" if found else "holds no weights"
    raise UserError(f"{place} {what} (a model folder has {CONFIG} and {WEIGHTS})")


def open_safetensors(path: Path) -> WeightFile:
    """Open a safetensors file. Raises UserError for a damaged one."""
    with path.open("rb") as file:
        start = file.read(8)
    size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    broken, there = f"{path} is damaged or no safetensors file", path.stat().st_size
    if not 2 <= size <= min(LARGEST_HEADER, there - 8):
        claim = f"its header claims {size} bytes of {there} (at most {LARGEST_HEADER} are read)"
        raise UserError(f"{broken}: {claim}")
    try:
        tensors = safe_open(path, "pt")
        specs = {name: _spec(tensors.get_slice(name)) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{broken}: {shorten(str(error).splitlines()[0])}") from None
    return WeightFile(path, (path,), specs, tensors.get_tensor)


def _spec(part: Any) -> Tensor:
    # Other dtypes are shown as uint8; whether they are wanted is for others to say.
    return torch.empty(part.get_shape(), dtype=_DTYPES.get(part.get_dtype(), torch.uint8), device="meta")


def open_shards(index: Path, open_file: Callable[[Path], WeightFile]) -> WeightFile:
    """Open the shards of an index, whose weight_map says for every name which file beside it holds it. Raises
    UserError for a broken index, and shards that are damaged or do not fit to it."""
    names = shard_names(index)
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise UserError(f"{index} names shards that are not beside it: {listing(map(shorten, missing))}")
    weight_map = _weight_map(index)
    shards = {name: open_file(index.parent / name) for name in names}
    wrong = [key for key, name in weight_map.items() if key not in shards[name].specs]
    wrong += [key for name, shard in shards.items() for key in shard.specs if weight_map.get(key) != name]
    if wrong:
        keys = listing(f'"{shorten(key)}"' for key in wrong)
        raise UserError(f"{index} and its shards disagree on {keys}")
    files = (index, *(shard.path for shard in shards.values()))
    specs = {key: shards[name].specs[key] for key, name in weight_map.items()}
    return WeightFile(index, files, specs, lambda key: shards[weight_map[key]].read(key))


def shard_names(index: Path) -> list[str]:
    """The files that an index names, each once. Raises UserError for a broken index or a foreign folder."""
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if not re.fullmatch(r"[\w.\-]+\.(safetensors|bin)", name):
            raise UserError(f'{index}: "{shorten(name)}" is not the name of a file of weights beside it')
    return names


def _weight_map(index: Path) -> dict[str, str]:
    data = read_json(index, LARGEST_HEADER)
    found = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(v, str) for v in found.values()):
        raise UserError(f'{index} holds no "weight_map" of names and files')
    return found
