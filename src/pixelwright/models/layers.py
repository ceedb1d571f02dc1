"""Layers both papers share: patches, RMSNorm, rotary attention, SwiGLU, adaLN modulation, embedders."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Grid = tuple[int, int]  # (rows, columns) of the patch grid
SHORT = 512  # tokens up to which `attention_at_once` is the faster one
Rope = tuple[Tensor, Tensor]  # cosines and sines of the rotary angles, two [L, d/2] in float32


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """Cut images into flat patches, channel-major inside a patch: [B,C,H,W] -> [B, L, C*P*P]."""
    b, c, h, w = x.shape
    p = patch_size
    x = x.reshape(b, c, h // p, p, w // p, p)  # [B, C, rows, P, columns, P]
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // p) * (w // p), c * p * p)


def unpatchify(patches: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """The inverse of `patchify`: [B, L, C*P*P] -> [B,C,H,W]."""
    b, (rows, columns), p = patches.shape[0], grid, patch_size
    x = patches.reshape(b, rows, columns, -1, p, p)  # [B, rows, columns, C, P, P]
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, rows * p, columns * p)


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last axis, eps 1e-6, in float32 at least."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(dtype), self.weight.shape, self.weight.to(dtype), eps=1e-6).to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: x·(1 + scale) + shift."""
    return torch.addcmul(shift, x, 1 + scale)


def rope_2d(grid: Grid, head_size: int, device: torch.device) -> Rope:
    """2-D rotary embedding of the patch grid, two [L, d/2] tables.

    Positions run from 0 to 16 along each axis whatever the resolution, theta = 10000; pair 0 of the channels
    turns with x, pair 1 with y, pair 2 with x, …
    """
    # Not torch.linspace, for which torch.compile makes a program per size.
    rows, columns = (torch.arange(n, device=device) * (16 / max(n - 1, 1)) for n in grid)
    y, x = rows.repeat_interleave(grid[1]), columns.repeat(grid[0])  # [L]
    frequency = 10000.0 ** -(torch.arange(0, head_size, 4, device=device) / head_size)  # [d/4]
    angle = torch.stack((x, y), dim=-1)[:, None, :] * frequency[:, None]  # [L, d/4, 2]
    return angle.flatten(1).cos(), angle.flatten(1).sin()


def rope_1d(length: int, head_size: int, device: torch.device) -> Rope:
    """Rotary embedding of tokens at positions 0, 1, 2, …, two [length, d/2] tables."""
    frequency = 10000.0 ** -(torch.arange(0, head_size, 2, device=device) / head_size)
    angle = torch.arange(length, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn the adjacent channel pairs of x [B, L, heads, d] by the angles of `rope`: (a+ib)·(cos+i·sin)."""
    cos, sin = (table[:, None] for table in rope)  # [L, 1, d/2]
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))  # [B, L, heads, d/2, 2]
    if x.device.type == "cpu" and not torch.compiler.is_compiling():  # one pass; compilers know no complex
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    else:
        a, b = pairs.unbind(-1)
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d) v of [B, L, heads, d] -> [B, L, heads·d]; a key is seen where `mask` is true."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, heads, L, d]
    short = q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= SHORT
    product = attention_at_once if short else F.scaled_dot_product_attention
    return product(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def attention_at_once(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """`F.scaled_dot_product_attention` with all scores [B, heads, L, L] in memory.

    On CPUs with bf16 products, which the fused kernel does not use, 2 times as fast, 2.4 with the backward.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    return scores.softmax(-1) @ v


class Attention(nn.Module):
    """Multi-head attention with RMSNorm on queries and keys and rotary positions. [B, L, D] -> [B, L, D]."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.head_size = size // num_heads
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.q_norm = RMSNorm(self.head_size)
        self.k_norm = RMSNorm(self.head_size)
        self.proj = nn.Linear(size, size)

    def heads(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, rotated keys, and values: [B, L, D] -> three of [B, L, heads, d]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.head_size)).unbind(2)
        return rotate(self.q_norm(q), rope), rotate(self.k_norm(k), rope), v

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        return self.proj(attend(*self.heads(x, rope)))


class SwiGLU(nn.Module):
    """w2(SiLU(w1 x) · w3 x) without biases, hidden width int(2/3 · 4D); w1 and w3 are one matrix, w13."""

    def __init__(self, size: int) -> None:
        super().__init__()
        hidden = int(2 / 3 * 4 * size)
        self.w13 = nn.Linear(size, 2 * hidden, bias=False)
        self.w2 = nn.Linear(hidden, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w13(x).chunk(2, -1)
        return self.w2(F.silu(gate) * up)


class TimeEmbedder(nn.Module):
    """Sinusoid of width 256 and *maximum period 10* (t in [0,1] is not scaled), then Linear-SiLU-Linear.

    [B] -> [B, D].
    """

    def __init__(self, hidden_size: int, max_period: float = 10.0) -> None:
        super().__init__()
        self.max_period = max_period
        self.mlp = nn.Sequential(nn.Linear(256, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, t: Tensor) -> Tensor:
        exponent = torch.arange(128, dtype=torch.float32, device=t.device) / 128
        angle = t.float()[:, None] * torch.exp(-math.log(self.max_period) * exponent)  # [B, 128]
        waves = torch.cat((angle.cos(), angle.sin()), dim=-1)  # [B, 256]
        first: Any = self.mlp[0]
        return self.mlp(waves.to(first.weight.dtype))


class ClassEmbedder(nn.Module):
    """A table of num_classes + 1 rows, the last for the null class of guidance. [B] -> [B, D]."""

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, labels: Tensor) -> Tensor:
        return self.table(labels)


def zero_(*layers: Any) -> None:
    """Start linear layers at zero (the "Zero" of adaLN-Zero)."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
