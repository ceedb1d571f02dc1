"""Local stage: from the noisy pixels of a patch and the patch's token to the velocity of those pixels.

A detailer is a module called as `detailer(x, state)` with x [B,3,H,W] and the backbone's `GlobalState`, and
returns [B,3,H,W]. To add one: write the class here, its settings in `config.py`, and a row in `presets.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.acceleration.fused import Rope, gated_add, modulate
from pixelwright.models.backbones import GlobalState
from pixelwright.models.config import DetailerConfig, LinearConfig, PiTConfig, UNetConfig
from pixelwright.models.layers import (
    Attention,
    RMSNorm,
    conv3x3,
    double,
    patchify,
    rope_2d,
    table,
    unpatchify,
    zero_linear,
)


class UNetDown(nn.Module):
    """Conv3×3, SiLU (the skip), max-pool 2."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = F.silu(conv3x3(x, self.conv))
        return F.max_pool2d(skip, 2), skip


class UNetUp(nn.Module):
    """ConvTranspose2×2 stride 2 that keeps the channels, concat with the skip, Conv3×3, SiLU."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv = nn.Conv2d(2 * channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return F.silu(conv3x3(torch.cat((double(x, self.upsample), skip), dim=1), self.conv))


class UNet(nn.Module):
    """DiP's Patch Detailer Head (section 3.3): a small convolutional U-Net run on all B·L patches at once."""

    def __init__(self, config: UNetConfig, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        channels = config.channels
        self.patch_size = patch_size
        self.at_once: int | None = None  # patches, where not all
        self.down = nn.ModuleList(
            UNetDown(before, after) for before, after in zip((3, *channels), channels, strict=False)
        )
        self.bottleneck = nn.Conv2d(channels[-1] + hidden_size, channels[-1], 1)
        # Mirror image of the way down; the last level keeps its width.
        outs = (channels[0], *channels[:-1])
        self.up = nn.ModuleList(UNetUp(c, out) for c, out in zip(channels[::-1], outs[::-1], strict=True))
        self.out = nn.Conv2d(channels[0], 3, 1)

    def forward(self, x: Tensor, state: GlobalState) -> Tensor:
        p = self.patch_size
        s_cond = state.s_cond.flatten(0, 1)[:, :, None, None]  # [B·L, D, 1, 1]
        h = patchify(x, p).reshape(-1, 3, p, p)  # [B·L, 3, P, P]
        h = h.contiguous(memory_format=torch.channels_last)
        slices = zip(h.split(self.at_once or len(h)), s_cond.split(self.at_once or len(h)), strict=True)
        patches = torch.cat([self.velocity(*part) for part in slices])
        patches = patches.reshape(x.shape[0], -1, 3 * p * p)  # [B·L, 3, P, P] -> [B, L, 3·P·P]
        return unpatchify(patches, state.grid, p)

    def velocity(self, h: Tensor, s_cond: Tensor) -> Tensor:
        """Each patch for itself: h [N,3,P,P] in channels_last, s_cond [N, D, 1, 1] -> [N,3,P,P]."""
        skips = []
        for down in self.down:
            h, skip = down(h)
            skips.append(skip)
        h = torch.cat((h, s_cond.expand(-1, -1, *h.shape[-2:])), dim=1)
        h = F.silu(self.bottleneck(h))
        for up in self.up:
            h = up(h, skips.pop())
        return self.out(h)


@table(16)
def pixel_positions(height: int, width: int, size: int, patch_size: int, device: torch.device) -> Tensor:
    """2-D sin-cos positions of every pixel of the whole image, grouped by patch: [L, P², D_pix] float32.

    The first half of the channels encodes x, the second y; in each half sines come before cosines, with
    frequencies 1/10000^(k / (D_pix/4)).
    """
    quarter = size // 4
    frequency = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)

    def waves(count: int) -> Tensor:
        angle = torch.arange(count, dtype=torch.float64)[:, None] * frequency
        return torch.cat((angle.sin(), angle.cos()), dim=-1)  # [count, D_pix/2]

    x = waves(width)[None].expand(height, -1, -1)
    y = waves(height)[:, None].expand(-1, width, -1)
    table = torch.cat((x, y), dim=-1).float()  # [H, W, D_pix]
    return to_pixels(table.permute(2, 0, 1)[None], patch_size)[0].to(device)


def to_pixels(x: Tensor, patch_size: int) -> Tensor:
    """[B,C,H,W] -> [B, L, P², C]: every patch a sequence of pixels."""
    return patchify(x, patch_size).unflatten(-1, (x.shape[1], -1)).transpose(-1, -2)


class PixelMLP(nn.Module):
    """D_pix -> 4·D_pix -> D_pix with GELU."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, 4 * size)
        self.fc2 = nn.Linear(4 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PiTBlock(nn.Module):
    """Pixel-wise adaLN and pixel token compaction (PixelDiT section 3.3), pre-modulation.

    x [B, L, P², D_pix]: a patch's pixels are compressed into one token of width A, attend to the other
    patches, and are expanded again.
    """

    chunks = 6

    def __init__(self, config: PiTConfig, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        pixels, size = patch_size**2, config.pixel_size
        self.norm1 = RMSNorm(size)
        self.compress = nn.Linear(pixels * size, config.attention_size)
        self.attn = Attention(config.attention_size, config.num_heads)
        self.expand = nn.Linear(config.attention_size, pixels * size)
        self.norm2 = RMSNorm(size)
        self.mlp = PixelMLP(size)
        self.adaLN = zero_linear(hidden_size, pixels * self.chunks * size)

    def modulation(self, s_cond: Tensor, pixels: int) -> tuple[Tensor, ...]:
        """Every pixel's own modulation: [B, L, D] -> `chunks` of [B, L, P², D_pix]."""
        return self.adaLN(s_cond).unflatten(-1, (pixels, -1)).chunk(self.chunks, -1)

    def attend(self, x: Tensor, rope: Rope) -> Tensor:
        """Token compaction: attention over the L patches instead of the L·P² pixels."""
        tokens = self.compress(x.flatten(2))  # [B, L, P²·D_pix] -> [B, L, A]
        return self.expand(self.attn(tokens, rope)).view_as(x)

    def forward(self, x: Tensor, s_cond: Tensor, rope: Rope) -> Tensor:
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.modulation(
            s_cond, x.shape[2]
        )
        h = self.norm1.modulated(x, shift_attn, scale_attn)
        x, h = self.norm2.gated_modulated(x, gate_attn, self.attend(h, rope), shift_mlp, scale_mlp)
        return gated_add(x, gate_mlp, self.mlp(h))


class PostModPiTBlock(PiTBlock):
    """The authors' remedy for loss spikes: sub-layer *outputs* are modulated, inputs normed; no gates."""

    chunks = 4

    def forward(self, x: Tensor, s_cond: Tensor, rope: Rope) -> Tensor:
        scale1, shift1, scale2, shift2 = self.modulation(s_cond, x.shape[2])
        x = x + modulate(self.attend(self.norm1(x), rope), shift1, scale1)
        return x + modulate(self.mlp(self.norm2(x)), shift2, scale2)


class PiT(nn.Module):
    """PixelDiT's pixel-level stage (section 3.3): M blocks over one token per pixel."""

    def __init__(self, config: PiTConfig, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.head_size = config.attention_size // config.num_heads
        self.pixel_embedder = nn.Linear(3, config.pixel_size)
        block = PostModPiTBlock if config.post_modulation else PiTBlock
        self.blocks = nn.ModuleList(block(config, hidden_size, patch_size) for _ in range(config.depth))
        self.norm = RMSNorm(config.pixel_size)
        self.out = zero_linear(config.pixel_size, 3)

    def forward(self, x: Tensor, state: GlobalState) -> Tensor:
        height, width = x.shape[-2:]
        h = self.pixel_embedder(to_pixels(x, self.patch_size))  # [B, L, P², D_pix]
        h = h + pixel_positions(height, width, h.shape[-1], self.patch_size, x.device).to(h.dtype)
        s_cond, rope = state.s_cond, rope_2d(state.grid, self.head_size, x.device)
        for block in self.blocks:
            h = block(h, s_cond, rope)
        velocity = self.out(self.norm(h))  # [B, L, P², 3]
        return unpatchify(velocity.transpose(-1, -2).flatten(2), state.grid, self.patch_size)


class Linear(nn.Module):
    """The DiT-only baseline of both papers: adaLN on the last tokens, then one linear layer to the patch."""

    def __init__(self, config: LinearConfig, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm = RMSNorm(hidden_size)
        self.adaLN = zero_linear(hidden_size, 2 * hidden_size)
        self.out = zero_linear(hidden_size, 3 * patch_size**2)

    def forward(self, x: Tensor, state: GlobalState) -> Tensor:
        shift, scale = self.adaLN(state.condition).chunk(2, -1)
        patches = self.out(modulate(self.norm(state.tokens), shift, scale))  # [B, L, 3·P·P]
        return unpatchify(patches, state.grid, self.patch_size)


def build_detailer(config: DetailerConfig, hidden_size: int, patch_size: int) -> nn.Module:
    """The detailer of a config, for tokens of width `hidden_size` and patches of side `patch_size`."""
    match config:
        case UNetConfig():
            return UNet(config, hidden_size, patch_size)
        case PiTConfig():
            return PiT(config, hidden_size, patch_size)
        case LinearConfig():
            return Linear(config, hidden_size, patch_size)
