"""The plain reading of both papers: what a careful person writes from the text, with nothing done for speed.

The standing baseline of every speed figure, frozen: figures over the months compare with one thing. Eager
modules, one operation after the other, PyTorch's own convolutions, position tables made anew in each pass,
guidance evaluated at every step, an optimiser with its default settings and an average kept weight by weight.
Of the package it knows the configuration alone. `load_from` takes the weights of a `PixelDenoiser`, and a
test holds the two equal. Sections are those of the papers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.models.backbones import PatchDiTConfig
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.detailers.linear import LinearConfig
from pixelwright.models.detailers.pit import PiTConfig
from pixelwright.models.detailers.unet import UNetConfig


# --- layers ------------------------------------------------------------------------------------------------
class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last axis, eps 1e-6, in float32."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (normed * self.weight).to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x·(1 + scale) + shift."""
    return x * (1 + scale) + shift


class Attention(nn.Module):
    """Multi-head attention with RMSNorm on queries and keys, turned by the complex table `rope` [L, d/2]."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.q_norm = RMSNorm(size // num_heads)
        self.k_norm = RMSNorm(size // num_heads)
        self.proj = nn.Linear(size, size)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        batch, length, size = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, size // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # three of [B, heads, L, d]
        q, k = rotate(self.q_norm(q), rope), rotate(self.k_norm(k), rope)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, length, size))


def rotary_table(rows: int, columns: int, head_size: int, device: torch.device) -> Tensor:
    """exp(i·angle) of the 2-D rotary embedding, complex [L, d/2]; x and y frequencies alternate."""
    frequency = 1 / 10000 ** (torch.arange(0, head_size, 4, device=device).float() / head_size)
    y = torch.linspace(0, 16, rows, device=device).repeat_interleave(columns)
    x = torch.linspace(0, 16, columns, device=device).repeat(rows)
    angle = torch.stack((torch.outer(x, frequency), torch.outer(y, frequency)), dim=-1)  # [L, d/4, 2]
    angle = angle.flatten(1)
    return torch.polar(torch.ones_like(angle), angle)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Adjacent channel pairs of x [B, heads, L, d], read as complex numbers, times `rope`."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)


class SwiGLU(nn.Module):
    """w2(SiLU(w1 x) · w3 x), hidden width int(2/3 · 4D)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        hidden = int(2 / 3 * 4 * size)
        self.w1 = nn.Linear(size, hidden, bias=False)
        self.w3 = nn.Linear(size, hidden, bias=False)
        self.w2 = nn.Linear(hidden, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


def to_patches(x: Tensor, patch_size: int) -> Tensor:
    """[B,C,H,W] -> [B, L, C·P·P]."""
    return F.unfold(x, patch_size, stride=patch_size).transpose(1, 2)


def to_image(patches: Tensor, height: int, width: int, patch_size: int) -> Tensor:
    """[B, L, C·P·P] -> [B,C,H,W]."""
    return F.fold(patches.transpose(1, 2), (height, width), patch_size, stride=patch_size)


# --- global stage ------------------------------------------------------------------------------------------
class TimeEmbedder(nn.Module):
    """Cosines and sines of 128 frequencies with maximum period 10, then Linear-SiLU-Linear."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, t: Tensor) -> Tensor:
        frequency = torch.exp(-math.log(10) * torch.arange(128, device=t.device) / 128)
        angle = t[:, None] * frequency
        return self.mlp(torch.cat((angle.cos(), angle.sin()), dim=-1))


class ClassEmbedder(nn.Module):
    """A row for each class and one for none."""

    def __init__(self, num_classes: int, size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_classes + 1, size)

    def forward(self, labels: Tensor) -> Tensor:
        return self.table(labels)


class Block(nn.Module):
    """Pre-norm transformer block with adaLN."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(size)
        self.attn = Attention(size, num_heads)
        self.norm2 = RMSNorm(size)
        self.mlp = SwiGLU(size)
        self.adaLN = nn.Linear(size, 6 * size)

    def forward(self, x: Tensor, condition: Tensor, rope: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN(condition).chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), rope)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class PatchDiT(nn.Module):
    """Tokens s_N [B, L, D], t_emb [B, 1, D] and c [B, 1, D] of noisy images."""

    def __init__(self, config: PatchDiTConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.patch_embedder = nn.Linear(3 * config.patch_size**2, size)
        self.time_embedder = TimeEmbedder(size)
        self.class_embedder = ClassEmbedder(config.num_classes, size)
        self.blocks = nn.ModuleList(Block(size, config.num_heads) for _ in range(config.depth))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        tokens = self.patch_embedder(to_patches(x, config.patch_size))
        time = self.time_embedder(t)[:, None]
        condition = F.silu(time + self.class_embedder(labels)[:, None])
        rows, columns = x.shape[2] // config.patch_size, x.shape[3] // config.patch_size
        rope = rotary_table(rows, columns, config.hidden_size // config.num_heads, x.device)
        for block in self.blocks:
            tokens = block(tokens, condition, rope)
        return tokens, time, condition


# --- local stage -------------------------------------------------------------------------------------------
class Down(nn.Module):
    """Conv3×3 and SiLU; what comes after the max-pool, and before."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = F.silu(self.conv(x))
        return F.max_pool2d(skip, 2), skip


class Up(nn.Module):
    """ConvTranspose2×2, concat with the skip, Conv3×3, SiLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(before, before, 2, stride=2)
        self.conv = nn.Conv2d(2 * before, after, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return F.silu(self.conv(torch.cat((self.upsample(x), skip), dim=1)))


class UNet(nn.Module):
    """DiP's Patch Detailer Head on all B·L patches (DiP section 3.3)."""

    def __init__(self, config: UNetConfig, size: int, patch_size: int) -> None:
        super().__init__()
        channels = config.channels
        self.patch_size = patch_size
        self.down = nn.ModuleList(map(Down, (3, *channels[:-1]), channels))
        self.bottleneck = nn.Conv2d(channels[-1] + size, channels[-1], 1)
        self.up = nn.ModuleList(map(Up, channels[::-1], (*channels[-2::-1], channels[0])))
        self.out = nn.Conv2d(channels[0], 3, 1)

    def forward(self, x: Tensor, tokens: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        (batch, _, height, width), p = x.shape, self.patch_size
        s_cond = F.silu(tokens + time).flatten(0, 1)  # [B·L, D]
        h = to_patches(x, p).reshape(-1, 3, p, p)  # [B·L, 3, P, P]
        skips = []
        for down in self.down:
            h, skip = down(h)
            skips.append(skip)
        s_cond = s_cond[:, :, None, None].repeat(1, 1, *h.shape[2:])
        h = F.silu(self.bottleneck(torch.cat((h, s_cond), dim=1)))
        for up in self.up:
            h = up(h, skips.pop())
        return to_image(self.out(h).reshape(batch, -1, 3 * p * p), height, width, p)


def pixel_positions(height: int, width: int, size: int, device: torch.device) -> Tensor:
    """2-D sin-cos table of the whole image, [D_pix, H, W]: sines, cosines of x, then of y."""
    frequency = 1 / 10000 ** (torch.arange(size // 4, device=device, dtype=torch.float64) / (size // 4))
    x = torch.outer(frequency, torch.arange(width, device=device).double())[:, None].expand(-1, height, -1)
    y = torch.outer(frequency, torch.arange(height, device=device).double())[:, :, None].expand(-1, -1, width)
    return torch.cat((x.sin(), x.cos(), y.sin(), y.cos())).float()


def to_pixels(x: Tensor, patch_size: int) -> Tensor:
    """[B,C,H,W] -> [B·L, P², C]."""
    channels, patches = x.shape[1], to_patches(x, patch_size)
    return patches.reshape(-1, channels, patch_size**2).transpose(1, 2)


class PixelMLP(nn.Module):
    """D_pix -> 4·D_pix -> D_pix with GELU."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, 4 * size)
        self.fc2 = nn.Linear(4 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PiTBlock(nn.Module):
    """Pixel-wise adaLN and pixel token compaction (PixelDiT section 3.3), of either modulation."""

    def __init__(self, config: PiTConfig, size: int, patch_size: int) -> None:
        super().__init__()
        pixels, narrow = patch_size**2, config.pixel_size
        self.post = config.post_modulation
        self.chunks = 4 if self.post else 6
        self.norm1 = RMSNorm(narrow)
        self.compress = nn.Linear(pixels * narrow, config.attention_size)
        self.attn = Attention(config.attention_size, config.num_heads)
        self.expand = nn.Linear(config.attention_size, pixels * narrow)
        self.norm2 = RMSNorm(narrow)
        self.mlp = PixelMLP(narrow)
        self.adaLN = nn.Linear(size, pixels * self.chunks * narrow)

    def forward(self, x: Tensor, s_cond: Tensor, rope: Tensor) -> Tensor:
        """x [B·L, P², D_pix], s_cond [B, L, D]."""
        modulation = self.adaLN(s_cond).reshape(*x.shape[:2], -1)  # [B·L, P², chunks·D_pix]
        if self.post:
            scale1, shift1, scale2, shift2 = modulation.chunk(4, dim=-1)
            x = x + modulate(self.attend(self.norm1(x), s_cond, rope), shift1, scale1)
            return x + modulate(self.mlp(self.norm2(x)), shift2, scale2)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        x = x + gate1 * self.attend(modulate(self.norm1(x), shift1, scale1), s_cond, rope)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))

    def attend(self, x: Tensor, s_cond: Tensor, rope: Tensor) -> Tensor:
        """Every patch's pixels become one token; the tokens attend, and become pixels again."""
        tokens = self.compress(x.reshape(*s_cond.shape[:2], -1))  # [B, L, A]
        return self.expand(self.attn(tokens, rope)).reshape(x.shape)


class PiT(nn.Module):
    """PixelDiT's pixel-level stage: one token per pixel."""

    def __init__(self, config: PiTConfig, size: int, patch_size: int) -> None:
        super().__init__()
        self.config, self.patch_size = config, patch_size
        self.pixel_embedder = nn.Linear(3, config.pixel_size)
        self.blocks = nn.ModuleList(PiTBlock(config, size, patch_size) for _ in range(config.depth))
        self.norm = RMSNorm(config.pixel_size)
        self.out = nn.Linear(config.pixel_size, 3)

    def forward(self, x: Tensor, tokens: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        (batch, _, height, width), p, config = x.shape, self.patch_size, self.config
        positions = pixel_positions(height, width, config.pixel_size, x.device)
        h = self.pixel_embedder(to_pixels(x, p)) + to_pixels(positions[None], p).repeat(batch, 1, 1)
        s_cond = F.silu(tokens + time)
        rope = rotary_table(height // p, width // p, config.attention_size // config.num_heads, x.device)
        for block in self.blocks:
            h = block(h, s_cond, rope)
        velocity = self.out(self.norm(h)).transpose(1, 2)  # [B·L, 3, P²]
        return to_image(velocity.reshape(batch, -1, 3 * p * p), height, width, p)


class Linear(nn.Module):
    """The DiT-only baseline: adaLN, one linear layer."""

    def __init__(self, size: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm = RMSNorm(size)
        self.adaLN = nn.Linear(size, 2 * size)
        self.out = nn.Linear(size, 3 * patch_size**2)

    def forward(self, x: Tensor, tokens: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN(condition).chunk(2, dim=-1)
        patches = self.out(modulate(self.norm(tokens), shift, scale))
        return to_image(patches, x.shape[2], x.shape[3], self.patch_size)


class BaselineDenoiser(nn.Module):
    """Global stage, then local stage: the velocity [B,3,H,W] of noisy images.

    Raises:
        ValueError: a model of captions, of another placement than post-hoc, or of another prediction than
            velocity; those have no counterpart here.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        backbone, detailer = config.backbone, config.detailer
        if not isinstance(backbone, PatchDiTConfig):
            raise ValueError(f"{config.name} draws from captions; the baseline is for classes alone")
        if (config.placement, config.prediction) != ("post-hoc", "velocity"):
            raise ValueError(
                f"{config.name} is {config.placement} and predicts {config.prediction}; "
                "the baseline is post-hoc and predicts velocity"
            )
        size, patch_size = backbone.hidden_size, backbone.patch_size
        self.config = config
        self.backbone = PatchDiT(backbone)
        match detailer:
            case UNetConfig():
                self.detailer: nn.Module = UNet(detailer, size, patch_size)
            case PiTConfig():
                self.detailer = PiT(detailer, size, patch_size)
            case LinearConfig():
                self.detailer = Linear(size, patch_size)

    def load_from(self, weights: Mapping[str, Tensor]) -> BaselineDenoiser:
        """Take the weights of a `PixelDenoiser`, its `state_dict()`; those stored alike are shared."""
        self.load_state_dict(stored_as_here(weights), assign=True)
        return self

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x [B,3,H,W], t [B], labels [B] -> velocity [B,3,H,W] in the dtype of x."""
        return self.detailer(x, *self.backbone(x, t, labels)).to(x.dtype)


def stored_as_here(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `PixelDenoiser` in the layout of these modules.

    There, w1 and w3 are one `w13`.
    """
    if not any(name.endswith("w13.weight") for name in weights):
        return dict(weights)
    result = {}
    for name, value in weights.items():
        if name.endswith(".w13.weight"):
            owner = name.removesuffix(".w13.weight")
            result[f"{owner}.w1.weight"], result[f"{owner}.w3.weight"] = value.chunk(2)
        else:
            result[name] = value
    return result


# --- training and sampling ---------------------------------------------------------------------------------
class BaselineTraining:
    """A training step as papers state it: flow-matching loss, clipping, AdamW, an average of the weights.

    Takes any module called as `model(x, t, labels)`, so that other implementations are measured alike.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-4,
        clip: float | None = 1.0,
        decay: float = 0.9999,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model, self.clip, self.decay, self.autocast = model.train(), clip, decay, autocast
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)

    def step(self, x: Tensor, t: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
        """One step on clean images x [B,3,H,W] at times t [B]; returns the loss."""
        self.optimizer.zero_grad()
        loss = self.loss(x, t, noise, labels)
        loss.backward()
        self.optimise()
        self.average_weights()
        return loss.detach()

    def loss(self, x: Tensor, t: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
        """mean((v̂ − v)²) with v = x − ε at x_t = t·x + (1−t)·ε."""
        time = t[:, None, None, None]
        with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
            velocity = self.model(time * x + (1 - time) * noise, t, labels)
        return F.mse_loss(velocity.float(), x - noise)

    def optimise(self) -> None:
        """Clip the gradient and let AdamW step."""
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()

    @torch.no_grad()
    def average_weights(self) -> None:
        """average ← decay·average + (1−decay)·weights, one weight at a time."""
        for average, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
            average.mul_(self.decay).add_(weight, alpha=1 - self.decay)


@torch.no_grad()
def baseline_sample(
    model: nn.Module,
    noise: Tensor,
    labels: Tensor,
    null: int,
    steps: int,
    solver: str = "euler",
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    autocast: torch.dtype | None = None,
) -> Tensor:
    """From noise [B,3,H,W] to images along a uniform grid; both branches of guidance at every step.

    `solver` is "euler" or "ab2-fixed" (Adams-Bashforth 2 with weights 3/2 and −1/2, after an Euler step); the
    conditional branch alone counts outside the interval, where the other is computed all the same.

    Raises:
        ValueError: another solver.
    """
    if solver not in ("euler", "ab2-fixed"):
        raise ValueError(f'the baseline has the solvers euler and ab2-fixed, not "{solver}"')
    x, previous = noise, None
    both = torch.cat((labels, torch.full_like(labels, null)))
    with torch.autocast(noise.device.type, autocast, enabled=autocast is not None):
        for i in range(steps):
            t = torch.full((2 * len(x),), i / steps, device=x.device)
            conditional, unconditional = model(torch.cat((x, x)), t, both).chunk(2)
            velocity = conditional
            if guidance_interval[0] < i / steps < guidance_interval[1]:
                velocity = unconditional + guidance_scale * (conditional - unconditional)
            slope = velocity if previous is None or solver == "euler" else 1.5 * velocity - 0.5 * previous
            x = x + slope / steps
            previous = velocity
    return x
