"""From noise to images: time grid, guidance, one plain function per solver, and `sample` that joins them.

Solvers know nothing of classes or models; they integrate dx/dt = velocity(x, t) from t=0 (noise) to t=1
(data).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from pixelwright.acceleration.fast import between, prepared
from pixelwright.acceleration.fused import compiled
from pixelwright.diffusion.flow import shift_time
from pixelwright.errors import UserError, nearest
from pixelwright.images import to_uint8
from pixelwright.models.conditions import Condition, TextCondition, join
from pixelwright.models.config import DenoiserConfig, LinearConfig
from pixelwright.models.denoiser import PixelDenoiser, device_of
from pixelwright.rng import normal

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
    def preview(self) -> Tensor:
        """The clean image as foreseen now: x̂ = x + (1−t)·v."""
        return self.x + (1 - self.t) * self.velocity


Callback = Callable[[Step], None]


def time_grid(steps: int, time_shift: float = 1.0) -> Tensor:
    """Times from noise to data, float64 [steps+1], 0 … 1: i/steps moved by `time_shift`.

    Raises:
        UserError: fewer than one step, or a shift that is not a positive number.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UserError(f"steps is {steps!r}; sampling needs a whole number of at least 1")
    if not (math.isfinite(time_shift) and time_shift > 0):
        raise UserError(f"time_shift is {time_shift}; it must be a finite number above 0 (1 = none)")
    return shift_time(torch.arange(steps + 1, dtype=torch.float64) / steps, time_shift)


# --- Guidance ----------------------------------------------------------------------------------------------


def _check_guidance(scale: float, interval: tuple[float, float]) -> tuple[float, float]:
    if not math.isfinite(scale):
        raise UserError(f"guidance_scale is {scale}; it must be a finite number (1 = no guidance)")
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        raise UserError(f"guidance_interval is {interval}; give two times with 0 <= low <= high <= 1")
    return interval[0], interval[1]


def guide_pair(
    conditional: Velocity,
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    guidance_scale: float,
    guidance_interval: tuple[float, float],
) -> Velocity:
    """Classifier-free guidance from a function that gives (conditional, null) velocities in one call.

    v = v_null + scale·(v_cond − v_null) where low < t < high (strictly), else v_cond alone; outside the
    interval, and at scale 1, the null branch is not evaluated.
    """
    low, high = _check_guidance(guidance_scale, guidance_interval)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        if guidance_scale == 1 or not low < float(t) < high:
            return conditional(x, t)
        v_cond, v_null = both(x, t)
        return v_null + guidance_scale * (v_cond - v_null)

    return velocity


def guide(
    conditional: Velocity,
    null: Velocity,
    guidance_scale: float,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> Velocity:
    """Classifier-free guidance of two velocity functions of (x, t); see `guide_pair`.

    Raises:
        UserError: a scale that is not finite, or an interval that is not 0 <= low <= high <= 1.
    """
    return guide_pair(
        conditional, lambda x, t: (conditional(x, t), null(x, t)), guidance_scale, guidance_interval
    )


# --- Solvers -----------------------------------------------------------------------------------------------


def _steps(grid: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(grid[:-1].unbind(), grid[1:].unbind(), strict=True))


def _report(callback: Callback | None, i: int, grid: Tensor, x: Tensor, v: Tensor) -> None:
    if callback is not None:
        callback(Step(i, len(grid) - 1, float(grid[i]), x, v))


def euler(velocity: Velocity, x: Tensor, grid: Tensor, callback: Callback | None = None) -> Tensor:
    """First order, one evaluation a step: x += h·v."""
    for i, (t, t_next) in enumerate(_steps(grid)):
        v = velocity(x, t)
        _report(callback, i, grid, x, v)
        x = x + (t_next - t) * v
    return x


def heun(velocity: Velocity, x: Tensor, grid: Tensor, callback: Callback | None = None) -> Tensor:
    """Second order, two evaluations a step (trapezoid), Euler on the last: x += h·(v + v')/2."""
    for i, (t, t_next) in enumerate(_steps(grid)):
        v = velocity(x, t)
        _report(callback, i, grid, x, v)
        h = t_next - t
        if i < len(grid) - 2:
            v = (v + velocity(x + h * v, t_next)) / 2
        x = x + h * v
    return x


def _adams_bashforth(
    velocity: Velocity, x: Tensor, grid: Tensor, callback: Callback | None, fixed: bool
) -> Tensor:
    previous: Tensor | None = None
    h_previous = grid[0]
    for i, (t, t_next) in enumerate(_steps(grid)):
        v = velocity(x, t)
        _report(callback, i, grid, x, v)
        h = t_next - t
        if previous is None:
            slope = v
        else:
            weight = 0.5 if fixed else h / (2 * h_previous)
            slope = (1 + weight) * v - weight * previous
        x = x + h * slope
        previous, h_previous = v, h
    return x


def ab2(velocity: Velocity, x: Tensor, grid: Tensor, callback: Callback | None = None) -> Tensor:
    """Adams-Bashforth 2 with variable-step weights 1 + h/2h' and −h/2h', first step Euler."""
    return _adams_bashforth(velocity, x, grid, callback, fixed=False)


def ab2_fixed(velocity: Velocity, x: Tensor, grid: Tensor, callback: Callback | None = None) -> Tensor:
    """The published "FlowDPMSolver": weights 3/2 and −1/2 always; first order on a shifted grid."""
    return _adams_bashforth(velocity, x, grid, callback, fixed=True)


def dpmpp_2m(velocity: Velocity, x: Tensor, grid: Tensor, callback: Callback | None = None) -> Tensor:
    """DPM-Solver++ 2M (data prediction, multistep) with α = t, σ = 1−t; first and last step first order."""
    previous: Tensor | None = None
    h_previous = math.inf
    for i, (t, t_next) in enumerate(_steps(grid)):
        v = velocity(x, t)
        _report(callback, i, grid, x, v)
        data = foreseen = x + (1 - t) * v
        h = _log_snr(t_next) - _log_snr(t)
        if previous is not None and math.isfinite(h):
            weight = h / (2 * h_previous)  # 0 after a first step from t=0, where h_previous is infinite
            data = (1 + weight) * foreseen - weight * previous
        ratio = (1 - t_next) / (1 - t)
        x = ratio * x + (t_next - ratio * t) * data
        previous, h_previous = foreseen, h
    return x


def _log_snr(time: Tensor) -> float:
    """λ = log(α/σ); −∞ at pure noise, +∞ at data."""
    t = float(time)
    return -math.inf if t <= 0 else math.inf if t >= 1 else math.log(t / (1 - t))


SOLVERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler,
    "heun": heun,
    "ab2": ab2,
    "ab2-fixed": ab2_fixed,
    "dpmpp-2m": dpmpp_2m,
}


def _check_solver(solver: str) -> None:
    if solver not in SOLVERS:
        raise UserError(f'unknown solver "{solver}"{nearest(solver, SOLVERS)}')


def check(
    solver: str,
    steps: int,
    guidance_scale: float,
    guidance_interval: tuple[float, float],
    time_shift: float,
    reuse: int = 1,
) -> None:
    """Raise UserError where `sample` would, before anything is loaded."""
    check_reuse(reuse)
    _check_solver(solver)
    time_grid(steps, time_shift)
    _check_guidance(guidance_scale, guidance_interval)


def solve(
    velocity: Velocity, noise: Tensor, grid: Tensor, solver: str = "ab2", callback: Callback | None = None
) -> Tensor:
    """Integrate dx/dt = velocity(x, t) along `grid` from `noise`.

    Args:
        velocity: function of x and t (0-d, dtype of the grid).
        noise: x at grid[0], any shape and float dtype; the result has the same.
        grid: rising times [steps+1], as from `time_grid`.
        solver: a key of `SOLVERS`.
        callback: called with a `Step` at every step.

    Raises:
        UserError: unknown solver, or a grid that does not rise.
    """
    _check_solver(solver)
    grid = torch.as_tensor(grid).detach().cpu()
    if grid.ndim != 1 or len(grid) < 2 or not bool((grid.diff() > 0).all()):
        raise UserError(
            f"grid has the shape {list(grid.shape)} or does not rise; give rising times [steps+1]"
        )
    return SOLVERS[solver](velocity, noise, grid, callback)


# --- Sampling a model --------------------------------------------------------------------------------------


def initial_noise(size: tuple[int, int], count: int, seed: int, start_index: int = 0) -> Tensor:
    """Noise of images start_index … +count−1, [count,3,H,W]; image i depends on (seed, i) alone."""
    return noise_of(range(start_index, start_index + count), size, seed)


def noise_of(indices: Sequence[int], size: tuple[int, int], seed: int) -> Tensor:
    """Noise of the images of these indices, [B,3,H,W]."""
    return torch.stack([normal((3, *size), seed, "sample", index) for index in indices])


def check_reuse(reuse: int, config: DenoiserConfig | None = None) -> None:
    """Raise UserError unless the tokens of the backbone can serve `reuse` evaluations (of this model)."""
    if isinstance(reuse, bool) or not isinstance(reuse, int) or reuse < 1:
        raise UserError(f"reuse is {reuse!r}; it must be a whole number of at least 1 (1 = exact)")
    if reuse == 1 or config is None:
        return
    if config.placement != "post-hoc" or isinstance(config.detailer, LinearConfig):
        raise UserError(
            f"reuse is {reuse}, but in {config.name} the pixels of each step must pass through the backbone; "
            "leave it at 1"
        )


class Reused:
    """A model whose backbone runs in one of `reuse` evaluations. Approximate.

    Between, its tokens go on in the straight line of the last two passes, or stay as they are where there was
    but one; the detailer sees the pixels and the time of each evaluation. Where guidance begins or ends, the
    backbone runs, and a new line begins.
    """

    def __init__(self, model: PixelDenoiser, reuse: int) -> None:
        self.model, self.reuse = model, reuse
        self.passes: list[tuple[Tensor, Tensor]] = []  # times [B] and tokens [B, L, D] of the last two
        self.left = 0  # evaluations until the next one

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        if self.passes and len(self.passes[-1][0]) != len(x):
            self.passes, self.left = [], 0
        if self.left:
            state = self.model.embed(x, t, condition)._replace(tokens=self._tokens(t))
        else:
            state, _ = self.model.global_stage(x, t, condition)
            self.passes, self.left = [*self.passes[-1:], (t, state.tokens)], self.reuse
        self.left -= 1
        return self.model.local_stage(x, t, state)

    def _tokens(self, t: Tensor) -> Tensor:
        (before, older), (then, newer) = self.passes[0], self.passes[-1]
        if len(self.passes) == 1:
            return newer
        weight = ((t - before) / (then - before))[:, None, None]
        return older.float().lerp(newer.float(), weight).to(newer.dtype)


def model_velocity(
    model: PixelDenoiser,
    labels: Condition,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    reuse: int = 1,
) -> Velocity:
    """The guided velocity of a model for labels or captions [B]; both branches go through one call.

    For `reuse` see `Reused`.
    """
    check_reuse(reuse, model.config)
    network = model if reuse == 1 else Reused(model, reuse)
    both_labels = join(labels, model.backbone.null_condition(labels))

    def times(x: Tensor, t: Tensor) -> Tensor:
        return torch.full((len(x),), float(t), dtype=torch.float32, device=x.device)

    def conditional(x: Tensor, t: Tensor) -> Tensor:
        return network(x, times(x, t), labels)

    def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        doubled = torch.cat((x, x))
        v_cond, v_null = network(doubled, times(doubled, t), both_labels).chunk(2)
        return v_cond, v_null

    return guide_pair(conditional, both, guidance_scale, guidance_interval)


def as_labels(labels: Tensor | Sequence[int | str] | int | str, model: PixelDenoiser) -> Tensor:
    """Class indices int64 [B] from indices or class names of the model's config.

    Raises:
        UserError: no labels, an index outside 0 … num_classes (the null class is allowed), an unknown name.
    """
    if isinstance(labels, (int, str)):
        labels = [labels]
    values = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    if not values or isinstance(values[0], list):
        raise UserError(f"labels is {labels!r}; give a list of at least one class")
    names = model.config.class_names or ()
    known = {name: i for i, name in reversed(list(enumerate(names)))}
    indices = []
    for value in values:
        if isinstance(value, str):
            if value not in known:
                hint = nearest(value, known) if known else "; the model has no class names, give numbers"
                raise UserError(f'unknown class "{value}"{hint}')
            value = known[value]
        if value != int(value) or not 0 <= value <= model.config.num_classes:
            last = model.config.num_classes - 1
            raise UserError(f"label {value} is outside 0 to {last} (or {last + 1}, the null class)")
        indices.append(int(value))
    return torch.tensor(indices)


def balanced_labels(count: int, num_classes: int) -> Tensor:
    """Each class in turn, int64 [count]; where there are fewer images than classes, spread over them."""
    index = torch.arange(count)
    return index % num_classes if count >= num_classes else index * num_classes // count


def as_condition(
    labels: TextCondition | Tensor | Sequence[int | str] | int | str,
    model: PixelDenoiser,
    negative: str | None = None,
) -> Condition:
    """What a model is called with: class indices (see `as_labels`), or captions, which the encoder that is
    named in the model's config turns into features where they are texts.

    Raises:
        UserError: captions for a model of classes, classes for one of captions, impossible labels, or a
            negative prompt with anything but texts.
    """
    name, texts = model.config.name, [labels] if isinstance(labels, str) else labels
    if (
        model.config.takes_text
        and isinstance(texts, Sequence)
        and all(isinstance(text, str) for text in texts)
    ):
        from pixelwright.text import encode_for  # a room below: only texts need it

        return encode_for(model.config, [str(text) for text in texts], negative or "", device_of(model))
    if negative is not None:
        raise UserError(f"negative is {negative!r}, which goes with prompts alone; leave it out")
    if isinstance(labels, TextCondition) != model.config.takes_text:
        wants, given = ("prompts", "labels") if model.config.takes_text else ("labels", "captions")
        raise UserError(f"{name} draws from {wants}, not from {given}")
    return labels if isinstance(labels, TextCondition) else as_labels(labels, model)


def _indices(start: int | Sequence[int], count: int) -> Sequence[int]:
    """The index of each of `count` images; see `sample`."""
    indices = range(start, start + count) if isinstance(start, int) else start
    if len(indices) != count:
        raise UserError(f"start_index gives {len(indices)} indices for {count} images; give one each")
    if min(indices, default=0) < 0:
        raise UserError(f"start_index is {min(indices)}; it must be at least 0")
    return indices


@torch.no_grad()
def sample(
    model: PixelDenoiser,
    labels: TextCondition | Tensor | Sequence[int | str] | int | str,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    start_index: int | Sequence[int] = 0,
    steps: int = 50,
    solver: str = "ab2",
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    time_shift: float = 1.0,
    callback: Callback | None = None,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    negative: str | None = None,
    compile: bool = False,
    triton: bool = False,
    reuse: int = 1,
) -> Tensor:
    """Draw images with a model.

    A published model's `config.recipe` is not applied by itself; the arguments below are all that counts.

    Args:
        model: any `PixelDenoiser`; it runs where its weights are and is left in the mode it was in.
        labels: one class index or class name per image; for a model of captions one prompt per image, or the
            prompts as a `TextCondition`, whose `null` is what guidance leads away from.
        size: (height, width) in pixels, multiples of the patch size; by default the model's own.
        seed, start_index: image i of the result is image start_index + i of that seed; it does not depend on
            the batch it is drawn in. Instead of a start, the index of every image may be given.
        steps, solver, time_shift: see `time_grid` and `SOLVERS`.
        guidance_scale, guidance_interval: see `guide`; 1 switches guidance off.
        callback: called with a `Step` at every step of every batch.
        batch_size: images at a time; all at once by default.
        autocast: run the model in this dtype (torch.bfloat16; approximate, on CPUs: torch.int8); by default
            in the dtype of its weights. This and what follows makes a `FastDenoiser` for this call; for many
            calls give one as the model.
        negative: with prompts: what guidance leads away from, in place of the empty prompt.
        compile: one pass over memory for each chain of elementwise operations; it needs a C++ compiler, and
            some seconds the first time that a shape is met on this machine. On CUDA, evaluations are also
            replayed as graphs.
        triton: norms and modulations by our own kernels, on CUDA.
        reuse: above 1 approximate: the backbone runs in one of so many evaluations, see `Reused`.

    Returns:
        uint8 [B,H,W,3] on the CPU.

    Raises:
        UserError: impossible labels, size, steps, solver, guidance or `reuse`; `triton` or int8 where it
            cannot be had.
    """
    condition = as_condition(labels, model, negative)
    size = size or model.config.image_size
    if size is None:
        raise UserError("the model's config has no image_size; give size=(height, width)")
    height, width = size
    model.config.check_size(height, width)
    grid = time_grid(steps, time_shift)
    check_reuse(reuse, model.config)
    indices = _indices(start_index, len(condition))
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    device = device_of(model)
    network = prepared(model, autocast, compile, triton)
    training = model.training
    model.eval()
    images = []
    try:
        for start in range(0, len(condition), batch_size or len(condition)):
            part = condition[start : start + (batch_size or len(condition))].to(device)
            noise = noise_of(indices[start : start + len(part)], (height, width), seed).to(device)
            velocity = model_velocity(network, part, guidance_scale, guidance_interval, reuse)
            cast = torch.autocast(device.type, between(autocast)) if autocast else nullcontext()
            with cast, compiled(compile and device.type == "cpu"):
                x = solve(velocity, noise, grid, solver, callback)
            images.append(to_uint8(x).cpu())
    finally:
        model.train(training)
    return torch.cat(images)
