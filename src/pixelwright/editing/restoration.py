"""`restore`: images that agree with a measurement, drawn by a model.

Each method is a function of the model's velocity, the operator and the measurement that gives another
velocity; all are integrated by `solvers.ancestral`. With the denoised x0 = x + (1−t)·v, a change of x0 by d
changes v by d/(1−t). A guidance g = ∇ log p(y|x_t) changes v by s²(1−t)/t·g, since v = x/t + s²(1−t)/t·score
for noise of standard deviation s.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pixelwright.acceleration import AcceleratedDenoiser
from pixelwright.diffusion.sample import Denoiser, Labels, as_indices, in_batches, model_velocity, noise_of
from pixelwright.diffusion.solvers import StepCallback, Velocity, ancestral, timesteps
from pixelwright.editing.inputs import condition_of
from pixelwright.editing.operators import Operator
from pixelwright.errors import UserError, nearest
from pixelwright.images import to_uint8
from pixelwright.models.conditions import Condition
from pixelwright.models.config import SamplerSettings
from pixelwright.rng import normal


class Problem(NamedTuple):
    """An inverse problem: y = A x + noise."""

    operator: Operator
    y: Tensor
    """The measurement of these images, [B, …]."""
    noise: float = 0.0
    """σ, standard deviation of its noise."""
    scale: float = 1.0
    """Strength of a method's correction."""
    noise_scale: float = 1.0
    """s, standard deviation of the noise that images are drawn from."""

    def spread(self, t: Tensor) -> float:
        """r_t² = s²(1−t)²/(t² + s²(1−t)²), the variance of x0 given x_t where the data are N(·, 1) (ΠGDM,
        section 3, on this path)."""
        variance = float(self.noise_scale * (1 - t)) ** 2
        return variance / (float(t) ** 2 + variance)

    def correction(self, x0: Tensor, t: Tensor) -> Tensor:
        """scale·Aᵀ(A·Aᵀ + σ²/r_t²)⁻¹(y − A x0)."""
        return self.scale * self.operator.correction(x0, self.y, self.noise**2 / self.spread(t))


def ddnm(velocity: Velocity, problem: Problem) -> Velocity:
    """DDNM (arXiv 2212.00490, eq. 13): x0 ← x0 + A⁺(y − A x0). With noise in the measurement the inverse is
    Aᵀ(A·Aᵀ + σ²/r_t²)⁻¹: what is added is then the mean where x0 has the variance r_t²."""

    def corrected(x: Tensor, t: Tensor) -> Tensor:
        v = velocity(x, t)
        return v + problem.correction(x + (1 - t) * v, t) / (1 - t)

    return corrected


def pigdm(velocity: Velocity, problem: Problem) -> Velocity:
    """ΠGDM (Song et al., ICLR 2023): x0 ← x0 + c·g with g = (∂x0/∂x)ᵀ Aᵀ(A·Aᵀ + σ²/r_t²)⁻¹(y − A x0).

    The paper's c, here (t² + s²(1−t)²)/t, is right for data of variance 1; where data vary more, as the low
    frequencies of images do, it leads far beyond the measurement. So c is, for each image, that which leads
    nearest to where `ddnm` leads: the minimum of ‖A⁺A(c·g) − Aᵀ(A·Aᵀ + σ²/r_t²)⁻¹(y − A x0)‖. Without noise
    that is exact for data of any one variance, with noise for variance 1.
    """

    def corrected(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = velocity(x, t)
            x0 = x + (1 - t) * v
            residual = problem.correction(x0.detach(), t)
            if t == 0:  # x0 does not depend on x yet: the limit of c·g where ∂x0/∂x is a number
                return v.detach() + residual
            (g,) = torch.autograd.grad(x0, x, residual)
        operator = problem.operator
        measured = operator.pinv(operator.A(g)) if operator.linear else g
        c = _dot(residual, measured) / _dot(measured, measured).clamp(min=1e-30)
        return v.detach() + c * g / (1 - t)

    return corrected


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Of each two images, [B,1,1,1]."""
    return (a * b).sum(dim=(1, 2, 3), keepdim=True)


def dps(velocity: Velocity, problem: Problem) -> Velocity:
    """DPS (arXiv 2209.14687, Algorithm 1): down the gradient of ‖y − A x0‖ at x, by steps whose lengths add
    up to `scale` (the paper's ζ times its steps) whatever the timesteps. σ does not matter."""

    def corrected(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = velocity(x, t)
            residual = problem.y - problem.operator.A(x + (1 - t) * v)
            (g,) = torch.autograd.grad(residual.flatten(1).norm(dim=1).sum(), x)
        return v.detach() - problem.scale * g

    return corrected


def pnp(velocity: Velocity, problem: Problem) -> Velocity:
    """PnP-Flow (arXiv 2410.02423): x0 ← x0 + γ_t·Aᵀ(y − A x0) with γ_t = scale·(1−t)/‖A‖², then x0 is noised
    anew (η = 1). Here the denoiser comes first in a step, the gradient second. σ does not matter."""

    def corrected(x: Tensor, t: Tensor) -> Tensor:
        v, operator = velocity(x, t), problem.operator
        residual = problem.y - operator.A(x + (1 - t) * v)
        return v + problem.scale / operator.gram * operator.adjoint(residual)

    return corrected


class Method(NamedTuple):
    """A method and its defaults."""

    correct: Callable[[Velocity, Problem], Velocity]
    scale: float
    eta: float
    gradient: bool  # through the model
    linear: bool  # operators alone


RESTORATION = {
    "ddnm": Method(ddnm, scale=1.0, eta=0.85, gradient=False, linear=False),
    "pigdm": Method(pigdm, scale=1.0, eta=1.0, gradient=True, linear=False),
    "pnp": Method(pnp, scale=2.0, eta=1.0, gradient=False, linear=True),
    "dps": Method(dps, scale=50.0, eta=0.0, gradient=True, linear=True),
}


def restore(
    model: Denoiser,
    measurement: Tensor,
    operator: Operator,
    method: str = "ddnm",
    labels: Labels | None = None,
    steps: int = 50,
    output: str = "uint8",
    *,
    noise: float = 0.0,
    scale: float | None = None,
    eta: float | None = None,
    guidance_scale: float = 1.0,
    time_shift: float = 1.0,
    seed: int = 0,
    start_index: int | Sequence[int] = 0,
    callback: StepCallback | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
) -> Tensor:
    """Draw images with A x = measurement.

    Args:
        model: a `PixelDenoiser`; for ddnm and pnp an accelerated one, too.
        measurement: float [B, …], as `operator.A` gives it from images in [-1,1].
        operator: one of `editing.operators`, or your own; linear for pnp and dps.
        method: ddnm, pigdm, pnp or dps: functions of this module; pigdm and dps go back through the model.
        labels: classes or prompts, one each or one for all; None: no condition.
        output: uint8, or float, which keeps A x = y where uint8 rounds.
        noise: standard deviation of the measurement's noise, in its units. At 0 the result is brought to
            A x = y at the end, whatever the method.
        scale, eta: strength of the correction and share of new noise in each step; by default those of
            `RESTORATION`.
        guidance_scale, time_shift, seed, start_index, callback, batch_size, precision: see `pw.sample`.

    Returns: uint8 [B,H,W,3], or float32 [B,3,H,W].

    Raises: UserError: settings or a measurement that do not fit; NotFinite: as `sample`.
    """
    chosen = _method(method, model, operator, output)
    eta, scale = chosen.eta if eta is None else eta, chosen.scale if scale is None else scale
    _check(noise, eta, scale)
    times = timesteps(steps, time_shift)
    size = operator.size(measurement)
    model.config.check_size(*size)
    condition = condition_of(labels, len(measurement), model)
    indices = as_indices(start_index, len(measurement))
    sampler = SamplerSettings(guidance_scale=guidance_scale)

    def draw(network: Denoiser, part: Condition, rows: slice) -> Tensor:
        y = measurement[rows].to(model.device, torch.float32)
        problem = Problem(operator, y, noise, scale, model.config.noise_scale)
        velocity = chosen.correct(model_velocity(network, part, sampler), problem)
        start, s = noise_of(indices[rows], size, seed, model.device), problem.noise_scale
        new = partial(normal, torch.tensor(indices[rows], device=model.device), (3, *size), seed, "restore")
        x = ancestral(velocity, s * start, times, callback, eta=eta, fresh=lambda step: s * new(step))
        return x + operator.correction(x, y) if noise == 0 else x

    finish = to_uint8 if output == "uint8" else torch.Tensor.float
    return in_batches(model, condition, indices, draw, batch_size, precision, finish=finish)


def _method(name: str, model: Denoiser, operator: Operator, output: str) -> Method:
    if name not in RESTORATION:
        raise UserError(f'unknown method "{name}"{nearest(name, RESTORATION)}')
    if output not in ("uint8", "float"):
        raise UserError(f'output is "{output}"; give uint8 or float')
    method = RESTORATION[name]
    if method.linear and not operator.linear:
        kind = type(operator).__name__
        raise UserError(f"{name} needs a linear operator, which {kind} is not: use method ddnm or pigdm")
    if method.gradient and isinstance(model, AcceleratedDenoiser):
        raise UserError(
            f"{name} takes a gradient, which an accelerated model has not: give the plain model, or use ddnm"
        )
    return method


def _check(noise: float, eta: float, scale: float) -> None:
    if not 0 <= noise < float("inf"):
        raise UserError(f"noise is {noise}; give the standard deviation of the measurement's noise, 0 = none")
    if not 0 <= eta <= 1:
        raise UserError(f"eta is {eta}; it must be 0 (no new noise) to 1 (all noise is new)")
    if not 0 < scale < float("inf"):
        raise UserError(f"scale is {scale}; it must be a number above 0")
