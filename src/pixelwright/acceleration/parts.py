"""Parts of a model that are faster than the plain ones and equal to them. Each was measured; see
docs/performance.md.

On CPUs that compute in bfloat16, weights are kept in the order in which oneDNN reads them. The calls into it
are private to PyTorch, which has no public ones; where they are missing, the plain product is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.models.detailers import UNet
from pixelwright.models.detailers.pit import PixelMLP
from pixelwright.models.detailers.unet import UNetDown, UNetUp

AT_ONCE = 256
"""Patches that pass through a U-Net together on a CPU: its memory does not grow with the image."""
ZERO = 128
"""The level that stands for zero in 8 bits."""
AFTER: dict[str, Callable[[Tensor], Tensor]] = {"swish": F.silu, "gelu": F.gelu, "none": lambda y: y}
"""What may follow a product in the same pass, by oneDNN's names."""
onednn: Any = torch.ops.mkldnn
onednn_int8: Any = torch.ops.onednn


def packs(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether oneDNN computes products of this weight in this dtype from a packed copy."""
    here = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    known = all(hasattr(onednn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    return here and known and dtype == torch.bfloat16 and bool(onednn._is_mkldnn_bf16_supported())


class Product(nn.Module):
    """A linear layer, and `then` of its output. [.., C] -> [.., O]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, then: str = "none") -> None:
        super().__init__()
        self.dtype, self.then, self.packed = dtype, then, packs(weight, dtype)
        self.bias = None if bias is None else bias.to(dtype, copy=True)
        self.weight = weight.to(dtype, copy=True)
        if self.packed:
            self.weight = onednn._reorder_linear_weight(self.weight.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.packed:
            exact = "none" if self.then == "gelu" else ""  # GELU by erf, not by tanh
            return onednn._linear_pointwise(x, self.weight, self.bias, self.then, [], exact)
        return AFTER[self.then](F.linear(x, self.weight, self.bias))


class Int8Product(nn.Module):
    """A linear layer in 8 bits, approximate: [.., C] -> [.., O] in bfloat16.

    Each row of the weight has its scale, and each token its own as it comes, so that no token depends on
    another; sums are exact.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        levels, scale = quantise(weight)
        self.weight = onednn_int8.qlinear_prepack((levels.short() - ZERO).to(torch.int8), None)
        self.scale, self.zero = scale.flatten(), torch.zeros(len(weight), dtype=torch.int32)
        self.bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        levels, scale = quantise(x)
        weight = (self.weight, self.scale, self.zero)
        plain: tuple[Any, ...] = (None, 1.0, 0, torch.bfloat16, "none", [], "")  # no bias, nothing after it
        y = onednn_int8.qlinear_pointwise(levels, 1.0, ZERO, *weight, *plain).float() * scale
        return (y if self.bias is None else y + self.bias).to(torch.bfloat16)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row in 255 levels around `ZERO`: uint8 like x, and what a level is worth, float32 [.., 1]."""
    x = x.float()
    level = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (x / level).round_().add_(ZERO).to(torch.uint8), level


def product(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
    """A linear layer whose products are of this dtype."""
    if dtype == torch.int8:
        return Int8Product(layer.weight, layer.bias)
    return Product(layer.weight, layer.bias, dtype)


class FastPixelMLP(nn.Module):
    """GELU in the pass of the product before it."""

    def __init__(self, mlp: PixelMLP, dtype: torch.dtype) -> None:
        super().__init__()
        self.fc1 = Product(mlp.fc1.weight, mlp.fc1.bias, dtype, "gelu")
        self.fc2 = Product(mlp.fc2.weight, mlp.fc2.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


# --- DiP's U-Net as products -------------------------------------------------------------------------------


def pixel_rows(x: Tensor) -> Tensor:
    """[N,C,h,w] in channels_last -> [N,h,w,C] without a copy."""
    return x.permute(0, 2, 3, 1)


def dense3x3(conv: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """Weight [4·O, 4·C] and bias [4·O] of a 3×3 convolution of 2×2 pixels as one exact product.

    Every output pixel sees every input pixel, and five of nine taps fall on padding.
    """
    w = conv.weight  # [O, C, 3, 3]; output pixel (i, j) meets input pixel (k, l) through tap (k-i+1, l-j+1)
    dense = torch.stack([w[:, :, 1 - i : 3 - i, 1 - j : 3 - j] for i in (0, 1) for j in (0, 1)])
    dense = dense.permute(0, 1, 3, 4, 2).flatten(2).flatten(0, 1)  # [4, O, C, 2, 2] -> [4·O, 4·C]
    return dense, None if conv.bias is None else conv.bias.repeat(4)


def dense_double(conv: nn.ConvTranspose2d) -> tuple[Tensor, Tensor | None]:
    """Weight [4·O, C] and bias [4·O] of a 2×2 transposed convolution of stride 2 as a product."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # [C, O, 2, 2] -> [4·O, C]
    return weight, None if conv.bias is None else conv.bias.repeat(4)


class Conv3x3(nn.Module):
    """A zero-padded 3×3 convolution of patches of side `size`, and SiLU. [N,C,h,w] in channels_last."""

    def __init__(self, conv: nn.Conv2d, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.packed = dtype, packs(conv.weight, dtype)
        self.dense = Product(*dense3x3(conv), dtype, "swish") if size == 2 else None
        self.bias = None if conv.bias is None else conv.bias.to(dtype, copy=True)
        self.weight = conv.weight.to(dtype, memory_format=torch.channels_last, copy=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.dense is not None:
            return self.dense(pixel_rows(x).flatten(1)).unflatten(-1, (2, 2, -1)).permute(0, 3, 1, 2)
        if self.packed:
            one = [1, 1]
            return onednn._convolution_pointwise(x, self.weight, self.bias, one, one, one, 1, "swish", [], "")
        return F.silu(F.conv2d(x, self.weight, self.bias, padding=1))


class FastDown(nn.Module):
    """SiLU in the pass of the convolution."""

    def __init__(self, down: UNetDown, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv = Conv3x3(down.conv, size, dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.conv(x)
        return F.max_pool2d(skip, 2), skip


class FastUp(nn.Module):
    """Each pixel becomes 2×2 by one product."""

    def __init__(self, up: UNetUp, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.upsample = Product(*dense_double(up.upsample), dtype)
        self.conv = Conv3x3(up.conv, size, dtype)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        n, _, h, w = x.shape
        x = self.upsample(pixel_rows(x)).view(n, h, w, 2, 2, -1).transpose(2, 3)  # [N, h, 2, w, 2, O]
        return self.conv(
            torch.cat((x.reshape(n, 2 * h, 2 * w, -1), pixel_rows(skip)), -1).permute(0, 3, 1, 2)
        )


class FastPointwise(nn.Module):
    """A 1×1 convolution as a product."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.product = Product(conv.weight.flatten(1), conv.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(pixel_rows(x)).permute(0, 3, 1, 2)


class FastUNet(UNet):
    """The U-Net with faster parts, so many patches at a time that they stay in the cache of a CPU."""

    def __init__(self, unet: Any, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.patch_size, levels = unet.patch_size, len(unet.down)
        sizes = [unet.patch_size >> level for level in range(levels)]
        self.at_once = AT_ONCE if unet.out.weight.device.type == "cpu" else None
        self.down = nn.ModuleList(FastDown(d, s, dtype) for d, s in zip(unet.down, sizes, strict=True))
        self.up = nn.ModuleList(FastUp(u, s, dtype) for u, s in zip(unet.up, sizes[::-1], strict=True))
        self.bottleneck: nn.Module = FastPointwise(unet.bottleneck, dtype)
        self.out: nn.Module = FastPointwise(unet.out, dtype)

    def predict(self, h: Tensor, s_cond: Tensor) -> Tensor:
        """See `UNet.predict`; slice by slice."""
        size = self.at_once or len(h)
        slices = zip(h.split(size), s_cond.split(size), strict=True)
        return torch.cat([UNet.predict(self, *part) for part in slices])
