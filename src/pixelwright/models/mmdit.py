"""Global stage for text: a transformer with two streams, image patches and text tokens, that attend jointly.

PixelDiT section 3.4 (text to image), after the MM-DiT of Stable Diffusion 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.acceleration.fused import Rope, gated_add
from pixelwright.errors import UserError
from pixelwright.models.backbones import GlobalState
from pixelwright.models.conditions import Condition, TextCondition
from pixelwright.models.config import MMDiTConfig
from pixelwright.models.layers import (
    RMSNorm,
    SwiGLU,
    TimeEmbedder,
    attend,
    patchify,
    rope_1d,
    rope_2d,
    rotated_heads,
    zero_linear,
)


class TextEmbedder(nn.Module):
    """Linear, RMSNorm and a learned position: features [B, L, C] -> [B, L, D]."""

    def __init__(self, text_size: int, text_length: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(text_size, hidden_size)
        self.norm = RMSNorm(hidden_size)
        self.positions = nn.Parameter(torch.empty(1, text_length, hidden_size))
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        tokens = self.norm(self.proj(features.to(self.proj.weight.dtype)))
        return tokens + self.positions[:, : tokens.shape[1]]


class Stream(nn.Module):
    """What image and text each have of their own in a block: norms, projections, SwiGLU and adaLN."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        head_size = hidden_size // num_heads
        self.norm1 = RMSNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.q_norm = RMSNorm(head_size)
        self.k_norm = RMSNorm(head_size)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.norm2 = RMSNorm(hidden_size)
        self.mlp = SwiGLU(hidden_size)
        self.adaLN = zero_linear(hidden_size, 6 * hidden_size)

    def heads(self, x: Tensor, shift: Tensor, scale: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, rotated keys, and values: [B, L, D] -> three of [B, heads, L, d]."""
        x = self.norm1.modulated(x, shift, scale)
        return rotated_heads(x, self.qkv, self.q_norm, self.k_norm, rope)

    def finish(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """The rest of the block after attention, which is [B, heads, L, d]."""
        gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation
        y = self.proj(attended.transpose(1, 2).flatten(2))  # [B, L, heads·d]
        x, h = self.norm2.gated_modulated(x, gate_attn, y, shift_mlp, scale_mlp)
        return gated_add(x, gate_mlp, self.mlp(h))


class MMDiTBlock(nn.Module):
    """Two streams with joint attention over [text; image].

    Of the last block's text only keys and values are ever used. Its other weights exist, because published
    checkpoints have them, but are frozen: they would get no gradient, which DDP takes for a mistake.
    """

    def __init__(self, hidden_size: int, num_heads: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.image = Stream(hidden_size, num_heads)
        self.text = Stream(hidden_size, num_heads)
        if last:
            for unused in (self.text.q_norm, self.text.proj, self.text.norm2, self.text.mlp):
                unused.requires_grad_(False)

    def forward(self, state: GlobalState) -> GlobalState:
        assert state.text is not None and state.text_rope is not None
        image, text, length = state.tokens, state.text, state.text.shape[1]
        shift_image, scale_image, *rest_image = self.image.adaLN(state.condition).chunk(6, -1)
        shift_text, scale_text, *rest_text = self.text.adaLN(state.condition).chunk(6, -1)
        q_image, k_image, v_image = self.image.heads(image, shift_image, scale_image, state.rope)
        q_text, k_text, v_text = self.text.heads(text, shift_text, scale_text, state.text_rope)
        q = q_image if self.last else torch.cat((q_text, q_image), dim=2)  # [B, heads, L_text + L, d]
        k, v = torch.cat((k_text, k_image), dim=2), torch.cat((v_text, v_image), dim=2)
        out = attend(q, k, v, state.keys)
        if not self.last:
            text = self.text.finish(text, out[:, :, :length], tuple(rest_text))
            out = out[:, :, length:]
        image = self.image.finish(image, out, tuple(rest_image))
        return state._replace(tokens=image, text=text)


class MMDiT(nn.Module):
    """The text-conditional backbone; used as `PatchDiT` is. Its condition c is SiLU(t_emb) alone."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.patch_size = config.patch_size
        self.patch_embedder = nn.Linear(3 * config.patch_size**2, size)
        self.time_embedder = TimeEmbedder(size)
        self.text_embedder = TextEmbedder(config.text_size, config.text_length, size)
        self.blocks = nn.ModuleList(
            MMDiTBlock(size, config.num_heads, last=number == config.depth)
            for number in range(1, config.depth + 1)
        )
        nn.init.xavier_uniform_(self.patch_embedder.weight)
        nn.init.zeros_(self.patch_embedder.bias)

    def embed(self, x: Tensor, t: Tensor, condition: Condition) -> GlobalState:
        """x [B,3,H,W], t [B] in [0,1], captions of B images -> the state before the first block.

        Raises:
            UserError: labels instead of captions, or captions of another number, width or length.
        """
        text = self._checked(condition, len(x))
        grid = (x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size)
        tokens = self.patch_embedder(patchify(x, self.patch_size))  # [B, L, D]
        # The published network's time is 1000·σ with σ = 1 − t.
        time = self.time_embedder(1000 * (1 - t) if self.config.sigma_time else t)[:, None]  # [B, 1, D]
        keys = None
        if self.config.mask_padding and text.mask is not None:
            keys = F.pad(text.mask, (0, tokens.shape[1]), value=True)[:, None, None]  # [B, 1, 1, L_text + L]
        features, head_size = (
            self.text_embedder(text.features),
            self.config.hidden_size // self.config.num_heads,
        )
        ropes = (
            rope_2d(grid, head_size, x.device),
            rope_1d(features.shape[1], head_size, x.device),
        )
        return GlobalState(tokens, time, F.silu(time), grid, ropes[0], features, ropes[1], keys)

    def null_condition(self, condition: Condition) -> Condition:
        """The captions of the unconditional branch."""
        return self._checked(condition, len(condition)).empty()

    def _checked(self, condition: Condition, count: int) -> TextCondition:
        config = self.config
        if not isinstance(condition, TextCondition):
            raise UserError("this model draws from captions; give a TextCondition instead of labels")
        batch, length, width = condition.features.shape
        if (batch, width) != (count, config.text_size) or length > config.text_length:
            raise UserError(
                f"the text features are {[batch, length, width]}; the model needs "
                f"[{count}, up to {config.text_length}, {config.text_size}]"
            )
        return condition
