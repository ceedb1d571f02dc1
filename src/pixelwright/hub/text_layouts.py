"""The published networks of PixNerd, DeCo and PixelGen for text: one backbone, `text_dit`, three heads."""

from dataclasses import replace

from pixelwright.hub.layout import Layout, Settings, Specs, Table, count_of, embedder_of, heads_of, shape_of
from pixelwright.hub.layouts import DECO_HEAD, field_of, pixnerd_head, position_table, size_of_table
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.detailers.linear import LinearConfig
from pixelwright.models.detailers.nerf import NerfConfig
from pixelwright.models.detailers.pixel_mlp import PixelMLPConfig
from pixelwright.models.text_dit import TextDiTConfig

_OUT = ("detailer.out.", "final_layer.linear.")
MARK = "text_refine_blocks.0.norm1.weight"


def _backbone(config: DenoiserConfig) -> Table:
    """The field blocks of PixNerd go on with the numbers of `blocks`; they come first."""
    split = config.backbone.bottleneck is not None
    table = [
        ("backbone.text_embedder.positions", "y_pos_embedding"),
        ("backbone.text_embedder.", "y_embedder."),
        ("backbone.time_embedder.mlp.", "t_embedder.mlp."),
        ("backbone.bottleneck.", "x_embedder.proj1."),
        ("backbone.patch_embedder.", "x_embedder.proj2." if split else "s_embedder.proj."),
        ("backbone.blocks.#.attn.qkv.", "blocks.#.attn.qkv_x."),
        ("backbone.blocks.#.text_kv.", "blocks.#.attn.kv_y."),
    ]
    for name, theirs in (("text_blocks", "text_refine_blocks.#."), ("blocks", "blocks.#.")):
        ours = f"backbone.{name}.#."
        table += [
            (f"{ours}adaLN.", f"{theirs}adaLN_modulation.0."),
            (f"{ours}mlp.w13.", f"{theirs}mlp.w12."),
            (f"{ours}mlp.w2.", f"{theirs}mlp.w3."),
            (ours, theirs),
        ]
    return table


def _infer_backbone(weights: Specs, fields: int = 0) -> TextDiTConfig:
    """Of the numbered blocks the last `fields` are the head's."""
    split = "x_embedder.proj1.weight" in weights
    width, patch_size = embedder_of(weights, "x_embedder.proj1.weight" if split else "s_embedder.proj.weight")
    hidden_size = shape_of(weights, "x_embedder.proj2.weight", 2)[0] if split else width
    return TextDiTConfig(
        hidden_size,
        count_of(weights, "blocks") - fields,
        heads_of(weights, "blocks.0.attn.q_norm.weight", hidden_size),
        patch_size,
        text_size=shape_of(weights, "y_embedder.proj.weight", 2)[1],
        text_length=shape_of(weights, "y_pos_embedding", 3)[1],
        text_depth=count_of(weights, "text_refine_blocks"),
        bottleneck=width if split else None,
        absolute_positions=split,
    )


def _infer_pixnerd(weights: Specs, settings: Settings) -> DenoiserConfig:
    """The published configuration has `positions: rotary-16`, its code for other sizes `rotary` too; in
    patches of 16 pixels they are the same."""
    field = field_of(weights)
    head = replace(field, positions="rotary-16", unit_w2=False, final_norm=False)
    return DenoiserConfig(_infer_backbone(weights, field.depth), head)


def _infer_deco(weights: Specs, settings: Settings) -> DenoiserConfig:
    size, _ = shape_of(weights, "dec_net.input_proj.weight", 2)
    head = PixelMLPConfig(count_of(weights, "dec_net.res_blocks"), size, "rotary")
    return DenoiserConfig(_infer_backbone(weights), head)


def _infer_pixelgen(weights: Specs, settings: Settings) -> DenoiserConfig:
    backbone, head = _infer_backbone(weights), LinearConfig("layer", modulation=False)
    size = size_of_table(weights, backbone.patch_size)
    return DenoiserConfig(backbone, head, prediction="x", image_size=size)


TEXT_LAYOUTS = (
    Layout(
        "PixNerd-T2I",
        ("x_embedder.embedder.0.weight", MARK, "!dec_net.input_proj.weight"),
        ((TextDiTConfig, NerfConfig),),
        *(lambda config: [*_backbone(config), *pixnerd_head(config)], _infer_pixnerd, ("positions",)),
    ),
    Layout(
        "DeCo-T2I",
        ("dec_net.input_proj.weight", MARK),
        ((TextDiTConfig, PixelMLPConfig),),
        *(lambda config: [*_backbone(config), *DECO_HEAD], _infer_deco, ("positions",)),
    ),
    Layout(
        "PixelGen-T2I",
        ("x_embedder.proj1.weight", MARK),
        ((TextDiTConfig, LinearConfig),),
        *(lambda config: [*_backbone(config), _OUT], _infer_pixelgen, (), position_table),
    ),
)
