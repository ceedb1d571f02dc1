"""Editing as integration: each method is a short function of velocities, images and noise.

x_t = t·x + (1−t)·ε with t = 0 noise and t = 1 data; papers that count σ = 1 − t are rewritten for that.
None of this knows classes, text or models; images, noise and results are [B,3,H,W].
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pixelwright.diffusion.solvers import StepCallback, Velocity, solve
from pixelwright.errors import UserError

Fresh = Callable[[str], Tensor]
"""New noise [B,3,H,W] under a name, which is the same whenever it is asked for."""
JUMP = 25
"""A resampling jump goes back by 1/25 of the steps, as the paper's 10 of 250 (RePaint)."""


def begin(image: Tensor, noise: Tensor, times: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Where SDEdit (arXiv 2108.01073, section 3) begins: the image, noised up to the first of the last part
    of timesteps [steps+1], and that part.

    It is as long as diffusers' img2img takes it: of `steps`, those from int(steps·(1 − strength)) on. At
    strength 0 no step is left and the image is as it was, at 1 it is the noise.
    """
    steps = len(times) - 1
    part = times[int(max(steps - min(steps * strength, steps), 0)) :]
    if len(part) == len(times):
        return noise, part
    return noised(image, noise, part[0]), part


def noised(image: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The path x_t = t·x + (1−t)·ε at one time."""
    return t * image + (1 - t) * noise


def keep(velocity: Velocity, image: Tensor, noise: Tensor, mask: Tensor) -> Velocity:
    """The velocity that leads pixels outside of `mask` [B,1,H,W] along the straight path from their noise to
    the image, x − ε, and is shown them exactly on it: known pixels, re-noised with one fixed noise."""

    def kept(x: Tensor, t: Tensor) -> Tensor:
        x = torch.where(mask, x, noised(image, noise, t))
        return torch.where(mask, velocity(x, t), image - noise)

    return kept


def back(x: Tensor, fresh: Tensor, t: Tensor, t_before: Tensor) -> Tensor:
    """x at t as it may have been at t_before < t: (t'/t)·x and as much new noise as the path then has
    (RePaint, arXiv 2201.09865, Algorithm 1, on this path)."""
    ratio = t_before / t
    return ratio * x + ((1 - t_before) ** 2 - (ratio * (1 - t)) ** 2).clamp(min=0).sqrt() * fresh


def inpaint(
    velocity: Velocity,
    image: Tensor,
    mask: Tensor,
    noise: Tensor,
    times: Tensor,
    strength: float = 1.0,
    solver: str = "ab2",
    callback: StepCallback | None = None,
    resampling: int = 1,
    fresh: Fresh | None = None,
) -> Tensor:
    """Draw what is inside of `mask` [B,1,H,W] around the known pixels, see `keep`.

    With `resampling` above 1 every part of the timesteps (see `JUMP`) is gone through so many times: back
    with new noise, then forward again, so that new pixels and known ones come to agree (RePaint).
    """
    known = keep(velocity, image, noise, mask)
    x, times = begin(image, noise, times, strength)
    length = len(times) - 1 if resampling == 1 else max(1, round((len(times) - 1) / JUMP))
    for start in range(0, len(times) - 1, length):
        part = times[start : start + length + 1]
        for again in range(resampling):
            if again:
                assert fresh is not None, "resampling needs new noise"
                x = back(x, fresh(f"{start}/{again}"), part[-1], part[0])
            x = solve(known, x, part, solver, callback)
    return torch.where(mask, x, image)


def flowedit(
    target: Velocity,
    source: Velocity,
    image: Tensor,
    times: Tensor,
    fresh: Fresh,
    n_max: int,
    n_min: int = 0,
    n_avg: int = 1,
    solver: str = "euler",
    callback: StepCallback | None = None,
) -> Tensor:
    """FlowEdit (arXiv 2412.08629, Algorithm 1): move the image by the difference of two velocities.

    With x_t = t·x + (1−t)·ε of the image x and the edit z, which begins as x:
    dz/dt = mean over `n_avg` new ε of v_target(z + x_t − x, t) − v_source(x_t, t).

    Args:
        n_max: of the steps, the last so many are taken; fewer keep more of the image.
        n_min: the last so many of them are drawn by the target's velocity alone, from z + x_t − x.
    """
    steps = len(times) - 1
    if not 0 <= n_min < n_max <= steps or n_avg < 1:
        given = f"n_max {n_max}, n_min {n_min}, n_avg {n_avg}"
        raise UserError(f"{given}: it must be 0 <= n_min < n_max <= steps ({steps}) and n_avg >= 1")

    def difference(z: Tensor, t: Tensor) -> Tensor:
        total = torch.zeros_like(z)
        for k in range(n_avg):
            x_t = noised(image, fresh(f"{float(t):.9f}/{k}"), t)
            total += target(z + x_t - image, t) - source(x_t, t)
        return total / n_avg

    between = times[steps - n_max : steps - n_min + 1]
    z = solve(difference, image, between, solver, callback)
    if n_min == 0:
        return z
    x_t = noised(image, fresh(f"{float(between[-1]):.9f}/0"), between[-1])
    return solve(target, z + x_t - image, times[steps - n_min :], solver, callback)


def invert(
    velocity: Velocity, image: Tensor, times: Tensor, solver: str = "ab2", latest: float = 1.0
) -> Tensor:
    """From an image back to its noise by the same solver, in s = 1 − t, where noise and data change places.

    Args:
        latest: where to begin: below 1 for networks that predict x, which divide by 1−t, at least `t_eps`
            (0.05): nearer to the data their velocity is not that of the path. The image is taken for
            `latest`·x there: noise is 0 on average.
    """
    if latest < 1:
        times = torch.cat((times[times < latest], times.new_tensor([latest])))
        image = latest * image
    return solve(lambda x, s: -velocity(x, 1 - s), image, (1 - times).flip(0), solver)


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Between two noises along the sphere, per image: weight 0 is the first, 1 the second."""
    a, b = first.flatten(1).double(), second.flatten(1).double()
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    angle = cosine.clamp(-1, 1).acos()[:, None]
    arc = (((1 - weight) * angle).sin() * a + (weight * angle).sin() * b) / angle.sin()
    mixed = torch.where(angle.sin() > 1e-6, arc, (1 - weight) * a + weight * b)  # no arc between parallels
    return mixed.to(first.dtype).view_as(first)
