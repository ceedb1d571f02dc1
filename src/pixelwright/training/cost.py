"""What a run costs, known before it is started: arithmetic, memory of each GPU, GPU-hours.

The training step is run on tensors without contents, block by block as the run would do it, and every byte
that is alive is followed. Not counted: what the libraries take for themselves (CUDA's context and work space,
buffers of NCCL, fragments), and the copy of the weights that a measurement of updates makes for a moment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pixelwright.distributed import parallel
from pixelwright.errors import UserError, nearest
from pixelwright.models.conditions import Condition
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import skeleton
from pixelwright.training.config import TrainConfig
from pixelwright.training.objectives import FlowMatching, Losses, Repa, RepaConfig
from pixelwright.training.objectives.teacher import teacher_grid
from pixelwright.training.optim import build_optimizer
from pixelwright.training.summary import AsOnDevice, PeakMemory, example_inputs, flops_by_part

T = TypeVar("T")
Mode = Literal["single", "ddp", "fsdp"]
# Dense bf16 products, 10^12 operations a second, from the makers' data sheets.
PEAK_TFLOPS = {
    "a100": 312.0,
    "h100": 989.0,
    "h200": 989.0,
    "b200": 2250.0,
    "l40s": 362.0,
    "rtx-4090": 165.0,
    "mi300x": 1307.0,
}
FORWARD_AND_BACKWARD = 3  # forward passes: the backward pass has two products for each


class _Teacher(NamedTuple):
    hidden: int  # D
    depth: int
    parameters: int


# Width, depth and parameters of the published DINOv2.
TEACHERS = {
    "facebook/dinov2-small": _Teacher(384, 12, 22_056_576),
    "facebook/dinov2-base": _Teacher(768, 12, 86_580_480),
    "facebook/dinov2-large": _Teacher(1024, 24, 304_368_640),
    "facebook/dinov2-giant": _Teacher(1536, 40, 1_136_480_768),
}


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU."""

    weights: int
    averages: int
    optimizer: int
    gradients: int
    gathered: int
    """FSDP: the parts of other GPUs that are held for the units at work."""
    teacher: int
    """REPA's, whole on every GPU."""
    activations: int
    """All else that is alive when most is: kept for the backward pass, copies of weights for autocast."""

    @property
    def total(self) -> int:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Cost:
    """What `cost` finds out."""

    parameters: int
    """Of the model."""
    projector: int
    """Parameters of REPA's projector."""
    forward_flops: int
    """Of one image through the model."""
    teacher_flops: int
    image_flops: int
    """Of one image in training; with `parallel.checkpointing` the second forward pass too."""
    batch: int
    """Images of a GPU at one time."""
    memory: dict[tuple[Mode, bool], Memory]
    """By mode, and whether activations are computed again."""


def cost(config: TrainConfig, gpus: int = 1) -> Cost:
    """What a run of this configuration takes on `gpus` GPUs.

    Raises:
        UserError: the batch or the copies of the weights do not divide among the GPUs, or the size of the
            teacher is not known.
    """
    if gpus < 1:
        raise UserError(f"--gpus is {gpus}: give at least 1")
    parallel.check(config.parallel, gpus, config.batch_size, config.accumulate)
    model = skeleton(config.model.denoiser())
    side = (config.data.size, config.data.size)
    forward = sum(flops_by_part(model, side).values())
    repa = repa_of(config)
    teacher = None if repa is None else teacher_of(repa.teacher)
    tokens = 0 if teacher is None else teacher_grid(side)[0] * teacher_grid(side)[1] + 1
    shown = (
        0
        if teacher is None
        else 2 * teacher.parameters * tokens + 4 * teacher.depth * tokens**2 * teacher.hidden
    )
    added = sum(p.numel() for p in _losses(config, model, teacher).objectives.parameters())
    projected = 2 * added * (side[0] // model.config.patch_size) ** 2
    modes: Sequence[Mode] = ("single",) if gpus == 1 else ("ddp", "fsdp")
    if config.optim.name == "came":
        modes = [mode for mode in modes if mode != "fsdp"]
    batch = config.batch_size // gpus // config.accumulate
    passes = FORWARD_AND_BACKWARD + config.parallel.checkpointing
    memory = {
        (mode, recompute): _memory(config, gpus, mode, recompute, teacher)
        for mode in modes
        for recompute in (False, True)
    }
    return Cost(
        sum(p.numel() for p in model.parameters()),
        added,
        forward,
        shown,
        passes * (forward + projected) + shown,
        batch,
        memory,
    )


def gpu_hours(config: TrainConfig, found: Cost, tflops: float, utilisation: float) -> float:
    """Hours of one GPU for the whole run, if it does `utilisation` of the products that it could do."""
    return config.steps * config.batch_size * found.image_flops / (tflops * 1e12 * utilisation) / 3600


def peak_tflops(name: str) -> float:
    """That of a GPU by its name. Raises UserError if it is not known."""
    if name not in PEAK_TFLOPS:
        raise UserError(f"--gpu is {name!r}{nearest(name, PEAK_TFLOPS)}; or give its --peak-tflops")
    return PEAK_TFLOPS[name]


def teacher_of(name: str) -> _Teacher:
    """Size of a teacher, from the table or the config.json of its folder. Raises UserError otherwise."""
    if name in TEACHERS:
        return TEACHERS[name]
    try:
        values = json.loads((Path(name) / "config.json").read_text())
        hidden, depth = int(values["hidden_size"]), int(values["num_hidden_layers"])
        inner = 4 + 2 * int(values["mlp_ratio"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"repa.teacher is {name}, whose size is not known{nearest(name, TEACHERS)}; or give its folder"
        ) from None
    return _Teacher(hidden, depth, inner * hidden**2 * depth)


def repa_of(config: TrainConfig) -> RepaConfig | None:
    """The settings of REPA, where it is among the objectives."""
    return next((each for each in config.objectives if isinstance(each, RepaConfig)), None)


class _Tokens(NamedTuple):
    """Tensors of the shapes that a teacher gives."""

    size: int

    def __call__(self, images: Tensor) -> Tensor:
        rows, columns = teacher_grid(images.shape[-2:])
        return torch.empty(len(images), rows * columns, self.size, device=images.device)


def _losses(config: TrainConfig, model: PixelDenoiser, teacher: _Teacher | None) -> Losses:
    """What is minimised, without contents: flow matching and REPA."""
    repa = repa_of(config)
    aligned = [] if repa is None or teacher is None else [Repa(repa, model, _Tokens(teacher.hidden))]
    return Losses(model, [FlowMatching(), *aligned]).to("meta")


def _memory(config: TrainConfig, gpus: int, mode: Mode, recompute: bool, teacher: _Teacher | None) -> Memory:
    shards = gpus // (config.parallel.replicas or 1) if mode == "fsdp" else 1
    compute = None if config.precision == "fp32" else torch.bfloat16
    model = skeleton(config.model.denoiser())
    whole = _losses(config, model, teacher)
    weights, averages = _bytes(whole), _bytes(model) * (1 + len(config.ema_more))
    state = _optimizer_bytes(whole, config)
    units = model.units()
    gathered = _gathered(weights, [_bytes(unit) for unit in units], compute) if mode == "fsdp" else 0
    if mode == "fsdp":  # weights come in this dtype, of which autocast makes no copies
        whole.to(compute)
    device = _Device(compute)
    for unit in units:
        unit.forward = partial(device.run, unit.forward)
        parallel.prepare(unit, recompute, compile=False)
    # DDP keeps gradients in its buckets, accumulation those of the micro-batch before.
    kept = gpus > 1 or config.accumulate > 1
    for p in whole.parameters() if kept else ():
        p.grad = torch.empty_like(p)
    batch = config.batch_size // gpus // config.accumulate
    activations = _activations(config, whole, model, batch, device)
    return Memory(
        weights=-(-weights // shards),
        averages=-(-averages // shards),
        optimizer=-(-state // shards),
        gradients=-(-weights // shards),
        gathered=gathered,
        teacher=0 if teacher is None else 4 * teacher.parameters,
        # Otherwise each gradient appears in the backward pass, when activations go.
        activations=activations if kept else max(0, activations - weights),
    )


def _optimizer_bytes(module: nn.Module, config: TrainConfig) -> int:
    with FakeTensorMode():
        parameters = [(name, nn.Parameter(torch.empty(p.shape))) for name, p in module.named_parameters()]
        state = build_optimizer(parameters, config.optim).state
        tensors = [x for slots in state.values() for x in slots.values() if isinstance(x, Tensor)]
        return sum(x.numel() * x.element_size() for x in tensors)


def _gathered(whole: int, units: list[int], compute: torch.dtype | None) -> int:
    """Under FSDP: what belongs to no unit, two units at work and on the way, and a unit's gradient, which is
    summed in float32."""
    share = 1.0 if compute is None else compute.itemsize / 4
    return round(share * (whole - sum(units) + 3 * max(units))) + max(units)


class _Device:
    """What the device does to products: one mode for the forward pass, to whose end autocast keeps its copies
    of weights; new ones for what is computed again in the backward pass, which is outside of it."""

    def __init__(self, compute: torch.dtype | None) -> None:
        self.compute = compute
        self.forward: AsOnDevice | None = AsOnDevice(compute)

    def run(self, function: Callable[..., T], *args: Any) -> T:
        with self.forward or AsOnDevice(self.compute):
            return function(*args)


def _activations(
    config: TrainConfig, whole: Losses, model: PixelDenoiser, batch: int, device: _Device
) -> int:
    """Most bytes alive in a step, beside the weights and the gradients that are there before."""

    def forward(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return whole(x, t, torch.empty_like(x), condition, 0).total.mean()

    inputs = example_inputs(model, (config.data.size, config.data.size), batch)
    with PeakMemory(whole) as memory:
        loss = device.run(forward, *inputs)
        device.forward = None
        loss.backward()
    return memory.peak


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
