"""What is measured: a forward pass, a training step or a whole sampling run, by ours and by another."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args
from unittest.mock import patch

import torch
from torch import Tensor, nn

from pixelwright.acceleration.fast import prepared
from pixelwright.acceleration.fused import compiled
from pixelwright.benchmark.machine import waiting
from pixelwright.benchmark.measure import Wait
from pixelwright.benchmark.peer import Peer
from pixelwright.benchmark.plain import PlainDenoiser, PlainTraining, plain_sample
from pixelwright.data import DataConfig
from pixelwright.device import check_compiler, resolve_device
from pixelwright.diffusion.sample import initial_noise, sample
from pixelwright.errors import UserError, nearest
from pixelwright.hub.recipes import RECIPES
from pixelwright.images import to_uint8
from pixelwright.models.config import DenoiserConfig, Recipe, UNetConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.presets import preset
from pixelwright.training import ModelConfig, OptimConfig, TrainConfig, Trainer
from pixelwright.training.summary import describe
from pixelwright.training.trainer import Inputs

T = TypeVar("T")
Kind = Literal["forward", "training", "sampling"]
Precision = Literal["bf16", "fp32"]
OURS, PLAIN, PEER = "ours", "plain", "peer"
CLASSES = 1000
SHORT = 2
"""Steps of a sampling run for warming up and for its memory: one without and one with guidance."""


@dataclass(frozen=True)
class Work:
    """One line of a table.

    Raises:
        UserError: anything that cannot be measured, or has no plain counterpart.
    """

    kind: Kind
    model: str
    """A preset of classes."""
    batch_size: int
    size: int
    """Side of the images."""
    precision: Precision = "bf16"
    """bf16: autocast."""
    device: str = "cpu"
    compile: bool = False
    """Whether our blocks are compiled; the other side is eager."""
    recipe: str | None = None
    """sampling: guidance, its interval and the solver are those of this published result."""
    steps: int | None = None
    """sampling: steps of the solver."""
    apart: bool = False
    """Whether each side runs in a process of its own, ours with the settings of `pixelwright train`."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("work", self.kind, get_args(Kind)),
            ("precision", self.precision, get_args(Precision)),
        ):
            if value not in known:
                raise UserError(f'{name} is "{value}"{nearest(value, known)}')
        for name, number in (("batch size", self.batch_size), ("steps", self.steps)):
            if number is not None and number < 1:
                raise UserError(f"{name} is {number}; it must be at least 1")
        if self.kind == "sampling" and (self.recipe not in RECIPES or self.steps is None):
            raise UserError(f"sampling needs steps and a recipe{nearest(str(self.recipe), RECIPES)}")
        config = self.config()
        config.check_size(self.size, self.size)
        resolve_device(self.device)
        with torch.device("meta"):
            PlainDenoiser(config)
        if self.compile:
            check_compiler()

    @property
    def title(self) -> str:
        """The name of the work; works of the same title are the same."""
        parts = [self.kind, f"{self.model} {self.size}²", f"batch {self.batch_size}", self.precision]
        parts += [f"{self.steps} steps"] if self.kind == "sampling" else []
        parts += ["compiled"] if self.compile else []
        parts += ["processes apart"] if self.apart else []
        return ", ".join([*parts, *([self.device] if self.device != "cpu" else [])])

    @property
    def autocast(self) -> torch.dtype | None:
        return torch.bfloat16 if self.precision == "bf16" else None

    @property
    def flops(self) -> int:
        """Arithmetic that cannot be done without: matrix products, convolutions and attention. Three forward
        passes a training step; in sampling, the null branch inside the guidance interval only."""
        one = self.batch_size * describe(self.config(), (self.size, self.size)).flops
        return one * {"forward": 1, "training": 3, "sampling": self.evaluations}[self.kind]

    @property
    def evaluations(self) -> int:
        """Forward passes of a sampling run."""
        steps = self.steps or 0
        low, high = self._recipe().guidance_interval if self.kind == "sampling" else (0, 0)
        return steps + sum(low < i / steps < high for i in range(steps))

    def config(self, num_classes: int = CLASSES) -> DenoiserConfig:
        """The model."""
        config = preset(self.model)
        if config.takes_text:
            raise UserError(f"{self.model} draws from captions; only models of classes are measured")
        return preset(self.model, num_classes=num_classes)

    def sampler(self) -> dict[str, Any]:
        """The settings of the sampler that ours and the plain one share."""
        recipe = self._recipe()
        return {
            "steps": self.steps,
            "solver": recipe.solver,
            "guidance_scale": recipe.guidance_scale,
            "guidance_interval": recipe.guidance_interval,
            "autocast": self.autocast,
        }

    def _recipe(self) -> Recipe:
        assert self.recipe is not None
        return RECIPES[self.recipe]


def usual_recipe(model: str) -> str:
    """The published result whose sampler goes with a preset."""
    unet = isinstance(preset(model).detailer, UNetConfig)
    return "dip-imagenet256" if unet else "pixeldit-xl-epoch320"


# --- sides -------------------------------------------------------------------------------------------------
class Side(NamedTuple):
    """One implementation, ready to do the work."""

    run: Callable[[], object]
    """Do it once."""
    warm: Callable[[], object]
    """Do it once, or a short form of it: everything that happens the first time only is over after it."""
    phases: Callable[[], dict[str, float]] | None = None
    """training: seconds of forward, backward, optimiser and EMA of one step, measured apart."""
    weights: Mapping[str, Tensor] | None = None
    """What another side may use as its own weights, where nothing changes them."""


def build(
    work: Work,
    side: str,
    peer: Peer | None = None,
    weights: Mapping[str, Tensor] | None = None,
    prepare: Callable[[PixelDenoiser], PixelDenoiser] | None = None,
) -> Side:
    """Make one side of a work.

    Args:
        weights: of another side, shared with it so that both fit into memory.
        prepare: what makes our model ready, once, such as `FastDenoiser`; without it each sampling run does.
    """
    if work.kind == "training":
        return _our_training(work) if side == OURS else _other_training(work, side, peer)
    device = resolve_device(work.device)
    model = _model(work, side, peer, weights).to(device).eval()
    weights = model.state_dict()
    if prepare is not None and isinstance(model, PixelDenoiser):
        model = prepare(model)
    make = _forward if work.kind == "forward" else _sampling
    return make(work, side, model, device)._replace(weights=weights)


def _model(work: Work, side: str, peer: Peer | None, weights: Mapping[str, Tensor] | None) -> nn.Module:
    if side == PEER:
        assert peer is not None
        return peer.build(work.model, CLASSES)
    kind = PixelDenoiser if side == OURS else PlainDenoiser
    if weights is not None:
        with torch.device("meta"):
            model = kind(work.config())
        model.load_state_dict(weights, assign=True)
        return model
    model = kind(work.config())
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():  # a new model is zero where it matters
                weight.normal_(std=0.02)
    return model


def _inputs(work: Work, device: torch.device, classes: int = CLASSES) -> tuple[Tensor, ...]:
    """Images, times, noise and labels of a batch."""
    g = torch.Generator().manual_seed(0)
    shape = (work.batch_size, 3, work.size, work.size)
    x, noise = torch.rand(shape, generator=g) * 2 - 1, torch.randn(shape, generator=g)
    t, labels = torch.rand(work.batch_size, generator=g), torch.arange(work.batch_size) % classes
    return x.to(device), t.to(device), noise.to(device), labels.to(device)


def _forward(work: Work, side: str, model: nn.Module, device: torch.device) -> Side:
    x, t, _, labels = _inputs(work, device)
    if isinstance(model, PixelDenoiser):
        model = prepared(model, work.autocast, work.compile)

    @torch.no_grad()
    def run() -> Tensor:
        chains = compiled(work.compile and side == OURS and device.type == "cpu")
        with torch.autocast(device.type, work.autocast, enabled=work.autocast is not None), chains:
            return model(x, t, labels)

    return Side(run, run)


def _sampling(work: Work, side: str, model: nn.Module, device: torch.device) -> Side:
    *_, labels = _inputs(work, device)
    size = (work.size, work.size)

    def ours(work: Work = work) -> object:
        assert isinstance(model, PixelDenoiser)
        return sample(model, labels, size=size, compile=work.compile, **work.sampler())

    def other(work: Work = work) -> object:
        noise = initial_noise(size, len(labels), 0).to(device)
        return to_uint8(plain_sample(model, noise, labels, CLASSES, **work.sampler())).cpu()

    run = ours if side == OURS else other
    return Side(run, lambda: run(replace(work, steps=SHORT)))


def _our_training(work: Work) -> Side:
    trainer = Trainer(
        TrainConfig(
            run=str(Path(tempfile.gettempdir()) / "pixelwright-bench-writes-nothing"),
            model=ModelConfig(work.model),
            data=DataConfig(path="shapes", size=work.size),
            optim=OptimConfig(lr=1e-4),
            batch_size=work.batch_size,
            precision=work.precision,
            device=work.device,
            compile=work.compile,
        )
    )
    inputs = Inputs(*_inputs(work, trainer.device, trainer.model.config.num_classes))

    def phases() -> dict[str, float]:
        watch = Stopwatch(waiting(trainer.device))
        total = watch.total
        with watch.watching((trainer, "forward"), (trainer, "gradients"), (trainer.ema, "update")):
            watch.timed("step", trainer.train_step)(inputs)
        gradients, ema = total["gradients"], total["update"]
        return _phases(total["forward"], gradients - total["forward"], total["step"] - gradients - ema, ema)

    def run() -> None:
        trainer.train_step(inputs)

    return Side(run, run, phases)


def _other_training(work: Work, side: str, peer: Peer | None) -> Side:
    device = resolve_device(work.device)
    training = PlainTraining(_model(work, side, peer, None).to(device), autocast=work.autocast)
    inputs = _inputs(work, device)

    def phases() -> dict[str, float]:
        watch = Stopwatch(waiting(device))
        with watch.watching(
            (training.model, "forward"), (training, "optimise"), (training, "average_weights")
        ):
            watch.timed("step", training.step)(*inputs)
        forward, optimiser, ema = (watch.total[x] for x in ("forward", "optimise", "average_weights"))
        return _phases(forward, watch.total["step"] - forward - optimiser - ema, optimiser, ema)

    def run() -> None:
        training.step(*inputs)

    return Side(run, run, phases)


def _phases(forward: float, backward: float, optimiser: float, ema: float) -> dict[str, float]:
    return {"forward": forward, "backward": backward, "optimiser": optimiser, "ema": ema}


class Stopwatch:
    """Times whole calls, and methods of objects in the course of them."""

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self.total: defaultdict[str, float] = defaultdict(float)
        """Seconds by name of the method."""

    def timed(self, name: str, function: Callable[..., T]) -> Callable[..., T]:
        """The function with its time, that of the device's work included, added to `total`."""

        def call(*args: Any, **kwargs: Any) -> T:
            self._wait()
            begun = time.perf_counter()
            result = function(*args, **kwargs)
            self._wait()
            self.total[name] += time.perf_counter() - begun
            return result

        return call

    @contextmanager
    def watching(self, *methods: tuple[object, str]) -> Iterator[None]:
        """In here, these methods of these objects are timed."""
        with ExitStack() as stack:
            for owner, name in methods:
                stack.enter_context(patch.object(owner, name, self.timed(name, getattr(owner, name))))
            yield
