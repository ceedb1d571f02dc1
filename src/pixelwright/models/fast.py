"""A model made ready for sampling: weights in the dtype of the products, packed and merged, no gradients.

`FastDenoiser` runs the code of the model itself; only its leaves are replaced, by faster equal ones. On a CPU
weights are kept in the order in which oneDNN reads them. The model it is made of stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.models import fused
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.detailers import PixelMLP, UNet, UNetDown, UNetUp
from pixelwright.models.fused import Rope
from pixelwright.models.layers import (
    RMSNorm,
    SwiGLU,
    dense3x3,
    dense_double,
    head_weights,
    pixel_rows,
)

AT_ONCE = 256
"""Patches that pass through a U-Net together: its memory does not grow with the size of the image."""
onednn: Any = torch.ops.mkldnn
AFTER: dict[str, Callable[[Tensor], Tensor]] = {"swish": F.silu, "gelu": F.gelu, "none": lambda y: y}
"""What may follow a product in the same pass, by oneDNN's names."""


def packs(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether oneDNN computes products of this weight in this dtype."""
    here = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return here and dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported()


class Product(nn.Module):
    """A linear layer, and `then` of its output. [.., C] -> [.., O]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, then: str = "none") -> None:
        super().__init__()
        self.dtype, self.then, self.packed = dtype, then, packs(weight, dtype)
        self.bias = None if bias is None else bias.to(dtype)
        self.weight = weight.to(dtype)
        if self.packed:
            self.weight = onednn._reorder_linear_weight(self.weight.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.packed:
            exact = "none" if self.then == "gelu" else ""  # GELU by erf, not by tanh
            return onednn._linear_pointwise(x, self.weight, self.bias, self.then, [], exact)
        return AFTER[self.then](F.linear(x, self.weight, self.bias))


class Heads(nn.Module):
    """Queries, keys and values of attention; see `layers.rotated_heads`."""

    def __init__(self, qkv: nn.Linear, q_norm: RMSNorm, k_norm: RMSNorm, dtype: torch.dtype) -> None:
        super().__init__()
        rows, self.q_weight, self.k_weight = head_weights(qkv, q_norm, k_norm)
        self.product = Product(rows, None, dtype)

    def forward(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        return fused.heads(self.product(x), self.q_weight, self.k_weight, rope, len(self.q_weight) ** -0.5)


class FastSwiGLU(nn.Module):
    """w1 and w3 in one product."""

    def __init__(self, mlp: SwiGLU, dtype: torch.dtype) -> None:
        super().__init__()
        self.w13 = Product(torch.cat((mlp.w1.weight, mlp.w3.weight)), None, dtype)
        self.w2 = Product(mlp.w2.weight, None, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(fused.silu_product(self.w13(x)))


class FastPixelMLP(nn.Module):
    """GELU in the pass of the product before it."""

    def __init__(self, mlp: PixelMLP, dtype: torch.dtype) -> None:
        super().__init__()
        self.fc1 = Product(mlp.fc1.weight, mlp.fc1.bias, dtype, "gelu")
        self.fc2 = Product(mlp.fc2.weight, mlp.fc2.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class Conv3x3(nn.Module):
    """A zero-padded 3×3 convolution of patches of side `size`, and SiLU. [N,C,h,w] in channels_last."""

    def __init__(self, conv: nn.Conv2d, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.packed = dtype, packs(conv.weight, dtype)
        self.dense = Product(*dense3x3(conv), dtype, "swish") if size == 2 else None
        if self.dense is None:
            weight = conv.weight.to(dtype, memory_format=torch.channels_last)
            self.bias = None if conv.bias is None else conv.bias.to(dtype)
            self.weight = weight

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
    """The doubled pixels are written beside the skip at once."""

    def __init__(self, up: UNetUp, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.upsample = Product(*dense_double(up.upsample), dtype)
        self.conv = Conv3x3(up.conv, size, dtype)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(fused.spread_and_join(self.upsample(pixel_rows(x)), skip))


class FastBottleneck(nn.Module):
    """A 1×1 convolution as a product."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.product = Product(conv.weight.flatten(1), conv.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(pixel_rows(x)).permute(0, 3, 1, 2)


def _unet(unet: Any, dtype: torch.dtype) -> nn.Module:
    """The U-Net's own forward pass with faster parts."""
    levels = len(unet.down)
    for i, (down, up) in enumerate(zip(unet.down, reversed(unet.up), strict=True)):
        size = unet.patch_size >> i
        unet.down[i] = FastDown(down, size, dtype)
        unet.up[levels - 1 - i] = FastUp(up, size, dtype)
    unet.at_once = AT_ONCE
    unet.bottleneck, unet.out = FastBottleneck(unet.bottleneck, dtype), FastBottleneck(unet.out, dtype)
    return unet


FASTER: dict[type[nn.Module], Callable[[Any, torch.dtype], nn.Module]] = {
    nn.Linear: lambda layer, dtype: Product(layer.weight, layer.bias, dtype),
    SwiGLU: FastSwiGLU,
    PixelMLP: FastPixelMLP,
    UNet: _unet,
}


def _replace(module: Any, dtype: torch.dtype) -> None:
    """Put faster parts in the places of those they equal."""
    if hasattr(module, "qkv"):
        module.qkv = Heads(module.qkv, module.q_norm, module.k_norm, dtype)
    for name, child in module.named_children():
        if type(child) in FASTER:
            setattr(module, name, FASTER[type(child)](child, dtype))
        elif not isinstance(child, Heads):
            _replace(child, dtype)


class FastDenoiser(PixelDenoiser):
    """A model with its weights as they are now, in a dtype such as bfloat16; for inference alone.

    With `compile_blocks` each block is compiled as a whole. That is for GPUs; on a CPU the products stay
    calls into oneDNN, and `fused.compiled` sees to what lies between them.
    """

    @torch.no_grad()
    def __init__(self, model: PixelDenoiser, dtype: torch.dtype, compile_blocks: bool = False) -> None:
        with torch.device("meta"):
            super().__init__(model.config)
        self.load_state_dict(model.state_dict(), assign=True)
        _replace(self, dtype)
        self.requires_grad_(False).eval()
        for unit in self.units() if compile_blocks else ():
            unit.forward = torch.compile(unit.forward)
