"""The settings of a training run: frozen dataclasses, checked when they are made (files: `config_file`).

The string under a field is its help text on the command line.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pixelwright.config import (
    Config,
    Decay,
    NonNegativeFloat,
    NonNegativeInt,
    Percent,
    PositiveFloat,
    PositiveInt,
    Share,
    StepsOrShare,
    Text,
    whole,
)
from pixelwright.data.buckets import buckets_of
from pixelwright.data.config import DataConfig
from pixelwright.diffusion.flow import FlowConfig
from pixelwright.diffusion.solvers import check_solver
from pixelwright.distributed.config import ParallelConfig
from pixelwright.errors import UserError
from pixelwright.models.config import SamplerSettings
from pixelwright.text.config import TextConfig, read_prompts
from pixelwright.training.ema import read_rule
from pixelwright.training.finetune_config import AdapterConfig, SubjectConfig
from pixelwright.training.loggers import LOGGERS
from pixelwright.training.model_config import ModelConfig
from pixelwright.training.objectives import OBJECTIVES, check_objectives


@dataclass(frozen=True)
class OptimGroup(Config, where="optim.groups"):
    """Parameters with a learning rate or weight decay of their own."""

    pattern: Text
    """Their names, or the ends of their names after a point: class_embedder.*, *.bias, blocks.0.*"""
    lr: NonNegativeFloat | None = None
    """Their learning rate, where `optim.lr` is that of the others; it takes part in warm-up and schedule."""
    lr_factor: NonNegativeFloat = 1.0
    """Instead of lr: what multiplies the learning rate of the others."""
    weight_decay: NonNegativeFloat | None = None
    """None: that of the others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr is not None and self.lr_factor != 1:
            raise UserError("optim.groups: lr and lr_factor are both given: leave one out")


@dataclass(frozen=True)
class OptimConfig(Config, where="optim"):
    """The optimiser, and its learning rate: a linear rise, then a schedule."""

    name: Literal["adamw", "muon", "came"] = "adamw"
    """adamw; muon, which makes the singular values of the updates of hidden matrices and convolutions equal
    and leaves the other weights to adamw; or came, whose state is far smaller (extra pixelwright[came]; not
    with parallel.mode fsdp)."""
    lr: PositiveFloat = 1e-4
    """Learning rate after the warm-up."""
    betas: tuple[Decay, ...] | None = None
    """Decay of the running mean and of the running square of the gradients, each in [0, 1), for muon also of
    the running mean of its matrices, for came of the instability; None: 0.9, 0.999 (came: and 0.9999) or, for
    muon, 0.9, 0.95, 0.95."""
    eps: PositiveFloat | None = None
    """adamw and muon: added to the root of the running square; None: 1e-8."""
    update_rms: PositiveFloat | None = None
    """muon only: root mean square of a matrix's update at a learning rate of 1; None: 0.2, as adamw's."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    warmup: StepsOrShare = 0
    """Steps, or the share of the run such as 3%, over which the learning rate rises linearly to lr."""
    schedule: Literal["constant", "cosine", "step-down"] = "constant"
    """After the warm-up: lr (but see cooldown); half a cosine to lr_end; or lr_end from step drop_at on."""
    cooldown: StepsOrShare = 0
    """constant only: steps at the end, or a share of the run such as 25%, in which the learning rate falls
    linearly to 0."""
    lr_end: NonNegativeFloat | None = None
    """cosine (None: 0) and step-down only: the last learning rate."""
    drop_at: PositiveInt | Percent | None = None
    """step-down only: the step, or share of the run such as 75%, from which the learning rate is lr_end."""
    clip: PositiveFloat | None = 1.0
    """Largest norm of the gradients; longer ones are scaled down to it. None: no clipping."""
    groups: tuple[OptimGroup, ...] = ()
    """Parameters with settings of their own: [{pattern: class_embedder.*, lr_factor: 10}]; each parameter is
    in the first group whose pattern it matches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        usual, used = _DEFAULTS[self.name], _SCHEDULES[self.schedule]
        for name in _DEFAULTS["muon"]:
            if name not in usual:
                self.unused(name, why=f"which {self.name} has no use for: leave it out")
            elif getattr(self, name) is None:
                object.__setattr__(self, name, usual[name])
        if self.betas is not None and (count := len(usual["betas"])) != len(self.betas):
            such = f"give {count} numbers for {self.name}, such as {list(usual['betas'])}"
            raise UserError(f"optim.betas is {list(self.betas)}: {such}")
        for name in ("cooldown", "lr_end", "drop_at"):
            if name not in used:
                fits = " or ".join(schedule for schedule, names in _SCHEDULES.items() if name in names)
                why = f"which the schedule {self.schedule} has no use for: leave it out"
                self.unused(name, why=f"{why}, or give --optim.schedule {fits}")
        if self.schedule == "step-down" and None in (self.lr_end, self.drop_at):
            raise UserError("optim.schedule is step-down: give optim.drop_at and optim.lr_end as well")
        if self.lr_end is not None and self.lr_end > self.lr:
            raise UserError(f"optim.lr_end is {self.lr_end}: give at most optim.lr, {self.lr}")


MOST_ROLLBACKS = 16  # a checkpoint has room for so many
_DEFAULTS: dict[str, dict[str, Any]] = {
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8},
    "muon": {"betas": (0.9, 0.95, 0.95), "eps": 1e-8, "update_rms": 0.2},
    "came": {"betas": (0.9, 0.999, 0.9999)},
}
"""Of what depends on the optimiser; what is not here has no use for it."""
_SCHEDULES = {"constant": ("cooldown",), "cosine": ("lr_end",), "step-down": ("lr_end", "drop_at")}
"""The settings that each schedule reads."""


@dataclass(frozen=True)
class _Samples(SamplerSettings):
    """Images drawn during training with the averaged (EMA) weights, always of the same noise."""

    steps: PositiveInt = 25
    """Steps of the solver."""
    seed: NonNegativeInt = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_solver(self.solver)


def sampler_of(settings: SamplerSettings) -> dict[str, Any]:
    """The settings of the sampler alone, by name."""
    return {field.name: getattr(settings, field.name) for field in fields(SamplerSettings)}


@dataclass(frozen=True)
class SampleConfig(_Samples, where="sample"):
    """The grid of images drawn during training."""

    count: PositiveInt = 32
    """Number of images; their labels go round the classes, or their captions round the prompts."""
    prompts: tuple[str, ...] | Text | None = None
    """For models of captions: what to draw, a list or a text file with one prompt a line; None: the captions
    of the first images."""
    guidance_scale: NonNegativeFloat = 2.0
    """Classifier-free guidance; 1 is without."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts == ():
            raise UserError("sample.prompts is []: give a list of texts, or a text file")

    def read_prompts(self) -> tuple[str, ...]:
        """The prompts, from their file where there is one. Raises UserError if it cannot be read."""
        if not isinstance(self.prompts, str):
            return self.prompts or ()
        return read_prompts(Path(self.prompts), "sample.prompts")


@dataclass(frozen=True)
class HealthConfig(Config, where="health"):
    """What a run measures of itself, and what it does about spikes of the gradient norm or the loss."""

    measure_every: NonNegativeInt = 100
    """Steps between two measurements of updates and activations; loss by time is logged too. 0: nothing."""
    on_spike: Literal["off", "clip", "skip", "rollback"] = "off"
    """What a spike leads to. clip: scale the gradient down to the usual norm; skip: leave the step out;
    rollback: leave it out, and when spikes persist go back to an earlier checkpoint and past these batches;
    off: nothing."""
    window: Annotated[int, whole(10)] = 200
    """Steps before that say what is usual; there are no spikes before half of it has been seen."""
    threshold: PositiveFloat = 10.0
    """A spike is so many robust standard deviations (1.4826 · MAD) above the median of the window."""
    patience: PositiveInt = 5
    """rollback only: so many spikes or steps that are not finite in a row persist; looked at as often."""
    rollback_lr: Share = 0.5
    """rollback only: what each rollback multiplies the learning rate with, to the end of the run."""
    max_rollbacks: Annotated[int, whole(1, MOST_ROLLBACKS)] = 3
    """rollback only: spikes that persist after so many rollbacks stop the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience > self.window // 2:
            raise UserError(
                f"health.patience is {self.patience}, health.window {self.window}: spikes that fill more "
                "than half of the window become the usual; give a smaller patience or a larger window"
            )
        if self.on_spike != "rollback":
            why = f"but health.on_spike is {self.on_spike}: leave it out, or give --health.on_spike rollback"
            self.unused("patience", "rollback_lr", "max_rollbacks", why=why)


FEWEST_EVALUATED = 16  # samples; metrics of fewer say nothing


@dataclass(frozen=True)
class EvaluationSample(_Samples, where="evaluation.sample"):
    """The samples that are measured, with the classes in turn."""

    count: Annotated[int, whole(FEWEST_EVALUATED)] = 2000
    """Number of samples."""


@dataclass(frozen=True)
class EvaluationConfig(Config, where="evaluation"):
    """Metrics of samples of the averaged (EMA) weights during training; they do not change the run."""

    features: Text
    """What extracts the features: KIND[:PLACE] or a folder, as `pixelwright evaluate --features` takes it."""
    reference: Text
    """Reference statistics, made with the same features: an .npz of `pixelwright reference`."""
    every: PositiveInt = 5000
    """Steps between two evaluations; there is one at the end too."""
    sample: EvaluationSample = field(default_factory=EvaluationSample)
    """The samples that are measured."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Config, where=""):
    """How long and how to train: all that a `Trainer` needs beside its model, data and objectives."""

    run: Text
    """Folder of the run. The same command again continues it."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """How times are drawn and labels dropped."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser."""
    steps: PositiveInt = 10_000
    """Optimiser steps of the whole run; raise it to continue a run that is complete."""
    batch_size: PositiveInt = 32
    """Images per step."""
    accumulate: PositiveInt = 1
    """Micro-batches per step: the same gradient with less memory. Must divide batch_size."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights, the order of the images, noise, times and dropped labels."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the products; auto is bf16 where the device has instructions for it, such as on CUDA, and
    TF32 there for what stays in float32; fp32 is full float32."""
    attention: Literal["auto", "sdpa", "flash", "math"] = "auto"
    """Kernel of attention; math is the slowest and the safest, for devices where the others give NaN."""
    ema_decay: Decay = 0.9999
    """Decay of the averaged weights; at step n it is min(ema_decay, (1 + n) / (10 + n)). 0: no averaging."""
    ema_more: tuple[float | str, ...] = ()
    """Further averages kept beside it: decays such as 0.999, or power-WIDTH, the power-function average of
    EDM2 with that relative width, as power-0.05; `--weights NAME` of `sample` takes one."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps ..."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Several processes, under torchrun."""
    health: HealthConfig = field(default_factory=HealthConfig)
    """What the run watches in itself, and what it does about spikes."""
    compile: bool = False
    """Compile each block with torch.compile (needs a C++ compiler; the first step takes a minute or more)."""
    log_every: PositiveInt = 20
    """Steps between two lines of log.jsonl; each holds the means over the steps since the last line."""
    checkpoint_every: PositiveInt = 1000
    """Steps between two checkpoints."""
    keep: PositiveInt = 2
    """Number of checkpoints kept, the newest ones."""
    keep_every: NonNegativeInt = 0
    """Checkpoints at multiples of this step are kept as well, for good; 0: none."""
    max_skipped: PositiveInt = 25
    """Stop after so many steps in a row without a finite loss and gradient; such steps change nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.accumulate:
            raise UserError(f"batch_size {self.batch_size} is not divisible by accumulate {self.accumulate}")
        rules = [read_rule(rule) for rule in (self.ema_decay, *self.ema_more)]
        if len(set(rules)) < len(rules):
            both = f"ema_more is {list(self.ema_more)}, ema_decay {self.ema_decay}"
            raise UserError(f"{both}: one is there twice")


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
    init: Text | None = None
    """Weights that a new run starts from, instead of random ones: those of a model folder, of a run (its
    averaged ones) or of a published file, of the same architecture; classes keep their rows by name. Where
    no model.preset is given, it is this. A run that is continued keeps its own."""
    train_only: tuple[Text, ...] = ()
    """Weights that are trained, others are frozen: their names, or the ends of their names after a point,
    such as [class_embedder.*, blocks.0.*]. None: all."""
    freeze: tuple[Text, ...] = ()
    """Weights that are not trained, in the same way."""
    adapter: AdapterConfig | None = None
    """A LoRA adapter, trained in place of the weights of init (extra pixelwright[finetune])."""
    text: TextConfig | None = None
    """The text encoder, for models of captions."""
    objectives: tuple[Annotated[Any, OBJECTIVES], ...] = ()
    """What is minimised beside flow matching: [{type: repa, teacher: ..., depth: 8, weight: 0.5}]."""
    subject: SubjectConfig | None = None
    """What the images of a fine-tuning show; see `pixelwright finetune`."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """The images drawn during training."""
    evaluation: EvaluationConfig | None = None
    """Metrics measured during training; None: none."""
    sample_every: NonNegativeInt = 1000
    """Steps between two sample grids and reports; 0 draws none but at the end."""
    loggers: tuple[Annotated[Any, LOGGERS], ...] = ("tensorboard", "progress")
    """Beside log.jsonl: tensorboard, progress, or {type: wandb, project: ..., mode: offline} and the like."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_objectives(self.objectives)
        for size in buckets_of(self.data):
            self.model.denoiser().check_size(*size)
            for objective in self.objectives:
                objective.check(self.model.denoiser(), size)
        self.flow.check(self.model.denoiser())
        self._check_text()
        for part in (self.adapter, self.subject):
            if part is not None:
                part.check(self)

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
            raise UserError(f"{name} draws from captions, evaluation is for models of classes: leave it out")
        elif self.text is None:
            such = "say which encoder reads them, such as --text.encoder minilm"
            raise UserError(f"{name} draws from captions: {such}")
