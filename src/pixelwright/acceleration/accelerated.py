"""`accelerate`: a plain denoiser goes in, an equal and faster callable comes out."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pixelwright.acceleration.graphs import CudaRecord, Graphs
from pixelwright.acceleration.parts import FastUNet, product
from pixelwright.acceleration.reuse import Reused, check_reuse
from pixelwright.device import PRECISIONS, check_int8, name_precision
from pixelwright.errors import UserError
from pixelwright.models.conditions import Condition
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.detailers import UNet
from pixelwright.models.detailers.pit import PixelMLP
from pixelwright.models.folder import skeleton

SHAPES = 64
"""For which a block is compiled in one process."""
FASTER: dict[type[nn.Module], Callable[[Any, torch.dtype], nn.Module]] = {nn.Linear: product, UNet: FastUNet}
"""How a part is made from the one that it equals."""


def accelerate(
    model: "PixelDenoiser | AcceleratedDenoiser",
    precision: str = "auto",
    compile: bool = False,
    reuse: int = 1,
    graphs: bool | None = None,
) -> "AcceleratedDenoiser":
    """A model with its weights as they are now, for inference alone.

    It owns all its weights: the model may be trained on, moved or deleted.

    Args:
        model: what to draw with; an accelerated one is returned as it is.
        precision: fp32, bf16, int8 (products of the blocks in 8 bits, approximate, for CPUs with AVX-512
            VNNI), or auto: bf16 where the device has it.
        compile: blocks are compiled, one static kernel for each shape. Needs a C++ compiler, and some seconds
            the first time that a shape is met.
        reuse: above 1 approximate: the backbone runs in one of so many evaluations, see `Reused`.
        graphs: replay evaluations as CUDA graphs; by default with `compile` on CUDA at `reuse` 1.

    Raises:
        UserError: a precision, graphs or `reuse` that this device or model cannot have.
    """
    if isinstance(model, AcceleratedDenoiser):
        return model
    on_cuda = model.device.type == "cuda"
    if graphs and (not on_cuda or reuse > 1):
        raise UserError(f"graphs is true on {model.device}, reuse {reuse}; it needs CUDA and reuse 1")
    precision = name_precision(precision, model.device)
    graphs = compile and on_cuda and reuse == 1 if graphs is None else graphs
    return AcceleratedDenoiser(model, precision, compile, reuse, graphs)


class AcceleratedDenoiser:
    """Called as the model it was made of: (x [B,3,H,W], t [B], condition) -> velocity [B,3,H,W].

    No module: it cannot be saved, moved or trained; see `accelerate`.
    """

    @torch.no_grad()
    def __init__(self, model: PixelDenoiser, precision: str, compile: bool, reuse: int, graphs: bool) -> None:
        check_reuse(reuse, model.config)
        self.config: DenoiserConfig = model.config
        self.device, self.precision = model.device, precision
        dtype = PRECISIONS[precision] or model.dtype
        self._network = network = _copy(model, dtype)
        for unit in network.units() if compile else ():
            unit.forward = _compiled(unit.forward)
        self._graphs = Graphs(CudaRecord(self.device)) if graphs else None
        self._call: Any = network if reuse == 1 else Reused(network, reuse)

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See `PixelDenoiser.forward`; without gradients and without a tap."""
        if self._graphs is not None:
            return self._graphs(self._call, x, t, condition)
        return self._call(x, t, condition)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """One static kernel for each shape: guided, unguided, the last batch, of many sizes."""
    from torch._dynamo import config  # seconds, which only compiling needs

    config.recompile_limit = max(config.recompile_limit, SHAPES)  # by PyTorch's 8, the ninth would stay eager
    return torch.compile(function, dynamic=False)


def _copy(model: PixelDenoiser, dtype: torch.dtype) -> PixelDenoiser:
    """A model of its own with faster parts, no gradients, in eval mode."""
    network = skeleton(model.config)
    network.load_state_dict(model.state_dict(), assign=True)  # tensors shared until they are replaced
    if dtype == torch.int8:
        check_int8(model.device)
        for unit in network.units():
            _replace(unit, dtype)
    _replace(network, _between(dtype))
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.clone(), requires_grad=False))
    return network.eval()


def _replace(module: nn.Module, dtype: torch.dtype) -> None:
    """Put faster parts in the places of those they equal."""
    for name, child in module.named_children():
        if dtype == torch.int8 and isinstance(child, PixelMLP):
            continue  # its rows are too short for 8 bits to pay
        if type(child) in FASTER:
            setattr(module, name, FASTER[type(child)](child, dtype))
        else:
            _replace(child, dtype)


def _between(dtype: torch.dtype) -> torch.dtype:
    """The dtype of what lies between products of `dtype`."""
    return torch.bfloat16 if dtype == torch.int8 else dtype
