"""`accelerate`: a plain denoiser goes in, an equal and faster callable comes out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pixelwright.acceleration.graphs import CudaRecord, Graphs
from pixelwright.acceleration.kernels import check_attention, kernels
from pixelwright.acceleration.parts import FastUNet, product
from pixelwright.device import PRECISIONS, check_compiler, check_int8, name_precision
from pixelwright.errors import UserError
from pixelwright.models.conditions import Condition
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.detailers.unet import UNet
from pixelwright.models.folder import skeleton

SHAPES = 64
"""For which a block is compiled in one process."""
SHORTEST = 128
"""Rows for which 8 bits pay."""


def _convolution(plain: nn.Conv2d, dtype: torch.dtype) -> nn.Module:
    """JiT's embedding of patches, whose tokens then come in this dtype."""
    return deepcopy(plain).to(dtype)


FASTER: dict[type[nn.Module], Callable[[Any, torch.dtype], nn.Module]] = {
    nn.Linear: product,
    nn.Conv2d: _convolution,
    UNet: FastUNet,
}
"""How a part is made from the one that it equals."""


def accelerate(
    model: "PixelDenoiser | AcceleratedDenoiser",
    precision: str = "auto",
    compile: bool = False,
    graphs: bool | None = None,
    attention: str = "auto",
) -> "AcceleratedDenoiser":
    """A model with its weights as they are now, for inference alone.

    It owns all its weights: the model may be trained on, moved or deleted; `load` takes them over anew.

    Args:
        model: what to draw with; an accelerated one is returned as it is.
        precision: fp32 (in full, without TF32), bf16, int8 (products of the blocks in 8 bits, approximate,
            for CPUs with AVX-512 VNNI), or auto: bf16 where the device has it.
        compile: blocks are compiled, one static kernel for each shape. Needs a C++ compiler, and some seconds
            the first time that a shape is met.
        graphs: replay evaluations as CUDA graphs; by default with `compile` on CUDA.
        attention: auto, sdpa, flash or math, see `kernels.ATTENTION`.

    Raises:
        UserError: a precision, graphs or attention that this device cannot have.
    """
    if isinstance(model, AcceleratedDenoiser):
        return model
    if compile:
        check_compiler()
    on_cuda = model.device.type == "cuda"
    if graphs and not on_cuda:
        raise UserError(f"graphs is true on {model.device}; it needs CUDA")
    precision = name_precision(precision, model.device)
    graphs = compile and on_cuda if graphs is None else graphs
    return AcceleratedDenoiser(model, precision, compile, graphs, attention)


_PREPARED: "WeakKeyDictionary[PixelDenoiser, dict[tuple[Any, ...], AcceleratedDenoiser]]" = (
    WeakKeyDictionary()
)
"""By model, of which nothing here holds a reference: what was made of it goes with it."""


def prepare(
    model: "PixelDenoiser | AcceleratedDenoiser", precision: str, compile: bool, attention: str
) -> "AcceleratedDenoiser":
    """As `accelerate`, but made once for each model and these settings, and kept while the model lives:
    compiled kernels and graphs are there in later calls. It has the weights of the model as they are now."""
    if isinstance(model, AcceleratedDenoiser):
        return model
    key = (model.device, name_precision(precision, model.device), compile, attention)
    made = _PREPARED.setdefault(model, {})
    if key in made:
        made[key].load(model)
    else:
        made[key] = accelerate(model, precision, compile, attention=attention)
    return made[key]


@contextmanager
def drawing(
    model: Any,
    precision: str = "auto",
    compile: bool = False,
    attention: str = "auto",
    device: torch.device | None = None,
) -> Iterator[Any]:
    """What to draw with in place of a model, inside of a `with`: itself, under autocast, or what `prepare`
    makes of it where it is to be compiled or in 8 bits.

    Args:
        precision: auto (bf16 where the device has it, TF32 for what stays in float32 on CUDA), bf16, int8, or
            fp32: full float32, without TF32. auto leaves a model in another dtype than float32 as it is.
        compile: compiled blocks, and CUDA graphs on CUDA: made in the first call, for each shape, and kept
            with a copy of the weights while the model lives; later calls see its weights as they are.
        attention: auto, sdpa, flash or math, see `kernels.ATTENTION`.
        device: where it computes, if its weights are elsewhere until then.

    Raises:
        UserError: as `accelerate`; or an accelerated model with other settings than its own.
    """
    if isinstance(model, AcceleratedDenoiser):
        if (
            precision not in ("auto", model.precision)
            or compile
            or attention not in ("auto", model.attention)
        ):
            own = f"precision {model.precision}, attention {model.attention}"
            raise UserError(
                f"an accelerated model has its own settings ({own}): give them to accelerate instead"
            )
        yield model
        return
    device = model.device if device is None else device
    name = name_precision(precision, device)
    if compile or name == "int8":
        if device != model.device:
            raise UserError(
                f"the weights are on {model.device}: put them on {device} to compile, or to use int8"
            )
        yield prepare(model, precision, compile, attention)
        return
    if precision == "auto" and getattr(model, "dtype", None) != torch.float32:
        name = "fp32"
    autocast = torch.autocast(device.type, torch.bfloat16) if name == "bf16" else nullcontext()
    with kernels(device, precision if name == "fp32" else name, attention), autocast:
        yield model


class AcceleratedDenoiser:
    """Called as the model it was made of: (x [B,3,H,W], t [B], condition) -> velocity [B,3,H,W].

    No module: it cannot be saved, moved or trained; see `accelerate`.
    """

    @torch.no_grad()
    def __init__(
        self, model: PixelDenoiser, precision: str, compile: bool, graphs: bool, attention: str
    ) -> None:
        check_attention(attention, model.device)
        self.config: DenoiserConfig = model.config
        self.device, self.precision, self.attention = model.device, precision, attention
        self._dtype = PRECISIONS[precision] or model.dtype
        self._network = _copy(model, self._dtype)
        for unit in self._network.units() if compile else ():
            unit.forward = _compiled(unit.forward)
        self._graphs = Graphs(CudaRecord(self.device)) if graphs else None

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See `PixelDenoiser.forward`; without gradients and without a tap."""
        with kernels(self.device, self.precision, self.attention):
            if self._graphs is not None:
                return self._graphs(self._network, x, t, condition)
            return self._network(x, t, condition)

    @torch.no_grad()
    def load(self, model: PixelDenoiser) -> None:
        """Take over the weights of a model of the same config, into the places of the old ones, so that what
        was compiled and recorded stays valid."""
        for old, new in zip(self._network.modules(), _copy(model, self._dtype).modules(), strict=True):
            for name, tensor in _tensors(new).items():
                place = _tensors(old)[name]
                if place.layout == torch.strided:
                    place.copy_(tensor)
                else:  # packed, which nothing that is recorded reads
                    setattr(old, name, tensor)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """One static kernel for each shape: guided, unguided, the last batch, of many sizes."""
    from torch._dynamo import config  # seconds, which only compiling needs

    config.recompile_limit = max(config.recompile_limit, SHAPES)  # by PyTorch's 8, the ninth would stay eager
    return torch.compile(function, dynamic=False)


def _copy(model: PixelDenoiser, dtype: torch.dtype) -> PixelDenoiser:
    """A model of its own with faster parts, no gradients, in eval mode."""
    network = skeleton(model.config, model)
    network.load_state_dict(model.state_dict(), assign=True)  # tensors shared until they are replaced
    if dtype == torch.int8:
        check_int8(model.device)
        for unit in network.units():
            _replace(unit, dtype)
    _replace(network, torch.bfloat16 if dtype == torch.int8 else dtype)  # of what lies between products
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.clone(), requires_grad=False))
    return network.eval()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a module computes with, without its parts."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
    return {
        **plain,
        **dict(module.named_parameters(recurse=False)),
        **dict(module.named_buffers(recurse=False)),
    }


def _replace(module: nn.Module, dtype: torch.dtype) -> None:
    """Put faster parts in the places of those they equal."""
    for name, child in module.named_children():
        short = isinstance(child, nn.Linear) and child.in_features < SHORTEST  # as of single pixels
        if dtype == torch.int8 and (short or isinstance(child, nn.Conv2d)):
            continue
        if type(child) in FASTER:
            setattr(module, name, FASTER[type(child)](child, dtype))
        else:
            _replace(child, dtype)
