"""Flow matching (rectified flow), as both papers train it: t in [0,1], 0 = noise, 1 = data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from pixelwright.config import Config, PositiveFloat, UnitInterval, real
from pixelwright.models.conditions import C, Condition, drop
from pixelwright.models.prediction import column, velocity_target
from pixelwright.rng import generator


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


def shift_time(t: Tensor, shift: float) -> Tensor:
    """t / (t + (1−t)·shift): shift > 1 moves times towards the noise. 0 and 1 stay where they are."""
    return t / (t + (1 - t) * shift)


def interpolate(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The path x_t = t·x + (1−t)·ε. x, noise [B,3,H,W], t [B]."""
    return column(t) * x + (1 - column(t)) * noise


def draw(
    flow: FlowConfig, images: Tensor, labels: C, num_classes: int, seed: int, step: int, start: int = 0
) -> tuple[Tensor, Tensor, C]:
    """The random part of a training step: times [B], noise, and labels (or captions) with some made null.

    Sample j draws from the stream (seed, step, start + j) alone, so the numbers are the same however the
    global batch is divided among processes and micro-batches.
    """
    times, keeps, noises = [], [], []
    for j in range(images.shape[0]):
        g = generator(seed, "flow", step, start + j)
        times.append(torch.randn((), generator=g))
        keeps.append(torch.rand((), generator=g) >= flow.null_probability)
        noises.append(torch.randn(images.shape[1:], generator=g))
    t = shift_time(torch.sigmoid(torch.stack(times) * flow.time_std + flow.time_mean), flow.time_shift)
    labels = drop(labels, ~torch.stack(keeps).to(labels.device), num_classes)
    return t.to(images.device), torch.stack(noises).to(images.device), labels


def velocity_loss(
    velocity: Tensor, x: Tensor, noise: Tensor, x_t: Tensor, t: Tensor, prediction: str = "velocity"
) -> Tensor:
    """Flow-matching loss of each sample, mean over its pixels of (v̂ − v)²; float32 [B].

    v = x − ε; for x- and noise-prediction the velocity that the perfect output means, see `velocity_target`.
    """
    target = velocity_target(x, noise, x_t, t, prediction)
    return (velocity.float() - target.float()).square().mean(dim=(1, 2, 3))


def loss(model: Callable[..., Any], x: Tensor, t: Tensor, noise: Tensor, labels: Condition) -> Tensor:
    """Flow-matching loss of each sample [B]: the model is evaluated at x_t. See `velocity_loss`."""
    x_t = interpolate(x, noise, t)
    prediction = getattr(getattr(model, "config", None), "prediction", "velocity")
    return velocity_loss(model(x_t, t, labels), x, noise, x_t, t, prediction)
