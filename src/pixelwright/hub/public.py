"""The key names of the published checkpoints, and what they say about the architecture.

`from_public` reads sizes, depth, heads, patch size and variant from names and shapes alone, so no
configuration file is needed beside a checkpoint.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.hub.prefixes import network_tensors
from pixelwright.hub.presets import preset_of
from pixelwright.models.backbones import PatchDiTConfig
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.detailers.pit import PiTConfig
from pixelwright.models.detailers.unet import UNetConfig
from pixelwright.models.folder import check_weights, skeleton, with_weights
from pixelwright.models.mmdit import MMDiTConfig
from pixelwright.models.prediction import Prediction

Names = dict[str, tuple[str, ...]]
"""Our name -> the published ones; where there are several, ours is their rows one after the other."""

# ours <-> theirs; the first entry that fits a name is used, `#` stands for a number.
_COMMON = [
    ("backbone.patch_embedder.", "s_embedder.proj."),
    ("backbone.time_embedder.mlp.", "t_embedder.mlp."),
    ("backbone.class_embedder.table.", "y_embedder.embedding_table."),
]
_PIXELDIT = [
    ("backbone.blocks.#.adaLN.", "patch_blocks.#.adaLN_modulation.0."),
    ("backbone.blocks.#.", "patch_blocks.#."),
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


def _dip(levels: int) -> list[tuple[str, str]]:
    """DiP numbers the levels from 1 on the way down and back to 1 on the way up."""
    table = [
        ("backbone.blocks.#.adaLN.", "blocks.#.adaLN_modulation.0."),
        ("backbone.blocks.#.", "blocks.#."),
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


def public_names(config: DenoiserConfig) -> Names:
    """Our name -> published names, for every tensor of a model."""
    backbone = config.backbone
    text = isinstance(backbone, MMDiTConfig)
    if isinstance(backbone, MMDiTConfig) and not (
        backbone.sigma_time and not backbone.mask_padding and config.prediction == "reverse-velocity"
    ):
        raise UserError(
            f"{config.name} has no published layout; the published text-to-image network has sigma_time, no "
            f'mask_padding, and predicts "reverse-velocity"'
        )
    match config.detailer:
        case UNetConfig(channels) if not text:
            table = _COMMON + _dip(len(channels))
        case PiTConfig():
            table = _COMMON + (_TEXT if text else []) + _PIXELDIT
        case _:
            raise UserError(
                f"{config.name} has no published layout; only the DiP and PixelDiT networks have one"
            )
    if config.placement != "post-hoc":
        raise UserError(f'placement "{config.placement}" has no published layout; only "post-hoc" has one')
    names = skeleton(config).state_dict()
    return {name: tuple(_rename(part, table) for part in swiglu_parts(name)) for name in names}


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


def _rename(name: str, table: list[tuple[str, str]]) -> str:
    for ours, theirs in table:
        match = re.match(re.escape(ours).replace(r"\#", r"(\d+)"), name)
        if match:
            return theirs.replace("#", match[1] if match.groups() else "") + name[match.end() :]
    raise AssertionError(f"no published name for {name}")


def from_public(state_dict: Mapping[str, Tensor]) -> PixelDenoiser:
    """The model of a published checkpoint's tensors, with or without their prefixes.

    PixelDiT (pre- and post-modulation, for classes or for text) and DiP are told apart, and their sizes
    found, by key names and shapes. Weights keep their dtype and are copied.

    Raises UserError: not such a checkpoint, or missing, extra or mis-shaped keys (at most ten are named).
    """
    found = network_tensors(state_dict).names
    read = lambda name: state_dict[found[name]].detach().clone()  # noqa: E731
    published, read = whole({name: state_dict[theirs] for name, theirs in found.items()}, read)
    config, names = recognise(published)
    return with_weights(config, {ours: joined(theirs, read) for ours, theirs in names.items()}, "checkpoint")


def recognise(weights: Mapping[str, Tensor]) -> tuple[DenoiserConfig, Names]:
    """The config of bare tensors under published names, and the published names of each of our names. Values
    are not looked at, so tensors on the meta device will do. Raises UserError: as `from_public`."""
    config = infer_config(weights)
    names = public_names(config)
    check_weights(shapes(names, skeleton(config).state_dict()), weights, "published checkpoint")
    return config, names


def to_public(model: PixelDenoiser) -> dict[str, Tensor]:
    """The tensors of a model under the published key names, without prefix; `from_public` reads them back.
    Raises UserError: the model has no published layout (DiT-only, DiP for text, or not post-hoc)."""
    weights = model.state_dict()
    readers = parted(public_names(model.config), lambda name: weights[name].detach())
    return {name: read() for name, read in readers.items()}


def infer_config(weights: Mapping[str, Tensor]) -> DenoiserConfig:
    """The config of a published network's bare tensors. Raises UserError: the names or shapes are not those
    of a PixelDiT or a class-conditional DiP."""
    pixeldit, dip = "pixel_embedder.proj.weight" in weights, "local_decoder.out_conv.weight" in weights
    if pixeldit == dip:
        found = ", ".join(sorted(weights)[:3]) or "nothing"
        both = "has the keys of both PixelDiT and DiP" if pixeldit else "is neither PixelDiT nor DiP"
        raise UserError(f"the checkpoint {both} (it begins with {found}); give a published network's tensors")
    blocks = "patch_blocks" if pixeldit else "blocks"
    hidden_size, patch_pixels = _shape(weights, "s_embedder.proj.weight", 2)
    patch_size = round((patch_pixels / 3) ** 0.5)
    if 3 * patch_size**2 != patch_pixels:
        raise UserError(f"s_embedder.proj.weight takes {patch_pixels} inputs, which is no 3·P·P")
    depth, text = _count(weights, blocks), pixeldit and "y_pos_embedding" in weights
    backbone: Any
    if text:
        num_heads = _heads(weights, "patch_blocks.0.attn.q_norm_x.weight", hidden_size)
        text_size = _shape(weights, "y_embedder.proj.weight", 2)[1]
        length = _shape(weights, "y_pos_embedding", 3)[1]
        # The published network attends to padding and has a time of its own.
        backbone = MMDiTConfig(hidden_size, depth, num_heads, patch_size, text_size, length, False, True)
    else:
        rows, _ = _shape(weights, "y_embedder.embedding_table.weight", 2)
        num_heads = _heads(weights, f"{blocks}.0.attn.q_norm.weight", hidden_size)
        backbone = PatchDiTConfig(hidden_size, depth, num_heads, patch_size, num_classes=rows - 1)
    detailer = _infer_pit(weights, patch_size) if pixeldit else _infer_unet(weights)
    name = "pixeldit-text" if text else "pixeldit" if pixeldit else "dip"
    prediction: Prediction = "reverse-velocity" if text else "velocity"
    config = DenoiserConfig(backbone, detailer, name=name, prediction=prediction)
    known = preset_of(config)
    if known is not None:
        config = dataclasses.replace(config, name=known.name, image_size=known.image_size)
    return config


def _infer_pit(weights: Mapping[str, Tensor], patch_size: int) -> Any:
    """Its first block tells the variant: 6 modulation values per pixel channel, or 4 (post-modulation)."""
    pixel_size, _ = _shape(weights, "pixel_embedder.proj.weight", 2)
    attention_size, _ = _shape(weights, "pixel_blocks.0.compress_to_attn.weight", 2)
    rows, _ = _shape(weights, key := "pixel_blocks.0.adaLN_modulation.0.weight", 2)
    unit = patch_size**2 * pixel_size
    if rows not in (4 * unit, 6 * unit):
        fits = f"{6 * unit} (pre-modulation) or {4 * unit} (post-modulation)"
        raise UserError(f'"{key}" has {rows} rows; {fits} are expected')
    num_heads = _heads(weights, "pixel_blocks.0.attn.q_norm.weight", attention_size)
    depth, post = _count(weights, "pixel_blocks"), rows == 4 * unit
    return PiTConfig(depth, pixel_size, attention_size, num_heads, post_modulation=post)


def _infer_unet(weights: Mapping[str, Tensor]) -> Any:
    channels: list[int] = []
    key = "local_decoder.enc1.0.weight"
    while not channels or key in weights:  # the first one has to be there
        channels.append(_shape(weights, key, 4)[0])
        key = f"local_decoder.enc{len(channels) + 1}.0.weight"
    return UNetConfig(tuple(channels))


def _shape(weights: Mapping[str, Tensor], key: str, ndim: int) -> tuple[int, ...]:
    if key not in weights:
        raise UserError(f'the checkpoint misses "{key}"')
    shape = tuple(weights[key].shape)
    if len(shape) != ndim or not all(shape):
        raise UserError(f'"{key}" has the shape {list(shape)}; expected {ndim} axes, none of them empty')
    return shape


def _count(weights: Mapping[str, Tensor], blocks: str) -> int:
    numbers = {int(m[1]) for key in weights if (m := re.match(rf"{blocks}\.(\d+)\.", key))}
    if not numbers:
        raise UserError(f'the checkpoint misses "{blocks}.0"')
    gaps = set(range(max(numbers) + 1)) - numbers if max(numbers) < 10_000 else {0}
    if gaps:
        raise UserError(f'the checkpoint misses "{blocks}.{min(gaps)}"; its blocks go up to {max(numbers)}')
    return len(numbers)


def _heads(weights: Mapping[str, Tensor], key: str, size: int) -> int:
    (head_size,) = _shape(weights, key, 1)
    if size % head_size:
        raise UserError(f'"{key}" has {head_size} channels, which does not divide width {size}')
    return size // head_size
