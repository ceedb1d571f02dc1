"""Anything that holds a model, opened: config and tensors of a folder, a published file or a hub address."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.files import read_json
from pixelwright.hub import runs, shipped
from pixelwright.hub.adapters import Adapters, config_with, find_adapter, with_adapters
from pixelwright.hub.files import (
    FOLDERS,
    INDEX_SUFFIX,
    LARGEST_HEADER,
    SUFFIXES,
    WeightFile,
    only_weights,
    open_safetensors,
    open_shards,
    weight_names,
    widen,
)
from pixelwright.hub.layout import Settings
from pixelwright.hub.pickles import open_pickle
from pixelwright.hub.prefixes import network_tensors
from pixelwright.hub.presets import licence_of, with_notes
from pixelwright.hub.public import check_constants, joined, recognise, whole, with_settings
from pixelwright.hub.remote import SCHEME, fetch
from pixelwright.models.config import DenoiserConfig, Provenance, from_dict
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
from pixelwright.models.presets import PRESETS
from pixelwright.remote import is_address

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
COMPONENT = "PixelDenoiserModel"  # what diffusers calls ours


@dataclass(frozen=True)
class Checkpoint:
    """A model whose weights are still in their files."""

    config: DenoiserConfig
    place: str  # what error messages call it
    files: tuple[Path, ...]
    read_as: str  # which tensors of the files these are, in words
    specs: Mapping[str, Tensor]  # our name -> a tensor on the meta device, with shape and dtype alone
    _read: Callable[[str], Tensor]
    notes: tuple[str, ...] = ()  # what is to be said of the file

    def read(self, name: str) -> Tensor:
        """The tensor of one of our names, which may share memory with the file. Raises UserError: it holds
        NaN or infinite values."""
        tensor = self._read(name)
        check_finite(name, tensor, self.place)
        return tensor


def locate(source: str | os.PathLike[str]) -> Path:
    """The file of weights of a model, which may not be there: fetched where `source` is an address; of a run
    or one of its checkpoints, that of its `model/`; of a name, that of the model that comes with the package.
    Raises UserError: nothing that holds one, or the hub does not give it."""
    name = str(source)
    path = fetch(name) if is_address(name) else shipped.find(name) or Path(source)
    if not path.exists():
        such = f"a model folder, a run, a file of weights or {SCHEME}OWNER/NAME"
        raise UserError(f"{path} does not exist; give {such}")
    if path.is_file():
        return path
    if runs.is_checkpoint(path):
        return runs.model_of(path) / WEIGHTS
    own = next((each for each in (path, path / "model") if is_model_folder(each)), None)
    if own is None and find_adapter(path) is not None:
        raise UserError(f"{path} holds an adapter: give the model it is for, with this as its adapter")
    if own is None and name in shipped.shipped() and not weight_names(_names(path)):
        raise UserError(
            f"the folder {path} holds no weights; the model of the package is {shipped.PREFIX}{name}"
        )
    return own / WEIGHTS if own is not None else path / only_weights(_names(path), str(path))


def _names(folder: Path) -> list[str]:
    """Its files and those in folders where a network may be kept, with "/"."""
    folders = (folder, *(folder / name for name in FOLDERS if (folder / name).is_dir()))
    return [
        file.relative_to(folder).as_posix() for each in folders for file in each.iterdir() if file.is_file()
    ]


def is_model(source: str) -> bool:
    """Whether this names a model rather than images."""
    path = Path(source).expanduser()
    inside = path.is_dir() and ((path / CONFIG).is_file() or bool(weight_names(_names(path))))
    named = is_address(source) or source.lower().endswith(SUFFIXES)
    return named or inside or shipped.find(source) is not None


def is_model_folder(folder: Path) -> bool:
    """Whether a folder's config is ours; those of repacks and other libraries are passed over."""
    config = any_config(folder)
    return isinstance(config.get("format"), int) or isinstance(config.get("backbone"), dict)


def any_config(folder: Path) -> dict[str, Any]:
    """The config of a folder, whoever made it; {} where there is none. One that cannot be read counts as
    ours, so that our reader says what is wrong with it."""
    if not (folder / CONFIG).is_file():
        return {}
    try:
        data = read_json(folder / CONFIG, LARGEST_HEADER)
    except UserError:
        data = None
    return data if isinstance(data, dict) else {"format": 0}


def known_config(file: Path) -> DenoiserConfig | None:
    """The config beside a file of weights, where it is ours: of a model folder, or in diffusers' layout."""
    if file.name == WEIGHTS and is_model_folder(file.parent):
        return read_config(file.parent)
    beside = any_config(file.parent)
    if beside.get("_class_name") != COMPONENT:
        return None
    return from_dict(beside.get("architecture", {}), f"{file.parent / CONFIG}: architecture")


def open_file(path: Path) -> WeightFile:
    """Open a safetensors file, the index of a sharded one, or a pickled checkpoint, by its suffix. Raises
    UserError: an unknown suffix, a damaged file, or one that could do harm."""
    if not path.is_file():
        raise UserError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    with path.open("rb") as start:
        if start.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` there")
    if not path.name.lower().endswith(SUFFIXES):
        raise UserError(f"{path} is no file of weights; their names end in {', '.join(SUFFIXES)}")
    try:
        if path.name.endswith(INDEX_SUFFIX):
            return open_shards(path, open_file)
        return open_safetensors(path) if path.suffix == ".safetensors" else open_pickle(path)
    except RecursionError:
        raise UserError(f"{path} is damaged: it is nested too deeply") from None


def open_checkpoint(
    source: str | os.PathLike[str],
    weights: str | None = None,
    sampler: str | None = None,
    settings: Settings | None = None,
) -> Checkpoint:
    """Open a model without reading its weights.

    Args:
        source: a model folder, a run folder, one of its checkpoints, a published file (.ckpt, .pth,
            .safetensors, the index of a sharded one), a folder of a diffusers pipeline or of accelerate,
            hf://OWNER/NAME[/FILE], a file's address (https://, s3://, …), or the name of a model that comes
            with the package, such as pixelwright/cifar10.
        weights: "ema" or "raw" to insist on one of a file's sets; by default EMA where it is there. Of a run
            (its newest checkpoint) or a checkpoint also another average by its name, such as "power-0.05".
        sampler: a key of `SAMPLER_PRESETS` or "none", in place of what is known of the file.
        settings: fields of the config that the file does not tell, or that are to be others.

    Raises:
        UserError: nothing that can be read as a model, or not the weights that are asked for.
    """
    settings = settings or {}
    if not is_address(str(source)) and (kept := runs.find(Path(source), weights)) is not None:
        return _open_kept(kept, sampler, settings)
    path = locate(source)
    config = known_config(path)
    file = widen(open_file(path))
    if config is None:
        address = str(source).partition("?")[0] if is_address(str(source)) else path.name
        return _open_published(file, address, weights, sampler, settings)
    if weights is not None:
        raise UserError(f"{source} is a model folder, which has one set of weights; leave the choice out")
    config = with_settings(config, settings)
    network = network_tensors(file.specs)
    specs = {name: file.specs[theirs] for name, theirs in network.names.items()}
    expected = {key: value.shape for key, value in skeleton(config).state_dict().items()}
    check_weights(expected, specs, str(path))
    config = config if sampler is None else with_notes(config, "", sampler)
    read = lambda name: file.read(network.names[name])  # noqa: E731
    return Checkpoint(config, str(path), file.files, network.description + file.widened, specs, read)


def _open_kept(kept: runs.Kept, sampler: str | None, settings: Settings) -> Checkpoint:
    """Weights in a checkpoint of a run, which are read together when the first of them is."""
    config = with_settings(kept.config, settings)
    config = config if sampler is None else with_notes(config, "", sampler)
    specs, files = skeleton(config).state_dict(), tuple(sorted(kept.folder.glob("*.safetensors")))
    weights = cache(lambda: runs.read(kept.folder, config, kept.group).state_dict())
    return Checkpoint(config, str(kept.folder), files, kept.text, specs, lambda name: weights()[name])


def _open_published(
    file: WeightFile, address: str, weights: str | None, sampler: str | None, settings: Settings
) -> Checkpoint:
    """A file whose config is read from its tensors' names and shapes."""
    if any(name.startswith("backbone.blocks.") for name in file.specs):
        raise UserError(f"{file.path} holds weights of a model folder, whose {CONFIG} is missing beside it")
    try:
        network = network_tensors(file.specs, weights)
        found = {name: file.specs[theirs] for name, theirs in network.names.items()}
        published, read_published = whole(found, lambda name: file.read(network.names[name]))
        config, names = recognise(published, settings)
        check_constants(config, published, read_published)
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from None
    specs = {ours: joined(theirs, published.__getitem__) for ours, theirs in names.items()}
    size = sum(spec.numel() * (1 if file.widened else spec.element_size()) for spec in specs.values())
    if size > (there := sum(part.stat().st_size for part in file.files)):  # tensors that overlap
        raise UserError(f"{file.path} has {there} bytes, but its tensors claim {size}")
    config = with_notes(config, file.path.name.removesuffix(INDEX_SUFFIX).rsplit(".", 1)[0], sampler)
    files = (address, *(f.name for f in file.files[1:]))
    read_as, licence = network.description + file.widened, licence_of(config, f"{address}/{file.path.name}")
    config = dataclasses.replace(config, provenance=Provenance(files, (), read_as, licence))
    read = lambda ours: joined(names[ours], read_published)  # noqa: E731
    notes = (*_null_class_note(config, file.path), *_depth_note(config, file.path))
    return Checkpoint(config, str(file.path), file.files, read_as, specs, read, notes)


def _null_class_note(config: DenoiserConfig, path: Path) -> Iterator[str]:
    """A table that was trained without dropping labels has no null row, which its shape does not tell."""
    if config.takes_text or config.num_classes == 1000:
        return
    rows = config.num_classes + 1
    yield (
        f"the class table of {path} has {rows} rows, of which the last is taken as the null class: there are "
        f"classes 0 to {rows - 2}. A model trained without label dropout has {rows} classes, and no guidance"
    )


def _depth_note(config: DenoiserConfig, path: Path) -> Iterator[str]:
    """A file without its last blocks is a smaller network: only a preset of its sizes tells."""
    own = (config.backbone, config.detailer)
    for known in PRESETS.values():
        theirs = (known.backbone, known.detailer)
        if all(map(_alike, own, theirs)) and (full := _depths(theirs)) != (depths := _depths(own)):
            yield f"{path} has {depths} blocks; {known.name}, of the same sizes, has {full}. Is it whole?"
            return


def _depths(parts: tuple[Any, ...]) -> str:
    return " and ".join(str(part.depth) for part in parts if hasattr(part, "depth"))


def _alike(own: Any, theirs: Any) -> bool:
    """Whether a part is built as theirs, but for its classes and, perhaps, a smaller depth."""
    if type(theirs) is not type(own) or getattr(own, "depth", 0) > getattr(theirs, "depth", 0):
        return False
    free = {name: getattr(theirs, name) for name in ("depth", "num_classes") if hasattr(own, name)}
    return bool(dataclasses.replace(own, **free) == theirs)


def load_config(source: str | os.PathLike[str], adapter: Adapters | None = None) -> DenoiserConfig:
    """The config of anything that `load` reads, without its weights."""
    if (config := known_config(locate(source))) is None:
        checkpoint = open_checkpoint(source)
        announce(*checkpoint.notes)
        config = checkpoint.config
    return config if adapter is None else config_with(config, adapter)


def load(
    source: str | os.PathLike[str],
    weights: str | None = None,
    adapter: Adapters | None = None,
    **settings: Any,
) -> PixelDenoiser:
    """Read a model; weights keep the dtype they were saved in, on the CPU, in eval mode.

    `model.config.sampler` holds the sampler settings of a published result where they are known;
    `pixelwright.sample` does not use them by itself. A licence notice of the source goes to stderr, once.

    Args:
        source, weights: as for `open_checkpoint`.
        adapter: folders of LoRA adapters to merge into it, one, several, or {folder: weight}.
        settings: fields of the config that the file does not tell, such as in_context_start.

    Raises:
        UserError: anything missing, unknown, mis-shaped, unsafe or cut short, naming file and key; or an
            adapter of another model.
    """
    checkpoint = open_checkpoint(source, weights, settings=settings)
    check_one_dtype(checkpoint)
    # A copy, so that the model does not depend on the file any more.
    tensors = {name: checkpoint.read(name).clone() for name in checkpoint.specs}
    model = with_weights(checkpoint.config, tensors, checkpoint.place)
    model = model if adapter is None else with_adapters(model, adapter)
    announce(*checkpoint.notes)
    announce_licence(model.config)
    return model


def check_one_dtype(checkpoint: Checkpoint) -> None:
    """Raise `UserError` if the weights are of several dtypes, with which the network cannot compute."""
    dtypes = sorted({str(spec.dtype).removeprefix("torch.") for spec in checkpoint.specs.values()})
    if len(dtypes) > 1:
        held = f"{checkpoint.place} holds {' and '.join(dtypes)} weights"
        raise UserError(f"{held}; choose one with `pixelwright convert --dtype`")


_announced: set[str] = set()


def announce(*notices: str) -> None:
    """Print each notice, once a process."""
    for notice in notices:
        if notice not in _announced:
            _announced.add(notice)
            print(f"pixelwright: note: {notice}", file=sys.stderr)


def announce_licence(config: DenoiserConfig) -> None:
    """Print the licence notice of a model's source, once a process."""
    if config.provenance is not None and config.provenance.licence is not None:
        announce(config.provenance.licence)
