"""Norm and modulation as Triton kernels, for inference on CUDA: everything is read once and written once.

The truth beside them are `fused.gated_add` and `fused.norm_modulate`. Import this late: it needs Triton. One
kernel serves tokens (a row of D channels, one modulation for all L rows of an image) and the pixels of PiT
(rows of D_pix = 16 channels, a modulation for each): a program takes as many rows as fill its tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixelwright.models.layers import RMSNorm

TILE = 2048
"""Elements a program works on: one padded row of D=1152 channels, or 128 rows of 16."""


@triton.jit
def _kernel(
    x,  # [rows, size], as all that has no stride
    gate,
    y,
    weight,  # [size]
    shift,  # gate, shift and scale: [rows / shared, size] with a stride
    scale,
    total,
    out,
    rows,
    size,
    shared,  # rows that share one row of the modulation
    gate_stride,
    shift_stride,
    scale_stride,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, CHANNELS)[None, :]
    inside = (row < rows) & (channel < size)
    here, part = row * size + channel, row // shared
    h = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    if GATED:  # total = x + gate·y, of which the norm sees what is written
        g = tl.load(gate + part * gate_stride + channel, mask=inside, other=0.0).to(tl.float32)
        h = (h + g * tl.load(y + here, mask=inside, other=0.0).to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + here, h, mask=inside)
        h = h.to(tl.float32)
    h *= tl.rsqrt(tl.sum(h * h, axis=1, keep_dims=True) / size + 1e-6)
    h *= tl.load(weight + channel, mask=channel < size, other=0.0).to(tl.float32)
    b = tl.load(shift + part * shift_stride + channel, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(scale + part * scale_stride + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + here, h * (1 + a) + b, mask=inside)


def _launch(
    gated: bool, x: Tensor, gate: Tensor, y: Tensor, weight: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """(x + gate·y, or x; its norm, modulated). x, y [.., C]; gate, shift, scale [.., C] or [B,1,C]."""
    x, y = x.contiguous(), y.contiguous()
    total = torch.empty_like(x, dtype=_widest(x, gate, y)) if gated else x
    out = torch.empty_like(x, dtype=_widest(total, shift, scale))
    gate, shift, scale = (_rows(part, x) for part in (gate, shift, scale))
    assert len(gate) == len(shift) == len(scale), "parts of one modulation"
    size = x.shape[-1]
    rows, channels = x.numel() // size, triton.next_power_of_2(size)
    at_once = max(1, TILE // channels)
    inputs = (x, gate, y, weight, shift, scale, total, out)
    numbers = (rows, size, rows // len(shift), gate.stride(0), shift.stride(0), scale.stride(0))
    with torch.cuda.device_of(x):
        _kernel[(triton.cdiv(rows, at_once),)](*inputs, *numbers, gated, at_once, channels)
    return total, out


def _rows(part: Tensor, x: Tensor) -> Tensor:
    """A part of the modulation as a view [rows, C]: as many rows as x, or one for each image."""
    own = part.shape[:-1] == x.shape[:-1]
    assert own or part.shape[:-1] == (x.shape[0], *[1] * (x.ndim - 2)), (part.shape, x.shape)
    part = part.flatten(0, -2)
    return part if part.stride(-1) == 1 else part.contiguous()


def _widest(*tensors: Tensor) -> torch.dtype:
    """The dtype of a sum of these."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


# Operators of PyTorch, so that torch.compile takes each as a whole and goes on around it.
@torch.library.custom_op("pixelwright::norm_modulate", mutates_args=())
def norm_modulate(x: Tensor, weight: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`fused.norm_modulate`."""
    return _launch(False, x, shift, x, weight, shift, scale)[1]  # without gate and y


@torch.library.custom_op("pixelwright::gated_norm_modulate", mutates_args=())
def gated_norm_modulate(
    x: Tensor, gate: Tensor, y: Tensor, weight: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """`fused.gated_add`, and `fused.norm_modulate` of it."""
    return _launch(True, x, gate, y, weight, shift, scale)


@norm_modulate.register_fake
def _(x: Tensor, weight: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=_widest(x, shift, scale), memory_format=torch.contiguous_format)


@gated_norm_modulate.register_fake
def _(
    x: Tensor, gate: Tensor, y: Tensor, weight: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    total = torch.empty_like(x, dtype=_widest(x, gate, y), memory_format=torch.contiguous_format)
    return total, torch.empty_like(total, dtype=_widest(total, shift, scale))


class TritonNorm(RMSNorm):
    """An `RMSNorm` whose modulations are these kernels."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__(0)
        self.weight = norm.weight

    def modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return norm_modulate(x, self.weight, shift, scale)

    def gated_modulated(
        self, x: Tensor, gate: Tensor, y: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        return gated_norm_modulate(x, gate, y, self.weight, shift, scale)
