"""What is measured: a forward pass, a training step or a whole sampling run, by ours and by the baseline."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from baseline import BaselineDenoiser, BaselineTraining, baseline_sample
from timing import Stopwatch, waiting
from torch import Tensor, nn

from pixelwright.acceleration import accelerate
from pixelwright.data import DataConfig
from pixelwright.device import check_compiler, resolve_device
from pixelwright.diffusion.sample import noise_of, sample
from pixelwright.errors import UserError
from pixelwright.images import to_uint8
from pixelwright.models.config import DenoiserConfig, SamplerSettings
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.detailers.unet import UNetConfig
from pixelwright.models.presets import preset
from pixelwright.training import ModelConfig, OptimConfig, TrainConfig, build_trainer
from pixelwright.training.inputs import Inputs
from pixelwright.training.summary import describe

KINDS, PRECISIONS = ("forward", "training", "sampling"), ("bf16", "fp32")
OURS, BASELINE, PEER = "ours", "baseline", "peer"
CLASSES = 1000
WARM_STEPS = 2
"""Steps of a sampling run for warming up and for its memory: one without and one with guidance."""


@dataclass(frozen=True)
class Work:
    """One line of a table.

    Raises:
        UserError: a model, size or device that cannot be measured, or is unknown to the baseline.
    """

    kind: Literal["forward", "training", "sampling"]
    model: str
    """A preset of classes."""
    batch_size: int
    size: int
    """Side of the images."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: autocast."""
    device: str = "cpu"
    compile: bool = False
    """Whether our blocks are compiled; the other side is eager."""
    steps: int = 100
    """sampling: steps of the solver."""
    apart: bool = False
    """Whether each side runs in a process of its own, ours with the settings of `pixelwright train`."""

    def __post_init__(self) -> None:
        for name, number in (("batch size", self.batch_size), ("steps", self.steps)):
            if number < 1:
                raise UserError(f"{name} is {number}; it must be at least 1")
        self.config().check_size(self.size, self.size)
        resolve_device(self.device)
        try:
            with torch.device("meta"):
                BaselineDenoiser(self.config())
        except ValueError as error:
            raise UserError(str(error)) from error
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
        low, high = self.sampler()["guidance_interval"]
        return self.steps + sum(low < i / self.steps < high for i in range(self.steps))

    def config(self) -> DenoiserConfig:
        """The model."""
        if preset(self.model).takes_text:
            raise UserError(f"{self.model} draws from captions; only models of classes are measured")
        return preset(self.model, num_classes=CLASSES)

    def sampler(self) -> dict[str, Any]:
        """The settings of the sampler that both sides share: those of the paper's ImageNet results."""
        unet = isinstance(preset(self.model).detailer, UNetConfig)
        dip = {"solver": "euler", "guidance_scale": 2.9, "guidance_interval": (0.11, 0.97)}
        pixeldit = {"solver": "ab2-fixed", "guidance_scale": 2.75, "guidance_interval": (0.1, 0.9)}
        return {"steps": self.steps, "autocast": self.autocast, **(dip if unet else pixeldit)}


# --- lists of works ----------------------------------------------------------------------------------------
def _performance() -> list[Work]:
    """The table of docs/performance.md: both XL models at 256², both tiny ones at 32²."""
    training = [Work("training", f"{family}-ti-4", 64, 32) for family in ("pixeldit", "dip")]
    return [
        *(Work("forward", f"{family}-xl-16", 2, 256) for family in ("pixeldit", "dip")),
        *training,
        *(replace(work, apart=True) for work in training),
        *(Work("sampling", f"{family}-xl-16", 1, 256) for family in ("dip", "pixeldit")),
    ]


def _short() -> list[Work]:
    """The same with 20 steps of sampling instead of 100, the same share of them guided; half the time."""
    return [replace(work, steps=20) if work.kind == "sampling" else work for work in _performance()]


def _check() -> list[Work]:
    """Small works that use every optimised path; a minute or two."""
    works = [Work("forward", f"{family}-b-16", 2, 256) for family in ("pixeldit", "dip")]
    for family in ("pixeldit", "dip"):
        works += [Work("training", f"{family}-ti-4", 64, 32)]
        works += [Work("sampling", f"{family}-s-8", 4, 64, steps=20)]
    return works


SUITES: dict[str, Callable[[], list[Work]]] = {"performance": _performance, "short": _short, "check": _check}


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


Prepare = Callable[[PixelDenoiser], Any]


def build(
    work: Work,
    side: str,
    peer: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
    prepare: Prepare | None = None,
) -> Side:
    """Make one side of a work.

    Args:
        peer: see `load_peer`.
        weights: of our model; shared by both sides, so that they fit into memory.
        prepare: what makes our model ready, once; without it the usual preparation for the device.
    """
    if work.kind == "training":
        return _our_training(work) if side == OURS else _other_training(work, side, peer)
    device = resolve_device(work.device)
    weights = {name: w.to(device) for name, w in (weights or random_weights(work)).items()}
    model = _model(work, side, peer, weights).to(device).eval()
    make = _forward if work.kind == "forward" else _sampling
    return make(work, side, model, device, prepare)._replace(weights=weights)


def load_peer(text: str) -> Callable[[str, int], nn.Module]:
    """The factory of another implementation: factory(name, num_classes) makes a module that is called as
    module(x [B,3,H,W], t [B], labels [B]) -> [B,3,H,W]. Training and sampling around it are the baseline's.

    Raises:
        UserError: not "PATH:module:factory", or nothing of that kind can be imported.
    """
    parts = text.rsplit(":", 2)
    if len(parts) != 3 or not Path(parts[0]).is_dir():
        raise UserError(f'--peer is "{text}"; give FOLDER:module:factory, such as ../other:models.dip:build')
    sys.path.insert(0, str(Path(parts[0]).resolve()))
    try:
        return getattr(importlib.import_module(parts[1]), parts[2])
    except (ImportError, AttributeError) as error:
        raise UserError(f"--peer: {error}") from error


def random_weights(work: Work) -> dict[str, Tensor]:
    """The weights of our model, none of them zero."""
    model = PixelDenoiser(work.config())
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():  # a new model is zero where it matters
                weight.normal_(std=0.02)
    return model.state_dict()


def _model(work: Work, side: str, peer: str | None, weights: Mapping[str, Tensor]) -> nn.Module:
    if side == PEER:
        assert peer is not None
        return load_peer(peer)(work.model, CLASSES)
    with torch.device("meta"):
        model = PixelDenoiser(work.config()) if side == OURS else BaselineDenoiser(work.config())
    if isinstance(model, BaselineDenoiser):
        return model.load_from(weights)
    model.load_state_dict(weights, assign=True)
    return model


def inputs_of(work: Work, device: torch.device) -> tuple[Tensor, ...]:
    """Images, times, noise and labels of a batch."""
    g = torch.Generator().manual_seed(0)
    shape = (work.batch_size, 3, work.size, work.size)
    x, noise = torch.rand(shape, generator=g) * 2 - 1, torch.randn(shape, generator=g)
    t, labels = torch.rand(work.batch_size, generator=g), torch.arange(work.batch_size) % CLASSES
    return x.to(device), t.to(device), noise.to(device), labels.to(device)


def _forward(work: Work, side: str, model: Any, device: torch.device, prepare: Prepare | None) -> Side:
    x, t, _, labels = inputs_of(work, device)
    ours = side == OURS
    if ours:
        model = prepare(model) if prepare else accelerate(model, work.precision, work.compile)

    @torch.no_grad()
    def run() -> Tensor:
        autocast = None if ours else work.autocast  # ours has its weights in that dtype
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            return model(x, t, labels)

    return Side(run, run)


def _sampling(work: Work, side: str, model: Any, device: torch.device, prepare: Prepare | None) -> Side:
    *_, labels = inputs_of(work, device)
    size = (work.size, work.size)
    if side == OURS:
        model = prepare(model) if prepare else accelerate(model, work.precision, work.compile)

    def ours(work: Work = work) -> object:
        settings = {name: value for name, value in work.sampler().items() if name != "autocast"}
        return sample(model, labels, SamplerSettings(**settings), size=size)

    def other(work: Work = work) -> object:
        noise = noise_of(range(len(labels)), size, 0, device)
        return to_uint8(baseline_sample(model, noise, labels, CLASSES, **work.sampler())).cpu()

    run = ours if side == OURS else other
    return Side(run, lambda: run(replace(work, steps=WARM_STEPS)))


def _our_training(work: Work) -> Side:
    config = TrainConfig(
        run=str(Path(tempfile.gettempdir()) / "pixelwright-bench-writes-nothing"),
        model=ModelConfig(work.model),
        data=DataConfig(path="shapes", size=work.size),
        optim=OptimConfig(lr=1e-4),
        batch_size=work.batch_size,
        precision=work.precision,
        device=work.device,
        compile=work.compile,
    )
    trainer = build_trainer(config)
    x, t, noise, labels = inputs_of(work, trainer.device)
    inputs = Inputs(x, t, noise, labels % trainer.model.config.num_classes)

    def phases() -> dict[str, float]:
        watch = Stopwatch(waiting(trainer.device))
        with watch.watching((trainer, "forward"), (trainer, "gradients"), (trainer.ema, "update")):
            watch.timed("step", trainer.train_step)(inputs)
        total = watch.total
        backward = total["gradients"] - total["forward"]
        return _phases(total["step"], total["forward"], backward, total["update"])

    def run() -> None:
        trainer.train_step(inputs)

    return Side(run, run, phases)


def _other_training(work: Work, side: str, peer: str | None) -> Side:
    device = resolve_device(work.device)
    model = _model(work, side, peer, random_weights(work)).to(device)
    training = BaselineTraining(model, autocast=work.autocast)
    inputs = inputs_of(work, device)
    parts = ((training.model, "forward"), (training, "optimise"), (training, "average_weights"))

    def phases() -> dict[str, float]:
        watch = Stopwatch(waiting(device))
        with watch.watching(*parts):
            watch.timed("step", training.step)(*inputs)
        step, forward, optimiser, ema = (
            watch.total[x] for x in ("step", "forward", "optimise", "average_weights")
        )
        return _phases(step, forward, step - forward - optimiser - ema, ema)

    def run() -> None:
        training.step(*inputs)

    return Side(run, run, phases)


def _phases(step: float, forward: float, backward: float, ema: float) -> dict[str, float]:
    optimiser = step - forward - backward - ema
    return {"forward": forward, "backward": backward, "optimiser": optimiser, "ema": ema}
