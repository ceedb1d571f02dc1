"""Named models in one readable table.

A name is FAMILY-SIZE-PATCH with families `dip` (U-Net detailer), `pixeldit` (PiT detailer; `-postmod` for the
post-modulation blocks), `jit` (JiT, sizes B to G), `dit` (no detailer; `-vanilla`: blocks of the first DiT)
and `RELATIVES`. Sizes B, L and XL are the papers'; ti and s are for small images and CPUs. `FAMILY-t2i` and
`FAMILY-t2i-ti`, which is small, draw from captions.
"""

import dataclasses
from typing import Any, NamedTuple

from pixelwright.errors import UserError, nearest
from pixelwright.models.backbones import PatchDiTConfig
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.detailers.dit_decoder import DiTDecoderConfig
from pixelwright.models.detailers.linear import LinearConfig
from pixelwright.models.detailers.nerf import NerfConfig
from pixelwright.models.detailers.pit import PiTConfig
from pixelwright.models.detailers.pixel_mlp import PixelMLPConfig
from pixelwright.models.detailers.unet import UNetConfig
from pixelwright.models.jit import JiTConfig
from pixelwright.models.mmdit import MMDiTConfig
from pixelwright.models.pixeldit2 import BASE, PixelDiT2Config
from pixelwright.models.prediction import Prediction
from pixelwright.models.text_dit import TextDiTConfig


class Size(NamedTuple):
    depth: int  # N, global blocks
    hidden: int  # D
    heads: int
    pit_depth: int  # M, pixel blocks
    pixel: int  # D_pix
    patches: dict[int, tuple[int, ...]]  # patch size -> channels of the U-Net


_PAPER = (64, 128, 256, 512)
#                N     D  heads  M  D_pix  U-Net channels by patch size
SIZES = {
    "n": Size(4, 128, 4, 2, 8, {4: (16, 64), 8: (16, 48, 128)}),
    "ti": Size(6, 192, 3, 2, 8, {4: (32, 64), 8: (32, 64, 128)}),
    "s": Size(12, 384, 6, 2, 16, {4: (64, 128), 8: (64, 128, 256)}),
    "b": Size(12, 768, 12, 2, 16, {16: _PAPER}),
    "l": Size(22, 1024, 16, 4, 16, {16: _PAPER}),
    "xl": Size(26, 1152, 16, 4, 16, {16: _PAPER, 32: _PAPER}),
}
#                   N    D   heads P  detailer
RELATIVES: dict[str, tuple[int, int, int, int, Any]] = {
    "pixnerd-ti-8": (6, 192, 3, 8, NerfConfig(2, 16)),
    "pixnerd-l-16": (22, 1024, 16, 16, NerfConfig(2, 64)),
    "pixnerd-xl-16": (26, 1152, 16, 16, NerfConfig(4, 64)),
    "deco-ti-8": (6, 192, 3, 8, PixelMLPConfig(2, 16)),
    "deco-l-16": (22, 1024, 16, 16, PixelMLPConfig(3, 32)),
    "deco-xl-16": (28, 1152, 16, 16, PixelMLPConfig(3, 32)),
    "ddt-ti-8": (5, 192, 3, 8, DiTDecoderConfig(1, 3)),
    "ddt-xl-16": (22, 1152, 16, 16, DiTDecoderConfig(6, 16)),
    "flattendit-l-16": (24, 1024, 16, 16, LinearConfig("layer")),
    "flattendit-xl-16": (28, 1152, 16, 16, LinearConfig("layer")),
}
_IMAGE_SIZE = {4: 32, 8: 64, 16: 256, 32: 512}


def _presets() -> dict[str, DenoiserConfig]:
    table = {}

    def add(name: str, backbone: PatchDiTConfig, detailer: Any) -> None:
        side = _IMAGE_SIZE[backbone.patch_size]
        table[name] = DenoiserConfig(backbone, detailer, name=name, image_size=(side, side))

    for size_name, size in SIZES.items():
        for patch, channels in size.patches.items():
            pit = PiTConfig(size.pit_depth, size.pixel, attention_size=size.hidden, num_heads=size.heads)
            backbone = PatchDiTConfig(size.hidden, size.depth, size.heads, patch, num_classes=1000)
            end = f"{size_name}-{patch}"
            add(f"dip-{end}", backbone, UNetConfig(channels))
            add(f"pixeldit-{end}", backbone, pit)
            add(f"pixeldit-{end}-postmod", backbone, dataclasses.replace(pit, post_modulation=True))
            add(f"dit-{end}", backbone, LinearConfig())
            vanilla = dataclasses.replace(backbone, vanilla=True)
            add(f"dit-{end}-vanilla", vanilla, LinearConfig("layer"))
    for name, (depth, hidden, heads, patch, detailer) in RELATIVES.items():
        add(name, PatchDiTConfig(hidden, depth, heads, patch, num_classes=1000), detailer)
    return table


def _text_presets() -> dict[str, DenoiserConfig]:
    """PixelDiT-T2I as published, in its own time and sign; DiP-T2I and the small ones in ours. PixNerd-XXL,
    DeCo-XXL and PixelGen-XXL as published."""
    #                        N  heads P  text: width, tokens
    large = MMDiTConfig(1536, 14, 24, 16, text_size=2304, text_length=300, mask_padding=False)
    small = MMDiTConfig(192, 6, 3, 4, text_size=384, text_length=64)
    ti = SIZES["ti"]
    #                    D     N  heads P  text: width, tokens, blocks
    keys = TextDiTConfig(1536, 16, 24, 16, 2048, 128, 4)
    rows: dict[str, tuple[MMDiTConfig | TextDiTConfig, Any, Prediction, int]] = {
        "pixeldit-t2i": (
            dataclasses.replace(large, sigma_time=True),
            PiTConfig(2, 16, attention_size=1152, num_heads=16),
            "reverse-velocity",
            1024,
        ),
        "dip-t2i": (large, UNetConfig(_PAPER), "velocity", 1024),
        "pixnerd-t2i": (keys, NerfConfig(2, 64, 2, "rotary-16", False, False), "velocity", 512),
        "deco-t2i": (keys, PixelMLPConfig(3, 32, "rotary"), "velocity", 512),
        "pixelgen-t2i": (
            dataclasses.replace(keys, bottleneck=256, absolute_positions=True),
            LinearConfig("layer", modulation=False),
            "x",
            512,
        ),
        "pixeldit-t2i-ti": (small, PiTConfig(ti.pit_depth, ti.pixel, 192, 3), "velocity", 32),
        "dip-t2i-ti": (small, UNetConfig(ti.patches[4]), "velocity", 32),
    }
    return {
        name: DenoiserConfig(backbone, detailer, name=name, prediction=prediction, image_size=(side, side))
        for name, (backbone, detailer, prediction, side) in rows.items()
    }


#        N     D  heads  bottleneck, in-context tokens and first block, dropout, image side by patch size
_JIT = {
    "n": (4, 128, 4, 32, 8, 1, 0.0, {4: 32, 8: 64}),
    "ti": (6, 192, 3, 48, 8, 2, 0.0, {4: 32, 8: 64}),
    "s": (12, 384, 6, 64, 8, 4, 0.0, {4: 32, 8: 64}),
    "b": (12, 768, 12, 128, 32, 4, 0.0, {16: 256, 32: 512, 64: 1024}),
    "l": (24, 1024, 16, 128, 32, 8, 0.0, {16: 256, 32: 512}),
    "h": (32, 1280, 16, 256, 32, 10, 0.2, {16: 256, 32: 512}),
    "g": (40, 1664, 16, 256, 32, 10, 0.2, {16: 256, 32: 512}),
}


def _of_x(name: str, backbone: JiTConfig | PixelDiT2Config, side: int) -> DenoiserConfig:
    """A model that predicts the image, of 1000 classes; its noise grows with the image from 256² on."""
    more: dict[str, Any] = {"noise_scale": max(1.0, side / 256), "image_size": (side, side)}
    return DenoiserConfig(backbone, LinearConfig(channels_last=True), name=name, prediction="x", **more)


def _jit_presets() -> dict[str, DenoiserConfig]:
    """JiT's, and PixelGen's, which is JiT without bottleneck."""
    table = {}
    for size, (depth, hidden, heads, bottleneck, length, start, dropout, sides) in _JIT.items():
        more: dict[str, Any] = {"bottleneck": bottleneck, "dropout": dropout}
        for patch, side in sides.items():
            backbone = JiTConfig(hidden, depth, heads, patch, 1000, length, start, **more)
            name = f"jit-{size}-{patch}"
            table[name] = _of_x(name, backbone, side)
    pixelgen = JiTConfig(1152, 28, 16, 16, 1000, in_context_length=32, in_context_start=8, dropout=0.1)
    return table | {"pixelgen-xl-16": _of_x("pixelgen-xl-16", pixelgen, 256)}


#                    N     D  heads P  side, first block of the in-context tokens, model for 512²
_PIXELDIT2 = {
    "pixeldit2-b-16": (12, 768, 12, 16, 256, 4, False),
    "pixeldit2-l-16": (24, 1024, 16, 16, 256, 8, False),
    "pixeldit2-h-16": (32, 1280, 16, 16, 256, 8, False),
    "pixeldit2-h-16-512": (32, 1280, 16, 16, 512, 8, True),
    "pixeldit2-h-32": (32, 1280, 16, 32, 512, 8, False),
    "pixeldit2-g-32": (40, 1664, 16, 32, 512, 8, False),
}


def _pixeldit2_presets() -> dict[str, DenoiserConfig]:
    """PixelDiT2's; that for 512² has a larger encoder, one SiLU and an MLP of a multiple of 32 channels."""
    table = {}
    for name, (depth, hidden, heads, patch, side, start, large) in _PIXELDIT2.items():
        more: dict[str, Any] = {"grounding_heads": heads, "dropout": 0.2}
        if large:
            more |= {"encoder": BASE, "encoder_size": 768, "single_silu": True}
            more |= {"mlp_size": -(-(8 * hidden // 3) // 32) * 32}
        backbone = PixelDiT2Config(hidden, depth, heads, patch, 1000, 32, start, **more)
        table[name] = _of_x(name, backbone, side)
    return table


PRESETS: dict[str, DenoiserConfig] = _presets() | _jit_presets() | _pixeldit2_presets() | _text_presets()


def preset(name: str, num_classes: int | None = None, **overrides: Any) -> DenoiserConfig:
    """The config of a named model.

    Args:
        name: a key of `PRESETS`.
        num_classes: number of classes, 1000 where none is given; a model of captions has none.
        **overrides: any field of `DenoiserConfig` or of its backbone's config to replace. A PiT detailer
            or DiT decoder whose width and heads equalled the backbone's keeps following it. `detailer` is
            a config or a mapping such as {"type": "unet", "channels": [32, 64]}.

    Raises:
        UserError: unknown name (naming the near ones), unknown override or impossible values.
    """
    if name not in PRESETS:
        hint = nearest(name, PRESETS) or ": pixelwright info lists the presets"
        raise UserError(f'unknown model "{name}"{hint}')
    config = PRESETS[name]
    classes = 1000 if num_classes is None and not config.takes_text else num_classes
    return varied(config, classes, **overrides)


def varied(config: DenoiserConfig, num_classes: int | None = None, **overrides: Any) -> DenoiserConfig:
    """The config of a model with some things changed: see `preset`."""
    name = config.name
    backbone_fields = {f.name for f in dataclasses.fields(config.backbone)} - {"num_classes"}
    denoiser_fields = {f.name for f in dataclasses.fields(DenoiserConfig)} - {"backbone"}
    for key in overrides:
        if key not in backbone_fields | denoiser_fields:
            raise UserError(
                f'unknown setting "{key}" for {name}{nearest(key, backbone_fields | denoiser_fields)}'
            )
    inner = {key: value for key, value in overrides.items() if key in backbone_fields}
    outer = {key: value for key, value in overrides.items() if key in denoiser_fields}
    if not config.takes_text:
        inner["num_classes"] = config.num_classes if num_classes is None else num_classes
    elif num_classes is not None:
        raise UserError(f"{name} draws from captions and has no classes; {num_classes} classes are given")
    old, detailer = config.backbone, config.detailer
    backbone = dataclasses.replace(old, **inner)
    if isinstance(detailer, PiTConfig | DiTDecoderConfig):
        links = {"attention_size": "hidden_size", "num_heads": "num_heads"}
        links = {ours: theirs for ours, theirs in links.items() if hasattr(detailer, ours)}
        if all(getattr(detailer, ours) == getattr(old, theirs) for ours, theirs in links.items()):
            followed = {ours: getattr(backbone, theirs) for ours, theirs in links.items()}
            detailer = dataclasses.replace(detailer, **followed)
    if "patch_size" in inner and "image_size" not in outer:
        outer["image_size"] = None  # the table's size belongs to the table's patch
    return dataclasses.replace(config, **{"backbone": backbone, "detailer": detailer, **outer})
