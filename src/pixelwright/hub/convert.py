"""From one layout to another, one tensor at a time: `pixelwright convert`."""

import dataclasses
import os
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pixelwright.errors import UserError, nearest
from pixelwright.files import replacing, sha256, write_safetensors, write_tensor
from pixelwright.hub.checkpoint import (
    Checkpoint,
    announce,
    announce_licence,
    any_config,
    check_one_dtype,
    locate,
    open_checkpoint,
    open_file,
)
from pixelwright.hub.layout import Settings
from pixelwright.hub.pickles import part_start
from pixelwright.hub.prefixes import SETS
from pixelwright.hub.presets import with_notes
from pixelwright.hub.public import joined, parted, published_form, shapes, swiglu_parts
from pixelwright.models.config import DenoiserConfig, Provenance, from_dict
from pixelwright.models.folder import CONFIG, WEIGHTS, check_finite, check_weights, skeleton, write_weights
from pixelwright.remote import is_address

Layout = Literal["folder", "public"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_PUBLIC_SUFFIXES = (".ckpt", ".pth", ".safetensors")


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    weights: str | None = None,
    to: Layout = "folder",
    dtype: str | None = None,
    sampler: str | None = None,
    settings: Settings | None = None,
) -> DenoiserConfig:
    """Read any model and write it in another layout, without holding it in memory.

    Args:
        source: what `load` reads, or a model folder of the first layout.
        out: the folder to make or, with to="public", the .ckpt, .pth or .safetensors file; not there yet.
        weights: as for `open_checkpoint`.
        to: "folder" for config.json and model.safetensors; "public" for the published key names, with the
            prefixes and dicts of the family in a .ckpt or .pth, without them in a .safetensors.
        dtype: "bf16", "fp16" or "fp32"; by default weights keep theirs.
        sampler: a key of `SAMPLER_PRESETS`, or "none", in place of what is known of the source.
        settings: fields of the config that the source does not tell.

    Returns:
        the config that was written (with to="public", that would have been).

    Raises:
        UserError: a source that cannot be read, weights that are not finite (in the new dtype), or `out`
            exists. Nothing is left behind then.
    """
    out = Path(out)
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f'unknown dtype "{dtype}"{nearest(dtype, DTYPES)}')
    if to not in ("folder", "public"):
        raise UserError(f'unknown layout "{to}"{nearest(to, ("folder", "public"))}')
    _check_out(out, to)
    checkpoint = _open(source, weights, sampler, settings)
    config = checkpoint.config
    if dtype is None:
        check_one_dtype(checkpoint)
    specs = {
        name: torch.empty(spec.shape, dtype=DTYPES[dtype] if dtype else spec.dtype, device="meta")
        for name, spec in checkpoint.specs.items()
    }

    def read(name: str) -> Tensor:
        tensor = checkpoint.read(name)
        if (cast := tensor.to(specs[name].dtype)) is not tensor:
            check_finite(name, cast, f"{checkpoint.place} as {str(cast.dtype).removeprefix('torch.')}")
        return cast

    if to == "folder":
        with replacing(out) as part:
            part.mkdir()
            config = dataclasses.replace(config, provenance=_provenance(checkpoint))
            write_weights(part, config, specs, read)
    else:
        _write_public(out, config, specs, read)
    announce(*checkpoint.notes)
    announce_licence(config)
    return config


def _open(
    source: str | os.PathLike[str], weights: str | None, sampler: str | None, settings: Settings | None
) -> Checkpoint:
    """Anything that `load` reads, and a model folder of the first layout."""
    plain = weights is None and not settings and not is_address(str(source))
    if plain and any_config(folder := locate(source).parent).get("format") == 1:
        return _open_first(folder, sampler)
    return open_checkpoint(source, weights, sampler, settings)


def _open_first(folder: Path, sampler: str | None) -> Checkpoint:
    """A model folder of the first layout: SwiGLU in three matrices, MMDiT's attention unnamed, "recipe"."""
    data = {"sampler" if key == "recipe" else key: value for key, value in any_config(folder).items()}
    del data["format"]
    config, file = from_dict(data, str(folder / CONFIG)), open_file(folder / WEIGHTS)
    config = config if sampler is None else with_notes(config, "", sampler)
    tensors = skeleton(config).state_dict()
    names = {name: swiglu_parts(re.sub(r"\.(image|text)\.attn\.", r".\1.", name)) for name in tensors}
    check_weights(shapes(names, tensors), file.specs, str(file.path))
    specs = {name: joined(theirs, file.specs.__getitem__) for name, theirs in names.items()}
    read = lambda name: joined(names[name], file.read)  # noqa: E731
    return Checkpoint(config, str(folder), file.files, "all tensors", specs, read)


def _check_out(out: Path, to: Layout) -> None:
    if to == "public" and out.suffix not in _PUBLIC_SUFFIXES:
        raise UserError(f"{out} does not end in {', '.join(_PUBLIC_SUFFIXES)}, which says what to write")
    if to == "folder" and out.suffix in _PUBLIC_SUFFIXES:
        raise UserError(f"{out} is named like a file, but a folder is written; name one or give --to public")
    if out.exists() and not (to == "folder" and out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists already; give another name, or remove it first")


def _provenance(checkpoint: Checkpoint) -> Provenance:
    """Every file with its digest. A folder that records where it comes from hands that on."""
    note, files = checkpoint.config.provenance, tuple(file.name for file in checkpoint.files)
    if note is not None and note.sha256:
        return note
    names = note.files if note is not None and len(note.files) == len(files) else files
    digests = tuple(sha256(file) for file in checkpoint.files)
    return Provenance(names, digests, checkpoint.read_as, note.licence if note is not None else None)


def _write_public(
    out: Path, config: DenoiserConfig, specs: Mapping[str, Tensor], read: Callable[[str], Tensor]
) -> None:
    layout, names = published_form(config)
    readers = parted(names, read)
    theirs = {name: spec() for name, spec in parted(names, specs.__getitem__).items()}
    dtype = next(iter(theirs.values())).dtype
    for name, constant in layout.constants(config).items():
        theirs[name] = constant = constant.to(dtype)
        readers[name] = partial(torch.clone, constant)
    if out.suffix == ".safetensors":
        write_safetensors(out, theirs, lambda name: readers[name](), {"format": "pt"})
        return
    raw = config.provenance is not None and "raw weights" in config.provenance.read
    prefix = layout.prefix or SETS["raw" if raw else "ema"]
    prefixed = {prefix + name: spec for name, spec in theirs.items()}
    write_ckpt(out, prefixed, lambda name: readers[name.removeprefix(prefix)](), layout.containers)


def write_ckpt(
    path: Path,
    specs: Mapping[str, Tensor],
    read: Callable[[str], Tensor],
    containers: Sequence[str] = ("state_dict",),
) -> None:
    """Replace a file that `torch.load` reads as {"state_dict": …}, holding one tensor at a time. Several
    `containers` share their tensors.

    PyTorch lays out the archive with room for the values, which are then filled in; so the archive carries no
    checksums of them, as with `torch.serialization.set_crc32_options(False)`.
    """
    # Memory that is never touched is never taken.
    empty = {name: torch.empty(spec.shape, dtype=spec.dtype) for name, spec in specs.items()}
    with replacing(path) as part:
        with torch.serialization.skip_data():
            torch.save(dict.fromkeys(containers, empty), part)
        # Storages are numbered in the order in which the pickle meets them, which is that of the dict.
        with part.open("r+b") as file:
            parts = {member.filename: member for member in zipfile.ZipFile(file).infolist()}
            folder = next(iter(parts)).partition("/")[0]
            for i, (name, spec) in enumerate(specs.items()):
                file.seek(part_start(file, parts[f"{folder}/data/{i}"]))
                write_tensor(file, read(name), spec)
