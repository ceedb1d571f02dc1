"""The DiT-only baseline of both papers: adaLN on the last tokens, then one linear layer to the patch."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from pixelwright.config import Config
from pixelwright.models.detailers.base import register_detailer
from pixelwright.models.layers import (
    GlobalState,
    LayerNorm,
    RMSNorm,
    from_pixels,
    modulate,
    unpatchify,
    zero_,
)


@dataclass(frozen=True)
class LinearConfig(Config):
    """The DiT-only baseline."""

    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm, or LayerNorm without weights as in DiT and in DeCo's baseline."""
    channels_last: bool = False
    """Whether the outputs of a patch are ordered by pixel, then colour, as in JiT, or by colour first."""
    modulation: bool = True
    """Whether the condition shifts and scales what the norm gives (adaLN); not in PixelGen for text."""


@register_detailer("linear", LinearConfig)
class Linear(nn.Module):
    """adaLN(s_N) -> Linear(D -> 3P²)."""

    def __init__(self, config: LinearConfig, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size, self.channels_last = patch_size, config.channels_last
        self.norm = RMSNorm(hidden_size) if config.norm == "rms" else LayerNorm(hidden_size)
        self.adaLN = nn.Linear(hidden_size, 2 * hidden_size) if config.modulation else None
        self.out = nn.Linear(hidden_size, 3 * patch_size**2)
        self.init_weights()

    def init_weights(self) -> None:
        """Modulation and output start at zero, the norm at one."""
        zero_(*(layer for layer in (self.adaLN, self.out) if layer is not None))

    def forward(self, x: Tensor, state: GlobalState) -> Tensor:
        h = self.norm(state.tokens)
        if self.adaLN is not None:
            shift, scale = self.adaLN(state.condition).chunk(2, -1)
            h = modulate(h, shift, scale)
        patches = self.out(h)  # [B, L, 3·P·P]
        if self.channels_last:
            return from_pixels(patches.unflatten(-1, (-1, 3)), state.grid, self.patch_size)
        return unpatchify(patches, state.grid, self.patch_size)
