"""DINOv3 in the names of timm, as recordings hold it, as the model of transformers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.hub.layout import count_of, shape_of

_NAMES = (
    ("gamma_1", "layer_scale1.lambda1"),
    ("gamma_2", "layer_scale2.lambda1"),
    ("attn.proj.", "attention.o_proj."),
    ("mlp.fc1.", "mlp.up_proj."),
    ("mlp.fc2.", "mlp.down_proj."),
)
_OUTER = {"cls_token": "cls_token", "reg_token": "register_tokens"}


def dinov3_from_timm(weights: Mapping[str, Tensor], num_heads: int) -> Any:
    """A `DINOv3ViTModel`, in eval mode and without gradients, of a timm model's weights, whose names do not
    tell the number of heads. For `model.backbone.encoder.model` of a PixelDiT2.

    Raises UserError: transformers is not installed, or other weights than those of a DINOv3.
    """
    try:
        from transformers import DINOv3ViTConfig, DINOv3ViTModel
    except ImportError:
        raise UserError('DINOv3 needs transformers: pip install "pixelwright[repa]"') from None
    size, _, patch_size, _ = shape_of(weights, "patch_embed.proj.weight", 4)
    config = DINOv3ViTConfig(
        hidden_size=size,
        num_hidden_layers=count_of(weights, "blocks"),
        num_attention_heads=num_heads,
        intermediate_size=shape_of(weights, "blocks.0.mlp.fc1.weight", 2)[0],
        num_register_tokens=shape_of(weights, "reg_token", 3)[1],
        patch_size=patch_size,
    )
    model: Any = DINOv3ViTModel(config)
    state = {"embeddings.mask_token": torch.zeros(1, 1, size)}
    for name, value in weights.items():
        state |= dict(_renamed(name, value))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"these are not the weights of a DINOv3: {reason}") from None
    return model.requires_grad_(False).eval()


def _renamed(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """A tensor under its name in transformers; of queries, keys and values together, the three."""
    if name in _OUTER:
        return [(f"embeddings.{_OUTER[name]}", value)]
    if not name.startswith("blocks."):
        return [(name.replace("patch_embed.proj.", "embeddings.patch_embeddings."), value)]
    layer, _, rest = name.removeprefix("blocks.").partition(".")
    layer = f"model.layer.{layer}."
    if rest == "attn.qkv.weight":
        parts = zip("qkv", value.chunk(3), strict=True)
        return [(f"{layer}attention.{part}_proj.weight", rows) for part, rows in parts]
    if rest in ("attn.q_bias", "attn.v_bias"):
        return [(f"{layer}attention.{rest[5]}_proj.bias", value)]
    for theirs, ours in _NAMES:
        rest = rest.replace(theirs, ours)
    return [(layer + rest, value)]
