"""Guidance: one velocity from a conditional and a null (unconditional) one.

A guidance is any function (conditional, null) -> velocity of velocity functions of (x, t). The branches of a
model are evaluated together by `both`, in one call of twice the batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from pixelwright.diffusion.solvers import Velocity
from pixelwright.errors import UserError, nearest
from pixelwright.models.conditions import Condition, join
from pixelwright.models.config import GuidanceEnds, SamplerSettings

Guidance = Callable[[Velocity, Velocity], Velocity]
"""(conditional, null) -> guided velocity."""


@dataclass(frozen=True)
class Branch:
    """The velocity of a network for one condition: a function of (x, t)."""

    network: Callable[..., Any]
    """network(x [B,3,H,W], t [B], condition) -> velocity [B,3,H,W]."""
    condition: Condition
    """Labels [B] or captions of B images."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        times = torch.full((len(x),), float(t), dtype=dtype, device=x.device)
        return self.network(x, times, self.condition)


def both(conditional: Velocity, null: Velocity, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Both velocities at (x, t); those of one network in one call."""
    if not (isinstance(conditional, Branch) and isinstance(null, Branch)) or (
        conditional.network is not null.network
    ):
        return conditional(x, t), null(x, t)
    joined = Branch(conditional.network, join(conditional.condition, null.condition))
    v_cond, v_null = joined(torch.cat((x, x)), t).chunk(2)
    return v_cond, v_null


@dataclass(frozen=True)
class IntervalCFG:
    """Classifier-free guidance in an interval, as published: v_null + scale·(v_cond − v_null) inside, else
    v_cond alone. Without an interval everywhere, t = 0 included.

    `ends` of the interval:
    - `open`: low < t < high (PixelDiT, DiP, PixNerd);
    - `zero`: the same, and t = 0 too where low is 0 (JiT, PixelDiT2);
    - `high`: low < t <= high, where all evaluations of a step count as at its start (DeCo, PixelGen).

    Outside the interval, and at scale 1, the null branch is not evaluated.

    Raises:
        UserError: a scale that is not finite, an interval that is not 0 <= low <= high <= 1, or unknown
            ends.
    """

    scale: float
    interval: tuple[float, float] | None = None
    ends: GuidanceEnds = "open"

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise UserError(f"guidance_scale is {self.scale}; it must be a finite number (1 = no guidance)")
        if self.interval is not None and (
            len(self.interval) != 2 or not 0 <= self.interval[0] <= self.interval[1] <= 1
        ):
            raise UserError(
                f"guidance_interval is {self.interval}; give two times with 0 <= low <= high <= 1"
            )
        if self.ends not in (known := get_args(GuidanceEnds)):
            raise UserError(f'unknown guidance_ends "{self.ends}"{nearest(self.ends, known)}')

    def __call__(self, conditional: Velocity, null: Velocity) -> Velocity:
        return Guided(self, conditional, null)

    def holds(self, t: float) -> bool:
        """Whether there is guidance at this time."""
        if self.scale == 1 or self.interval is None:
            return self.scale != 1
        low, high = self.interval
        after = low < t or (self.ends == "zero" and low == t == 0)
        return after and (t < high or (self.ends == "high" and t == high))


def interval_words(sampler: SamplerSettings) -> str:
    """Where in t there is guidance, in words."""
    if sampler.guidance_interval is None:
        return "everywhere"
    low, high = sampler.guidance_interval
    first = "<=" if sampler.guidance_ends == "zero" and low == 0 else "<"
    last = "<=" if sampler.guidance_ends == "high" else "<"
    return f"where {low:g} {first} t {last} {high:g}"


@dataclass(frozen=True)
class Guided:
    """The velocity that `IntervalCFG` makes of two."""

    guidance: IntervalCFG
    conditional: Velocity
    null: Velocity
    start: Tensor | None = None
    """The time that the interval is held against, where it is not that of the evaluation."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if not self.guidance.holds(float(t if self.start is None else self.start)):
            return self.conditional(x, t)
        v_cond, v_null = both(self.conditional, self.null, x, t)
        return v_null + self.guidance.scale * (v_cond - v_null)

    def in_step(self, start: Tensor) -> "Guided":
        """The same for further evaluations of the step from `start`; solvers ask for it."""
        return replace(self, start=start) if self.guidance.ends == "high" else self


@dataclass(frozen=True)
class AutoGuidance:
    """Guidance by a weaker model instead of the null branch (arXiv 2406.02507): a smaller or less trained one
    with the same condition, v_weak + scale·(v_cond − v_weak)."""

    scale: float
    weak: Callable[..., Any]
    """Called as a denoiser: (x, t, condition) -> velocity."""

    def __call__(self, conditional: Velocity, null: Velocity) -> Velocity:
        assert isinstance(conditional, Branch), "autoguidance needs the condition of a model's branch"
        weak = Branch(self.weak, conditional.condition)
        return IntervalCFG(self.scale)(conditional, weak)


@dataclass(frozen=True)
class CFGPlusPlus:
    """CFG++ (arXiv 2406.08070) for the Euler solver: denoise with guidance, add the null branch's noise.

    x_next = t'·(x0_null + scale·(x0_cond − x0_null)) + (1−t')·ε_null, which is an Euler step with velocity
    v_null + scale·(1−t)·t'/(t'−t)·(v_cond − v_null). `scale` in [0,1]; `times`: the solver's timesteps.
    """

    scale: float
    times: Tensor

    def __call__(self, conditional: Velocity, null: Velocity) -> Velocity:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            v_cond, v_null = both(conditional, null, x, t)
            t_next = self.times[self.times > float(t)][0]
            weight = self.scale * (1 - t) * t_next / (t_next - t)
            return v_null + float(weight) * (v_cond - v_null)

        return velocity
