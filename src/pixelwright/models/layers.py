"""Layers the papers share: patches and pixels, norms, rotary attention, MLPs, the DiT block, embedders."""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.errors import UserError

Grid = tuple[int, int]  # (rows, columns) of the patch grid
SHORT = 512  # tokens up to which `attention_at_once` is the faster one
Rope = tuple[Tensor, Tensor]  # cosines and sines of the rotary angles, two [L, d/2] in float32
PixelPositions = Literal["dct", "rotary", "rotary-16"]  # see `pixel_features`


class Context(NamedTuple):
    """In-context tokens, which stand in front of the patches in later blocks (JiT)."""

    tokens: Tensor
    """[B, n, D]."""
    condition: Tensor
    """What modulates them, [B, 1, D]."""


class GlobalState(NamedTuple):
    """What the global stage knows of an image; all that a detailer is given besides the noisy pixels."""

    tokens: Tensor
    """s_n, the tokens after n blocks, [B, L, D]."""
    time: Tensor
    """t_emb, [B, 1, D]."""
    condition: Tensor
    """c = SiLU(t_emb + y_emb), or SiLU(t_emb) where the condition is text, [B, 1, D]."""
    grid: Grid
    """(rows, columns) of patches, rows · columns = L."""
    context: Context | None = None
    """Tokens that the backbone has beside those of the patches."""

    @property
    def s_cond(self) -> Tensor:
        """SiLU(s_N + t_emb), [B, L, D]: the token each patch hands to its detailer in all papers."""
        return F.silu(self.tokens + self.time)


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


def to_pixels(x: Tensor, patch_size: int) -> Tensor:
    """[B,C,H,W] -> [B, L, P², C]: every patch a sequence of pixels."""
    return patchify(x, patch_size).unflatten(-1, (x.shape[1], -1)).transpose(-1, -2)


def from_pixels(pixels: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """The inverse of `to_pixels`: [B, L, P², C] -> [B,C,H,W]."""
    return unpatchify(pixels.transpose(-1, -2).flatten(2), grid, patch_size)


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last axis, eps 1e-6, in float32 at least."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(dtype), self.weight.shape, self.weight.to(dtype), eps=1e-6).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """(x − mean) / std over the last axis, eps 1e-6, in float32 at least; `affine`: · weight + bias."""

    def __init__(self, size: int, affine: bool = False) -> None:
        super().__init__(size, eps=1e-6, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight, bias = (None if p is None else p.to(dtype) for p in (self.weight, self.bias))
        return F.layer_norm(x.to(dtype), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: x·(1 + scale) + shift."""
    return torch.addcmul(shift, x, 1 + scale)


def rope_2d(grid: Grid, head_size: int, device: torch.device, spans: tuple[float, float] = (16, 16)) -> Rope:
    """2-D rotary embedding of the patch grid, two [L, d/2] tables.

    Positions run from 0 to 16 along each axis whatever the resolution, theta = 10000; pair 0 of the channels
    turns with x, pair 1 with y, pair 2 with x, … `spans`: other last positions of (rows, columns).
    """
    # Not torch.linspace, for which torch.compile makes a program per size.
    rows, columns = (
        torch.arange(n, device=device) * (span / max(n - 1, 1)) for n, span in zip(grid, spans, strict=True)
    )
    y, x = rows.repeat_interleave(grid[1]), columns.repeat(grid[0])  # [L]
    frequency = 10000.0 ** -(torch.arange(0, head_size, 4, device=device) / head_size)  # [d/4]
    angle = torch.stack((x, y), dim=-1)[:, None, :] * frequency[:, None]  # [L, d/4, 2]
    return angle.flatten(1).cos(), angle.flatten(1).sin()


def rope_index(grid: Grid, head_size: int, device: torch.device) -> Rope:
    """2-D rotary embedding by whole rows and columns 0, 1, 2, …, two [L, d/2] tables (JiT).

    The first half of a head's channels turns with the row, the second with the column; theta = 10000.
    """
    rows, columns = (torch.arange(n, device=device) for n in grid)
    frequency = 10000.0 ** -(torch.arange(0, head_size, 4, device=device) / head_size)  # [d/4]
    y, x = rows.repeat_interleave(grid[1]), columns.repeat(grid[0])  # [L]
    angle = torch.cat((y[:, None] * frequency, x[:, None] * frequency), dim=-1)  # [L, d/2]
    return angle.cos(), angle.sin()


def rope_1d(length: int, head_size: int, device: torch.device) -> Rope:
    """Rotary embedding of tokens at positions 0, 1, 2, …, two [length, d/2] tables."""
    frequency = 10000.0 ** -(torch.arange(0, head_size, 2, device=device) / head_size)
    angle = torch.arange(length, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def positions_2d(height: int, width: int, size: int, device: torch.device) -> Tensor:
    """2-D sin-cos positions of a grid, such as all pixels of an image: [size, H, W] float32.

    Channels: sines of x, cosines of x, sines of y, cosines of y; frequencies 1/10000^(k / (size/4)).
    """
    wide = torch.float32 if device.type == "mps" else torch.float64  # far pixels need the digits
    index = torch.arange(max(height, width, size), device=device, dtype=wide)
    frequency = 10000.0 ** -(index[: size // 4] / (size // 4))
    x = (frequency[:, None] * index[:width])[:, None].expand(-1, height, -1)  # [size/4, H, W]
    y = (frequency[:, None] * index[:height])[:, :, None].expand(-1, -1, width)
    return torch.cat((x.sin(), x.cos(), y.sin(), y.cos())).float()


def pixel_features(patch_size: int, kind: PixelPositions, device: torch.device) -> Tensor:
    """64 features of the place of each pixel in its patch (PixNerd, DeCo), [P², 64].

    dct: cos(π·x·f_a)·cos(π·y·f_b) / (1 + f_a·f_b) at a·8 + b, with x and y from 0 to 1 and f from 0 to 8.
    rotary: cosines of the rotary angles for 128 channels, positions from 0 to P; rotary-16: from 0 to 16.
    """
    if kind != "dct":
        span = 16 if kind == "rotary-16" else patch_size
        return rope_2d((patch_size, patch_size), 128, device, (span, span))[0]
    place = torch.arange(patch_size, device=device) / max(patch_size - 1, 1)
    f = torch.arange(8, device=device) * (8 / 7)
    waves = torch.cos(math.pi * place[:, None] * f)  # [P, 8]
    product = waves[None, :, :, None] * waves[:, None, None, :]  # [rows, columns, a, b]
    return (product / (1 + f[:, None] * f)).reshape(patch_size**2, 64)


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


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ / √d) v of [B, L, heads, d] -> [B, L, heads·d]; a key is seen where `mask` is true. Of
    the attention weights a share `dropout` is dropped."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, heads, L, d]
    short = q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= SHORT and not dropout
    if short:
        return attention_at_once(q, k, v, mask).transpose(1, 2).flatten(2)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return attended.transpose(1, 2).flatten(2)


def attention_at_once(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """`F.scaled_dot_product_attention` with all scores [B, heads, L, L] in memory.

    On CPUs with bf16 products, which the fused kernel does not use, 2 times as fast, 2.4 with the backward.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    return scores.softmax(-1) @ v


class Attention(nn.Module):
    """Multi-head attention with RMSNorm on queries and keys and rotary positions. [B, L, D] -> [B, L, D].

    `vanilla`: with neither these norms nor positions, but with a bias (DiT). Dropout of the attention weights
    and of the output acts in training alone.
    """

    def __init__(
        self,
        size: int,
        num_heads: int,
        vanilla: bool = False,
        bias: bool = False,
        dropout: float = 0.0,
        weight_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.head_size = size // num_heads
        self.weight_dropout = nn.Dropout(weight_dropout)
        self.dropout = nn.Dropout(dropout)
        self.qkv = nn.Linear(size, 3 * size, bias=bias or vanilla)
        self.q_norm = nn.Identity() if vanilla else RMSNorm(self.head_size)
        self.k_norm = nn.Identity() if vanilla else RMSNorm(self.head_size)
        self.proj = nn.Linear(size, size)

    def heads(self, x: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated if `rope` is given, values: [B, L, D] -> three of [B, L, heads, d]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.head_size)).unbind(2)
        q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if rope is None else (rotate(q, rope), rotate(k, rope), v)

    def forward(self, x: Tensor, rope: Rope | None) -> Tensor:
        weight_dropout = self.weight_dropout.p if self.training else 0.0
        return self.dropout(self.proj(attend(*self.heads(x, rope), dropout=weight_dropout)))


class SwiGLU(nn.Module):
    """w2(SiLU(w1 x) · w3 x), hidden width 2/3 · 4D rounded down unless given; w1 and w3 are one matrix, w13.

    Dropout of the hidden channels acts in training alone.
    """

    def __init__(
        self, size: int, hidden: int | None = None, bias: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        hidden = hidden or 8 * size // 3
        self.w13 = nn.Linear(size, 2 * hidden, bias=bias)
        self.w2 = nn.Linear(hidden, size, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w13(x).chunk(2, -1)
        return self.w2(self.dropout(F.silu(gate) * up))


class MLP(nn.Module):
    """size -> 4·size -> size with GELU and biases."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, 4 * size)
        self.fc2 = nn.Linear(4 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DiTBlock(nn.Module):
    """Pre-norm transformer block with adaLN-Zero: Linear(D -> 6D) of the condition.

    `vanilla`: as in DiT, with LayerNorm, plain attention and GELU for RMSNorm, rotary attention and SwiGLU.
    The others are JiT's: hidden width of SwiGLU, biases of qkv and SwiGLU, dropout.
    """

    def __init__(
        self,
        size: int,
        num_heads: int,
        vanilla: bool = False,
        mlp_size: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(size) if vanilla else RMSNorm(size)
        self.attn = Attention(size, num_heads, vanilla, bias, dropout, attention_dropout)
        self.norm2 = LayerNorm(size) if vanilla else RMSNorm(size)
        self.mlp = MLP(size) if vanilla else SwiGLU(size, mlp_size, bias, dropout)
        self.adaLN = nn.Linear(size, 6 * size)

    def forward(self, x: Tensor, condition: Tensor, rope: Rope | None) -> Tensor:
        """x [B, L, D], condition [B, 1, D], or [B, L, D] for each token its own -> [B, L, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN(condition).chunk(6, -1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), rope)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


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


class PixelEmbedder(nn.Module):
    """Each noisy pixel and the features of its place -> w channels: [B,3,H,W] -> [B, L, P², w]."""

    def __init__(self, size: int, patch_size: int, positions: PixelPositions) -> None:
        super().__init__()
        self.patch_size, self.positions = patch_size, positions
        self.linear = nn.Linear(3 + 64, size)

    def forward(self, x: Tensor) -> Tensor:
        pixels = to_pixels(x, self.patch_size)  # [B, L, P², 3]
        places = pixel_features(self.patch_size, self.positions, x.device).to(x.dtype)
        return self.linear(torch.cat((pixels, places.expand(*pixels.shape[:3], -1)), dim=-1))


def has_dropout(module: nn.Module) -> bool:
    """Whether something in it is random in training."""
    return any(isinstance(each, nn.Dropout) and each.p > 0 for each in module.modules())


def check_heads(config: Any, size: int, num_heads: int) -> None:
    """Raise UserError unless `size` channels divide into heads that the 2-D rotary embedding can turn."""
    if size % num_heads or (size // num_heads) % 4:
        raise UserError(
            f"{type(config).__name__}: width {size} does not divide into {num_heads} heads of a multiple of "
            f"4 channels ({size} / {num_heads} = {size / num_heads:g}); rotary embedding needs that"
        )


def zero_(*layers: Any) -> None:
    """Start linear layers at zero (the "Zero" of adaLN-Zero)."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def xavier_(*layers: Any) -> None:
    """Start linear layers Xavier-uniform, biases at zero."""
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
