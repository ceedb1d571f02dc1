"""What a model costs, known before it is built: parameters, FLOPs and memory, part by part.

The model is made and run on PyTorch's `meta` device, where tensors have shapes and no contents: exact for
every backbone and detailer, without formulas to keep in step with the architectures, at any size in seconds.
"""

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from pixelwright.diffusion import flow
from pixelwright.errors import UserError
from pixelwright.files import read_json
from pixelwright.models.conditions import Condition, TextCondition
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import skeleton
from pixelwright.models.presets import PRESETS
from pixelwright.models.vision import VisionSize, size_of

FIGURES = Path(__file__).with_name("figures.json")


@dataclass(frozen=True)
class Part:
    """One part of the network, such as the backbone."""

    name: str
    kind: str  # its class, such as PatchDiT
    parameters: int
    flops: int  # of one forward pass of one image; a multiply and an add count as two


@dataclass(frozen=True)
class Info:
    """What `describe` finds out."""

    config: DenoiserConfig
    size: tuple[int, int]  # rows and columns of the image
    batch_size: int
    parts: tuple[Part, ...]
    dtype: torch.dtype  # of the weights, to sample
    weight_bytes: int  # in that dtype, but for the encoder's, which are float32
    sampling_bytes: int  # peak memory of sampling a batch with guidance in that dtype: weights, activations
    training_bytes: int
    """Peak memory of a training step of a batch in float32: weights, EMA, gradients, AdamW's two moments and
    the activations kept for the backward pass."""
    autocast: torch.dtype | None = None  # dtype of products, for both memory figures; None: that of weights

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def flops(self) -> int:
        """Floating-point operations of one forward pass of one image."""
        return sum(part.flops for part in self.parts)

    @property
    def tokens(self) -> int:
        """L, patches of an image."""
        return self.size[0] * self.size[1] // self.config.patch_size**2


def describe(
    config: DenoiserConfig,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
) -> Info:
    """Parameters, FLOPs and memory of the model a config describes.

    Args:
        size: (rows, columns) of the image; the config's own where none is given.
        batch_size: images at a time, for the two memory figures.
        dtype: of the weights, to sample; training is counted in float32.
        autocast: torch.bfloat16 for the memory under autocast.

    Raises:
        UserError: no size known, a size that does not divide into patches, a batch size below 1, or an
            encoder (PixelDiT2) whose size is not known.
    """
    size = size or config.image_size
    if size is None:
        such = config.patch_size * 16
        raise UserError(f"model {config.name} has no image_size; give a size, such as {such}")
    config.check_size(*size)
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} is not a number of images; give at least 1")
    model = skeleton(config)
    flops, parts = flops_by_part(model, size), []
    for name, part in model.named_children():
        count = sum(p.numel() for p in part.parameters())
        parts.append(Part(name, type(part).__name__, count, flops.get(name, 0)))
    frozen = 0
    if (encoder := encoder_of(config)) is not None:
        grid = size[0] // config.patch_size * (size[1] // config.patch_size)
        parts.append(Part("encoder", "frozen", encoder.parameters, encoder.flops(grid)))
        frozen = 4 * encoder.parameters
    training = frozen + _peak(model, size, batch_size, autocast, train=True)
    weights = frozen + bytes_of(model.to(dtype))
    sampling = frozen + _peak(model, size, 2 * batch_size, autocast, train=False)  # guidance: the null class
    return Info(config, size, batch_size, tuple(parts), dtype, weights, sampling, training, autocast)


def stored(name: str) -> Info:
    """What `describe` finds out of a preset, from figures.json, which benchmarks/figures.py writes.

    Following a pass imports PyTorch's compiler, which takes longer than all else."""
    config, figures = PRESETS[name], read_json(FIGURES)[name]
    parts = tuple(Part(*part) for part in figures["parts"])
    weights = 4 * sum(part.parameters for part in parts)
    assert config.image_size is not None
    memory = weights, figures["sampling_bytes"], figures["training_bytes"]
    return Info(config, config.image_size, 1, parts, torch.float32, *memory)


def encoder_of(config: DenoiserConfig) -> VisionSize | None:
    """The frozen encoder of the noisy image (PixelDiT2), None where there is none. Raises UserError: its size
    is not known."""
    return size_of(config.backbone.encoder, "encoder") if config.grounded else None


def example_inputs(
    model: PixelDenoiser, size: tuple[int, int], batch_size: int
) -> tuple[Tensor, Tensor, Condition]:
    """x [B,3,H,W], t [B] and labels [B], or captions of full length, without contents."""
    x = torch.empty(batch_size, 3, *size, device="meta")
    labels: Condition = torch.zeros(batch_size, dtype=torch.long, device="meta")
    if model.config.takes_text:
        backbone: Any = model.config.backbone
        shape = (batch_size, backbone.text_length, backbone.text_size)
        labels = TextCondition(torch.empty(shape, device="meta"))
    return x, torch.empty(batch_size, device="meta"), labels


def flops_by_part(model: PixelDenoiser, size: tuple[int, int]) -> dict[str, int]:
    """FLOPs of matrix products, convolutions and attention by part, one image. Where a detailer stands
    between the blocks, the backbone calls it: its FLOPs are not the backbone's."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*example_inputs(model, size, 1))
    by_module = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    total = {name: by_module.get(f"{type(model).__name__}.{name}", 0) for name, _ in model.named_children()}
    total["backbone"] -= total.get("middle", 0) + total.get("middle_to_tokens", 0)
    return total


class PeakMemory(TorchDispatchMode):
    """Follows every tensor made inside it and records the most bytes alive at one time, beside weights and
    the gradients that are there before."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        tensors = [tensor for p in model.parameters() for tensor in (p, p.grad) if tensor is not None]
        self._known = {id(tensor.untyped_storage()) for tensor in tensors}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(result) if isinstance(x, Tensor)):
            key = id(storage)  # one object per storage, whatever the number of views of it
            if key not in self._known:
                self._known.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._forget, key, storage.nbytes())
        return result

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


_PRODUCTS = (
    *(F.linear, F.conv2d, F.conv_transpose2d, torch.matmul, torch.bmm),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.bmm, F.scaled_dot_product_attention),
)
"""What autocast computes in its dtype."""


class AsOnDevice(TorchFunctionMode):
    """What devices do and `meta` does not: fused attention, and autocast.

    On `meta`, attention would be counted with its L×L matrix, which no fused kernel makes; and there is no
    autocast, which keeps a copy of each weight it has cast until it ends, but for frozen ones.
    """

    def __init__(self, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self._autocast = autocast
        self._casts: dict[int, Tensor] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._autocast is not None and function in _PRODUCTS:
            args, kwargs = tree_map_only(Tensor, self._cast, (args, kwargs))
        if function is F.scaled_dot_product_attention:
            fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return fused(*args[:3], attn_mask=kwargs.get("attn_mask"))[0]
        return function(*args, **kwargs)

    def _cast(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        if not (isinstance(tensor, nn.Parameter) and tensor.requires_grad):
            return tensor.to(self._autocast)
        if id(tensor) not in self._casts:
            self._casts[id(tensor)] = tensor.to(self._autocast)
        return self._casts[id(tensor)]


def bytes_of(model: nn.Module) -> int:
    """Memory of all parameters."""
    return sum(p.nbytes for p in model.parameters())


def _peak(
    model: PixelDenoiser, size: tuple[int, int], batch_size: int, autocast: torch.dtype | None, train: bool
) -> int:
    """Most bytes in use in a forward pass, or in a training step: weights, EMA, AdamW's two moments, and the
    gradients and activations that are followed."""
    x, t, labels = example_inputs(model, size, batch_size)
    with PeakMemory(model) as memory, torch.set_grad_enabled(train):
        with AsOnDevice(autocast):
            out = flow.loss(model, x, t, torch.empty_like(x), labels).mean() if train else model(x, t, labels)
        if train:
            out.backward()
    model.zero_grad(set_to_none=True)
    return (4 if train else 1) * bytes_of(model) + memory.peak


def human(number: float, unit: str, base: int = 1000) -> str:
    """Three digits and a prefix: human(311.2e9, "FLOPs") is "311 GFLOPs"."""
    prefixes = ["", "k", "M", "G", "T", "P"] if base == 1000 else ["", "Ki", "Mi", "Gi", "Ti", "Pi"]
    power = 0
    while number >= 999.5 and power < len(prefixes) - 1:
        number, power = number / base, power + 1
    digits = 0 if number >= 99.95 or power == 0 else 1 if number >= 9.995 else 2
    return f"{number:.{digits}f} {prefixes[power]}{unit}"
