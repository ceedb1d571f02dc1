"""From noise to images: what a model is conditioned on, the noise of each image, and `sample`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from pixelwright.acceleration import drawing
from pixelwright.diffusion.guidance import Branch, Guidance, IntervalCFG
from pixelwright.diffusion.labels import as_labels
from pixelwright.diffusion.solvers import StepCallback, Velocity, check_solver, solve, timesteps
from pixelwright.errors import NotFinite, UserError
from pixelwright.images import to_uint8
from pixelwright.models.conditions import Condition, TextCondition, null_like
from pixelwright.models.config import DenoiserConfig, SamplerSettings
from pixelwright.rng import normal

Labels = TextCondition | Tensor | Sequence[int | str] | int | str
"""What is to be drawn: classes by number or name, prompts, or encoded prompts."""


class Denoiser(Protocol):
    """What can be sampled: a `PixelDenoiser`, or what `acceleration.accelerate` makes of one."""

    @property
    def config(self) -> DenoiserConfig: ...
    @property
    def device(self) -> torch.device: ...
    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Any: ...


def noise_of(
    indices: Sequence[int], size: tuple[int, int], seed: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Noise of the images of these indices, [B,3,H,W]; image i depends on (seed, i) alone."""
    return normal(torch.tensor(indices, device=device), (3, *size), seed, "sample")


def guidance_of(sampler: SamplerSettings, scale: float | None = None) -> IntervalCFG:
    """The guidance of these settings, with another scale where one is given."""
    scale = sampler.guidance_scale if scale is None else scale
    return IntervalCFG(scale, sampler.guidance_interval, sampler.guidance_ends)


def model_velocity(
    model: Denoiser, condition: Condition, sampler: SamplerSettings, guidance: Guidance | None = None
) -> Velocity:
    """The guided velocity of a model for labels or captions [B], as a function of (x, t).

    `guidance` replaces the sampler's scale and interval.
    """
    null = null_like(condition, model.config.null_label)
    guidance = guidance or guidance_of(sampler)
    return guidance(Branch(model, condition), Branch(model, null))


def times_of(sampler: SamplerSettings) -> Tensor:
    """The timesteps of a sampler, see `solvers.timesteps`."""
    return timesteps(sampler.steps, sampler.time_shift, sampler.time_start, sampler.last_step)


def as_condition(labels: Labels, model: Denoiser, negative: str | None = None) -> Condition:
    """What a model is called with: class indices (see `as_labels`), or captions, which the encoder that is
    named in the model's config turns into features where they are texts.

    Args:
        labels: one class per image, or one prompt per image.
        negative: with prompts: what guidance leads away from, in place of the empty prompt.

    Raises:
        UserError: captions for a model of classes, classes for one of captions, impossible labels, or a
            negative prompt with anything but texts.
    """
    config = model.config
    texts = [labels] if isinstance(labels, str) else labels
    if config.takes_text and isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts):
        from pixelwright.text import encode_for  # seconds to import, which only prompts need

        return encode_for(config, [str(text) for text in texts], negative or "", model.device)
    if negative is not None:
        raise UserError(f"negative is {negative!r}, which goes with prompts alone; leave it out")
    if isinstance(labels, TextCondition) != config.takes_text:
        needs, given = ("prompts", "labels") if config.takes_text else ("labels", "captions")
        raise UserError(f"{config.name} draws from {needs}, not from {given}")
    return labels if isinstance(labels, TextCondition) else as_labels(labels, config)


def size_of(size: int | tuple[int, int] | None, config: DenoiserConfig) -> tuple[int, int]:
    """(height, width) of the images of a model, by default its own. Raises UserError: none, or one that does
    not divide into patches."""
    size = config.image_size if size is None else size
    if size is None:
        raise UserError("the model's config has no image_size; give size=(height, width)")
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    config.check_size(height, width)
    return height, width


def as_indices(start: int | Sequence[int], count: int) -> Sequence[int]:
    """The index of each of `count` images; see `sample`. Raises UserError: another number, or below 0."""
    indices = range(start, start + count) if isinstance(start, int) else start
    if len(indices) != count:
        raise UserError(f"start_index gives {len(indices)} indices for {count} images; give one each")
    if min(indices, default=0) < 0:
        raise UserError(f"start_index is {min(indices)}; it must be at least 0")
    return indices


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """A module in eval mode, and back in the mode it was in; without effect on an accelerated model."""
    training = getattr(model, "training", False)
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


@torch.no_grad()
def in_batches(
    model: Denoiser,
    condition: Condition,
    indices: Sequence[int],
    draw: Callable[[Denoiser, Condition, slice], Tensor],
    batch_size: int | None = None,
    precision: str = "auto",
    compile: bool = False,
    attention: str = "auto",
    *,
    finish: Callable[[Tensor], Tensor] = to_uint8,
) -> Tensor:
    """What every way to draw images has in common: batches, eval mode, precision, a look at the result.

    Args:
        condition: of B images.
        indices: their B indices, which name the images that are not finite.
        draw: (network, condition [b] on its device, the slice of the B images) -> images [b,3,H,W] in [-1,1].
        batch_size, precision, compile, attention: see `sample`.
        finish: what is made of a batch of images on the device.

    Returns: what `finish` makes of the B images, on the CPU.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    images = []
    with _evaluating(model), drawing(model, precision, compile, attention) as network:
        for start in range(0, len(condition), batch_size or len(condition)):
            rows = slice(start, min(start + (batch_size or len(condition)), len(condition)))
            x = draw(network, condition[rows].to(model.device), rows)
            _check_finite(x, indices[rows])
            images.append(finish(x).cpu())
    return torch.cat(images)


def sample(
    model: Denoiser,
    labels: Labels,
    sampler: SamplerSettings | None = None,
    *,
    guidance: float | Guidance | None = None,
    size: int | tuple[int, int] | None = None,
    seed: int = 0,
    start_index: int | Sequence[int] = 0,
    callback: StepCallback | None = None,
    noise: Tensor | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
    compile: bool = False,
    attention: str = "auto",
) -> Tensor:
    """Draw images with a model.

    Args:
        model: a `PixelDenoiser`, which is left in the mode it was in, or an accelerated one.
        labels: one class index or class name per image; for a model of captions one prompt per image, or the
            prompts as a `TextCondition`, whose `null` is what guidance leads away from.
        sampler: solver, steps, time shift and guidance; by default the model's own preset, `config.sampler`,
            which published models and those of training runs have, else `SamplerSettings()`.
        guidance: a scale that replaces the sampler's (its interval stays), or any `Guidance`.
        size: side or (height, width) in pixels, multiples of the patch size; by default the model's own.
        seed, start_index: image i of the result is image start_index + i of that seed; it does not depend on
            the batch it is drawn in. Instead of a start, the index of every image may be given.
        callback: called with a `Step` at every step of every batch.
        noise: what to start from, [B,3,H,W] of the model's `noise_scale`, such as `invert` gives, in place of
            the noise of seed and index.
        batch_size: images at a time; all at once by default.
        precision, compile, attention: see `acceleration.drawing`; an accelerated model has its own.

    Returns: uint8 [B,H,W,3] on the CPU.

    Raises:
        UserError: impossible labels, size, steps, solver, guidance, batch size, precision or attention.
        NotFinite: images with NaN or infinite pixels, named by index.
    """
    sampler = sampler or model.config.sampler or SamplerSettings()
    check_solver(sampler.solver)
    times = times_of(sampler)
    if isinstance(guidance, (int, float)):
        guidance = guidance_of(sampler, guidance)
    condition = as_condition(labels, model)
    if noise is not None:
        _check_noise(noise, len(condition), size, seed)
        size = (noise.shape[2], noise.shape[3])
    height, width = size_of(size, model.config)
    indices = as_indices(start_index, len(condition))

    def draw(network: Denoiser, part: Condition, rows: slice) -> Tensor:
        if noise is None:
            start = model.config.noise_scale * noise_of(indices[rows], (height, width), seed, model.device)
        else:
            start = noise[rows].to(model.device, torch.float32)
        return solve(model_velocity(network, part, sampler, guidance), start, times, sampler.solver, callback)

    return in_batches(model, condition, indices, draw, batch_size, precision, compile, attention)


def _check_noise(noise: Tensor, count: int, size: object, seed: int) -> None:
    if noise.ndim != 4 or noise.shape[:2] != (count, 3) or not noise.is_floating_point():
        shape = list(noise.shape)
        raise UserError(f"noise is {noise.dtype} {shape}; give floats [{count}, 3, H, W], one an image")
    if size is not None or seed != 0:
        raise UserError("noise is given together with a size or a seed; leave these out")


def _check_finite(x: Tensor, indices: Sequence[int]) -> None:
    """Raise NotFinite for images [B,3,H,W] with NaN or infinite pixels, naming their indices."""
    bad = (~x.isfinite()).flatten(1).any(1).tolist()
    if any(bad):
        named = [str(index) for index, wrong in zip(indices, bad, strict=True) if wrong]
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        raise NotFinite(
            f"the model draws NaN or infinite pixels (image {', '.join(named[:5])}{more}): its weights are "
            "damaged or too large for the precision, or the attention kernel is: try precision fp32, or "
            "attention math"
        )
