"""Flow matching, the objective of both papers."""

from dataclasses import dataclass

from torch import Tensor

from pixelwright.diffusion import flow
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.training.objectives.base import Forward, Logs, Objective, ObjectiveConfig, register_objective


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
