"""The plainest head of DiP's ablation: an MLP over the pixels of a patch and its token."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.config import Config, PositiveInt
from pixelwright.models.detailers.base import register_detailer
from pixelwright.models.layers import GlobalState, patchify, unpatchify


@dataclass(frozen=True)
class MLPConfig(Config):
    """DiP's "standard MLP" head; its width and depth are not published."""

    width: PositiveInt
    """Channels of the hidden layers."""
    depth: PositiveInt = 2
    """Hidden layers."""


@register_detailer("mlp", MLPConfig)
class PatchMLP(nn.Module):
    """concat(pixels, token) -> `depth` times Linear and SiLU -> Linear; all start as PyTorch makes them."""

    def __init__(self, config: MLPConfig, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        pixels, width = 3 * patch_size**2, config.width
        sizes = (pixels + hidden_size, *(width,) * (config.depth - 1))
        self.hidden = nn.ModuleList(nn.Linear(size, width) for size in sizes)
        self.out = nn.Linear(width, pixels)

    def forward(self, x: Tensor, state: GlobalState) -> Tensor:
        h = torch.cat((patchify(x, self.patch_size), state.s_cond), dim=-1)  # [B, L, 3P² + D]
        for layer in self.hidden:
            h = F.silu(layer(h))
        return unpatchify(self.out(h), state.grid, self.patch_size)
