"""Everything a training run is told: frozen dataclasses, checked when they are made (files: `config_file`).

The string under a field is its help text on the command line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pixelwright.config import convert, hints
from pixelwright.data.buckets import buckets_of
from pixelwright.data.config import DataConfig
from pixelwright.diffusion.flow import FlowConfig
from pixelwright.diffusion.sample import SOLVERS
from pixelwright.distributed.config import ParallelConfig
from pixelwright.errors import UserError, nearest
from pixelwright.models.config import DenoiserConfig, Placement, Prediction
from pixelwright.models.presets import preset
from pixelwright.text.config import TextConfig, read_prompts
from pixelwright.training.ema import read_rule
from pixelwright.training.loggers import LOGGERS, ProgressConfig, TensorBoardConfig
from pixelwright.training.objectives import OBJECTIVES, check_objectives


# ---------------------------------------------------------------- checks
def _whole(name: str, value: object, low: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UserError(f"{name} is {value!r}: it must be a whole number, at least {low}")


def _number(name: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not real or value < low or value > high or (open_low and value == low):  # type: ignore[operator]
        bounds = f"{'above' if open_low else 'at least'} {low:g}" + (
            f" and at most {high:g}" if high < math.inf else ""
        )
        raise UserError(f"{name} is {value!r}: it must be a finite number, {bounds}")


# ---------------------------------------------------------------- the parts
@dataclass(frozen=True)
class ModelConfig:
    """Which model: a preset, and what to change in it. None keeps the value of the preset."""

    preset: str
    """Name of a preset, such as dip-ti-4 or pixeldit-xl-16 (`pixelwright info` lists them)."""
    placement: Placement | None = None
    """Where the detailer stands: after the last block, between the blocks, or both."""
    prediction: Prediction | None = None
    """What the network predicts: velocity, the image or the noise."""
    depth: int | None = None
    """Number of transformer blocks of the global stage."""
    hidden_size: int | None = None
    """Width of the tokens of the global stage."""
    num_heads: int | None = None
    """Attention heads of the global stage; hidden_size must be divisible by it."""
    patch_size: int | None = None
    """Pixels on the side of a patch; the image size must be divisible by it."""

    def __post_init__(self) -> None:
        if not isinstance(self.preset, str):
            raise UserError(f"model.preset is {self.preset!r}: give the name of a preset, such as dip-ti-4")
        try:
            self.denoiser()
        except UserError as error:
            raise UserError(f"model: {error}") from None

    def denoiser(self, num_classes: int | None = None, **more: Any) -> DenoiserConfig:
        """The config of the denoiser: the preset with what is changed here and with `more`.

        A model of captions takes no `num_classes`; one of classes has 1000 where none are given.
        """
        names = [f.name for f in fields(self) if f.name != "preset"]
        changed = {name: value for name in names if (value := getattr(self, name)) is not None}
        return preset(self.preset, num_classes=num_classes, **changed, **more)


@dataclass(frozen=True)
class OptimGroup:
    """Parameters with a learning rate or weight decay of their own."""

    pattern: str
    """Their names, or the ends of their names after a point: class_embedder.*, *.bias, blocks.0.*"""
    lr: float | None = None
    """Their learning rate, where `optim.lr` is that of the others; it takes part in warm-up and schedule."""
    lr_factor: float = 1.0
    """Instead of lr: what multiplies the learning rate of the others."""
    weight_decay: float | None = None
    """None: that of the others."""

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or not self.pattern:
            raise UserError(f"optim.groups.pattern is {self.pattern!r}: give a pattern, such as *.bias")
        if self.lr is not None:
            _number("optim.groups.lr", self.lr, 0)
            if self.lr_factor != 1:
                raise UserError("optim.groups: lr and lr_factor are both given: leave one out")
        _number("optim.groups.lr_factor", self.lr_factor, 0)
        if self.weight_decay is not None:
            _number("optim.groups.weight_decay", self.weight_decay, 0)


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser, and its learning rate: a linear rise, then a schedule."""

    name: Literal["adamw", "came"] = "adamw"
    """adamw, or came, whose state is far smaller (extra pixelwright[came]; not with parallel.mode fsdp)."""
    lr: float = 1e-4
    """Learning rate after the warm-up."""
    betas: tuple[float, ...] | None = None
    """Decay of the running mean and of the running square of the gradients, each in [0, 1), and for came of
    the instability; None: 0.9, 0.999 (came: and 0.9999)."""
    eps: float | None = None
    """adamw only: added to the root of the running square; None: 1e-8."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly from lr / warmup to lr."""
    schedule: Literal["constant", "cosine", "step-down"] = "constant"
    """After the warm-up: lr (but see cooldown); half a cosine to lr_end; or lr_end from step drop_at on."""
    cooldown: int = 0
    """constant only: steps at the end of the run over which the learning rate falls linearly to 0."""
    lr_end: float | None = None
    """cosine (None: 0) and step-down only: the last learning rate."""
    drop_at: int | None = None
    """step-down only: the step from which the learning rate is lr_end."""
    clip: float | None = 1.0
    """Largest norm of the gradients; longer ones are scaled down to it. None: no clipping."""
    groups: tuple[OptimGroup, ...] = ()
    """Parameters with settings of their own: [{pattern: class_embedder.*, lr_factor: 10}]; each parameter is
    in the first group whose pattern it matches."""

    def __post_init__(self) -> None:
        if self.name not in _BETAS:
            raise UserError(f"optim.name is {self.name!r}{nearest(str(self.name), _BETAS)}")
        _number("optim.lr", self.lr, 0, open_low=True)
        self._check_betas_and_eps()
        _number("optim.weight_decay", self.weight_decay, 0)
        _whole("optim.warmup", self.warmup, 0)
        _whole("optim.cooldown", self.cooldown, 0)
        self._check_schedule()
        if self.clip is not None:
            _number("optim.clip", self.clip, 0, open_low=True)

    def _check_betas_and_eps(self) -> None:
        betas = _BETAS[self.name] if self.betas is None else self.betas
        if not isinstance(betas, (tuple, list)) or len(betas) != len(_BETAS[self.name]):
            raise UserError(
                f"optim.betas is {list(betas) if isinstance(betas, tuple) else betas!r}: give "
                f"{len(_BETAS[self.name])} numbers for {self.name}, such as {list(_BETAS[self.name])}"
            )
        for beta in betas:
            _number("optim.betas", beta, 0, 1)
            if beta == 1:
                raise UserError(f"optim.betas is {list(betas)}: each must be below 1")
        object.__setattr__(self, "betas", tuple(betas))
        if self.name == "came" and self.eps is not None:
            raise UserError(f"optim.eps is {self.eps!r}, which came has no use for: leave it out")
        if self.name == "adamw":
            object.__setattr__(self, "eps", 1e-8 if self.eps is None else self.eps)
            _number("optim.eps", self.eps, 0, open_low=True)

    def _check_schedule(self) -> None:
        used = {"constant": {"cooldown"}, "cosine": {"lr_end"}, "step-down": {"lr_end", "drop_at"}}
        if self.schedule not in used:
            raise UserError(f"optim.schedule is {self.schedule!r}{nearest(str(self.schedule), used)}")
        for name in ("cooldown", "lr_end", "drop_at"):
            value = getattr(self, name)
            if value not in (None, 0) and name not in used[self.schedule]:
                fits = " or ".join(schedule for schedule, names in used.items() if name in names)
                raise UserError(
                    f"optim.{name} is {value!r}, which the schedule {self.schedule} has no use for: "
                    f"leave it out, or give --optim.schedule {fits}"
                )
        if self.schedule == "step-down" and None in (self.lr_end, self.drop_at):
            raise UserError("optim.schedule is step-down: give optim.drop_at and optim.lr_end as well")
        if self.lr_end is not None:
            _number("optim.lr_end", self.lr_end, 0, self.lr)
        if self.drop_at is not None:
            _whole("optim.drop_at", self.drop_at)


MOST_ROLLBACKS = 16  # a checkpoint has room for so many
_BETAS: dict[str, tuple[float, ...]] = {"adamw": (0.9, 0.999), "came": (0.9, 0.999, 0.9999)}


@dataclass(frozen=True)
class SampleConfig:
    """The grid of pictures drawn on the way with the averaged (EMA) weights, always of the same noise."""

    count: int = 32
    """Number of pictures; their labels go round the classes, or their captions round the prompts."""
    prompts: tuple[str, ...] | str | None = None
    """For models of captions: what to draw, a list or a text file with one prompt a line; None: what is said
    of the first images."""
    steps: int = 25
    """Steps of the solver."""
    solver: str = "ab2"
    """Solver of the sampling equation."""
    guidance_scale: float = 2.0
    """Classifier-free guidance; 1 is without."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The times between which guidance is on."""
    time_shift: float = 1.0
    """Shift of the time grid; above 1 spends more steps near the noise."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        _whole("sample.count", self.count)
        _whole("sample.steps", self.steps)
        _whole("sample.seed", self.seed, 0)
        self._check_prompts()
        if self.solver not in SOLVERS:
            raise UserError(f"sample.solver is {self.solver!r}{nearest(self.solver, SOLVERS)}")
        _number("sample.guidance_scale", self.guidance_scale, 0)
        _number("sample.time_shift", self.time_shift, 0, open_low=True)
        if not isinstance(self.guidance_interval, (tuple, list)) or len(self.guidance_interval) != 2:
            raise UserError(
                f"sample.guidance_interval is {self.guidance_interval!r}: give two times, such as [0.1, 1]"
            )
        low, high = self.guidance_interval
        _number("sample.guidance_interval", low, 0, 1)
        _number("sample.guidance_interval", high, 0, 1)
        if low > high:
            raise UserError(
                f"sample.guidance_interval is {[low, high]}: the first time must not exceed the second"
            )
        object.__setattr__(self, "guidance_interval", (low, high))

    def _check_prompts(self) -> None:
        if self.prompts is None or (isinstance(self.prompts, str) and self.prompts.strip()):
            return
        given = isinstance(self.prompts, (tuple, list)) and len(self.prompts) > 0
        if not given or not all(isinstance(prompt, str) for prompt in self.prompts):
            raise UserError(f"sample.prompts is {self.prompts!r}: give a list of texts, or a text file")
        object.__setattr__(self, "prompts", tuple(self.prompts))

    def read_prompts(self) -> tuple[str, ...]:
        """The prompts, from their file where there is one. Raises UserError if it cannot be read."""
        if not isinstance(self.prompts, str):
            return self.prompts or ()
        return read_prompts(Path(self.prompts), "sample.prompts")


@dataclass(frozen=True)
class HealthConfig:
    """What a run measures of itself, and what it does about spikes of the gradient norm or the loss."""

    measure_every: int = 100
    """Steps between two measurements of updates and activations; loss by time is logged too. 0: nothing."""
    on_spike: Literal["off", "clip", "skip", "rollback"] = "off"
    """What a spike leads to. clip: scale the gradient down to the usual norm; skip: leave the step out;
    rollback: leave it out, and when spikes persist go back to an earlier checkpoint and past these batches;
    off: nothing."""
    window: int = 200
    """Steps before that say what is usual; there are no spikes before half of it has been seen."""
    threshold: float = 10.0
    """A spike is so many robust standard deviations (1.4826 · MAD) above the median of the window."""
    patience: int = 5
    """rollback only: so many spikes or steps that are not finite in a row persist; looked at as often."""
    rollback_lr: float = 0.5
    """rollback only: what each rollback multiplies the learning rate with, to the end of the run."""
    max_rollbacks: int = 3
    """rollback only: spikes that persist after so many rollbacks stop the run."""

    def __post_init__(self) -> None:
        _whole("health.measure_every", self.measure_every, 0)
        if self.on_spike not in (known := ("off", "clip", "skip", "rollback")):
            raise UserError(f"health.on_spike is {self.on_spike!r}{nearest(str(self.on_spike), known)}")
        _whole("health.window", self.window, 10)
        _number("health.threshold", self.threshold, 0, open_low=True)
        self._check_rollback()

    def _check_rollback(self) -> None:
        _whole("health.patience", self.patience)
        _number("health.rollback_lr", self.rollback_lr, 0, 1, open_low=True)
        _whole("health.max_rollbacks", self.max_rollbacks)
        if self.max_rollbacks > MOST_ROLLBACKS:
            raise UserError(f"health.max_rollbacks is {self.max_rollbacks}: {MOST_ROLLBACKS} is the most")
        if self.patience > self.window // 2:
            raise UserError(
                f"health.patience is {self.patience}, health.window {self.window}: spikes that fill more "
                "than half of the window become the usual; give a smaller patience or a larger window"
            )
        for name in ("patience", "rollback_lr", "max_rollbacks"):
            if self.on_spike != "rollback" and getattr(self, name) != getattr(type(self), name):
                raise UserError(
                    f"health.{name} is {getattr(self, name)}, but health.on_spike is {self.on_spike}: "
                    "leave it out, or give --health.on_spike rollback"
                )


FEWEST_EVALUATED = 16  # samples; metrics of fewer say nothing


@dataclass(frozen=True)
class EvaluationSample(SampleConfig):
    """The samples that are measured: always of the same noise, with the classes in turn."""

    count: int = 2000
    """Number of samples."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 is without."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Metrics of samples of the averaged (EMA) weights, measured on the way; they do not change the run."""

    features: str
    """What extracts the features: KIND[:PLACE] or a folder, as `pixelwright evaluate --features` takes it."""
    reference: str
    """What samples are compared with: an .npz of `pixelwright reference`, made with the same features."""
    every: int = 5000
    """Steps between two evaluations; there is one at the end too."""
    sample: EvaluationSample = field(default_factory=EvaluationSample)
    """The samples that are measured: always of the same noise, with the classes in turn."""

    def __post_init__(self) -> None:
        for name in ("features", "reference"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise UserError(f"evaluation.{name} is {getattr(self, name)!r}: give the place of a file")
        _whole("evaluation.every", self.every)
        if self.sample.prompts is not None:
            raise UserError(
                "evaluation.sample.prompts is given, but the samples are of classes: leave it out"
            )
        _whole("evaluation.sample.count", self.sample.count, FEWEST_EVALUATED)


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how to train: all that a `Trainer` is told beside its model, data and objectives."""

    run: str
    """Folder of the run. The same command again continues it."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """How times are drawn and labels dropped."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser."""
    steps: int = 10_000
    """Optimiser steps of the whole run; raise it to continue a run that is complete."""
    batch_size: int = 32
    """Images per step."""
    accumulate: int = 1
    """Micro-batches per step: the same gradient with less memory. Must divide batch_size."""
    seed: int = 0
    """Seed of the initial weights, the order of the images, noise, times and dropped labels."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the products; auto is bf16 where the device has instructions for it, such as on CUDA."""
    ema_decay: float = 0.9999
    """Decay of the averaged weights; at step n it is min(ema_decay, (1 + n) / (10 + n)). 0: no averaging."""
    ema_more: tuple[float | str, ...] = ()
    """Further averages kept beside it: decays such as 0.999, or power-WIDTH, the power-function average of
    EDM2 with that relative width, as power-0.05; `pixelwright convert RUN OUT --ema NAME` takes one."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps ..."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Several processes, under torchrun."""
    health: HealthConfig = field(default_factory=HealthConfig)
    """What the run watches in itself, and what it does about spikes."""
    compile: bool = False
    """Compile each block with torch.compile (needs a C++ compiler; the first step takes a minute or more)."""
    log_every: int = 20
    """Steps between two lines of log.jsonl; each holds the means over the steps since the last line."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints."""
    keep: int = 2
    """Number of checkpoints kept, the newest ones."""
    keep_every: int = 0
    """Checkpoints at multiples of this step are kept as well, for good; 0: none."""
    max_skipped: int = 25
    """Stop after so many steps in a row without a finite loss and gradient; such steps change nothing."""

    def __post_init__(self) -> None:
        if not isinstance(self.run, str) or not self.run.strip():
            raise UserError(f"run is {self.run!r}: give the folder of the run, such as runs/first")
        whole = ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep", "max_skipped")
        for name in whole:
            _whole(name, getattr(self, name))
        _whole("seed", self.seed, 0)
        _whole("keep_every", self.keep_every, 0)
        if self.batch_size % self.accumulate:
            raise UserError(f"batch_size {self.batch_size} is not divisible by accumulate {self.accumulate}")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise UserError(
                f"precision is {self.precision!r}{nearest(self.precision, ('auto', 'bf16', 'fp32'))}"
            )
        _number("ema_decay", self.ema_decay, 0, 1)
        if self.ema_decay == 1:
            raise UserError("ema_decay is 1: the averaged weights would never move; give a number below 1")
        self._check_averages()

    def _check_averages(self) -> None:
        if not isinstance(self.ema_more, (tuple, list)):
            raise UserError(f"ema_more is {self.ema_more!r}: give a list, such as [0.999, power-0.05]")
        rules = [read_rule(rule) for rule in (self.ema_decay, *self.ema_more)]
        if len(set(rules)) < len(rules):
            raise UserError(
                f"ema_more is {list(self.ema_more)}, ema_decay {self.ema_decay}: one is there twice"
            )
        object.__setattr__(self, "ema_more", tuple(self.ema_more))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    """A whole training run."""

    model: ModelConfig
    """Which model."""
    data: DataConfig
    """Which images."""
    imports: tuple[str, ...] = ()
    """Python files or modules of your own that register detailers, objectives, ...; imported by
    `pixelwright train` before anything else."""
    init: str | None = None
    """Weights that a new run starts from, instead of random ones: those of a model folder, of a run (its
    averaged ones) or of a published file, of the same architecture. A run that is continued keeps its own."""
    text: TextConfig | None = None
    """The text encoder, for models of captions."""
    objectives: tuple[Annotated[Any, OBJECTIVES], ...] = ()
    """What is minimised beside flow matching: [{type: repa, teacher: ..., depth: 8, weight: 0.5}]."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """The pictures drawn on the way."""
    evaluation: EvaluationConfig | None = None
    """Metrics measured on the way; None: none."""
    sample_every: int = 1000
    """Steps between two sample grids and loss plots; 0 draws none but at the end."""
    loggers: tuple[Annotated[Any, LOGGERS], ...] = (TensorBoardConfig(), ProgressConfig())
    """Beside log.jsonl: tensorboard, progress, or {type: wandb, project: ..., mode: offline} and the like."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init is not None and (not isinstance(self.init, str) or not self.init.strip()):
            raise UserError(f"init is {self.init!r}: give a model folder, a run or a file of weights")
        _whole("sample_every", self.sample_every, 0)
        for name in ("objectives", "loggers"):
            object.__setattr__(self, name, convert(getattr(self, name), hints(type(self))[name], name))
        check_objectives(self.objectives)
        for size in buckets_of(self.data):
            self.model.denoiser().check_size(*size)
            for objective in self.objectives:
                objective.check(self.model.denoiser(), size)
        self._check_text()

    def _check_text(self) -> None:
        name = self.model.preset
        if not self.model.denoiser().takes_text:
            for key, value in (("text", self.text), ("sample.prompts", self.sample.prompts)):
                if value is not None:
                    raise UserError(
                        f"{key} is given, but {name} draws from classes: leave it out, or take a model of "
                        "captions such as pixeldit-t2i-ti"
                    )
        elif self.evaluation is not None:
            raise UserError(
                f"{name} draws from captions, and evaluation is for models of classes: leave it out"
            )
        elif self.text is None:
            raise UserError(
                f"{name} draws from captions: say which encoder reads them, such as --text.encoder minilm"
            )
