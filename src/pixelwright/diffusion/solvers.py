"""Solvers of dx/dt = velocity(x, t) from t = 0 (noise) to t = 1 (data), one short function each.

They know nothing of classes, text or models. Timesteps rise; velocities are called as (x, t) with t a 0-d
tensor of the timesteps' dtype.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pixelwright.diffusion.flow import shift_time
from pixelwright.errors import UserError, nearest

Velocity = Callable[[Tensor, Tensor], Tensor]
"""velocity(x, t): x [B,…], t a 0-d tensor -> dx/dt, like x."""


class Step(NamedTuple):
    """What a callback sees at every step, before x moves."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    """0 … steps-1."""
    steps: int
    t: float
    """Time in [0,1] of `x`."""
    x: Tensor
    """The state, [B,3,H,W]."""
    velocity: Tensor
    """The (guided) velocity at x."""

    @property
    def denoised(self) -> Tensor:
        """x0, the clean image as the network sees it now: x + (1−t)·v."""
        return self.x + (1 - self.t) * self.velocity


StepCallback = Callable[[Step], None]


def timesteps(steps: int, time_shift: float = 1.0, time_start: float = 0.0) -> Tensor:
    """Times from noise to data, float64 [steps+1]: even steps from `time_start` to 1, moved by `time_shift`.

    Raises:
        UserError: fewer than one step, a shift that is not a positive number, or a start outside [0,1).
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UserError(f"steps is {steps!r}; sampling needs a whole number of at least 1")
    if not (math.isfinite(time_shift) and time_shift > 0):
        raise UserError(f"time_shift is {time_shift}; it must be a finite number above 0 (1 = none)")
    if not 0 <= time_start < 1:
        raise UserError(f"time_start is {time_start}; it must be at least 0 and below 1 (0 = pure noise)")
    even = torch.arange(steps + 1, dtype=torch.float64) / steps
    return shift_time(time_start + (1 - time_start) * even, time_shift)


def _steps(times: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    return [(i, *pair) for i, pair in enumerate(zip(times[:-1].unbind(), times[1:].unbind(), strict=True))]


def _report(callback: StepCallback | None, i: int, times: Tensor, x: Tensor, v: Tensor) -> None:
    if callback is not None:
        callback(Step(i, len(times) - 1, float(times[i]), x, v))


def euler(velocity: Velocity, x: Tensor, times: Tensor, callback: StepCallback | None = None) -> Tensor:
    """First order, one evaluation a step: x += h·v."""
    for i, t, t_next in _steps(times):
        v = velocity(x, t)
        _report(callback, i, times, x, v)
        x = x + (t_next - t) * v
    return x


def heun(velocity: Velocity, x: Tensor, times: Tensor, callback: StepCallback | None = None) -> Tensor:
    """Second order, two evaluations a step (trapezoid), Euler on the last: x += h·(v + v')/2."""
    for i, t, t_next in _steps(times):
        v = velocity(x, t)
        _report(callback, i, times, x, v)
        h = t_next - t
        if i < len(times) - 2:
            v = (v + velocity(x + h * v, t_next)) / 2
        x = x + h * v
    return x


def ab2(
    velocity: Velocity, x: Tensor, times: Tensor, callback: StepCallback | None = None, *, fixed: bool = False
) -> Tensor:
    """Adams-Bashforth 2, weights 1 + h/2h' and −h/2h' (`fixed`: 3/2 and −1/2), first step Euler."""
    previous: Tensor | None = None
    h_previous = times[0]
    for i, t, t_next in _steps(times):
        v = velocity(x, t)
        _report(callback, i, times, x, v)
        h = t_next - t
        slope = v
        if previous is not None:
            weight = 0.5 if fixed else h / (2 * h_previous)
            slope = (1 + weight) * v - weight * previous
        x = x + h * slope
        previous, h_previous = v, h
    return x


def ab2_fixed(velocity: Velocity, x: Tensor, times: Tensor, callback: StepCallback | None = None) -> Tensor:
    """The published "FlowDPMSolver": `ab2` with the weights of even steps whatever the timesteps."""
    return ab2(velocity, x, times, callback, fixed=True)


def dpmpp_2m(velocity: Velocity, x: Tensor, times: Tensor, callback: StepCallback | None = None) -> Tensor:
    """DPM-Solver++ 2M (data prediction, multistep) with α = t, σ = 1−t; first and last step first order."""
    previous: Tensor | None = None
    h_previous = math.inf
    for i, t, t_next in _steps(times):
        v = velocity(x, t)
        _report(callback, i, times, x, v)
        data = denoised = x + (1 - t) * v
        h = _log_snr(t_next) - _log_snr(t)
        if previous is not None and math.isfinite(h):
            weight = h / (2 * h_previous)  # 0 after a first step from t=0, where h_previous is infinite
            data = (1 + weight) * denoised - weight * previous
        ratio = (1 - t_next) / (1 - t)
        x = ratio * x + (t_next - ratio * t) * data
        previous, h_previous = denoised, h
    return x


def _log_snr(time: Tensor) -> float:
    """λ = log(α/σ); −∞ at pure noise, +∞ at data."""
    t = float(time)
    return -math.inf if t <= 0 else math.inf if t >= 1 else math.log(t / (1 - t))


def ancestral(
    velocity: Velocity,
    x: Tensor,
    times: Tensor,
    callback: StepCallback | None = None,
    *,
    eta: float,
    fresh: Callable[[int], Tensor],
) -> Tensor:
    """Euler with a part `eta` of the noise drawn anew in each step, as DDNM draws (arXiv 2212.00490):
    x = t'·x0 + (1−t')·(√(1−η²)·ε + η·ε'), where x0 = x + (1−t)·v and ε = x − t·v.

    Above 0, results vary less than the data: the mean of x0 is noised in place of one x0.

    Args:
        eta: 0 (Euler) to 1 (all noise is new).
        fresh: gives the new noise ε' of step i, like x.
    """
    for i, t, t_next in _steps(times):
        v = velocity(x, t)
        _report(callback, i, times, x, v)
        denoised, noise = x + (1 - t) * v, x - t * v
        if eta > 0 and t_next < 1:
            noise = math.sqrt(1 - eta**2) * noise + eta * fresh(i)
        x = t_next * denoised + (1 - t_next) * noise
    return x


SOLVERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler,
    "heun": heun,
    "ab2": ab2,
    "ab2-fixed": ab2_fixed,
    "dpmpp-2m": dpmpp_2m,
}


def check_solver(solver: str) -> None:
    """Raise UserError for an unknown solver, naming the nearest."""
    if solver not in SOLVERS:
        raise UserError(f'unknown solver "{solver}"{nearest(solver, SOLVERS)}')


def solve(
    velocity: Velocity,
    noise: Tensor,
    times: Tensor,
    solver: str = "ab2",
    callback: StepCallback | None = None,
) -> Tensor:
    """Integrate dx/dt = velocity(x, t) along `times` from `noise`.

    Args:
        velocity: function of x and t (0-d, dtype of the times).
        noise: x at times[0], any shape and float dtype; the result has the same.
        times: rising times [steps+1], as from `timesteps`.
        solver: a key of `SOLVERS`.
        callback: called with a `Step` at every step.

    Raises:
        UserError: unknown solver, or times that do not rise.
    """
    check_solver(solver)
    times = torch.as_tensor(times).detach().cpu()
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() > 0).all()):
        raise UserError(
            f"timesteps have the shape {list(times.shape)} or do not rise; give rising times [steps+1]"
        )
    return SOLVERS[solver](velocity, noise, times, callback)
