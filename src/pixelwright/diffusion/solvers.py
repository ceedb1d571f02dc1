"""Solvers of dx/dt = velocity(x, t) from t = 0 (noise) to t = 1 (data), one short function each.

They know nothing of classes, text or models. Timesteps rise; velocities are called as (x, t) with t a 0-d
tensor of the timesteps' dtype.
"""

import math
from collections.abc import Callable
from functools import partial
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


def timesteps(
    steps: int, time_shift: float = 1.0, time_start: float = 0.0, last_step: float | None = None
) -> Tensor:
    """Times from noise to data, float64 [steps+1]: even steps from `time_start` to 1, moved by `time_shift`.

    `last_step`: length of the last of the even steps, where it is not that of the others (of the way from
    `time_start` to 1).

    Raises:
        UserError: fewer than one step, a shift that is not a positive number, a start outside [0,1), a last
            step outside (0,1), or one where there is but one step.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UserError(f"steps is {steps!r}; sampling needs a whole number of at least 1")
    if not (math.isfinite(time_shift) and time_shift > 0):
        raise UserError(f"time_shift is {time_shift}; it must be a finite number above 0 (1 = none)")
    if not 0 <= time_start < 1:
        raise UserError(f"time_start is {time_start}; it must be at least 0 and below 1 (0 = pure noise)")
    even = torch.linspace(0, 1, steps + 1, dtype=torch.float64)  # to the last bit what public code has
    if last_step is not None:
        if not 0 < last_step < 1 or steps == 1:
            needs = "it must be above 0 and below 1, and there must be 2 steps"
            raise UserError(f"last_step is {last_step}, steps {steps}; {needs}")
        even[:-1] = torch.linspace(0, 1 - last_step, steps, dtype=torch.float64)
    return shift_time(time_start + (1 - time_start) * even, time_shift)


def _steps(times: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    return [(i, *pair) for i, pair in enumerate(zip(times[:-1].unbind(), times[1:].unbind(), strict=True))]


def _report(callback: StepCallback | None, i: int, times: Tensor, x: Tensor, v: Tensor) -> None:
    if callback is not None:
        callback(Step(i, len(times) - 1, float(times[i]), x, v))


def _in_step(velocity: Velocity, start: Tensor) -> Velocity:
    """The velocity for further evaluations of the step from `start`, which guidance may want to know."""
    held: Callable[[Tensor], Velocity] = getattr(velocity, "in_step", lambda _: velocity)
    return held(start)


def euler(velocity: Velocity, x: Tensor, times: Tensor, callback: StepCallback | None = None) -> Tensor:
    """First order, one evaluation a step: x += h·v."""
    for i, t, t_next in _steps(times):
        v = velocity(x, t)
        _report(callback, i, times, x, v)
        x = x + (t_next - t) * v
    return x


def heun(
    velocity: Velocity, x: Tensor, times: Tensor, callback: StepCallback | None = None, *, exact: bool = True
) -> Tensor:
    """Second order (trapezoid), Euler on the last step: x += h·(v + v')/2. Two evaluations a step; with
    `exact` off one, since v' serves as the next step's v."""
    v: Tensor | None = None
    for i, t, t_next in _steps(times):
        v = velocity(x, t) if v is None or exact else v
        _report(callback, i, times, x, v)
        h = t_next - t
        if i == len(times) - 2:
            return x + h * v
        v_next = _in_step(velocity, t)(x + h * v, t_next)
        x = x + h * (v + v_next) / 2
        v = v_next
    return x


def heun_inexact(
    velocity: Velocity, x: Tensor, times: Tensor, callback: StepCallback | None = None
) -> Tensor:
    """`heun` with one evaluation a step, as DeCo and PixelGen have it."""
    return heun(velocity, x, times, callback, exact=False)


def adams_bashforth(
    velocity: Velocity,
    x: Tensor,
    times: Tensor,
    callback: StepCallback | None = None,
    *,
    order: int,
    fixed: bool = False,
) -> Tensor:
    """Adams-Bashforth: the polynomial through the last `order` velocities (fewer at the start), integrated
    over the step. `fixed`: with the weights of even steps, whatever the timesteps."""
    past: list[tuple[Tensor, Tensor]] = []  # times and velocities, the newest first
    t = times[0]
    for i, start, t_next in _steps(times):
        v = velocity(x, t)
        _report(callback, i, times, x, v)
        h = t_next - start
        past = [(t, v), *past][:order]
        nodes = -torch.arange(len(past)) if fixed else (torch.stack([time for time, _ in past]) - t) / h
        weights = _weights(nodes)
        x = x + h * sum(weight * v for weight, (_, v) in zip(weights, past, strict=True))
        t = t_next if fixed else t + h
    return x


def _weights(nodes: Tensor) -> list[float]:
    """What values at `nodes` [n] weigh in the integral over [0,1] of the polynomial through them."""
    power = torch.arange(len(nodes), dtype=torch.float64)
    return torch.linalg.solve(nodes.double() ** power[:, None], 1 / (power + 1)).tolist()


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
    "heun-inexact": heun_inexact,
    "ab2": partial(adams_bashforth, order=2),
    "ab2-fixed": partial(adams_bashforth, order=2, fixed=True),  # the published "FlowDPMSolver"
    "ab3": partial(adams_bashforth, order=3),
    "ab4": partial(adams_bashforth, order=4),
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
