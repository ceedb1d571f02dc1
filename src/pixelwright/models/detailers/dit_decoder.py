"""DDT's decoder: DiT blocks over the noisy patches, each of which its own token modulates."""

from dataclasses import dataclass

from torch import Tensor, nn

from pixelwright.config import Config, PositiveInt
from pixelwright.models.detailers.base import register_detailer
from pixelwright.models.layers import (
    DiTBlock,
    GlobalState,
    LayerNorm,
    check_heads,
    modulate,
    patchify,
    rope_2d,
    unpatchify,
    xavier_,
    zero_,
)


@dataclass(frozen=True)
class DiTDecoderConfig(Config):
    """DDT's decoder, of the width of the global stage."""

    depth: PositiveInt
    """Blocks."""
    num_heads: PositiveInt
    """Attention heads; the width of the tokens must be divisible by it."""


@register_detailer("dit-decoder", DiTDecoderConfig)
class DiTDecoder(nn.Module):
    """A second patch embedding, blocks whose condition is s_cond of each token, adaLN and a linear layer."""

    def __init__(self, config: DiTDecoderConfig, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        check_heads(config, hidden_size, config.num_heads)
        self.patch_size, self.head_size = patch_size, hidden_size // config.num_heads
        self.embedder = nn.Linear(3 * patch_size**2, hidden_size)
        self.blocks = nn.ModuleList(DiTBlock(hidden_size, config.num_heads) for _ in range(config.depth))
        self.norm = LayerNorm(hidden_size)
        self.adaLN = nn.Linear(hidden_size, 2 * hidden_size)
        self.out = nn.Linear(hidden_size, 3 * patch_size**2)
        self.init_weights()

    def init_weights(self) -> None:
        """Embedding Xavier-uniform, the last adaLN and the output zero; the rest as PyTorch makes it."""
        xavier_(self.embedder)
        zero_(self.adaLN, self.out)

    def forward(self, x: Tensor, state: GlobalState) -> Tensor:
        h, s_cond = self.embedder(patchify(x, self.patch_size)), state.s_cond  # [B, L, D] both
        rope = rope_2d(state.grid, self.head_size, x.device)
        for block in self.blocks:
            h = block(h, s_cond, rope)
        shift, scale = self.adaLN(s_cond).chunk(2, -1)
        patches = self.out(modulate(self.norm(h), shift, scale))  # [B, L, 3·P·P]
        return unpatchify(patches, state.grid, self.patch_size)
