"""The elementwise chains between matrix products, each as one function.

Eager PyTorch walks through memory once per operation. Inside `compiled()` every chain is one pass, made by
torch.compile once per shape and kept on disk (TORCHINDUCTOR_CACHE_DIR); the formulas are these. Where a whole
block is compiled, as in training, they are compiled with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

Rope = tuple[Tensor, Tensor]  # cosines and sines of the rotary angles, two [L, d/2] in float32
Chain = TypeVar("Chain", bound=Callable[..., Any])

ZERO = 128
"""The level that stands for zero in `quantise`."""

SHAPES = 64
"""Shapes that a chain is compiled for in one process. By PyTorch's own 8, the ninth would stay eager: widths
of two stages, with and without guidance, and a smaller last batch are more."""

_compiled = False


@contextmanager
def compiled(on: bool = True) -> Iterator[None]:
    """In here the chains are compiled; in all threads, which is harmless, as their results are the same."""
    global _compiled
    before, _compiled = _compiled, on
    try:
        yield
    finally:
        _compiled = before


def chain(function: Chain) -> Chain:
    """A function that `compiled` compiles."""

    @wraps(function)
    def call(*args: Any) -> Any:
        return _compile(function)(*args) if _compiled else function(*args)

    return call  # type: ignore[return-value]


@cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    from torch._dynamo import config  # seconds, which only compiling needs

    config.recompile_limit = max(config.recompile_limit, SHAPES)
    return torch.compile(function, dynamic=False)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / rms(x) · weight over the last axis, eps 1e-6, computed in float32."""
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps=1e-6).to(x.dtype)


@chain
def norm(x: Tensor, weight: Tensor) -> Tensor:
    """`rms_norm` alone."""
    return rms_norm(x, weight)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: x·(1 + scale) + shift (papers, section on the global block)."""
    return x * (1 + scale) + shift


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn the channel pairs of x [B, heads, L, d] by the angles of `rope`; float32 inside.

    The channels are in the order of `layers.in_halves`, which processors read without gaps.
    """
    cos, sin = rope
    even, odd = x.float().chunk(2, dim=-1)  # two of [B, heads, L, d/2]
    return torch.cat((even * cos - odd * sin, even * sin + odd * cos), dim=-1).to(x.dtype)


@chain
def norm_modulate(x: Tensor, weight: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """RMSNorm with `weight`, then adaLN."""
    return modulate(rms_norm(x, weight), shift, scale)


@chain
def gated_add(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate·y."""
    return x + gate * y


@chain
def silu_product(gate_up: Tensor) -> Tensor:
    """SiLU(a)·b for [a, b] side by side on the last axis (SwiGLU)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


@chain
def heads(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, rope: Rope, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normed and rotated queries and keys, and values: [B, L, 3·D] -> three [B, heads, L, d].

    Queries are multiplied by `scale`.
    """
    d = q_weight.shape[0]
    q, k, v = qkv.unflatten(-1, (3, -1, d)).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = rotate(rms_norm(q, q_weight), rope) * scale, rotate(rms_norm(k, k_weight), rope)
    return q.contiguous(), k.contiguous(), v.contiguous()


@chain
def softmax(scores: Tensor) -> Tensor:
    """Over the last axis, in float32."""
    return scores.float().softmax(-1).to(scores.dtype)


@chain
def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """`softmax` over the keys where `mask` (of a shape that broadcasts) is true; the others weigh 0."""
    return scores.float().masked_fill(~mask, float("-inf")).softmax(-1).to(scores.dtype)


@chain
def spread(pixels: Tensor) -> Tensor:
    """Each pixel's four new ones to their places: [N, h, w, 4·O] -> [N, O, 2h, 2w] in channels_last."""
    n, h, w, _ = pixels.shape
    out = pixels.view(n, h, w, 2, 2, -1).transpose(2, 3)  # [N, h, 2, w, 2, O]
    return out.reshape(n, 2 * h, 2 * w, -1).permute(0, 3, 1, 2)


@chain
def spread_and_join(pixels: Tensor, skip: Tensor) -> Tensor:
    """`spread`, and the skip [N, C, 2h, 2w] behind it: [N, O + C, 2h, 2w] in channels_last."""
    return torch.cat((spread.__wrapped__(pixels), skip), dim=1)  # type: ignore[attr-defined]


@chain
def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row in 255 levels around `ZERO`: uint8 like x, and what a level is worth, float32 [.., 1]."""
    x = x.float()
    level = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (x / level).round_().add_(ZERO).to(torch.uint8), level


@chain
def rescale(y: Tensor, level: Tensor, bias: Tensor | None) -> Tensor:
    """y·level + bias, computed in float32."""
    scaled = y.float() * level
    return (scaled if bias is None else scaled.add_(bias)).to(y.dtype)
