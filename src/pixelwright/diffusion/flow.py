"""Flow matching (rectified flow), as both papers train it: t in [0,1], 0 = noise, 1 = data."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from pixelwright import rng
from pixelwright.config import Config, PositiveFloat, UnitInterval, real
from pixelwright.errors import UserError
from pixelwright.models.conditions import C, Condition, drop
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.prediction import column


@dataclass(frozen=True)
class FlowConfig(Config, where="flow"):
    """How training draws times and drops labels."""

    time_mean: Annotated[float, real()] = 0.0
    """Mean of the normal whose sigmoid is t."""
    time_std: PositiveFloat = 1.0
    """Standard deviation of that normal."""
    time_shift: PositiveFloat = 1.0
    """Time shift, t <- t / (t + (1-t)·shift); 1 = none, above 1 = more noise (512² uses 3)."""
    null_probability: UnitInterval = 0.1
    """Share of labels replaced by the null class, for guidance."""
    ungrounded_probability: UnitInterval | None = None
    """PixelDiT2: share of images without grounding, whatever their label; None: a tenth."""
    null_ungrounded_probability: UnitInterval = 0.0
    """PixelDiT2: share of images with neither label nor grounding, beside the two above."""

    def check(self, model: DenoiserConfig) -> None:
        """Raise UserError where something is dropped that a model does not have."""
        if not model.grounded and (self.ungrounded_probability or self.null_ungrounded_probability):
            raise UserError(
                f"flow.ungrounded_probability or null_ungrounded_probability is given, but {model.name} has "
                "no grounding: leave them out"
            )


def shift_time(t: Tensor, shift: float) -> Tensor:
    """t / (t + (1−t)·shift): shift > 1 moves times towards the noise. 0 and 1 stay where they are."""
    return t / (t + (1 - t) * shift)


def interpolate(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The path x_t = t·x + (1−t)·ε. x, noise [B,3,H,W], t [B]."""
    return column(t) * x + (1 - column(t)) * noise


def draw(
    flow: FlowConfig, images: Tensor, labels: C, model: DenoiserConfig, seed: int, step: int, start: int = 0
) -> tuple[Tensor, Tensor, C]:
    """The random part of a training step for a model: times [B], noise of its `noise_scale`, and labels (or
    captions) with some made null.

    Sample j has the numbers of (seed, step, start + j) alone, which are the same however the global batch is
    divided among processes and micro-batches. They are drawn on the device of the images.
    """
    places = torch.arange(start, start + len(images), device=images.device)
    normal, uniform, noise = rng.draw(places, images.shape[1:], seed, "flow", step)
    t = shift_time(torch.sigmoid(normal * flow.time_std + flow.time_mean), flow.time_shift)
    null = uniform < flow.null_probability
    if isinstance(labels, Tensor) and model.grounded:  # further numbers of the same samples
        u, both = (rng.draw(places, (1,), seed, word, step).uniform for word in ("grounding", "joint"))
        joint = both < flow.null_ungrounded_probability
        labels = drop(labels, null | joint, model.num_classes)
        share = 0.1 if flow.ungrounded_probability is None else flow.ungrounded_probability
        labels = labels + ((u < share) | joint) * (model.num_classes + 1)  # see `models.pixeldit2`
        return t, model.noise_scale * noise, labels
    return t, model.noise_scale * noise, drop(labels, null, model.num_classes)


def velocity_loss(velocity: Tensor, target: Tensor) -> Tensor:
    """Flow-matching loss of each sample, mean over its pixels of (v̂ − v)²; float32 [B]. See
    `PixelDenoiser.velocity_target` for v."""
    return (velocity.float() - target.float()).square().mean(dim=(1, 2, 3))


def loss(model: Any, x: Tensor, t: Tensor, noise: Tensor, labels: Condition) -> Tensor:
    """Flow-matching loss of each sample [B]: the model is evaluated at x_t. See `velocity_loss`. What is no
    `PixelDenoiser` predicts the velocity x − ε."""
    x_t = interpolate(x, noise, t)
    known = hasattr(model, "velocity_target")
    target = model.velocity_target(x, noise, x_t, t) if known else x - noise
    return velocity_loss(model(x_t, t, labels), target)
