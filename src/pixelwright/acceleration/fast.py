"""A model made ready for sampling: weights in the dtype of the products, packed and merged, no gradients.

`FastDenoiser` runs the code of the model itself; only its leaves are replaced, by faster equal ones. On a CPU
weights are kept in the order in which oneDNN reads them. The model it is made of stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.acceleration import fused
from pixelwright.acceleration.fused import Rope
from pixelwright.acceleration.graphs import CudaRecord, Graphs
from pixelwright.errors import UserError
from pixelwright.models.conditions import Condition
from pixelwright.models.denoiser import PixelDenoiser, device_of
from pixelwright.models.detailers import PixelMLP, UNet, UNetDown, UNetUp
from pixelwright.models.layers import (
    RMSNorm,
    SwiGLU,
    dense3x3,
    dense_double,
    head_weights,
    pixel_rows,
)

AT_ONCE = 256
"""Patches that pass through a U-Net together on a CPU: its memory does not grow with the image."""
AT_ONCE_ON_GPU = 64 * AT_ONCE
"""On a GPU, which more of them fill; a compiled U-Net holds its products once for each slice."""
onednn: Any = torch.ops.mkldnn
onednn_int8: Any = torch.ops.onednn
AFTER: dict[str, Callable[[Tensor], Tensor]] = {"swish": F.silu, "gelu": F.gelu, "none": lambda y: y}
"""What may follow a product in the same pass, by oneDNN's names."""
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "int8": torch.int8}
"""What models are sampled in; the first two are those of training."""


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


class Int8Product(nn.Module):
    """A linear layer in 8 bits, approximate: [.., C] -> [.., O] in bfloat16.

    Each row of the weight has its scale, and each token its own as it comes, so that no token depends on
    another; sums are exact.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        levels, scale = fused.quantise(weight)
        self.weight = onednn_int8.qlinear_prepack((levels.short() - fused.ZERO).to(torch.int8), None)
        self.scale, self.zero = scale.flatten(), torch.zeros(len(weight), dtype=torch.int32)
        self.bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        levels, scale = fused.quantise(x)
        weight = (self.weight, self.scale, self.zero)
        plain: tuple[Any, ...] = (None, 1.0, 0, torch.bfloat16, "none", [], "")  # no bias, nothing after it
        y = onednn_int8.qlinear_pointwise(levels, 1.0, fused.ZERO, *weight, *plain)
        return fused.rescale(y, scale, self.bias)


def product(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Module:
    """A linear layer whose products are of this dtype."""
    return Int8Product(weight, bias) if dtype == torch.int8 else Product(weight, bias, dtype)


def check_int8(device: torch.device) -> None:
    """Raise UserError if there are no fast products of 8 bits."""
    if device.type != "cpu" or not torch.cpu.get_capabilities().get("avx512_vnni"):
        raise UserError(f"int8 needs a CPU with AVX-512 VNNI, which {device} is not; use bf16")


def between(dtype: torch.dtype) -> torch.dtype:
    """The dtype of what lies between products of `dtype`."""
    return torch.bfloat16 if dtype == torch.int8 else dtype


class Heads(nn.Module):
    """Queries, keys and values of attention; see `layers.rotated_heads`."""

    def __init__(self, qkv: nn.Linear, q_norm: RMSNorm, k_norm: RMSNorm, dtype: torch.dtype) -> None:
        super().__init__()
        rows, self.q_weight, self.k_weight = head_weights(qkv, q_norm, k_norm)
        self.product = product(rows, None, dtype)

    def forward(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        return fused.heads(self.product(x), self.q_weight, self.k_weight, rope, len(self.q_weight) ** -0.5)


class FastSwiGLU(nn.Module):
    """w1 and w3 in one product."""

    def __init__(self, mlp: SwiGLU, dtype: torch.dtype) -> None:
        super().__init__()
        self.w13 = product(torch.cat((mlp.w1.weight, mlp.w3.weight)), None, dtype)
        self.w2 = product(mlp.w2.weight, None, dtype)

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
    unet.at_once = AT_ONCE if unet.out.weight.device.type == "cpu" else AT_ONCE_ON_GPU
    unet.bottleneck, unet.out = FastBottleneck(unet.bottleneck, dtype), FastBottleneck(unet.out, dtype)
    return unet


Faster = dict[type[nn.Module], Callable[[Any, torch.dtype], nn.Module]]
"""How a part is made from the one that it equals."""
FASTER: Faster = {
    nn.Linear: lambda layer, dtype: product(layer.weight, layer.bias, dtype),
    SwiGLU: FastSwiGLU,
    PixelMLP: lambda mlp, dtype: FastPixelMLP(mlp, between(dtype)),  # rows too short for int8
    UNet: _unet,
}


def _replace(module: Any, dtype: torch.dtype, faster: Faster) -> None:
    """Put faster parts in the places of those they equal."""
    if isinstance(getattr(module, "qkv", None), nn.Linear):
        module.qkv = Heads(module.qkv, module.q_norm, module.k_norm, dtype)
    for name, child in module.named_children():
        if type(child) in faster:
            setattr(module, name, faster[type(child)](child, dtype))
        elif not isinstance(child, Heads):
            _replace(child, dtype, faster)


def _with_triton(device: torch.device) -> Faster:
    """`FASTER` and the norms of `kernels`."""
    check_triton(device)
    from pixelwright.acceleration.kernels import TritonNorm  # needs Triton

    return {**FASTER, RMSNorm: lambda norm, _: TritonNorm(norm)}


def check_triton(device: torch.device) -> None:
    """Raise UserError if our kernels cannot run there."""
    _check_cuda("triton", device)
    if find_spec("triton") is None:
        raise UserError("triton is true, but it is not installed: pip install triton, or leave it out")


def _check_cuda(setting: str, device: torch.device) -> None:
    if device.type != "cuda":
        raise UserError(f"{setting} is true, but the device is {device}: use cuda, or leave {setting} out")


class FastDenoiser(PixelDenoiser):
    """A model with its weights as they are now, in a dtype such as bfloat16; for inference alone.

    With torch.int8, which is for CPUs, the products of the blocks are approximate, in 8 bits, and all else is
    in bfloat16. The settings are for GPUs; on a CPU the products stay calls into oneDNN, and `fused.compiled`
    sees to what lies between them.

    Args:
        compile_blocks: each block is compiled as a whole.
        graphs: evaluations are recorded as CUDA graphs, see `graphs.Graphs`.
        triton: norms and modulations by our own kernels instead of the compiler's, see `kernels`.

    Raises:
        UserError: `graphs` or `triton` for a model that is not on a CUDA device; no Triton; no int8 there.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: PixelDenoiser,
        dtype: torch.dtype,
        compile_blocks: bool = False,
        graphs: bool = False,
        triton: bool = False,
    ) -> None:
        device = device_of(model)
        faster = _with_triton(device) if triton else FASTER
        if graphs:
            _check_cuda("graphs", device)
        with torch.device("meta"):
            super().__init__(model.config)
        self.load_state_dict(model.state_dict(), assign=True)
        if dtype == torch.int8:
            check_int8(device)
            for stage in (self.backbone, self.middle, self.detailer):
                for block in getattr(stage, "blocks", ()):
                    _replace(block, dtype, faster)
        _replace(self, between(dtype), faster)
        self.requires_grad_(False).eval()
        for unit in self.units() if compile_blocks else ():
            unit.forward = torch.compile(unit.forward)
        self.triton = triton
        self.graphs = Graphs(CudaRecord(device)) if graphs else None

    def forward(self, x: Tensor, t: Tensor, condition: Condition, tap: int | None = None) -> Any:
        """See `PixelDenoiser.forward`; graphs have no gradient and no tap."""
        if self.graphs is None or tap is not None or x.requires_grad:
            return super().forward(x, t, condition, tap)
        return self.graphs(super().forward, x, t, condition)

    def _apply(self, *args: Any, **kwargs: Any) -> FastDenoiser:
        if self.graphs is not None:
            self.graphs.forget()  # weights move
        return super()._apply(*args, **kwargs)


def prepared(
    model: PixelDenoiser, dtype: torch.dtype | None, compile: bool = False, triton: bool = False
) -> PixelDenoiser:
    """The model as it is sampled: a `FastDenoiser` where that is faster, with all that is safe on its device.

    Args:
        dtype: of autocast; None for that of the weights.
        compile: on a GPU, blocks are compiled, and on CUDA recorded as graphs.
        triton: see `FastDenoiser`.

    Raises:
        UserError: `triton` where it cannot be had, or for a `FastDenoiser` that was made without it.
    """
    device = device_of(model)
    if isinstance(model, FastDenoiser):
        if triton and not model.triton:
            raise UserError("triton is true, but this FastDenoiser was made without; give it triton=True")
        return model
    on_gpu = compile and device.type != "cpu"
    if dtype is None and not on_gpu and not triton:
        return model
    weights = model.backbone.patch_embedder.weight.dtype
    return FastDenoiser(model, dtype or weights, on_gpu, compile and device.type == "cuda", triton)
