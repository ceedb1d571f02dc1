"""What a run costs, known before it is started: arithmetic, memory of each GPU, GPU-hours.

The training step is run on tensors without contents, block by block as the run would do it, and every byte
that is alive is followed. Not counted: what the libraries take for themselves (CUDA's context and work space,
buffers of NCCL, fragments), and the copy of the weights that a measurement of updates makes for a moment.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pixelwright.distributed import parallel
from pixelwright.errors import UserError, nearest
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import skeleton
from pixelwright.models.vision import VisionSize, size_of
from pixelwright.training.adapters import trained_weights
from pixelwright.training.config import TrainConfig
from pixelwright.training.objectives import FlowMatching, Losses, Repa, RepaConfig
from pixelwright.training.objectives.teacher import teacher_grid
from pixelwright.training.optim import build_optimizer
from pixelwright.training.summary import (
    AsOnDevice,
    PeakMemory,
    bytes_of,
    encoder_of,
    example_inputs,
    flops_by_part,
)

Mode = Literal["single", "ddp", "fsdp"]
PEAK_TFLOPS = {
    **{"a100": 312.0, "h100": 989.0, "h200": 989.0, "b200": 2250.0},
    **{"l40s": 362.0, "rtx-4090": 165.0, "mi300x": 1307.0},
}
"""Dense bf16 products, 10^12 operations a second, from the makers' data sheets."""
FORWARD_AND_BACKWARD = 3  # forward passes: the backward pass has two products for each


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU."""

    weights: int
    averages: int
    optimizer: int
    gradients: int
    gathered: int  # FSDP: the parts of other GPUs that are held for the units at work
    frozen: int  # REPA's teacher and PixelDiT2's encoder, whole on every GPU
    activations: int  # all else alive at the peak: kept for the backward pass, autocast's copies of weights

    @property
    def total(self) -> int:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Cost:
    """What `cost` finds out."""

    parameters: int  # of the model
    projector: int  # parameters of REPA's projector
    forward_flops: int  # of one image through the model
    frozen_flops: int  # of one image through REPA's teacher and PixelDiT2's encoder
    image_flops: int  # of one image in training; with `parallel.checkpointing` the second forward pass too
    batch: int  # images of a GPU at one time
    memory: dict[tuple[Mode, bool], Memory]  # by mode, and whether activations are recomputed


def cost(config: TrainConfig, gpus: int = 1) -> Cost:
    """What a run of this configuration takes on `gpus` GPUs. Raises UserError: the batch or the copies of the
    weights do not divide among the GPUs, or the size of a frozen network is not known."""
    if gpus < 1:
        raise UserError(f"--gpus is {gpus}: give at least 1")
    parallel.check(config.parallel, gpus, config.batch_size, config.accumulate)
    model, side = skeleton(config.model.denoiser()), (config.data.size, config.data.size)
    repa = repa_of(config)
    teacher = None if repa is None else size_of(repa.teacher, "repa.teacher")
    projector = sum(p.numel() for p in _losses(config, model, teacher).objectives.parameters())
    forward = sum(flops_by_part(model, side).values())
    passed = forward + 2 * projector * (side[0] // model.config.patch_size) ** 2
    passes = FORWARD_AND_BACKWARD - (config.adapter is not None)  # frozen matrices have no gradients
    frozen = 0
    if repa is not None and teacher is not None:
        frozen = teacher.flops(math.prod(teacher_grid(side, repa.stride)))
    if (encoder := encoder_of(model.config)) is not None:
        frozen += encoder.flops((side[0] // model.config.patch_size) ** 2)
    modes: list[Mode] = ["single"] if gpus == 1 else ["ddp"]
    modes += ["fsdp"] if gpus > 1 and config.optim.name != "came" and config.adapter is None else []
    kinds = [(mode, recompute) for mode in modes for recompute in (False, True)]
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        projector=projector,
        forward_flops=forward,
        frozen_flops=frozen,
        image_flops=(passes + config.parallel.checkpointing) * passed + frozen,
        batch=config.batch_size // gpus // config.accumulate,
        memory={kind: _memory(config, gpus, *kind, teacher) for kind in kinds},
    )


def gpu_hours(config: TrainConfig, costs: Cost, tflops: float, utilisation: float) -> float:
    """Hours of one GPU for the whole run, if it does `utilisation` of the products that it could do."""
    return config.steps * config.batch_size * costs.image_flops / (tflops * 1e12 * utilisation) / 3600


def peak_tflops(name: str) -> float:
    """That of a GPU by its name. Raises UserError if it is not known."""
    if name not in PEAK_TFLOPS:
        raise UserError(f"--gpu is {name!r}{nearest(name, PEAK_TFLOPS)}; or give its --peak-tflops")
    return PEAK_TFLOPS[name]


def repa_of(config: TrainConfig) -> RepaConfig | None:
    """The settings of REPA, where it is among the objectives."""
    return next((each for each in config.objectives if isinstance(each, RepaConfig)), None)


class _Tokens(NamedTuple):
    """Tensors of the shapes that a teacher gives."""

    size: int
    stride: int

    def __call__(self, images: Tensor) -> Tensor:
        rows, columns = teacher_grid(images.shape[-2:], self.stride)
        return torch.empty(len(images), rows * columns, self.size, device=images.device)


def _losses(config: TrainConfig, model: PixelDenoiser, teacher: VisionSize | None) -> Losses:
    """What is minimised, without contents: flow matching and REPA."""
    repa = repa_of(config)
    aligned = (
        [] if repa is None or teacher is None else [Repa(repa, model, _Tokens(teacher.hidden, repa.stride))]
    )
    return Losses(model, [FlowMatching(), *aligned]).to("meta")


def _memory(
    config: TrainConfig, gpus: int, mode: Mode, recompute: bool, teacher: VisionSize | None
) -> Memory:
    shards = gpus // (config.parallel.replicas or 1) if mode == "fsdp" else 1
    compute = None if config.precision == "fp32" else torch.bfloat16
    model = skeleton(config.model.denoiser())
    averaged = trained_weights(model, config).tensors().values()
    whole = _losses(config, model, teacher)
    trained = [p for _, p in whole.named()]
    weights, gradients = bytes_of(whole), sum(p.nbytes for p in trained)
    averages = sum(x.nbytes for x in averaged) * (1 + len(config.ema_more))
    state, gathered = _optimizer_bytes(whole, config), 0
    if mode == "fsdp":  # weights come in this dtype, of which autocast makes no copies
        gathered = _gathered(weights, [bytes_of(unit) for unit in model.units()], compute)
        whole.to(compute)
    # DDP keeps gradients in its buckets, accumulation those of the micro-batch before.
    kept = gpus > 1 or config.accumulate > 1
    for p in trained if kept else ():
        p.grad = torch.empty_like(p)
    batch = config.batch_size // gpus // config.accumulate
    activations = _activations(config, whole, batch, recompute, compute)
    if not kept:  # each gradient appears in the backward pass, when activations go
        activations = max(0, activations - gradients)

    frozen = 4 * sum(each.parameters for each in (teacher, encoder_of(model.config)) if each is not None)
    own, averages, state, gradients = (-(-size // shards) for size in (weights, averages, state, gradients))
    return Memory(own, averages, state, gradients, gathered, frozen, activations)


def _optimizer_bytes(whole: Losses, config: TrainConfig) -> int:
    with FakeTensorMode():
        parameters = [(name, nn.Parameter(torch.empty(p.shape))) for name, p in whole.named()]
        state = build_optimizer(parameters, config.optim).state
        return sum(x.nbytes for slots in state.values() for x in slots.values() if isinstance(x, Tensor))


def _gathered(whole: int, units: list[int], compute: torch.dtype | None) -> int:
    """Under FSDP: what belongs to no unit and stays float32, two units at work and on the way, and a unit's
    gradient, which is summed in float32."""
    share = 1.0 if compute is None else compute.itemsize / 4
    return whole - sum(units) + round(share * 3 * max(units)) + max(units)


def _activations(
    config: TrainConfig, whole: Losses, batch: int, recompute: bool, compute: torch.dtype | None
) -> int:
    """Most bytes alive in a step, beside the weights and the gradients that are there before."""
    # One mode for the forward pass, to whose end autocast keeps its copies of weights; new ones for what is
    # recomputed in the backward pass, which is outside of it.
    modes = [AsOnDevice(compute)]

    def run(function: Callable[..., Any], *args: Any) -> Any:
        with modes[0] if modes else AsOnDevice(compute):
            return function(*args)

    for unit in whole.model.units():
        unit.forward = partial(run, unit.forward)
        parallel.prepare(unit, recompute, compile=False)
    x, t, condition = example_inputs(whole.model, (config.data.size, config.data.size), batch)
    with PeakMemory(whole) as memory:
        loss = run(lambda: whole(x, t, torch.empty_like(x), condition, 0).total.mean())
        modes.clear()
        loss.backward()
    return memory.peak
