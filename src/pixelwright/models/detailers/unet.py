"""DiP's Patch Detailer Head (section 3.3): a small convolutional U-Net run on all B·L patches at once."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.config import Config, PositiveInt
from pixelwright.errors import UserError
from pixelwright.models.detailers.base import register_detailer
from pixelwright.models.layers import GlobalState, patchify, unpatchify


@dataclass(frozen=True)
class UNetConfig(Config):
    """DiP's Patch Detailer Head: one level of convolution and pooling per entry of `channels`."""

    channels: tuple[PositiveInt, ...]
    whole_image: bool = False
    """Whether the U-Net sees the image at once rather than each patch for itself (DiP's ablation)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.channels:
            raise UserError("UNetConfig.channels is (): give one width per level")

    def check(self, patch_size: int) -> None:
        """Raise UserError unless a patch of this side can be halved once per level."""
        if patch_size % 2 ** len(self.channels):
            raise UserError(
                f"a U-Net of {len(self.channels)} levels halves the patch that often, which "
                f"patch_size {patch_size} does not allow; give fewer channels or another patch size"
            )


class UNetDown(nn.Module):
    """Conv3×3, SiLU (the skip), max-pool 2."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = F.silu(self.conv(x))
        return F.max_pool2d(skip, 2), skip


class UNetUp(nn.Module):
    """ConvTranspose2×2 stride 2 that keeps the channels, concat with the skip, Conv3×3, SiLU."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv = nn.Conv2d(2 * channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return F.silu(self.conv(torch.cat((self.upsample(x), skip), dim=1)))


@register_detailer("unet", UNetConfig)
class UNet(nn.Module):
    """Down to the bottleneck, where each patch meets its token s_cond, and up again."""

    def __init__(self, config: UNetConfig, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        channels = config.channels
        self.patch_size = patch_size
        self.whole_image = config.whole_image
        self.down = nn.ModuleList(map(UNetDown, (3, *channels[:-1]), channels))
        self.bottleneck: nn.Module = nn.Conv2d(channels[-1] + hidden_size, channels[-1], 1)
        # Mirror image of the way down; the last level keeps its width.
        self.up = nn.ModuleList(map(UNetUp, channels[::-1], (*channels[-2::-1], channels[0])))
        self.out: nn.Module = nn.Conv2d(channels[0], 3, 1)

    def forward(self, x: Tensor, state: GlobalState) -> Tensor:
        p = self.patch_size
        if self.whole_image:
            tokens = state.s_cond.transpose(1, 2).unflatten(-1, state.grid)  # [B, D, rows, columns]
            return self.predict(x.contiguous(memory_format=torch.channels_last), tokens)
        h = patchify(x, p).reshape(-1, 3, p, p)  # [B·L, 3, P, P]
        tokens = state.s_cond.flatten(0, 1)[..., None, None]  # [B·L, D, 1, 1]
        patches = self.predict(h.contiguous(memory_format=torch.channels_last), tokens)
        return unpatchify(patches.reshape(x.shape[0], -1, 3 * p * p), state.grid, p)  # [B,3,H,W]

    def predict(self, h: Tensor, tokens: Tensor) -> Tensor:
        """N patches or images: h [N,3,H,W], one token per patch [N, D, rows, columns] -> [N,3,H,W]."""
        skips = []
        for down in self.down:
            h, skip = down(h)
            skips.append(skip)
        h = F.silu(self.bottleneck(torch.cat((h, self.spread(tokens, h)), dim=1)))
        for up in self.up:
            h = up(h, skips.pop())
        return self.out(h)

    def spread(self, tokens: Tensor, h: Tensor) -> Tensor:
        """Each token over the pixels of h [N, C, h, w] in its patch: one where P = 16, 2×2 where P = 32."""
        if self.whole_image:
            return F.interpolate(tokens, h.shape[-2:])
        return tokens.expand(-1, -1, *h.shape[-2:])
