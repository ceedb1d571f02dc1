"""The attention head of DiP's ablation: the pixels of a patch attend to its token and to each other."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixelwright.config import Config, PositiveInt
from pixelwright.models.detailers.base import register_detailer
from pixelwright.models.layers import (
    MLP,
    Attention,
    GlobalState,
    RMSNorm,
    check_heads,
    from_pixels,
    to_pixels,
    zero_,
)


@dataclass(frozen=True)
class PatchAttentionConfig(Config):
    """DiP's "intra-patch attention" head; its sizes are not published."""

    depth: PositiveInt
    """Blocks."""
    pixel_size: PositiveInt
    """w, channels of a pixel."""
    num_heads: PositiveInt
    """Attention heads; w must be divisible by it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self, self.pixel_size, self.num_heads)


class PatchAttentionBlock(nn.Module):
    """Cross-attention to the token, self-attention among the pixels of the patch, MLP.

    The softmax over a single key is 1, so that cross-attention is a linear map of the token.
    """

    def __init__(self, config: PatchAttentionConfig, hidden_size: int) -> None:
        super().__init__()
        size = config.pixel_size
        self.cross = nn.Linear(hidden_size, size)
        self.norm1 = RMSNorm(size)
        self.attn = Attention(size, config.num_heads)
        self.norm2 = RMSNorm(size)
        self.mlp = MLP(size)

    def forward(self, h: Tensor, s_cond: Tensor) -> Tensor:
        """h [B, L, P², w], s_cond [B, L, D] -> [B, L, P², w]."""
        h = h + self.cross(s_cond)[:, :, None]
        patches = self.norm1(h).flatten(0, 1)  # [B·L, P², w]
        h = h + self.attn(patches, rope=None).view_as(h)
        return h + self.mlp(self.norm2(h))


@register_detailer("patch-attention", PatchAttentionConfig)
class PatchAttention(nn.Module):
    """One token per pixel with a learned position in its patch, blocks, RMSNorm and a linear layer to RGB."""

    def __init__(self, config: PatchAttentionConfig, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.pixel_embedder = nn.Linear(3, config.pixel_size)
        self.positions = nn.Parameter(torch.empty(patch_size**2, config.pixel_size))
        self.blocks = nn.ModuleList(PatchAttentionBlock(config, hidden_size) for _ in range(config.depth))
        self.norm = RMSNorm(config.pixel_size)
        self.out = nn.Linear(config.pixel_size, 3)
        self.init_weights()

    def init_weights(self) -> None:
        """Positions N(0, 0.02²); the output starts at zero, the other Linears as PyTorch makes them."""
        nn.init.normal_(self.positions, std=0.02)
        zero_(self.out)

    def forward(self, x: Tensor, state: GlobalState) -> Tensor:
        h = self.pixel_embedder(to_pixels(x, self.patch_size))  # [B, L, P², w]
        h, s_cond = h + self.positions.to(h.dtype), state.s_cond
        for block in self.blocks:
            h = block(h, s_cond)
        return from_pixels(self.out(self.norm(h)), state.grid, self.patch_size)
