"""Global stage for text as extra keys: the text-to-image models of PixNerd, DeCo and PixelGen.

- Text features pass through a few blocks of their own, without positions, and then stay as they are.
- In every block of the image, queries are the image's; keys and values are the image's, then the text's.
- The condition of all blocks is the time alone. Padding of captions is attended to.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.config import Config, PositiveInt
from pixelwright.models.backbones import AfterBlock, grid_of, init_embedders, register_backbone
from pixelwright.models.conditions import Condition
from pixelwright.models.layers import (
    Attention,
    DiTBlock,
    GlobalState,
    RMSNorm,
    Rope,
    SwiGLU,
    TimeEmbedder,
    attend,
    check_heads,
    modulate,
    patchify,
    positions_2d,
    rope_2d,
)
from pixelwright.models.mmdit import TextEmbedder, check_captions


@dataclass(frozen=True)
class TextDiTConfig(Config):
    """N blocks of width D over P×P patches, whose keys and values are those of the text too."""

    hidden_size: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt
    patch_size: PositiveInt
    text_size: PositiveInt
    """Channels of the text encoder's features."""
    text_length: PositiveInt
    """Most tokens of a caption."""
    text_depth: PositiveInt
    """Blocks that the text passes through."""
    bottleneck: PositiveInt | None = None
    """Width between the two linear maps that embed a patch; None: a single one."""
    absolute_positions: bool = False
    """Whether fixed positions are added to the tokens, beside the rotary ones (PixelGen)."""
    takes_text: ClassVar[bool] = True
    mask_padding: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self, self.hidden_size, self.num_heads)


class TextDiTBlock(nn.Module):
    """Gated block of the image, Linear(D -> 6D) of the condition, with the text as further keys."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(size)
        self.attn = Attention(size, num_heads)
        self.text_kv = nn.Linear(size, 2 * size, bias=False)
        self.norm2 = RMSNorm(size)
        self.mlp = SwiGLU(size, 4 * size)
        self.adaLN = nn.Linear(size, 6 * size)

    def forward(self, x: Tensor, text: Tensor, condition: Tensor, rope: Rope) -> Tensor:
        """Image x [B, L, D], text [B, T, D], condition [B, 1, D] -> [B, L, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN(condition).chunk(6, -1)
        q, k, v = self.attn.heads(modulate(self.norm1(x), shift1, scale1), rope)  # [B, L, heads, d]
        text_k, text_v = self.text_kv(text).unflatten(-1, (2, -1, self.attn.head_size)).unbind(2)
        keys, values = torch.cat((k, self.attn.k_norm(text_k)), 1), torch.cat((v, text_v), 1)
        x = x + gate1 * self.attn.proj(attend(q, keys, values))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


@register_backbone("text-dit", TextDiTConfig)
class TextDiT(nn.Module):
    """The text-conditional backbone of PixNerd, DeCo and PixelGen; used as `PatchDiT` is."""

    def __init__(self, config: TextDiTConfig) -> None:
        super().__init__()
        size, heads, pixels = config.hidden_size, config.num_heads, 3 * config.patch_size**2
        self.config = config
        self.head_size = size // heads
        self.bottleneck = nn.Linear(pixels, config.bottleneck, bias=False) if config.bottleneck else None
        self.patch_embedder = nn.Linear(config.bottleneck or pixels, size)
        self.time_embedder = TimeEmbedder(size)
        self.text_embedder = TextEmbedder(config.text_size, config.text_length, size)
        self.text_blocks = nn.ModuleList(
            DiTBlock(size, heads, mlp_size=4 * size) for _ in range(config.text_depth)
        )
        self.blocks = nn.ModuleList(TextDiTBlock(size, heads) for _ in range(config.depth))
        self.init_weights()

    def init_weights(self) -> None:
        """Patch embedding Xavier-uniform, bias 0; time N(0, 0.02²); text positions N(0, 1), with absolute
        positions N(0, 0.02²). The other Linears, adaLN too, start as PyTorch makes them, the norms at one."""
        init_embedders(self.patch_embedder, self.time_embedder)
        if self.bottleneck is not None:
            nn.init.xavier_uniform_(self.bottleneck.weight)
        nn.init.normal_(self.text_embedder.positions, std=0.02 if self.config.absolute_positions else 1.0)

    def embed(self, x: Tensor, t: Tensor, condition: Condition) -> GlobalState:
        """The state before the first block; arguments as in `forward`."""
        grid = grid_of(x, self.config.patch_size)
        patches = patchify(x, self.config.patch_size)  # [B, L, 3·P·P]
        tokens = self.patch_embedder(patches if self.bottleneck is None else self.bottleneck(patches))
        if self.config.absolute_positions:
            positions = positions_2d(*grid, tokens.shape[-1], x.device)  # [D, rows, columns]
            tokens = tokens + positions.flatten(1).T.to(tokens.dtype)
        time = self.time_embedder(t)[:, None]  # [B, 1, D]
        return GlobalState(tokens, time, F.silu(time), grid)

    def embed_text(self, features: Tensor, condition: Tensor) -> Tensor:
        """Features [B, T, C] and the condition [B, 1, D] -> the text that the image attends to, [B, T, D]."""
        text = self.text_embedder(features)
        for block in self.text_blocks:
            text = block(text, condition, None)
        return text

    def forward(
        self, x: Tensor, t: Tensor, condition: Condition, after_block: AfterBlock | None = None
    ) -> GlobalState:
        """x [B,3,H,W], t [B] in [0,1], captions of B images -> the state after the last block.

        Raises:
            UserError: labels instead of captions, or captions of another number, width or length.
        """
        captions = check_captions(condition, len(x), self.config)
        state = self.embed(x, t, condition)
        text = self.embed_text(captions.features, state.condition)
        rows, columns = state.grid
        # As published: each axis runs to the number of patches along the other one.
        rope = rope_2d(state.grid, self.head_size, x.device, (columns, rows))
        for number, block in enumerate(self.blocks, start=1):
            state = state._replace(tokens=block(state.tokens, text, state.condition, rope))
            state = after_block(number, state) if after_block else state
        return state
