"""Parts of a model that equal the plain ones and are faster, compiled or not; see docs/performance.md.

On CPUs that compute in bfloat16, weights are kept in the order in which oneDNN reads them. The calls into it
are private to PyTorch, which has no public ones; where they are missing, the plain product is used.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.acceleration.convolutions import dense3x3, dense_double, pixel_rows, spread
from pixelwright.models.detailers.unet import UNet

AT_ONCE = 256
"""Patches that pass through a U-Net together on a CPU: its memory does not grow with the image."""
ZERO = 128
"""The level that stands for zero in 8 bits."""
onednn: Any = torch.ops.mkldnn
onednn_int8: Any = torch.ops.onednn


def packs(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether oneDNN computes products of this weight in this dtype from a packed copy."""
    here = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    known = all(hasattr(onednn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    return here and known and dtype == torch.bfloat16 and bool(onednn._is_mkldnn_bf16_supported())


# Operations of their own, as compilers know nothing of packed weights. They are declared by schema: those
# of `torch.library.custom_op` import the compiler at the first call, 1.2 of the 2.9 s of a small `sample`.
torch.library.define(
    "pixelwright::packed_linear", "(Tensor x, Tensor weight, Tensor? bias, int rows, bool silu) -> Tensor"
)
torch.library.define(
    "pixelwright::int8_linear", "(Tensor levels, Tensor weight, Tensor scale, Tensor zero) -> Tensor"
)
packed_linear, int8_linear = torch.ops.pixelwright.packed_linear, torch.ops.pixelwright.int8_linear


@torch.library.impl("pixelwright::packed_linear", "default")
def _packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, silu: bool) -> Tensor:
    """A product with a packed weight [O, C] of `rows` O, and SiLU: [.., C] -> [.., O]."""
    return onednn._linear_pointwise(x, weight, bias, "swish" if silu else "none", [], "")


@torch.library.register_fake("pixelwright::packed_linear")  # type: ignore[untyped-decorator]
def _(x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, silu: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


class Product(nn.Module):
    """A linear layer, and SiLU of its output where that is asked for. [.., C] -> [.., O]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, silu: bool = False) -> None:
        super().__init__()
        self.dtype, self.silu, self.packed, self.rows = dtype, silu, packs(weight, dtype), len(weight)
        self.bias = None if bias is None else bias.to(dtype, copy=True)
        self.weight = weight.to(dtype, copy=True)
        if self.packed:
            self.weight = onednn._reorder_linear_weight(self.weight.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.packed:
            return packed_linear(x, self.weight, self.bias, self.rows, self.silu)
        y = F.linear(x, self.weight, self.bias)
        return F.silu(y) if self.silu else y


@torch.library.impl("pixelwright::int8_linear", "default")
def _int8_linear(levels: Tensor, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Levels [.., C] times a packed weight [O, C] of 8 bits and scales [O] -> [.., O] in bfloat16."""
    plain: tuple[Any, ...] = (None, 1.0, 0, torch.bfloat16, "none", [], "")  # no bias, nothing after it
    return onednn_int8.qlinear_pointwise(levels, 1.0, ZERO, weight, scale, zero, *plain)


@torch.library.register_fake("pixelwright::int8_linear")  # type: ignore[untyped-decorator]
def _(levels: Tensor, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return levels.new_empty(*levels.shape[:-1], len(scale), dtype=torch.bfloat16)


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
        y = int8_linear(levels, self.weight, self.scale, self.zero).float() * scale
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


# --- DiP's U-Net as products -------------------------------------------------------------------------------


class FastConv3x3(nn.Module):
    """A zero-padded 3×3 convolution of side `size` (0: any), and SiLU. [N,C,h,w] in channels_last."""

    def __init__(self, conv: nn.Conv2d, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.dense = Product(*dense3x3(conv), dtype, silu=True) if size == 2 else None
        self.bias = None if conv.bias is None else conv.bias.to(dtype, copy=True)
        self.weight = conv.weight.to(dtype, memory_format=torch.channels_last, copy=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.dense is not None:
            return self.dense(pixel_rows(x).flatten(1)).unflatten(-1, (2, 2, -1)).permute(0, 3, 1, 2)
        return F.silu(F.conv2d(x, self.weight, self.bias, padding=1))


class FastUNet(UNet):
    """The U-Net as products, so many patches at a time that they stay in the cache of a CPU."""

    def __init__(self, unet: Any, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.patch_size, self.whole_image = unet.patch_size, unet.whole_image
        self.at_once = AT_ONCE if unet.out.weight.device.type == "cpu" else None
        sizes = [0 if unet.whole_image else unet.patch_size >> level for level in range(len(unet.down))]
        self.down = nn.ModuleList(
            FastConv3x3(down.conv, size, dtype) for down, size in zip(unet.down, sizes, strict=True)
        )
        self.bottleneck = Product(unet.bottleneck.weight.flatten(1), unet.bottleneck.bias, dtype, silu=True)
        doubles = [dense_double(up.upsample) for up in unet.up]
        self.upsample = nn.ModuleList(Product(weight, bias, dtype) for weight, bias in doubles)
        self.up = nn.ModuleList(
            FastConv3x3(up.conv, size, dtype) for up, size in zip(unet.up, sizes[::-1], strict=True)
        )
        self.out = Product(unet.out.weight.flatten(1), unet.out.bias, dtype)

    def predict(self, h: Tensor, tokens: Tensor) -> Tensor:
        """See `UNet.predict`; slice by slice."""
        size = self.at_once or len(h)
        return torch.cat([self._slice(*x) for x in zip(h.split(size), tokens.split(size), strict=True)])

    def _slice(self, h: Tensor, tokens: Tensor) -> Tensor:
        skips = []
        for conv in self.down:
            skips.append(conv(h))
            h = F.max_pool2d(skips[-1], 2)
        tokens = pixel_rows(self.spread(tokens, h))
        rows = self.bottleneck(torch.cat((pixel_rows(h), tokens), dim=-1))  # [N, h, w, C]
        for upsample, conv in zip(self.upsample, self.up, strict=True):
            rows = torch.cat((spread(upsample(rows)), pixel_rows(skips.pop())), dim=-1)
            rows = pixel_rows(conv(rows.permute(0, 3, 1, 2)))
        return self.out(rows).permute(0, 3, 1, 2)
