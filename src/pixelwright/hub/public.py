"""Published checkpoints as models and back: tensors under the key names of `layouts`.

`from_public` reads sizes, depth, heads, patch size and variant from names and shapes alone, so no
configuration file is needed beside a checkpoint.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pixelwright.errors import UserError, nearest
from pixelwright.hub import layouts
from pixelwright.hub.layout import Layout, Settings, Table
from pixelwright.hub.prefixes import network_tensors
from pixelwright.hub.presets import preset_of
from pixelwright.hub.text_layouts import TEXT_LAYOUTS
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import check_weights, shorten, skeleton, with_weights

LAYOUTS = (*layouts.LAYOUTS, *TEXT_LAYOUTS)
Names = dict[str, tuple[str, ...]]
"""Our name -> the published ones; where there are several, ours is their rows one after the other."""


class _NoNameError(UserError):
    """A layout has no name for one of our tensors."""


def published_form(config: DenoiserConfig) -> tuple[Layout, Names]:
    """The published form of a config's networks: a layout whose file would be read as this very config, and
    our name -> published names, for every tensor. Raises UserError: they have none."""
    if config.placement != "post-hoc":
        raise UserError(f'placement "{config.placement}" has no published layout; only "post-hoc" has one')
    kinds = (type(config.backbone), type(config.detailer))
    tensors = skeleton(config).state_dict()
    for layout in (layout for layout in LAYOUTS if kinds in layout.parts):
        try:
            names = _names(tensors, layout.table(config))
        except _NoNameError:
            continue
        told = {
            name: getattr(config.backbone if hasattr(config.backbone, name) else config.detailer, name)
            for name in layout.untold
        }
        specs = {name: read() for name, read in parted(names, tensors.__getitem__).items()}
        try:
            found = with_settings(layout.infer(specs, told), told)
        except UserError:  # parts of the published network are missing, such as attention in an ablation
            continue
        parts = ("backbone", "detailer", "prediction")
        if all(getattr(found, part) == getattr(config, part) for part in parts):
            return layout, names
    words = " with ".join(kind.__name__.removesuffix("Config") for kind in kinds)
    families = ", ".join(layout.family for layout in LAYOUTS)
    raise UserError(
        f"{config.name} ({words}, predicting {config.prediction}) has no published layout as it is; the "
        f"networks of {families} have one"
    )


def _names(tensors: Iterable[str], table: Table) -> Names:
    one = any(ours.endswith(".w13.") for ours, _ in table)
    return {
        name: tuple(_rename(part, table) for part in ((name,) if one else swiglu_parts(name)))
        for name in tensors
    }


def swiglu_parts(name: str) -> tuple[str, ...]:
    """SwiGLU's w13 is published as w1 and w3."""
    return (name.replace(".w13.", ".w1."), name.replace(".w13.", ".w3.")) if ".w13." in name else (name,)


def joined(theirs: Sequence[str], read: Callable[[str], Tensor]) -> Tensor:
    """One of our tensors from the published ones; a single one is not copied."""
    parts = [read(name) for name in theirs]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def whole(
    specs: Mapping[str, Tensor], read: Callable[[str], Tensor]
) -> tuple[dict[str, Tensor], Callable[[str], Tensor]]:
    """Tensors under published names, from those of a file. ComfyUI keeps the modulation of a pixel block in
    halves for attention and MLP, [P²·3·D_pix, …] each, which are [P², 6·D_pix, …] together."""
    pixel = specs.get("pixel_embedder.proj.weight")
    unit = 3 * len(pixel) if pixel is not None and pixel.ndim else 0
    halves: dict[str, tuple[str, str]] = {}
    for name, spec in specs.items():
        other = name.replace("_msa.", "_mlp.")
        match = re.match(r"(pixel_blocks\.\d+\.adaLN_modulation)_msa\.", name)
        fits = other in specs and specs[other].shape == spec.shape and unit and spec.ndim
        if match and fits and len(spec) % unit == 0:
            halves[f"{match[1]}.0.{name[match.end() :]}"] = (name, other)

    def merged(name: str, read: Callable[[str], Tensor]) -> Tensor:
        if name not in halves:
            return read(name)
        return torch.cat([read(half).unflatten(0, (-1, unit)) for half in halves[name]], 1).flatten(0, 1)

    kept = specs.keys() - {half for pair in halves.values() for half in pair}
    names = [name for name in specs if name in kept] + list(halves)
    return {name: merged(name, specs.__getitem__) for name in names}, lambda name: merged(name, read)


def parted(names: Names, read: Callable[[str], Tensor]) -> dict[str, Callable[[], Tensor]]:
    """The inverse of `joined`: published name -> what reads that tensor from ours, for every tensor."""

    def reader(ours: str, count: int, part: int) -> Callable[[], Tensor]:
        return lambda: read(ours) if count == 1 else read(ours).chunk(count)[part]

    return {
        name: reader(ours, len(theirs), part)
        for ours, theirs in names.items()
        for part, name in enumerate(theirs)
    }


def shapes(names: Names, ours: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The shapes that tensors under other names must have to become these."""
    return {name: read().shape for name, read in parted(names, ours.__getitem__).items()}


def _rename(name: str, table: Table) -> str:
    for ours, theirs in table:
        match = re.match(re.escape(ours).replace(r"\#", r"(\d+)"), name)
        if match:
            return theirs.replace("#", match[1] if match.groups() else "") + name[match.end() :]
    raise _NoNameError(f"{name} has no published name")


def from_public(state_dict: Mapping[str, Tensor], **settings: Any) -> PixelDenoiser:
    """The model of a published checkpoint's tensors, with or without their prefixes.

    Families are told apart, and sizes found, by key names and shapes. Weights keep their dtype, copied.

    Args:
        settings: what neither names nor shapes tell, by the names of the fields of a `DenoiserConfig` or its
            backbone's config, such as in_context_start.

    Raises UserError: not such a checkpoint, or missing, extra or mis-shaped keys (at most ten are named); an
    unknown setting, or one that is missing.
    """
    found = network_tensors(state_dict).names
    read = lambda name: state_dict[found[name]].detach().clone()  # noqa: E731
    published, read = whole({name: state_dict[theirs] for name, theirs in found.items()}, read)
    config, names = recognise(published, settings)
    check_constants(config, published, read)
    return with_weights(config, {ours: joined(theirs, read) for ours, theirs in names.items()}, "checkpoint")


def recognise(
    weights: Mapping[str, Tensor], settings: Settings | None = None
) -> tuple[DenoiserConfig, Names]:
    """The config of bare tensors under published names, and the published names of each of our names. Values
    are not looked at, so tensors on the meta device will do. Raises UserError: as `from_public`."""
    layout = _family(weights)
    _check_settings(settings or {}, *layout.parts[0])
    place = f"read as {layout.family}"
    try:
        config = with_settings(layout.infer(weights, settings or {}), settings or {})
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    if (known := preset_of(config)) is not None:
        name, size = known.name, config.image_size or known.image_size
    else:
        name, size = layout.family.lower(), config.image_size
        name += "-text" if config.takes_text and not name.endswith("-t2i") else ""
    config = dataclasses.replace(config, name=name, image_size=size)
    tensors = skeleton(config).state_dict()
    names = _names(tensors, layout.table(config))
    kept = {name: value for name, value in weights.items() if name != TABLE}
    check_weights(shapes(names, tensors), kept, place)
    return config, names


TABLE = "pos_embed"
"""A table of positions, which is no weight; files of several programs hold one, whether used or not."""


def check_constants(
    config: DenoiserConfig, weights: Mapping[str, Tensor], read: Callable[[str], Tensor]
) -> None:
    """Raise UserError where a tensor of a file that we compute ourselves is another one there."""
    if TABLE not in weights:
        return
    for name, expected in published_form(config)[0].constants(config).items():
        found = read(name)
        if found.shape != expected.shape or not torch.allclose(found.float(), expected, rtol=0, atol=0.01):
            raise UserError(
                f'"{name}" {list(found.shape)} is not the table that {config.name} computes, '
                f"{list(expected.shape)}; such a network cannot be read"
            )


def _family(weights: Mapping[str, Tensor]) -> Layout:
    """The one whose keys these are. Raises UserError: none or several, naming them."""
    found = [layout for layout in LAYOUTS if layout.marked(weights)]
    if len(found) == 1:
        return found[0]
    if found:
        several = "both " + " and ".join(layout.family for layout in found)
        raise UserError(f"the checkpoint has the keys of {several}; give a single network's tensors")
    known, begin = (layout.family for layout in LAYOUTS), ", ".join(map(shorten, sorted(weights)[:3]))
    raise UserError(
        f"the keys ({begin or 'none'}, …) are those of no known network ({', '.join(known)}), or of a part "
        "of one: give the file of a whole network"
    )


def with_settings(config: DenoiserConfig, settings: Settings) -> DenoiserConfig:
    """A config with some fields of its backbone, its detailer or itself replaced, where the first that has
    such a field is meant. Raises UserError: an unknown field."""
    fields = _check_settings(settings, type(config.backbone), type(config.detailer))
    backbone, detailer, more = (
        {key: value for key, value in settings.items() if fields[key] == place} for place in range(3)
    )
    more["backbone"] = dataclasses.replace(config.backbone, **backbone)
    if detailer:
        more["detailer"] = dataclasses.replace(more.get("detailer", config.detailer), **detailer)
    return dataclasses.replace(config, **more)


def _check_settings(settings: Settings, *parts: type) -> dict[str, int]:
    """In which of these configs, of which `DenoiserConfig` is the last, a field is. Raises UserError: a
    setting is in none of them."""
    places: dict[str, int] = {}
    for place, part in enumerate((*parts, DenoiserConfig)):
        places = {field.name: place for field in dataclasses.fields(part)} | places
    for key in settings:
        if key not in places:
            raise UserError(f'unknown setting "{key}" for such a network{nearest(key, places)}')
    return places


def to_public(model: PixelDenoiser) -> dict[str, Tensor]:
    """The tensors of a model under the published key names, without prefix; `from_public` reads them back.
    Raises UserError: the model has no published layout."""
    weights = model.state_dict()
    layout, names = published_form(model.config)
    readers = parted(names, lambda name: weights[name].detach())
    constants = {name: value.to(model.dtype) for name, value in layout.constants(model.config).items()}
    return {name: read() for name, read in readers.items()} | constants
