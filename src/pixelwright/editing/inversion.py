"""Images back to noise, and pictures between two noises or two conditions."""

from typing import Any

import torch
from torch import Tensor

from pixelwright.diffusion.sample import (
    Denoiser,
    Labels,
    in_batches,
    model_velocity,
    noise_of,
    sample,
    size_of,
    times_of,
)
from pixelwright.diffusion.solvers import solve
from pixelwright.editing import methods
from pixelwright.editing.inputs import Images, as_images, condition_of, sampler_of
from pixelwright.errors import UserError
from pixelwright.images import from_uint8
from pixelwright.models.conditions import Condition
from pixelwright.models.config import SamplerSettings


def invert(
    model: Denoiser,
    image: Images,
    condition: Labels | None,
    steps: int | None = None,
    *,
    guidance_scale: float = 1.0,
    sampler: SamplerSettings | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
) -> Tensor:
    """The noise from which `sample` draws these images: the same solver backwards, see `methods.invert`.

    Args:
        image: uint8 [B,H,W,3], a PIL image or a list of them.
        condition: what the images show: classes or prompts, one each or one for all; None: no condition.
        steps: by default the sampler's.
        guidance_scale: 1 by default: guided inversions are far from the images' own noise.
        sampler, batch_size, precision: see `pixelwright.sample`.

    Returns: noise float32 [B,3,H,W] on the CPU; `sample(model, labels, noise=noise, guidance=guidance_scale)`
        draws the images again.

    Raises:
        UserError: images, conditions or settings that do not fit.
        NotFinite: noise with NaN or infinite numbers.
    """
    images = as_images(image)
    model.config.check_size(images.shape[1], images.shape[2])
    sampler = sampler_of(sampler or model.config.sampler, steps, guidance_scale)
    times = times_of(sampler)
    latest = 1 - model.config.t_eps if model.config.prediction == "x" else 1.0

    def draw(network: Denoiser, part: Condition, rows: slice) -> Tensor:
        x = from_uint8(images[rows].to(model.device))
        velocity = model_velocity(network, part, sampler)
        return methods.invert(velocity, x, times, sampler.solver, latest)

    labels = condition_of(condition, len(images), model)
    indices = range(len(images))
    return in_batches(model, labels, indices, draw, batch_size, precision, finish=torch.Tensor.float)


def round_trip(
    model: Denoiser,
    image: Images,
    condition: Labels | None,
    steps: int | None = None,
    *,
    guidance_scale: float = 1.0,
    sampler: SamplerSettings | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """`invert`, and how well that went: (noise [B,3,H,W], the images that are drawn from it, uint8 [B,H,W,3],
    and their error [B], the root mean square over pixels in levels of 0 to 255). Arguments and errors are
    those of `invert`."""
    images = as_images(image)
    sampler = sampler_of(sampler or model.config.sampler, steps, guidance_scale)
    how: dict[str, Any] = {"sampler": sampler, "batch_size": batch_size, "precision": precision}
    noise = invert(model, images, condition, guidance_scale=guidance_scale, **how)
    labels = condition_of(condition, len(images), model)
    drawn = sample(model, labels, noise=noise, **how)
    error = (drawn.double() - images.double()).square().mean(dim=(1, 2, 3)).sqrt()
    return noise, drawn, error


def interpolate(
    model: Denoiser,
    first: Labels | None,
    last: Labels | None,
    count: int = 8,
    *,
    seeds: tuple[int, int] = (0, 0),
    size: int | tuple[int, int] | None = None,
    sampler: SamplerSettings | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
) -> Tensor:
    """Pictures from one condition and noise to another, in even steps.

    Noise goes along the sphere (`methods.slerp`) from image 0 of the first seed to image 0 of the second;
    between two conditions the velocity is (1−w)·v_first + w·v_last, for classes and prompts alike.

    Args:
        first, last: one class or prompt each; None: no condition.
        count: images, both ends included.
        size, sampler, batch_size, precision: see `pixelwright.sample`.

    Returns: uint8 [count,H,W,3].

    Raises:
        UserError: fewer than two images, and what `sample` refuses.
    """
    if not isinstance(count, int) or count < 2:
        raise UserError(f"count is {count!r}; give a whole number of at least 2")
    sampler = sampler_of(sampler or model.config.sampler)
    times = times_of(sampler)
    side = size_of(size, model.config)
    begin, end = (condition_of(each, count, model) for each in (first, last))
    scale = model.config.noise_scale
    ends = [scale * noise_of([0], side, seed, model.device) for seed in seeds]
    weights = torch.linspace(0, 1, count, device=model.device)

    def draw(network: Denoiser, part: Condition, rows: slice) -> Tensor:
        w = weights[rows, None, None, None]
        noise = torch.cat([methods.slerp(ends[0], ends[1], float(weight)) for weight in weights[rows]])
        v_first = model_velocity(network, part, sampler)
        v_last = model_velocity(network, end[rows].to(model.device), sampler)
        return solve(lambda x, t: (1 - w) * v_first(x, t) + w * v_last(x, t), noise, times, sampler.solver)

    return in_batches(model, begin, range(count), draw, batch_size, precision)
