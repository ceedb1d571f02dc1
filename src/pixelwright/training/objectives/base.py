"""What an objective is, and the module that evaluates the denoiser once for all of them.

An objective is called as `(model, batch) -> (loss [b], logs)`. The forward pass of the micro-batch is done
already (`batch.velocity`, and `batch.tokens` after the blocks in its `taps`); `model` is there for further
evaluations. To add one, write its config and its class in a file of your own:

    @dataclass(frozen=True)
    class L1Config(ObjectiveConfig):
        weight: float = 0.1

    @register_objective("l1", L1Config)
    class L1(Objective):
        logged = ("l1",)

        def forward(self, model, batch):
            loss = (batch.velocity - (batch.x - batch.noise)).abs().mean((1, 2, 3))
            return loss, {"l1": loss}

and list it: `objectives: [{type: l1, weight: 0.2}]`, or `Trainer(..., objectives=[FlowMatching(), L1(...)])`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from pixelwright.config import Config, PositiveFloat
from pixelwright.diffusion import flow
from pixelwright.errors import UserError
from pixelwright.models.conditions import Condition
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.registry import Registry

Logs = dict[str, Tensor]  # values [b] by name, whose means are logged


class Forward(NamedTuple):
    """One evaluation of the denoiser on a micro-batch of b images, shared by the objectives."""

    x: Tensor  # images [b,3,H,W] in [-1,1]
    t: Tensor  # [b] in [0,1], 0 = noise
    noise: Tensor  # [b,3,H,W]
    condition: Condition  # labels [b] or captions, some of them null
    x_t: Tensor  # t·x + (1−t)·noise [b,3,H,W]
    velocity: Tensor  # the prediction at x_t [b,3,H,W]
    tokens: dict[int, Tensor]  # [b, L, D] after each block that an objective asks for, counted from 1
    step: int  # of the run, counted from 0
    targets: Mapping[str, Tensor] = {}  # [b, ...], what `Objective.targets` gave


@dataclass(frozen=True)
class ObjectiveConfig(Config):
    """The settings that every objective has."""

    weight: PositiveFloat = 1.0
    """Its factor in the sum that is minimised."""

    def check(self, model: DenoiserConfig, size: tuple[int, int]) -> None:
        """Raise UserError where the objective does not fit a model or images of (height, width) pixels."""


class Objective(nn.Module):
    """A loss of each sample. Its parameters are trained, sharded and checkpointed with the model's, and are
    no part of the exported model. They must take part in every step, if only with a factor 0."""

    taps: tuple[int, ...] = ()  # global blocks, counted from 1, whose tokens it needs
    logged: tuple[str, ...] = ()  # names of what it may log
    weight: float = 1.0

    def forward(self, model: PixelDenoiser, batch: Forward) -> tuple[Tensor, Logs]:
        """(loss [b], logs). Logs may be left out in some steps, by all processes alike."""
        raise NotImplementedError

    def update(self) -> None:
        """Called once a step, after its gradients: the place to change buffers. Until then the checkpoint of
        the step before may still be copied."""

    def targets(
        self, images: Tensor, flipped: Tensor, number: int, device: torch.device
    ) -> Mapping[str, Tensor]:
        """What is known of a batch before its step: tensors [b, ...] by name, on the CPU or `device`.

        Called in the thread that prepares batches, so that what it waits for (a disk, a CPU) costs no step;
        `batch.targets` holds the result. Images [b,3,H,W] uint8 and flipped [b] are on the CPU; `number` is
        that of the batch in the run.
        """
        return {}


OBJECTIVES: Registry[Objective] = Registry("objective")


register_objective = OBJECTIVES.register
"""`@register_objective(name, Config)`: the class is built as `(config, model)` where a run lists it."""


@dataclass(frozen=True)
class FlowMatchingConfig(ObjectiveConfig):
    """Flow matching: the mean of (v̂ − v)² over the pixels. Always there; list it to change its weight."""


@register_objective("flow-matching", FlowMatchingConfig)
class FlowMatching(Objective):
    """The flow-matching loss of each sample; its log is the `loss` of the run."""

    def __init__(self, config: FlowMatchingConfig | None = None, model: PixelDenoiser | None = None) -> None:
        super().__init__()
        self.weight = (config or FlowMatchingConfig()).weight

    def forward(self, model: PixelDenoiser, batch: Forward) -> tuple[Tensor, Logs]:
        target = model.velocity_target(batch.x, batch.noise, batch.x_t, batch.t)
        return flow.velocity_loss(batch.velocity, target), {}


class Found(NamedTuple):
    """What `Losses` gives for a micro-batch."""

    total: Tensor  # [b], what is minimised: the weighted sum
    loss: Tensor  # [b], that of the first objective, which is logged and watched for spikes
    logs: Logs


class Losses(nn.Module):
    """Denoiser and objectives as one module, which DDP and FSDP wrap."""

    def __init__(self, model: PixelDenoiser, objectives: Sequence[Objective]) -> None:
        super().__init__()
        if not objectives:
            raise UserError("there is no objective: give at least one, such as FlowMatching()")
        self.model, self.objectives = model, nn.ModuleList(objectives)
        self.taps = sorted({block for objective in objectives for block in objective.taps})
        if self.taps and not 1 <= self.taps[0] <= self.taps[-1] <= len(model.backbone.blocks):
            count = f"{len(model.backbone.blocks)} global blocks"
            raise UserError(f"an objective asks for block {self.taps[-1]}: the model has {count}")
        self.logged = [name for objective in objectives for name in objective.logged]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        noise: Tensor,
        condition: Condition,
        step: int,
        targets: Mapping[str, Tensor] | None = None,
    ) -> Found:
        """The losses of b images, each [b]."""
        x_t = flow.interpolate(x, noise, t)
        velocity, tokens = self.model(x_t, t, condition, tuple(self.taps))
        batch = Forward(x, t, noise, condition, x_t, velocity, tokens, step, targets or {})
        objectives = cast("list[Objective]", self.objectives)
        found: list[tuple[Tensor, Logs]] = [objective(self.model, batch) for objective in objectives]
        weighted = [objective.weight * loss for objective, (loss, _) in zip(objectives, found, strict=True)]
        logs = {name: value for _, more in found for name, value in more.items()}
        return Found(sum(weighted[1:], weighted[0]), found[0][0], logs)

    def update(self) -> None:
        """See `Objective.update`."""
        for objective in cast("list[Objective]", self.objectives):
            objective.update()

    def named(self) -> list[tuple[str, nn.Parameter]]:
        """What is trained, by name: the model's under its own names, then `objectives.…`."""
        return [(n.removeprefix("model."), p) for n, p in self.named_parameters() if p.requires_grad]


def check_objectives(configs: Sequence[Any]) -> None:
    """Raise UserError where an objective is listed twice."""
    names = [OBJECTIVES.name_of(config) for config in configs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"objectives: {', '.join(sorted(twice))} is listed twice")


def build_objectives(configs: Sequence[Any], model: PixelDenoiser, seed: int) -> list[Objective]:
    """The objectives of a run, flow matching first, with weight 1 where it is not listed. Their parameters
    are drawn from `seed`."""
    first = [config for config in configs if isinstance(config, FlowMatchingConfig)]
    built = []
    for config in (*(first or [FlowMatchingConfig()]), *(each for each in configs if each not in first)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built.append(OBJECTIVES.build(config, model))
    return built
