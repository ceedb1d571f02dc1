"""Anything that holds a model, opened: config and tensors of a folder, a published file or a hub address."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.hub.public import SETS, Which, choose_prefix, recognise, strip_prefix
from pixelwright.hub.reading import INDEX_SUFFIX, SUFFIXES, open_file
from pixelwright.hub.recipes import licence_of, with_notes
from pixelwright.hub.remote import SCHEME, fetch
from pixelwright.models.config import DenoiserConfig, Provenance
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import (
    CONFIG,
    WEIGHTS,
    check_finite,
    check_weights,
    read_config,
    skeleton,
    with_weights,
)
from pixelwright.models.folder import load as load_folder


@dataclass(frozen=True)
class Checkpoint:
    """A model whose weights are still in their files."""

    config: DenoiserConfig
    place: str
    """What error messages call it."""
    files: tuple[Path, ...]
    read_as: str
    """Which tensors of the files these are, in words."""
    specs: Mapping[str, Tensor]
    """Our name -> a tensor on the meta device, with shape and dtype alone."""
    _read: Callable[[str], Tensor]

    def read(self, name: str) -> Tensor:
        """The tensor of one of our names, which may share memory with the file.

        Raises:
            UserError: it holds NaN or infinite values.
        """
        tensor = self._read(name)
        check_finite(name, tensor, self.place)
        return tensor


def local(source: str | os.PathLike[str]) -> Path:
    """The file or folder of a model: fetched where `source` is hf://…, the averaged weights of a run.

    Raises:
        UserError: it does not exist, or the hub does not give it.
    """
    path = fetch(str(source)) if str(source).startswith(SCHEME) else Path(source)
    if not path.exists():
        raise UserError(
            f"{path} does not exist; give a model folder, a run, a file of weights or {SCHEME}OWNER/NAME"
        )
    if path.is_dir() and not (path / CONFIG).exists() and (path / "model" / CONFIG).is_file():
        return path / "model"
    if path.name == WEIGHTS and (path.parent / CONFIG).is_file():
        return path.parent
    return path


def open_checkpoint(
    source: str | os.PathLike[str], weights: Which | None = None, recipe: str | None = None
) -> Checkpoint:
    """Open a model without reading its weights.

    Args:
        source: a model folder, a run folder, a published file (.ckpt, .pth, .safetensors, the index of a
            sharded one), or hf://OWNER/NAME[/FILE].
        weights: "ema" or "raw" to insist on one of a Lightning file's sets; by default EMA where it is there.
        recipe: a key of `RECIPES` or "none", in place of what is known of the file.

    Raises:
        UserError: nothing that can be read as a model, or not the weights that are asked for.
    """
    path = local(source)
    if path.is_dir() and (path / CONFIG).is_file():
        return _open_folder(path, weights, recipe)
    place = str(path)
    if path.is_dir():
        place, path = f"{path} (which has no {CONFIG})", _only_file(path)
    file = open_file(path)
    try:
        prefix = choose_prefix(file.specs, weights)
        config, names = recognise(strip_prefix(file.specs, weights))
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    specs = {ours: file.specs[prefix + theirs] for ours, theirs in names.items()}
    _check_size(specs, file.files)
    address = str(source) if str(source).startswith(SCHEME) else path.name
    config = with_notes(config, path.name.removesuffix(INDEX_SUFFIX).rsplit(".", 1)[0], recipe)
    read_as = f'"{prefix}"' if prefix else "all tensors"
    read_as += {SETS["ema"]: " (EMA weights)", SETS["raw"]: " (raw weights)"}.get(prefix, "")
    provenance = Provenance(
        (address, *(f.name for f in file.files[1:])),
        (),
        read_as,
        licence_of(config, f"{address}/{path.name}"),
    )
    return Checkpoint(
        dataclasses.replace(config, provenance=provenance),
        str(path),
        file.files,
        read_as,
        specs,
        lambda ours: file.read(prefix + names[ours]),
    )


def _open_folder(folder: Path, weights: Which | None, recipe: str | None) -> Checkpoint:
    if weights is not None:
        raise UserError(f"{folder} is a model folder, which has one set of weights; leave the choice out")
    config = read_config(folder)
    if recipe is not None:
        config = with_notes(config, "", recipe)
    file = open_file(folder / WEIGHTS)
    expected = {key: value.shape for key, value in skeleton(config).state_dict().items()}
    check_weights(expected, file.specs, str(file.path))
    return Checkpoint(config, str(folder), file.files, "all tensors", file.specs, file.read)


def _only_file(folder: Path) -> Path:
    """The one file of weights in a folder that is no model folder of ours."""
    path = only_weights([file.name for file in folder.iterdir() if file.is_file()], str(folder))
    return folder / path


def only_weights(names: list[str], place: str) -> str:
    """The one set of weights among file names: an index, or else the only file of weights."""
    found = sorted(name for name in names if name.endswith(INDEX_SUFFIX))
    found = found or sorted(name for name in names if name.endswith(SUFFIXES))
    if len(found) != 1:
        what = f"holds {', '.join(found[:10])}; name one of them" if found else "holds no weights"
        raise UserError(f"{place} {what} (a model folder has {CONFIG} and {WEIGHTS})")
    return found[0]


def _check_size(specs: Mapping[str, Tensor], files: tuple[Path, ...]) -> None:
    """Tensors that overlap could make much of little."""
    size = sum(spec.numel() * spec.element_size() for spec in specs.values())
    there = sum(file.stat().st_size for file in files)
    if size > there:
        raise UserError(f"{files[0]} has {there} bytes, but its tensors claim {size}")


def load_config(source: str | os.PathLike[str]) -> DenoiserConfig:
    """The config of anything that `load` reads, without its weights."""
    path = local(source)
    if path.is_dir() and (path / CONFIG).is_file():
        return read_config(path)
    return open_checkpoint(source).config


def load(source: str | os.PathLike[str], weights: Which | None = None) -> PixelDenoiser:
    """Read a model; weights keep the dtype they were saved in, on the CPU, in eval mode.

    `model.config.recipe` holds the sampler settings of a published result where they are known;
    `pixelwright.sample` does not use them by itself. A licence notice of the source goes to stderr, once.

    Args:
        source: a model folder, a run folder, a published file (.ckpt, .pth, .safetensors, the index of a
            sharded one), or hf://OWNER/NAME[/FILE].
        weights: "ema" or "raw" to insist on one of a Lightning file's sets; by default EMA where it is there.

    Raises:
        UserError: anything missing, unknown, mis-shaped, unsafe or cut short, naming file and key.
    """
    path = local(source)
    if path.is_dir() and (path / CONFIG).is_file() and weights is None:
        model = load_folder(path)
    else:
        checkpoint = open_checkpoint(source, weights)
        check_one_dtype(checkpoint)
        # A copy, so that the model does not depend on the file any more.
        tensors = {name: checkpoint.read(name).clone() for name in checkpoint.specs}
        model = with_weights(checkpoint.config, tensors, checkpoint.place)
    announce(model.config)
    return model


def check_one_dtype(checkpoint: Checkpoint) -> None:
    """Raise `UserError` if the weights are of several dtypes, with which the network cannot compute."""
    dtypes = sorted({str(spec.dtype).removeprefix("torch.") for spec in checkpoint.specs.values()})
    if len(dtypes) > 1:
        raise UserError(
            f"{checkpoint.place} holds {' and '.join(dtypes)} weights; choose one with "
            f"`pixelwright convert --dtype`"
        )


_announced: set[str] = set()


def announce(config: DenoiserConfig) -> None:
    """Print the licence notice of a model's source, once a process."""
    notice = config.provenance.licence if config.provenance is not None else None
    if notice is not None and notice not in _announced:
        _announced.add(notice)
        print(f"pixelwright: note: {notice}", file=sys.stderr)
