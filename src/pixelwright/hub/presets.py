"""What is known of the published checkpoints beyond their tensors: sampler presets and licence.

A checkpoint is known by its file name *and* its architecture, so a small network under a famous name gets no
preset. Sources: PixelDiT (arXiv 2511.20645) and DiP (arXiv 2511.18822), as their checkpoints were evaluated.
"""

import dataclasses
import fnmatch
from typing import NamedTuple

from pixelwright.errors import UserError, nearest
from pixelwright.models.config import DenoiserConfig, SamplerPreset, SamplerSettings, TextNote
from pixelwright.models.detailers.pit import PiTConfig
from pixelwright.models.presets import PRESETS
from pixelwright.models.text_dit import TextDiTConfig

NVIDIA = "NVIDIA's PixelDiT weights are for non-commercial use only (their licence is beside the files)"
PERHAPS_NVIDIA = (
    "the file's name says PixelDiT: if these are NVIDIA's weights, they are for non-commercial use only"
)
LICENCES = {
    "pixnerd": "PixNerd's code is under the MIT licence, that of its weights is to be looked up beside them",
    "deco": "DeCo states no licence for its code, that of its weights is to be looked up beside them",
    "pixeldit2": "PixelDiT2's code is under NVIDIA's licence for research or evaluation alone, that of its "
    "weights is to be looked up beside them",
    "ddt": "DDT states no licence for its code, that of its weights is to be looked up beside them",
    "pixelgen": "PixelGen states no licence for its code, that of its weights is to be looked up beside them",
}
"""What is known of other families, by the first word of a model's name; said as what it may be."""
SEED_RULE = "image i is drawn from the noise of (seed, i); the published runs name no seed"
_PIXELDIT = "PixelDiT (arXiv 2511.20645)"


class Published(NamedTuple):
    """Published checkpoints, and the sampler preset that goes with them."""

    sampler: SamplerPreset
    pattern: str | None  # file names, without suffix and in lower case; None: no name tells
    architectures: tuple[str, ...]  # names of model presets
    side: int | None = None  # image size, where it is not the architecture's


def _preset(name: str, settings: SamplerSettings, origin: str) -> SamplerPreset:
    return SamplerPreset(**vars(settings), name=name, seed_rule=SEED_RULE, origin=origin)


def _adm(name: str, fid: float, scale: float, high: float, shift: float = 1.0) -> SamplerPreset:
    """Their "FlowDPMSolver" is ab2-fixed."""
    origin = f"{_PIXELDIT}, FID {fid} on 50,000 images (ADM protocol)"
    settings = SamplerSettings("ab2-fixed", 100, scale, (0.1, high), shift)
    return _preset(name, settings, origin)


def _t2i(name: str, shift: float) -> SamplerPreset:
    """Their grid is σ from 0.999 to 0 before the shift, and the noise is taken as it is."""
    origin = f"{_PIXELDIT}: 25 to 50 steps, guidance 2.75 to 3.5, of which these are in between"
    return _preset(name, SamplerSettings("dpmpp-2m", 30, 3.0, None, shift, 0.001), origin)


def _heun(name: str, paper: str, scale: float, low: float, high: float) -> SamplerPreset:
    origin = f"{paper}, sampling settings of its ImageNet results"
    settings = SamplerSettings("heun", 50, scale, (low, high), guidance_ends="zero")
    return _preset(name, settings, origin)


_JIT, _PIXELDIT2 = "JiT (arXiv 2511.13720)", "PixelDiT2 (arXiv 2609.24919)"
_SMALL2 = _heun("pixeldit2-256", _PIXELDIT2, 2.4, 0.125, 0.9)
_LARGE2 = _heun("pixeldit2-512", _PIXELDIT2, 2.1, 0.1, 0.925)
_GEN = "PixelGen (arXiv 2602.02493), FID 1.83 on 50,000 images after 160 epochs (ADM protocol)"
_GEN_SETTINGS = SamplerSettings("heun", 50, 2.25, (0.1, 0.9), 2.0, guidance_ends="high")
_PIXELGEN = _preset("pixelgen-imagenet256", _GEN_SETTINGS, _GEN)


def _text_keys(name: str) -> SamplerPreset:
    """Of the text-to-image models of PixNerd, DeCo and PixelGen alike."""
    origin = "sampling settings of its text-to-image results at 512²"
    return _preset(name, SamplerSettings("ab2", 25, 4.0, (0.0, 1.0), 3.0), origin)


_DIP = "DiP (arXiv 2511.18822), sampling settings of its ImageNet results"
_DIP_PRESET = _preset("dip-imagenet256", SamplerSettings("euler", 100, 2.9, (0.11, 0.97)), _DIP)
_NERD = "PixNerd (arXiv 2507.23268), FID 1.93 to 1.95 on 50,000 images (ADM protocol)"
_PIXNERD = _preset("pixnerd-imagenet256", SamplerSettings("euler", 100, 3.5, (0.1, 1.0)), _NERD)


_DDT = "DDT (arXiv 2504.05741), sampling settings of its ImageNet results at 256², in latents"
_DDT_PRESET = _preset("ddt-xl", SamplerSettings("euler", 250, 2.0, (0.3, 1.0), last_step=0.04), _DDT)


def _deco(side: int, scale: float, results: str) -> SamplerPreset:
    settings = SamplerSettings("euler", 100, scale, (0.1, 1.0), guidance_ends="high")
    return _preset(f"deco-imagenet{side}", settings, f"DeCo (arXiv 2511.19365), {results} (ADM protocol)")


_XL = ("pixeldit-xl-16",)
PUBLISHED = [
    Published(_adm("pixeldit-xl-epoch80", 2.36, 3.25, 1.0), "*imagenet256_pixeldit_xl_epoch80*", _XL, 256),
    Published(_adm("pixeldit-xl-epoch160", 1.97, 3.25, 1.0), "*imagenet256_pixeldit_xl_epoch160*", _XL, 256),
    Published(_adm("pixeldit-xl-epoch320", 1.61, 2.75, 0.9), "*imagenet256_pixeldit_xl_epoch320*", _XL, 256),
    Published(_adm("pixeldit-xl-512", 1.81, 3.5, 1.0, 2.0), "*imagenet512_pixeldit_xl*", _XL, 512),
    Published(_DIP_PRESET, "*", ("dip-l-16", "dip-xl-16", "dip-xl-32")),
    Published(_heun("jit-b", _JIT, 3.0, 0.1, 1.0), "*", ("jit-b-16", "jit-b-32")),
    Published(_heun("jit-l-16", _JIT, 2.4, 0.1, 1.0), "*", ("jit-l-16",)),
    Published(_heun("jit-l-32", _JIT, 2.5, 0.1, 1.0), "*", ("jit-l-32",)),
    Published(_heun("jit-h-16", _JIT, 2.2, 0.1, 1.0), "*", ("jit-h-16",)),
    Published(_heun("jit-h-32", _JIT, 2.3, 0.1, 1.0), "*", ("jit-h-32",)),
    Published(_SMALL2, "*pixeldit2_h16_in256*", ("pixeldit2-h-16",), 256),
    Published(_LARGE2, "*pixeldit2_h16_in512*", ("pixeldit2-h-16-512",), 512),
    Published(_PIXNERD, "[!r]*", ("pixnerd-xl-16",)),  # not "res512_…", whose settings are not published
    Published(_deco(512, 5.0, "FID 2.22"), "*imagenet512*", ("deco-xl-16",), 512),
    Published(_deco(256, 3.2, "FID 1.71 after 800 epochs"), "*", ("deco-xl-16",)),
    Published(_DDT_PRESET, "*", ("ddt-xl-16",)),
    Published(_PIXELGEN, "*", ("pixelgen-xl-16",)),
    *(Published(_text_keys(name), "*", (name,)) for name in ("pixnerd-t2i", "deco-t2i", "pixelgen-t2i")),
    Published(_t2i("pixeldit-t2i-1024", 4.0), "*", ("pixeldit-t2i",), 1024),
    Published(_t2i("pixeldit-t2i-512", 3.0), None, ("pixeldit-t2i",), 512),
]
SAMPLER_PRESETS = {known.sampler.name: known.sampler for known in PUBLISHED}  # by name


def with_notes(config: DenoiserConfig, stem: str, sampler: str | None = None) -> DenoiserConfig:
    """A config with the image size, sampler preset and text encoder that a published checkpoint is known by.

    Args:
        config: as read from names and shapes.
        stem: the file's name without its suffix.
        sampler: None for what the name and architecture say; else a key of `SAMPLER_PRESETS`, or "none".

    Raises:
        UserError: an unknown preset.
    """
    known = next((p for p in PUBLISHED if _fits(p, config, stem)), None)
    if known is not None and known.side is not None:
        config = dataclasses.replace(config, image_size=(known.side, known.side))
    if known is not None and config.takes_text and config.text is None:
        encoder = "qwen3" if isinstance(config.backbone, TextDiTConfig) else "gemma"
        config = dataclasses.replace(config, text=TextNote(encoder))  # the prefix is not ours to ship
    chosen = known.sampler if known is not None else config.sampler
    return dataclasses.replace(config, sampler=chosen if sampler is None else sampler_preset(sampler))


def sampler_preset(name: str) -> SamplerPreset | None:
    """The sampler preset of a name; "none" is None. Raises UserError for an unknown name."""
    if name != "none" and name not in SAMPLER_PRESETS:
        raise UserError(f'unknown sampler preset "{name}"{nearest(name, [*SAMPLER_PRESETS, "none"])}')
    return SAMPLER_PRESETS.get(name)


def _fits(published: Published, config: DenoiserConfig, stem: str) -> bool:
    shapes = [(PRESETS[name].backbone, PRESETS[name].detailer) for name in published.architectures]
    named = published.pattern is not None and fnmatch.fnmatchcase(stem.lower(), published.pattern)
    return named and (config.backbone, config.detailer) in shapes


def preset_of(config: DenoiserConfig) -> DenoiserConfig | None:
    """The model preset that has this architecture (for 1000 classes), if there is one."""
    architecture = (config.backbone, config.detailer)
    return next((p for p in PRESETS.values() if (p.backbone, p.detailer) == architecture), None)


def licence_of(config: DenoiserConfig, address: str) -> str | None:
    """The notice that goes with weights of this file name or hf:// address."""
    address = address.lower()
    stem = address.rsplit("/", 1)[-1]
    patterns = [f"{known.pattern}.*" for known in PUBLISHED if known.architectures == _XL]
    if address.startswith("hf://nvidia/") or any(fnmatch.fnmatchcase(stem, each) for each in patterns):
        return NVIDIA
    if "pixeldit" in stem and isinstance(config.detailer, PiTConfig):
        return PERHAPS_NVIDIA
    known = LICENCES.get(config.name.split("-")[0])
    return known and f"if these are the published weights: {known}"
