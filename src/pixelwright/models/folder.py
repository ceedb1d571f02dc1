"""A model as a folder: `config.json` and `model.safetensors`."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pixelwright.errors import UserError, nearest
from pixelwright.files import SAFETENSORS_DTYPES, read_json, write_safetensors, write_text
from pixelwright.models.config import DenoiserConfig, from_dict, to_dict
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.presets import preset

CONFIG, WEIGHTS = "config.json", "model.safetensors"
LARGEST_CONFIG = 1 << 24  # bytes
FORMAT = 2
MOST_LISTED = 10


def create(name: str, num_classes: int | None = None, **overrides: Any) -> PixelDenoiser:
    """A named model with random weights; see `presets.preset` for the overrides.

    Raises:
        UserError: unknown name (naming the near ones) or impossible overrides.
    """
    return PixelDenoiser(preset(name, num_classes, **overrides))


def skeleton(config: DenoiserConfig, like: PixelDenoiser | None = None) -> PixelDenoiser:
    """A model without storage (meta device): names and shapes alone, and the frozen encoder of `like`."""
    with torch.device("meta"), _WithoutInit():
        model = PixelDenoiser(config)
    if like is not None and config.grounded:
        model.backbone.encoder = like.backbone.encoder
    return model


class _WithoutInit(TorchFunctionMode):
    """Leave out `torch.nn.init`, which has nothing to fill on the meta device, and takes seconds there."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def with_weights(config: DenoiserConfig, weights: Mapping[str, Tensor], place: str) -> PixelDenoiser:
    """A model that holds exactly these tensors, in their own dtypes.

    Raises:
        UserError: missing, extra, mis-shaped or non-float tensors, at most ten of them named; a weight that
            is NaN or infinite.
    """
    model = skeleton(config)
    check_weights({key: value.shape for key, value in model.state_dict().items()}, weights, place)
    for key, value in weights.items():
        check_finite(key, value, place)
    model.load_state_dict(dict(weights), assign=True)
    return model.eval()


def check_weights(expected: Mapping[str, torch.Size], found: Mapping[str, Tensor], place: str) -> None:
    """Raise `UserError` unless `found` has exactly the names and shapes of `expected`, in floating point.

    Only names, shapes and dtypes are looked at, so tensors on the meta device will do.
    """
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    problems = [
        f'unexpected "{shorten(key)}"{_similar(key, missing) if i < MOST_LISTED else ""}'
        for i, key in enumerate(extra)
    ]
    problems += [f'missing "{key}"' for key in missing]
    for key in sorted(set(expected) & set(found)):
        if found[key].shape != expected[key]:
            problems.append(f'"{key}" is {list(found[key].shape)}, expected {list(expected[key])}')
        elif found[key].dtype not in SAFETENSORS_DTYPES:
            problems.append(f'"{key}" is {found[key].dtype}, expected floating point of 16, 32 or 64 bits')
    if problems:
        raise UserError(f"{place}: {listing(problems)}")


def _similar(key: str, choices: list[str]) -> str:
    """The nearest of the names that are still wanted, where one is near."""
    hint = nearest(shorten(key), choices)
    return hint if "mean" in hint else ""


def check_finite(name: str, tensor: Tensor, place: str) -> None:
    """Raise `UserError` if a weight is NaN or infinite."""
    # A sum shows both without a mask of the tensor's size; only a sum that overflowed needs a second look.
    total = tensor.sum(dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32)
    if not torch.isfinite(total) and not bool(torch.isfinite(tensor).all()):
        kind = "NaN" if bool(tensor.isnan().any()) else "infinite"
        raise UserError(f'{place}: "{name}" holds {kind} weights; the file is damaged or its training failed')


def listing(problems: Iterable[str]) -> str:
    """At most ten problems in one line, then a count."""
    problems = list(problems)
    more = f"; and {len(problems) - MOST_LISTED} more" if len(problems) > MOST_LISTED else ""
    return "; ".join(problems[:MOST_LISTED]) + more


def shorten(name: str) -> str:
    """A name from a file, fit for a message."""
    return name if len(name) <= 100 else f"{name[:100]}…"


def save(model: PixelDenoiser, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` and `model.safetensors`; each file appears only when it is whole.

    Raises:
        UserError: `folder` is a file, or `model` is an accelerated one.
    """
    if not isinstance(model, PixelDenoiser):
        raise UserError(f"a {type(model).__name__} cannot be saved; save the model it was made of")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder to save the model in")
    weights = {key: value.detach() for key, value in model.state_dict().items()}
    write_weights(folder, model.config, weights, weights.__getitem__)


def write_weights(
    folder: Path, config: DenoiserConfig, specs: Mapping[str, Tensor], read: Callable[[str], Tensor]
) -> None:
    """Write a model folder from tensors that are read one at a time; see `files.write_safetensors`."""
    write_safetensors(folder / WEIGHTS, specs, read, {"format": "pt"})
    text = json.dumps({"format": FORMAT, **to_dict(config)}, indent=2, ensure_ascii=False)
    write_text(folder / CONFIG, text + "\n")


def read_config(folder: str | os.PathLike[str]) -> DenoiserConfig:
    """The config of a model folder.

    Raises:
        UserError: no such folder or file, broken JSON, unknown or missing keys, an unknown format number.
    """
    folder = Path(folder)
    path = folder / CONFIG
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one that holds {CONFIG} and {WEIGHTS}")
    if not path.is_file():
        raise UserError(f"{folder} holds no {CONFIG}; is it a model folder?")
    data = read_json(path, LARGEST_CONFIG)
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no JSON object")
    number = data.pop("format", None)
    if number == 1:
        raise UserError(f"{folder} is in the layout of version 0.1: pixelwright convert {folder} NEW-FOLDER")
    if number != FORMAT:
        raise UserError(f"{path}: format is {number!r}; this version reads format {FORMAT}")
    return from_dict(data, str(path))
