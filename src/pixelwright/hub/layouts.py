"""The key names of published checkpoints, family by family, and what names and shapes say of a network.

A family is a `Layout` in `LAYOUTS`: the keys that tell its files from others, a table of names, and a
function that reads the config from shapes. `public` does the rest.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.hub.layout import (
    Layout,
    Settings,
    Specs,
    Table,
    classes_of,
    count_of,
    embedder_of,
    heads_of,
    shape_of,
)
from pixelwright.models.backbones import PatchDiTConfig
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.detailers.dit_decoder import DiTDecoderConfig
from pixelwright.models.detailers.linear import LinearConfig
from pixelwright.models.detailers.nerf import NerfConfig
from pixelwright.models.detailers.pit import PiTConfig
from pixelwright.models.detailers.pixel_mlp import PixelMLPConfig
from pixelwright.models.detailers.unet import UNetConfig
from pixelwright.models.jit import JiTConfig
from pixelwright.models.layers import positions_2d
from pixelwright.models.mmdit import MMDiTConfig
from pixelwright.models.pixeldit2 import BASE, SMALL, PixelDiT2Config
from pixelwright.models.presets import PRESETS

_EMBEDDERS = [
    ("backbone.time_embedder.mlp.", "t_embedder.mlp."),
    ("backbone.class_embedder.table.", "y_embedder.embedding_table."),
]
_COMMON = [("backbone.patch_embedder.", "s_embedder.proj."), *_EMBEDDERS]


def _blocks(theirs: str, adaLN: int = 0) -> list[tuple[str, str]]:
    """The global blocks, whose modulation is the layer `adaLN` of a Sequential."""
    return [
        ("backbone.blocks.#.adaLN.", f"{theirs}.#.adaLN_modulation.{adaLN}."),
        ("backbone.blocks.#.", f"{theirs}.#."),
    ]


# ---------------------------------------------------------------- PixelDiT
_PIT = [
    ("detailer.pixel_embedder.", "pixel_embedder.proj."),
    ("detailer.blocks.#.adaLN.", "pixel_blocks.#.adaLN_modulation.0."),
    ("detailer.blocks.#.compress.", "pixel_blocks.#.compress_to_attn."),
    ("detailer.blocks.#.expand.", "pixel_blocks.#.expand_from_attn."),
    ("detailer.blocks.#.", "pixel_blocks.#."),
    ("detailer.norm.", "final_layer.norm."),
    ("detailer.out.", "final_layer.linear."),
]
_TEXT = [("backbone.text_embedder.positions", "y_pos_embedding"), ("backbone.text_embedder.", "y_embedder.")]
for _ours, _letter, _short in (("image", "x", "img"), ("text", "y", "txt")):
    _stream, _block = f"backbone.blocks.#.{_ours}.", "patch_blocks.#."
    _TEXT += [
        (f"{_stream}adaLN.", f"{_block}adaLN_modulation_{_short}.0."),
        (f"{_stream}norm1.", f"{_block}norm_{_letter}1."),
        (f"{_stream}norm2.", f"{_block}norm_{_letter}2."),
        (f"{_stream}mlp.", f"{_block}mlp_{_letter}."),
    ]
    _TEXT += [
        (f"{_stream}attn.{part}.", f"{_block}attn.{part}_{_letter}.")
        for part in ("qkv", "q_norm", "k_norm", "proj")
    ]


def _pixeldit(config: DenoiserConfig) -> Table:
    return [*_COMMON, *(_TEXT if config.takes_text else []), *_PIT, *_blocks("patch_blocks")]


def _infer_pixeldit(weights: Specs, settings: Settings) -> DenoiserConfig:
    hidden_size, patch_size = embedder_of(weights)
    depth = count_of(weights, "patch_blocks")
    if "y_pos_embedding" not in weights:
        num_heads = heads_of(weights, "patch_blocks.0.attn.q_norm.weight", hidden_size)
        classes = PatchDiTConfig(hidden_size, depth, num_heads, patch_size, classes_of(weights))
        return DenoiserConfig(classes, _infer_pit(weights, patch_size))
    num_heads = heads_of(weights, "patch_blocks.0.attn.q_norm_x.weight", hidden_size)
    text_size = shape_of(weights, "y_embedder.proj.weight", 2)[1]
    length = shape_of(weights, "y_pos_embedding", 3)[1]
    backbone = MMDiTConfig(hidden_size, depth, num_heads, patch_size, text_size, length, False, True)
    return DenoiserConfig(backbone, _infer_pit(weights, patch_size), prediction="reverse-velocity")


def _infer_pit(weights: Specs, patch_size: int) -> PiTConfig:
    """Its first block tells the variant: 6 modulation values per pixel channel, or 4 (post-modulation)."""
    pixel_size, _ = shape_of(weights, "pixel_embedder.proj.weight", 2)
    attention_size, _ = shape_of(weights, "pixel_blocks.0.compress_to_attn.weight", 2)
    rows, _ = shape_of(weights, key := "pixel_blocks.0.adaLN_modulation.0.weight", 2)
    unit = patch_size**2 * pixel_size
    if rows not in (4 * unit, 6 * unit):
        fits = f"{6 * unit} (pre-modulation) or {4 * unit} (post-modulation)"
        raise UserError(f'"{key}" has {rows} rows; {fits} are expected')
    num_heads = heads_of(weights, "pixel_blocks.0.attn.q_norm.weight", attention_size)
    depth, post = count_of(weights, "pixel_blocks"), rows == 4 * unit
    return PiTConfig(depth, pixel_size, attention_size, num_heads, post_modulation=post)


# ---------------------------------------------------------------- DiP
def _dip(config: DenoiserConfig) -> Table:
    """DiP numbers the levels from 1 on the way down and back to 1 on the way up."""
    levels = len(config.detailer.channels)
    table = [*_COMMON, *_blocks("blocks")]
    table += [
        ("detailer.bottleneck.", "local_decoder.bottleneck.0."),
        ("detailer.out.", "local_decoder.out_conv."),
    ]
    for i in range(levels):
        table += [
            (f"detailer.down.{i}.conv.", f"local_decoder.enc{i + 1}.0."),
            (f"detailer.up.{i}.upsample.", f"local_decoder.up{levels - i}."),
            (f"detailer.up.{i}.conv.", f"local_decoder.dec{levels - i}.0."),
        ]
    return table


def _infer_dip(weights: Specs, settings: Settings) -> DenoiserConfig:
    channels: list[int] = []
    key = "local_decoder.enc1.0.weight"
    while not channels or key in weights:  # the first one has to be there
        channels.append(shape_of(weights, key, 4)[0])
        key = f"local_decoder.enc{len(channels) + 1}.0.weight"
    return DenoiserConfig(infer_patch_dit(weights, "blocks"), UNetConfig(tuple(channels)))


def infer_patch_dit(weights: Specs, blocks: str, embedder: str = "s_embedder.proj.weight") -> PatchDiTConfig:
    """The backbone of both papers and of PixNerd, DeCo and DDT, from its published names."""
    hidden_size, patch_size = embedder_of(weights, embedder)
    num_heads = heads_of(weights, f"{blocks}.0.attn.q_norm.weight", hidden_size)
    return PatchDiTConfig(hidden_size, count_of(weights, blocks), num_heads, patch_size, classes_of(weights))


# ---------------------------------------------------------------- PixNerd, DeCo and their baseline
_CLASSES = [*_COMMON, *_blocks("blocks")]
_PIXELS = ("detailer.pixel_embedder.linear.", "x_embedder.embedder.0.")


def pixnerd_head(config: DenoiserConfig) -> Table:
    """The field blocks go on with the numbers of the global ones."""
    table = [_PIXELS]
    for i in range(config.detailer.depth):
        theirs = f"blocks.{config.backbone.depth + i}."
        table.append((f"detailer.blocks.{i}.generator.", f"{theirs}param_generator1.0."))
        table.append((f"detailer.blocks.{i}.", theirs))
    return [*table, ("detailer.norm.", "final_layer.norm."), ("detailer.out.", "final_layer.linear.")]


def field_of(weights: Specs) -> NerfConfig:
    """PixNerd's field blocks, whose last is the last of `blocks`."""
    key = f"blocks.{count_of(weights, 'blocks') - 1}.param_generator1.0.weight"
    rows, size = shape_of(weights, key, 2)[0], shape_of(weights, "x_embedder.embedder.0.weight", 2)[0]
    ratio, rest = divmod(rows, 2 * size**2)
    if rest or not ratio:
        raise UserError(f'"{key}" has {rows} rows; a multiple of {2 * size**2} is expected')
    return NerfConfig(sum(name.endswith(".param_generator1.0.weight") for name in weights), size, ratio)


def _infer_pixnerd(weights: Specs, settings: Settings) -> DenoiserConfig:
    backbone, field = infer_patch_dit(weights, "blocks"), field_of(weights)
    return DenoiserConfig(replace(backbone, depth=backbone.depth - field.depth), field)


DECO_HEAD = [
    _PIXELS,
    ("detailer.token_to_pixels.", "dec_net.cond_embed."),
    ("detailer.proj.", "dec_net.input_proj."),
    ("detailer.blocks.#.norm.", "dec_net.res_blocks.#.in_ln."),
    ("detailer.blocks.#.adaLN.", "dec_net.res_blocks.#.adaLN_modulation.1."),
    ("detailer.blocks.#.", "dec_net.res_blocks.#."),
    ("detailer.out.", "dec_net.final_layer.linear."),
]


def _infer_deco(weights: Specs, settings: Settings) -> DenoiserConfig:
    size, _ = shape_of(weights, "dec_net.input_proj.weight", 2)
    detailer = PixelMLPConfig(count_of(weights, "dec_net.res_blocks"), size)
    return DenoiserConfig(infer_patch_dit(weights, "blocks"), detailer)


_FLATTENDIT = [
    ("backbone.patch_embedder.", "x_embedder.proj."),
    *_EMBEDDERS,
    *_blocks("blocks"),
    ("detailer.norm.", "final_layer.norm."),  # which DiT-only has, and no file of this form
    ("detailer.adaLN.", "final_layer.adaLN_modulation.0."),
    ("detailer.out.", "final_layer.linear."),
]


def _infer_flattendit(weights: Specs, settings: Settings) -> DenoiserConfig:
    """It may predict the clean image ("Baseline_DiT_JiT"), which only the setting `prediction` tells."""
    return DenoiserConfig(infer_patch_dit(weights, "blocks", "x_embedder.proj.weight"), LinearConfig("layer"))


def _ddt(config: DenoiserConfig) -> Table:
    """The decoder's blocks go on with the numbers of the global ones."""
    table = [*_COMMON, *_blocks("blocks"), ("detailer.embedder.", "x_embedder.proj.")]
    for i in range(config.detailer.depth):
        theirs = f"blocks.{config.backbone.depth + i}."
        table.append((f"detailer.blocks.{i}.adaLN.", f"{theirs}adaLN_modulation.0."))
        table.append((f"detailer.blocks.{i}.", theirs))
    return [*table, *_FLATTENDIT[-2:]]


def _infer_ddt(weights: Specs, settings: Settings) -> DenoiserConfig:
    """How many of its blocks are the decoder's, only a preset of its sizes or the setting `depth` tells."""
    backbone = infer_patch_dit(weights, "blocks")
    total, depth = backbone.depth, settings.get("depth")
    for known in PRESETS.values():
        if depth is None and isinstance(known.detailer, DiTDecoderConfig):
            found = (known.backbone.hidden_size, known.backbone.depth + known.detailer.depth)
            depth = known.backbone.depth if found == (backbone.hidden_size, total) else None
    if depth is None or not 0 < depth < total:
        raise UserError(
            f"the checkpoint has {total} blocks, of the encoder and the decoder: give the encoder's depth"
        )
    detailer = DiTDecoderConfig(total - depth, backbone.num_heads)
    return DenoiserConfig(replace(backbone, depth=depth), detailer)


# ---------------------------------------------------------------- JiT, PixelGen
def _jit(config: DenoiserConfig) -> Table:
    embedder = "x_embedder.proj1." if config.backbone.bottleneck is None else "x_embedder.proj2."
    return [
        ("backbone.bottleneck.", "x_embedder.proj1."),
        ("backbone.patch_embedder.", embedder),
        ("backbone.in_context.positions", "in_context_posemb"),
        *_EMBEDDERS,
        ("backbone.blocks.#.mlp.w13.", "blocks.#.mlp.w12."),
        ("backbone.blocks.#.mlp.w2.", "blocks.#.mlp.w3."),
        *_blocks("blocks", adaLN=1),
        ("detailer.norm.", "final_layer.norm_final."),
        ("detailer.adaLN.", "final_layer.adaLN_modulation.1."),
        ("detailer.out.", "final_layer.linear."),
    ]


def _infer_jit(weights: Specs, settings: Settings) -> DenoiserConfig:
    width, _, patch_size, _ = shape_of(weights, "x_embedder.proj1.weight", 4)
    split = "x_embedder.proj2.weight" in weights
    hidden_size = shape_of(weights, "x_embedder.proj2.weight", 4)[0] if split else width
    mlp_size = shape_of(weights, "blocks.0.mlp.w12.weight", 2)[0] // 2
    common = common_of(JiTConfig, weights, settings, "blocks", hidden_size, mlp_size)
    backbone = JiTConfig(**common, patch_size=patch_size, bottleneck=width if split else None)
    size = size_of_table(weights, patch_size)
    more: dict[str, Any] = {"noise_scale": max(1.0, size[0] / 256) if size else 1.0, "image_size": size}
    return DenoiserConfig(backbone, LinearConfig(channels_last=True), prediction="x", **more)


# ---------------------------------------------------------------- PixelDiT2
_GROUNDING = "dino_conditioner.dino_proj."


def _pixeldit2(config: DenoiserConfig) -> Table:
    return [
        ("backbone.grounding.input.", f"{_GROUNDING}input_proj."),
        ("backbone.grounding.output.", f"{_GROUNDING}output_proj."),
        ("backbone.grounding.time_embedder.mlp.", f"{_GROUNDING}t_embedder.mlp."),
        ("backbone.grounding.blocks.#.adaLN.", f"{_GROUNDING}blocks.#.adaLN_modulation.1."),
        ("backbone.grounding.blocks.#.", f"{_GROUNDING}blocks.#."),
        *_COMMON,
        ("backbone.in_context.positions", "in_context_posemb"),
        *_blocks("patch_blocks", adaLN=1),
        ("detailer.norm.", "final_layer.norm."),
        ("detailer.adaLN.", "final_layer.adaLN_modulation.1."),
        ("detailer.out.", "final_layer.linear."),
    ]


def _infer_pixeldit2(weights: Specs, settings: Settings) -> DenoiserConfig:
    hidden_size, patch_size = embedder_of(weights)
    mlp_size = shape_of(weights, "patch_blocks.0.mlp.w1.weight", 2)[0]
    encoder_size = shape_of(weights, f"{_GROUNDING}input_proj.weight", 2)[1]
    large = encoder_size > PixelDiT2Config.encoder_size  # of the model for 512²
    backbone = PixelDiT2Config(
        **common_of(PixelDiT2Config, weights, settings, "patch_blocks", hidden_size, mlp_size),
        patch_size=patch_size,
        encoder=BASE if large else SMALL,
        encoder_size=encoder_size,
        grounding_depth=count_of(weights, f"{_GROUNDING}blocks"),
        grounding_heads=heads_of(weights, f"{_GROUNDING}blocks.0.attn.q_norm.weight", hidden_size),
        single_silu=large,
    )
    noise_scale = 2.0 if large else 1.0
    return DenoiserConfig(backbone, LinearConfig(channels_last=True), prediction="x", noise_scale=noise_scale)


def common_of(
    kind: type, weights: Specs, settings: Settings, blocks: str, hidden_size: int, mlp_size: int
) -> dict[str, Any]:
    """What the configs of JiT and PixelDiT2 share. The block before which the in-context tokens come in, and
    the dropout, which no file tells, are those of the preset of these sizes. Raises UserError: there is none,
    and `settings` do not tell that block."""
    sizes = {"hidden_size": hidden_size, "depth": count_of(weights, blocks)}
    sizes["num_heads"] = heads_of(weights, f"{blocks}.0.attn.q_norm.weight", hidden_size)
    presets: list[Any] = [each.backbone for each in PRESETS.values() if type(each.backbone) is kind]
    known = next((b for b in presets if all(getattr(b, key) == sizes[key] for key in sizes)), None)
    length = start = 0
    if "in_context_posemb" in weights:
        length = shape_of(weights, "in_context_posemb", 3)[1]
        if known is None and "in_context_start" not in settings:
            raise UserError(
                "the checkpoint does not tell before which block its in-context tokens come in, and no "
                "preset has its sizes: give in_context_start"
            )
        start = settings.get("in_context_start", known and known.in_context_start)
    return {
        **sizes,
        "num_classes": classes_of(weights),
        "in_context_length": length,
        "in_context_start": start,
        "mlp_size": None if mlp_size == 8 * hidden_size // 3 else mlp_size,
        "dropout": 0.0 if known is None else known.dropout,
    }


def size_of_table(weights: Specs, patch_size: int) -> tuple[int, int] | None:
    """The size of the images of a table of positions, which are square; None where there is no table."""
    side = math.isqrt(shape_of(weights, "pos_embed", 3)[1]) * patch_size if "pos_embed" in weights else 0
    return (side, side) if side else None


def position_table(config: DenoiserConfig) -> dict[str, Tensor]:
    """JiT's fixed positions, which its files hold. Raises UserError: of which size is not known."""
    if config.image_size is None:
        raise UserError(f"{config.name} has no image_size, which its published layout needs: give one")
    rows, columns = (side // config.patch_size for side in config.image_size)
    table = positions_2d(rows, columns, config.backbone.hidden_size, torch.device("cpu"))
    return {"pos_embed": table.flatten(1).T[None].contiguous()}


_GROUNDED = ("encoder", "single_silu")
_MMDIT, _PATCH = (MMDiTConfig, PiTConfig), (PatchDiTConfig, PiTConfig)
_CONTEXT = ("in_context_start", "dropout")
LAYOUTS = (
    Layout("PixelDiT", ("pixel_embedder.proj.weight",), (_PATCH, _MMDIT), _pixeldit, _infer_pixeldit),
    Layout("DiP", ("local_decoder.out_conv.weight",), ((PatchDiTConfig, UNetConfig),), _dip, _infer_dip),
    Layout(
        "JiT",
        ("x_embedder.proj1.weight", "!y_pos_embedding"),
        ((JiTConfig, LinearConfig),),
        *(_jit, _infer_jit, (*_CONTEXT, "attention_dropout"), position_table),
        prefix="net.",
        containers=("model", "model_ema1", "model_ema2"),
    ),
    Layout(
        "PixelDiT2",
        (f"{_GROUNDING}input_proj.weight",),
        ((PixelDiT2Config, LinearConfig),),
        *(_pixeldit2, _infer_pixeldit2, (*_CONTEXT, *_GROUNDED)),
    ),
    Layout(
        "PixNerd",
        ("x_embedder.embedder.0.weight", "!dec_net.input_proj.weight", "!y_pos_embedding"),
        *(((PatchDiTConfig, NerfConfig),), lambda config: [*_CLASSES, *pixnerd_head(config)], _infer_pixnerd),
    ),
    Layout(
        "DeCo",
        ("dec_net.input_proj.weight", "!y_pos_embedding"),
        *(((PatchDiTConfig, PixelMLPConfig),), lambda config: [*_CLASSES, *DECO_HEAD], _infer_deco),
    ),
    Layout(
        "FlattenDiT",
        ("x_embedder.proj.weight", "!s_embedder.proj.weight"),
        *(((PatchDiTConfig, LinearConfig),), lambda config: _FLATTENDIT, _infer_flattendit),
    ),
    Layout(
        "DDT",
        ("x_embedder.proj.weight", "s_embedder.proj.weight"),
        *(((PatchDiTConfig, DiTDecoderConfig),), _ddt, _infer_ddt, ("depth",)),
    ),
)
