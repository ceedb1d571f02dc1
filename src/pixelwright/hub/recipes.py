"""What is known of the published checkpoints beyond their tensors: sampler settings and licence.

A checkpoint is known by its file name *and* its architecture, so a small network under a famous name gets no
recipe. Sources: PixelDiT (arXiv 2511.20645) and DiP (arXiv 2511.18822), as their checkpoints were evaluated.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from typing import NamedTuple

from pixelwright.errors import UserError, nearest
from pixelwright.models.config import DenoiserConfig, SamplerPreset, TextNote
from pixelwright.models.detailers import PiTConfig
from pixelwright.models.presets import PRESETS

NVIDIA = "NVIDIA's PixelDiT weights are for non-commercial use only (their licence is beside the files)"
PERHAPS_NVIDIA = (
    "the file's name says PixelDiT: if these are NVIDIA's weights, they are for non-commercial use only"
)
SEED_RULE = "image i is drawn from the noise of (seed, i); the published runs name no seed"


class Published(NamedTuple):
    """One published result."""

    pattern: str
    """File names, without suffix and in lower case, that go with it."""
    presets: tuple[str, ...]
    """The architectures it may have."""
    side: int | None
    """Image size, where it is not the preset's."""
    recipe: SamplerPreset


def _adm(name: str, fid: float, scale: float, high: float, shift: float) -> SamplerPreset:
    """PixelDiT: 50,000 images, ADM protocol, "FlowDPMSolver" of 100 steps, which is ab2-fixed."""
    origin = f"PixelDiT (arXiv 2511.20645), FID {fid} on 50,000 images (ADM protocol)"
    return SamplerPreset("ab2-fixed", 100, scale, (0.1, high), shift, name, SEED_RULE, origin)


def _t2i(name: str, shift: float) -> SamplerPreset:
    """PixelDiT from text: DPM-Solver++ 2M on the flow, whose shift is that of training."""
    origin = (
        "PixelDiT (arXiv 2511.20645): 25 to 50 steps, guidance 2.75 to 3.5, of which these are in between"
    )
    return SamplerPreset("dpmpp-2m", 30, 3.0, None, shift, name, SEED_RULE, origin)


_XL = ("pixeldit-xl-16",)
_DIP = SamplerPreset(
    "euler",
    100,
    2.9,
    (0.11, 0.97),
    1.0,
    "dip-imagenet256",
    SEED_RULE,
    "DiP (arXiv 2511.18822), sampling settings of its ImageNet results",
)
#               file name                           architecture  side  name, FID, guidance, its end, shift
PUBLISHED = [
    Published(
        "*imagenet256_pixeldit_xl_epoch80*", _XL, 256, _adm("pixeldit-xl-epoch80", 2.36, 3.25, 1.0, 1.0)
    ),
    Published(
        "*imagenet256_pixeldit_xl_epoch160*", _XL, 256, _adm("pixeldit-xl-epoch160", 1.97, 3.25, 1.0, 1.0)
    ),
    Published(
        "*imagenet256_pixeldit_xl_epoch320*", _XL, 256, _adm("pixeldit-xl-epoch320", 1.61, 2.75, 0.9, 1.0)
    ),
    Published("*imagenet512_pixeldit_xl*", _XL, 512, _adm("pixeldit-xl-512", 1.81, 3.5, 1.0, 2.0)),
    Published("*", ("dip-l-16", "dip-xl-16", "dip-xl-32"), None, _DIP),
    Published("*", ("pixeldit-t2i",), 1024, _t2i("pixeldit-t2i-1024", 4.0)),
]
RECIPES = {published.recipe.name: published.recipe for published in PUBLISHED}
RECIPES["pixeldit-t2i-512"] = _t2i("pixeldit-t2i-512", 3.0)  # the same network; no file's name tells


def with_notes(config: DenoiserConfig, stem: str, recipe: str | None = None) -> DenoiserConfig:
    """A config with the name, image size and recipe that a published checkpoint is known by.

    Args:
        config: as read from names and shapes.
        stem: the file's name without its suffix.
        recipe: None for what the name and architecture say; else a key of `RECIPES`, or "none".

    Raises:
        UserError: an unknown recipe.
    """
    known = next((p for p in PUBLISHED if _fits(p, config, stem)), None)
    if known is not None and known.side is not None:
        config = dataclasses.replace(config, image_size=(known.side, known.side))
    if known is not None and config.takes_text and config.text is None:
        config = dataclasses.replace(config, text=TextNote("gemma"))  # the prefix is not ours to ship
    chosen = known.recipe if known is not None else config.sampler
    return dataclasses.replace(config, sampler=chosen if recipe is None else named(recipe))


def named(recipe: str) -> SamplerPreset | None:
    """The recipe of a name; "none" is None. Raises UserError for an unknown name."""
    if recipe != "none" and recipe not in RECIPES:
        raise UserError(f'unknown recipe "{recipe}"{nearest(recipe, [*RECIPES, "none"])}')
    return RECIPES.get(recipe)


def _fits(published: Published, config: DenoiserConfig, stem: str) -> bool:
    shapes = [(PRESETS[name].backbone, PRESETS[name].detailer) for name in published.presets]
    return fnmatch.fnmatchcase(stem.lower(), published.pattern) and (
        (config.backbone, config.detailer) in shapes
    )


def preset_of(config: DenoiserConfig) -> DenoiserConfig | None:
    """The preset that has this architecture (for 1000 classes), if there is one."""
    architecture = (config.backbone, config.detailer)
    return next((p for p in PRESETS.values() if (p.backbone, p.detailer) == architecture), None)


def licence_of(config: DenoiserConfig, address: str) -> str | None:
    """The notice that goes with weights of this file name or hf:// address."""
    address = address.lower()
    stem = address.rsplit("/", 1)[-1]
    if address.startswith("hf://nvidia/") or any(
        fnmatch.fnmatchcase(stem, p.pattern + ".*") for p in PUBLISHED if p.pattern != "*"
    ):
        return NVIDIA
    return PERHAPS_NVIDIA if "pixeldit" in stem and isinstance(config.detailer, PiTConfig) else None
