"""Layers both papers share: embedders, RMSNorm, rotary attention, SwiGLU and adaLN modulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.acceleration import fused
from pixelwright.acceleration.fused import Rope

Grid = tuple[int, int]  # (rows, columns) of the patch grid

SHORT = 512  # tokens up to which a CPU is faster with all scores of attention at once


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
    """Root-mean-square norm over the last axis with a learned weight; see `rms_norm`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return fused.norm(x, self.weight)

    def modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """adaLN: the norm of x, then `fused.modulate`."""
        return fused.norm_modulate(x, self.weight, shift, scale)

    def gated_modulated(
        self, x: Tensor, gate: Tensor, y: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """From one sub-layer to the next: x + gate·y, and `modulated` of that."""
        x = fused.gated_add(x, gate, y)
        return x, self.modulated(x, shift, scale)


class TimeEmbedder(nn.Module):
    """Sinusoid of width 256 and *maximum period 10* (t in [0,1] is not scaled), then Linear-SiLU-Linear.

    [B] -> [B, D].
    """

    frequencies = 256
    max_period = 10.0

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        first, last = nn.Linear(self.frequencies, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.mlp = nn.Sequential(first, nn.SiLU(), last)
        for layer in (first, last):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, t: Tensor) -> Tensor:
        half = self.frequencies // 2
        exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
        angle = t.float()[:, None] * torch.exp(-math.log(self.max_period) * exponent)  # [B, 128]
        waves = torch.cat((angle.cos(), angle.sin()), dim=-1)  # [B, 256]
        first: Any = self.mlp[0]
        return self.mlp(waves.to(first.weight.dtype))


class ClassEmbedder(nn.Module):
    """A table of num_classes + 1 rows, the last for the null class of guidance. [B] -> [B, D]."""

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_classes + 1, hidden_size)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, labels: Tensor) -> Tensor:
        return self.table(labels)


_holders: list[list[Any]] = []
Table = TypeVar("Table", bound=Callable[..., Any])


@contextmanager
def holding_tables() -> Iterator[list[Any]]:
    """The list gets every table that is asked for in here, and keeps it alive when the cache forgets it."""
    held: list[Any] = []
    _holders.append(held)
    try:
        yield held
    finally:
        _holders[:] = [other for other in _holders if other is not held]


def table(most: int) -> Callable[[Table], Table]:
    """A function of shapes and a device whose last `most` results are remembered."""

    def decorate(make: Table) -> Table:
        remembered = lru_cache(maxsize=most)(make)

        @wraps(make)
        def look_up(*args: Any) -> Any:
            result = remembered(*args)
            for held in _holders:
                held.append(result)
            return result

        return look_up  # type: ignore[return-value]

    return decorate


@table(64)
def rope_2d(grid: Grid, head_size: int, device: torch.device) -> Rope:
    """Cosines and sines of the 2-D rotary embedding, two [L, head_size/2] float32 tables.

    Positions run from 0 to 16 along each axis whatever the resolution; x and y frequencies alternate
    (pair 0 turns with x, pair 1 with y, …); theta = 10000.
    """
    rows, columns = grid
    y = torch.linspace(0, 16, rows, dtype=torch.float32)
    x = torch.linspace(0, 16, columns, dtype=torch.float32)
    frequency = 10000.0 ** -(torch.arange(0, head_size, 4)[: head_size // 4].float() / head_size)
    y, x = torch.meshgrid(y, x, indexing="ij")
    position = torch.stack((x.flatten(), y.flatten()), dim=-1)  # [L, 2]
    angle = (position[:, None, :] * frequency[:, None]).flatten(1)  # [L, d/4, 2] -> [L, d/2]
    return angle.cos().to(device), angle.sin().to(device)


@table(64)
def rope_1d(length: int, head_size: int, device: torch.device) -> Rope:
    """Cosines and sines for tokens in a row at positions 0, 1, 2, …, two [length, head_size/2] tables."""
    frequency = 10000.0 ** -(torch.arange(0, head_size, 2).float() / head_size)
    angle = torch.arange(length).float()[:, None] * frequency
    return angle.cos().to(device), angle.sin().to(device)


def in_halves(x: Tensor, dim: int) -> Tensor:
    """Channels 0, 2, 4, … of an axis, then 1, 3, 5, …: the pairs that turn together come apart."""
    return x.unflatten(dim, (-1, 2)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def rotated_heads(
    x: Tensor, qkv: nn.Module, q_norm: RMSNorm, k_norm: RMSNorm, rope: Rope
) -> tuple[Tensor, Tensor, Tensor]:
    """Normed and rotated queries and keys, and values: [B, L, D] -> three of [B, heads, L, d].

    Adjacent channels are pairs. Queries, divided by √d, and keys leave in the order of `in_halves`, which
    their products do not see; rows of the weights are moved for that instead of the far larger activations.
    """
    if not isinstance(qkv, nn.Linear):
        return qkv(x, rope)  # prepared for sampling: `fast.Heads`
    rows, q_weight, k_weight = head_weights(qkv, q_norm, k_norm)
    return fused.heads(F.linear(x, rows), q_weight, k_weight, rope, len(q_weight) ** -0.5)


def head_weights(qkv: nn.Linear, q_norm: RMSNorm, k_norm: RMSNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the product and of the two norms, with queries and keys in the order of `in_halves`."""
    rows = qkv.weight.unflatten(0, (3, -1, len(q_norm.weight)))  # [3, heads, d, D]
    rows = torch.cat((in_halves(rows[:2], 2), rows[2:])).flatten(0, 2)
    return rows, in_halves(q_norm.weight, 0), in_halves(k_norm.weight, 0)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ) v, [B, heads, L, d]; a key where `mask` is false is not seen."""
    if q.device.type == "cpu" and k.shape[2] <= SHORT:
        return attend_at_once(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)


def attend_at_once(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """`attend` with all its scores in memory."""
    scores = q @ k.transpose(-1, -2)  # [B, heads, L, L]
    return (fused.softmax(scores) if mask is None else fused.masked_softmax(scores, mask)) @ v


class Attention(nn.Module):
    """Rotary multi-head attention with RMSNorm on queries and keys. [B, L, D] -> [B, L, D]."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.head_size = size // num_heads
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.q_norm = RMSNorm(self.head_size)
        self.k_norm = RMSNorm(self.head_size)
        self.proj = nn.Linear(size, size)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        out = attend(*rotated_heads(x, self.qkv, self.q_norm, self.k_norm, rope))
        return self.proj(out.transpose(1, 2).flatten(2))  # [B, L, heads*d]


class SwiGLU(nn.Module):
    """w2(SiLU(w1 x) · w3 x) without biases, hidden width int(2/3 · 4D); w1 and w3 in one product."""

    def __init__(self, size: int) -> None:
        super().__init__()
        hidden = int(2 / 3 * 4 * size)
        self.w1 = nn.Linear(size, hidden, bias=False)
        self.w3 = nn.Linear(size, hidden, bias=False)
        self.w2 = nn.Linear(hidden, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(fused.silu_product(F.linear(x, torch.cat((self.w1.weight, self.w3.weight)))))


def conv3x3(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A zero-padded 3×3 convolution of patches; on 2×2 pixels as one exact matrix product, far faster.

    x [N,C,h,w] in channels_last. At 2×2 every output pixel sees every input pixel and five of nine taps fall
    on padding, so the same map is a dense [4·C_in -> 4·C_out] product with less than half the arithmetic.
    """
    if x.shape[-2:] != (2, 2):
        return conv(x)
    out = F.linear(pixel_rows(x).flatten(1), *dense3x3(conv))  # [N, 4·C] -> [N, 4·O]
    return out.unflatten(-1, (2, 2, -1)).permute(0, 3, 1, 2)  # [N, O, 2, 2], channels_last


def dense3x3(conv: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """Weight [4·O, 4·C] and bias [4·O] of a 3×3 convolution of 2×2 pixels as a product."""
    w = conv.weight  # [O, C, 3, 3]; output pixel (i, j) meets input pixel (k, l) through tap (k-i+1, l-j+1)
    dense = torch.stack([w[:, :, 1 - i : 3 - i, 1 - j : 3 - j] for i in (0, 1) for j in (0, 1)])
    dense = dense.permute(0, 1, 3, 4, 2).flatten(2).flatten(0, 1)  # [4, O, C, 2, 2] -> [4·O, 4·C]
    return dense, None if conv.bias is None else conv.bias.repeat(4)


def double(x: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
    """A 2×2 transposed convolution of stride 2: each pixel becomes 2×2 by one matrix product.

    x [N,C,h,w] in channels_last -> [N,O,2h,2w] in channels_last.
    """
    return fused.spread(F.linear(pixel_rows(x), *dense_double(conv)))


def dense_double(conv: nn.ConvTranspose2d) -> tuple[Tensor, Tensor | None]:
    """Weight [4·O, C] and bias [4·O] of a 2×2 transposed convolution of stride 2 as a product."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # [C, O, 2, 2] -> [4·O, C]
    return weight, None if conv.bias is None else conv.bias.repeat(4)


def pixel_rows(x: Tensor) -> Tensor:
    """[N,C,h,w] in channels_last -> [N,h,w,C] without a copy."""
    return x.permute(0, 2, 3, 1)


def zero_linear(in_features: int, out_features: int) -> nn.Linear:
    """A Linear that starts at zero (the "Zero" of adaLN-Zero)."""
    layer = nn.Linear(in_features, out_features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
