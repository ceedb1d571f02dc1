"""Global stage: a transformer over large patches, one token per patch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.acceleration.fused import Rope, gated_add
from pixelwright.errors import UserError
from pixelwright.models.conditions import Condition, null_like
from pixelwright.models.config import PatchDiTConfig
from pixelwright.models.layers import (
    Attention,
    ClassEmbedder,
    Grid,
    RMSNorm,
    SwiGLU,
    TimeEmbedder,
    patchify,
    rope_2d,
    zero_linear,
)


class GlobalState(NamedTuple):
    """What the global stage knows of an image; all that the local stage is given besides the noisy pixels."""

    tokens: Tensor
    """s_n, the tokens after n blocks, [B, L, D]."""
    time: Tensor
    """t_emb, [B, 1, D]."""
    condition: Tensor
    """c = SiLU(t_emb + y_emb), or SiLU(t_emb) where the condition is text, [B, 1, D]."""
    grid: Grid
    """(rows, columns) of patches, rows · columns = L."""
    rope: Rope
    """Rotary tables of the patches for the heads of the backbone."""
    text: Tensor | None = None
    """Text tokens after n blocks, [B, L_text, D]; only the text-conditional blocks look at them."""
    text_rope: Rope | None = None
    """Rotary tables of the text tokens."""
    keys: Tensor | None = None
    """Which of [text; image] may be attended to, bool [B, 1, 1, L_text + L]; None for all."""

    @property
    def s_cond(self) -> Tensor:
        """SiLU(s_N + t_emb), [B, L, D]: the token each patch hands to its detailer in both papers."""
        return F.silu(self.tokens + self.time)


class DiTBlock(nn.Module):
    """Pre-norm transformer block with adaLN-Zero: Linear(D -> 6D) of the condition."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(hidden_size)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = RMSNorm(hidden_size)
        self.mlp = SwiGLU(hidden_size)
        self.adaLN = zero_linear(hidden_size, 6 * hidden_size)

    def forward(self, state: GlobalState) -> GlobalState:
        x = state.tokens
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.adaLN(state.condition).chunk(
            6, -1
        )
        h = self.norm1.modulated(x, shift_attn, scale_attn)
        x, h = self.norm2.gated_modulated(x, gate_attn, self.attn(h, state.rope), shift_mlp, scale_mlp)
        return state._replace(tokens=gated_add(x, gate_mlp, self.mlp(h)))


class PatchDiT(nn.Module):
    """The class-conditional backbone of both papers (DiP section 3.2, PixelDiT section 3.2).

    `embed` makes the state before block 1; the blocks then act on the state one after the other. The denoiser
    runs that loop, because a detailer may sit between two blocks.
    """

    def __init__(self, config: PatchDiTConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.head_size = size // config.num_heads
        self.patch_size = config.patch_size
        self.patch_embedder = nn.Linear(3 * config.patch_size**2, size)
        self.time_embedder = TimeEmbedder(size)
        self.class_embedder = ClassEmbedder(config.num_classes, size)
        self.blocks = nn.ModuleList(DiTBlock(size, config.num_heads) for _ in range(config.depth))
        nn.init.xavier_uniform_(self.patch_embedder.weight)
        nn.init.zeros_(self.patch_embedder.bias)

    def embed(self, x: Tensor, t: Tensor, labels: Condition) -> GlobalState:
        """x [B,3,H,W], t [B] in [0,1], labels [B] in 0 … num_classes -> the state before the first block.

        Raises:
            UserError: captions instead of labels.
        """
        if not isinstance(labels, Tensor):
            raise UserError("this model draws from classes; give labels instead of captions")
        grid = (x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size)
        tokens = self.patch_embedder(patchify(x, self.patch_size))  # [B, L, D]
        time = self.time_embedder(t)[:, None]  # [B, 1, D]
        label = self.class_embedder(labels)[:, None]  # [B, 1, D]
        rope = rope_2d(grid, self.head_size, x.device)
        return GlobalState(tokens, time, F.silu(time + label), grid, rope)

    def null_condition(self, labels: Condition) -> Condition:
        """The labels of the unconditional branch, [B]."""
        return null_like(labels, self.class_embedder.table.num_embeddings - 1)
