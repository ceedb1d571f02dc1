"""Global stage for text: a transformer with two streams, image patches and text tokens, that attend jointly.

PixelDiT section 3.4 (text to image), after the MM-DiT of Stable Diffusion 3.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.config import Config, PositiveInt
from pixelwright.errors import UserError
from pixelwright.models.backbones import AfterBlock, grid_of, init_embedders, register_backbone
from pixelwright.models.conditions import Condition, TextCondition
from pixelwright.models.layers import (
    Attention,
    GlobalState,
    RMSNorm,
    Rope,
    SwiGLU,
    TimeEmbedder,
    attend,
    check_heads,
    modulate,
    patchify,
    rope_1d,
    rope_2d,
    zero_,
)


class TextEmbedder(nn.Module):
    """Linear, RMSNorm and a learned position: features [B, L, C] -> [B, L, D]."""

    def __init__(self, text_size: int, text_length: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(text_size, hidden_size)
        self.norm = RMSNorm(hidden_size)
        self.positions = nn.Parameter(torch.empty(1, text_length, hidden_size))

    def forward(self, features: Tensor) -> Tensor:
        tokens = self.norm(self.proj(features.to(self.proj.weight.dtype)))
        return tokens + self.positions[:, : tokens.shape[1]]


class Stream(nn.Module):
    """What image and text each have of their own in a block: norms, attention weights, SwiGLU and adaLN."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(size)
        self.attn = Attention(size, num_heads)
        self.norm2 = RMSNorm(size)
        self.mlp = SwiGLU(size)
        self.adaLN = nn.Linear(size, 6 * size)


class MMDiTBlock(nn.Module):
    """Two streams with joint attention over [text; image].

    Of the last block's text only keys and values are ever used. Its other weights exist, because published
    checkpoints have them, but are frozen: they would get no gradient, which DDP takes for a mistake.
    """

    def __init__(self, size: int, num_heads: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.image = Stream(size, num_heads)
        self.text = Stream(size, num_heads)
        if last:
            for unused in (self.text.attn.q_norm, self.text.attn.proj, self.text.norm2, self.text.mlp):
                unused.requires_grad_(False)

    def forward(
        self, x: Tensor, y: Tensor, condition: Tensor, ropes: tuple[Rope, Rope], mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Image x [B, L, D] and text y [B, L_text, D], condition [B, 1, D] -> the same two."""
        image, text = self.image, self.text
        shift1, scale1, gate1, shift2, scale2, gate2 = image.adaLN(condition).chunk(6, -1)
        q, k, v = image.attn.heads(modulate(image.norm1(x), shift1, scale1), ropes[0])
        y_shift1, y_scale1, y_gate1, y_shift2, y_scale2, y_gate2 = text.adaLN(condition).chunk(6, -1)
        y_q, y_k, y_v = text.attn.heads(modulate(text.norm1(y), y_shift1, y_scale1), ropes[1])

        keys, values = torch.cat((y_k, k), 1), torch.cat((y_v, v), 1)  # [B, L_text + L, heads, d]
        queries = q if self.last else torch.cat((y_q, q), 1)
        attended = attend(queries, keys, values, mask)
        if not self.last:
            y_attended, attended = attended.split((y.shape[1], x.shape[1]), 1)
            y = y + y_gate1 * text.attn.proj(y_attended)
            y = y + y_gate2 * text.mlp(modulate(text.norm2(y), y_shift2, y_scale2))
        x = x + gate1 * image.attn.proj(attended)
        return x + gate2 * image.mlp(modulate(image.norm2(x), shift2, scale2)), y


def check_captions(condition: Condition, count: int, config: Any) -> TextCondition:
    """The captions of `count` images, as a backbone's config has them. Raises UserError: labels instead, or
    captions of another number, width or length."""
    if not isinstance(condition, TextCondition):
        raise UserError("this model draws from captions; give a TextCondition instead of labels")
    batch, length, width = condition.features.shape
    if (batch, width) != (count, config.text_size) or length > config.text_length:
        raise UserError(
            f"the text features are {[batch, length, width]}; the model needs "
            f"[{count}, up to {config.text_length}, {config.text_size}]"
        )
    return condition


@dataclass(frozen=True)
class MMDiTConfig(Config):
    """The text-conditional global stage: N blocks of two streams, image and text, of width D."""

    hidden_size: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt
    patch_size: PositiveInt
    text_size: PositiveInt
    """Channels of the text encoder's features."""
    text_length: PositiveInt
    """Most tokens of a caption."""
    mask_padding: bool = True
    """Whether padding of captions is hidden from attention; the published network attends to it."""
    sigma_time: bool = False
    """Whether the time embedder is fed 1000·(1−t), as in the published network, instead of t."""
    takes_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self, self.hidden_size, self.num_heads)


@register_backbone("mmdit", MMDiTConfig)
class MMDiT(nn.Module):
    """The text-conditional backbone; used as `PatchDiT` is. Its condition c is SiLU(t_emb) alone."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.head_size = size // config.num_heads
        self.patch_embedder = nn.Linear(3 * config.patch_size**2, size)
        self.time_embedder = TimeEmbedder(size)
        self.text_embedder = TextEmbedder(config.text_size, config.text_length, size)
        self.blocks = nn.ModuleList(
            MMDiTBlock(size, config.num_heads, last=number == config.depth)
            for number in range(1, config.depth + 1)
        )
        self.init_weights()

    def init_weights(self) -> None:
        """As `PatchDiT.init_weights`, and the text positions N(0, 0.02²)."""
        init_embedders(self.patch_embedder, self.time_embedder)
        nn.init.normal_(self.text_embedder.positions, std=0.02)
        streams = [module for module in self.modules() if isinstance(module, Stream)]
        zero_(*(stream.adaLN for stream in streams))

    def embed(self, x: Tensor, t: Tensor, condition: Condition) -> GlobalState:
        """The state before the first block; arguments as in `forward`."""
        tokens = self.patch_embedder(patchify(x, self.config.patch_size))  # [B, L, D]
        # The published network's time is 1000·σ with σ = 1 − t.
        time = self.time_embedder(1000 * (1 - t) if self.config.sigma_time else t)[:, None]  # [B, 1, D]
        return GlobalState(tokens, time, F.silu(time), grid_of(x, self.config.patch_size))

    def forward(
        self, x: Tensor, t: Tensor, condition: Condition, after_block: AfterBlock | None = None
    ) -> GlobalState:
        """x [B,3,H,W], t [B] in [0,1], captions of B images -> the state after the last block.

        Raises:
            UserError: labels instead of captions, or captions of another number, width or length.
        """
        captions = check_captions(condition, len(x), self.config)
        state = self.embed(x, t, condition)
        text, mask = self.text_embedder(captions.features), None  # [B, L_text, D]
        if self.config.mask_padding and captions.mask is not None:
            mask = F.pad(captions.mask, (0, state.tokens.shape[1]), value=True)[:, None, None]
        ropes = (
            rope_2d(state.grid, self.head_size, x.device),
            rope_1d(text.shape[1], self.head_size, x.device),
        )
        for number, block in enumerate(self.blocks, start=1):
            tokens, text = block(state.tokens, text, state.condition, ropes, mask)
            state = state._replace(tokens=tokens)
            state = after_block(number, state) if after_block else state
        return state
