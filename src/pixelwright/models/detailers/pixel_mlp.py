"""DeCo's pixel decoder: a residual MLP over single pixels, each modulated by a condition of its own."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.config import Config, PositiveInt
from pixelwright.models.detailers.base import register_detailer
from pixelwright.models.layers import (
    GlobalState,
    LayerNorm,
    PixelEmbedder,
    PixelPositions,
    from_pixels,
    modulate,
    xavier_,
    zero_,
)


@dataclass(frozen=True)
class PixelMLPConfig(Config):
    """DeCo's pixel decoder: M residual blocks of width w."""

    depth: PositiveInt
    """Residual blocks."""
    pixel_size: PositiveInt
    """w, channels of a pixel."""
    positions: PixelPositions = "dct"
    """Features of a pixel's place; DeCo's text-to-image model has the rotary ones."""


class ResBlock(nn.Module):
    """h + gate·MLP(modulate(LayerNorm(h))), with shift, scale and gate of each pixel."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = LayerNorm(size, affine=True)
        self.mlp = nn.Sequential(nn.Linear(size, size), nn.SiLU(), nn.Linear(size, size))
        self.adaLN = nn.Linear(size, 3 * size)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """h and condition [B, L, P², w] -> [B, L, P², w]."""
        shift, scale, gate = self.adaLN(condition).chunk(3, -1)
        return h + gate * self.mlp(modulate(self.norm(h), shift, scale))


@register_detailer("pixel-mlp", PixelMLPConfig)
class PixelMLP(nn.Module):
    """Pixel embedding, one condition per pixel from the token, residual blocks, LayerNorm, linear to RGB."""

    def __init__(self, config: PixelMLPConfig, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        size = config.pixel_size
        self.patch_size = patch_size
        self.pixel_embedder = PixelEmbedder(size, patch_size, config.positions)
        self.proj = nn.Linear(size, size)
        self.token_to_pixels = nn.Linear(hidden_size, patch_size**2 * size)
        self.blocks = nn.ModuleList(ResBlock(size) for _ in range(config.depth))
        self.norm = LayerNorm(size)
        self.out = nn.Linear(size, 3)
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier-uniform with bias 0; every adaLN and the output zero; the embedding as PyTorch makes it."""
        linears = [layer for layer in self.blocks.modules() if isinstance(layer, nn.Linear)]
        xavier_(self.proj, self.token_to_pixels, *linears)
        zero_(*(block.adaLN for block in self.blocks), self.out)

    def forward(self, x: Tensor, state: GlobalState) -> Tensor:
        h = self.proj(self.pixel_embedder(x))  # [B, L, P², w]
        condition = F.silu(self.token_to_pixels(state.s_cond).view_as(h))  # the same for every block
        for block in self.blocks:
            h = block(h, condition)
        return from_pixels(self.out(self.norm(h)), state.grid, self.patch_size)
