"""PixNerd's neural field, DiP's "coordinate MLP": a small MLP per patch whose weights its token generates."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.config import Config, PositiveInt
from pixelwright.models.detailers.base import register_detailer
from pixelwright.models.layers import GlobalState, PixelEmbedder, PixelPositions, RMSNorm, from_pixels, zero_


@dataclass(frozen=True)
class NerfConfig(Config):
    """PixNerd's field blocks. Its text-to-image model has neither `unit_w2` nor `final_norm`."""

    depth: PositiveInt
    """Field blocks."""
    pixel_size: PositiveInt
    """w, channels of a pixel."""
    mlp_ratio: PositiveInt = 2
    """r: the generated MLP is w -> r·w -> w."""
    positions: PixelPositions = "dct"
    """Features of a pixel's place; PixNerd's text-to-image models have the rotary ones."""
    unit_w2: bool = True
    """Whether columns of the second generated matrix are of length 1, as those of the first are."""
    final_norm: bool = True
    """Whether an RMSNorm stands before the output."""


class FieldBlock(nn.Module):
    """h + SiLU(RMSNorm(h)·W1)·W2, where the token of the patch generates W1 and W2."""

    def __init__(self, config: NerfConfig, hidden_size: int) -> None:
        super().__init__()
        self.unit_w2 = config.unit_w2
        self.norm = RMSNorm(config.pixel_size)
        self.generator = nn.Linear(hidden_size, 2 * config.pixel_size**2 * config.mlp_ratio)

    def forward(self, h: Tensor, s_cond: Tensor) -> Tensor:
        """h [B, L, P², w], s_cond [B, L, D] -> [B, L, P², w]."""
        w1, w2 = self.generator(s_cond).chunk(2, -1)  # [B, L, w·r·w] each
        w1 = w1.unflatten(-1, (h.shape[-1], -1))  # [B, L, w, r·w]
        w2 = w2.unflatten(-1, (-1, h.shape[-1]))  # [B, L, r·w, w]
        w1 = F.normalize(w1, dim=-2)  # columns of length 1
        w2 = F.normalize(w2, dim=-2) if self.unit_w2 else w2
        return h + F.silu(self.norm(h) @ w1) @ w2


@register_detailer("nerf", NerfConfig)
class Nerf(nn.Module):
    """Pixel embedding with the features of each place, field blocks, RMSNorm and a linear layer to RGB."""

    def __init__(self, config: NerfConfig, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.pixel_embedder = PixelEmbedder(config.pixel_size, patch_size, config.positions)
        self.blocks = nn.ModuleList(FieldBlock(config, hidden_size) for _ in range(config.depth))
        self.norm = RMSNorm(config.pixel_size) if config.final_norm else nn.Identity()
        self.out = nn.Linear(config.pixel_size, 3)
        self.init_weights()

    def init_weights(self) -> None:
        """The output starts at zero, the other Linears as PyTorch makes them."""
        zero_(self.out)

    def forward(self, x: Tensor, state: GlobalState) -> Tensor:
        h, s_cond = self.pixel_embedder(x), state.s_cond  # [B, L, P², w], [B, L, D]
        for block in self.blocks:
            h = block(h, s_cond)
        return from_pixels(self.out(self.norm(h)), state.grid, self.patch_size)
