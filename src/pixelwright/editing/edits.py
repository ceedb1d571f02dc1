"""`edit`: images changed by a model towards a class or a prompt."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pixelwright.diffusion.sample import (
    Denoiser,
    Labels,
    as_indices,
    guidance_of,
    in_batches,
    model_velocity,
    noise_of,
    times_of,
)
from pixelwright.diffusion.solvers import StepCallback, solve
from pixelwright.editing import methods
from pixelwright.editing.inputs import (
    Images,
    as_images,
    as_masks,
    condition_of,
    cut_out,
    grow,
    put_back,
    sampler_of,
)
from pixelwright.errors import UserError, nearest
from pixelwright.images import from_uint8
from pixelwright.models.conditions import Condition
from pixelwright.models.config import DenoiserConfig, SamplerPreset, SamplerSettings
from pixelwright.rng import normal


class FlowEditDefaults(NamedTuple):
    """FlowEdit's default settings."""

    steps: int
    n_max: int
    n_min: int
    n_avg: int
    source_guidance_scale: float
    guidance_scale: float


FLOWEDIT = {
    "text": FlowEditDefaults(50, 33, 0, 1, 3.5, 13.5),  # the authors', for Stable Diffusion 3
    "classes": FlowEditDefaults(50, 45, 0, 1, 1.0, 4.0),  # measured, see docs/editing.md
}
METHODS: dict[str, tuple[str, ...]] = {
    "sdedit": ("strength",),
    "inpaint": ("strength", "mask_image", "padding_mask_crop", "resampling"),
    "outpaint": ("strength", "margins", "resampling"),
    "flowedit": ("source", "source_guidance_scale", "n_max", "n_min", "n_avg"),
}
"""The settings of each method beside those that all share."""


def edit(
    model: Denoiser,
    image: Images,
    target: Labels | None,
    source: Labels | None = None,
    method: str = "sdedit",
    *,
    mask_image: Tensor | Image.Image | Sequence[Image.Image] | None = None,
    strength: float | None = None,
    guidance_scale: float | None = None,
    source_guidance_scale: float | None = None,
    n_max: int | None = None,
    n_min: int | None = None,
    n_avg: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    margins: Sequence[int] | None = None,
    padding_mask_crop: int | None = None,
    resampling: int | None = None,
    sampler: SamplerSettings | None = None,
    start_index: int | Sequence[int] = 0,
    callback: StepCallback | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
) -> Tensor:
    """Edit images; those outside of a mask keep their bytes.

    Args:
        image: uint8 [B,H,W,3], a PIL image or a list of them; sides are multiples of the patch size.
        target, source: classes by number or name, or prompts, one each or one for all: what it is to become
            and, for flowedit, what it shows. None: no condition.
        method: sdedit, inpaint, outpaint or flowedit, see `editing.methods`.
        mask_image: bool [B,H,W] or PIL images, true or white = repaint.
        strength: 0 (the input) to 1 (nothing is left of what is repainted): share of the steps that are
            taken. By default 0.6 for sdedit, else 1.
        guidance_scale: by default the sampler's; for flowedit this, the source's and `n_…` are `FLOWEDIT`'s.
        steps: of a whole drawing; by default the sampler's, for flowedit 50.
        margins: outpaint: pixels to add left, top, right and bottom.
        padding_mask_crop: cut out what is masked with so many pixels around it, and edit that alone, at the
            size of the model's images.
        resampling: how often each part of the timesteps is drawn (RePaint); 1 = once.
        sampler: solver, time shift, guidance; by default the model's preset (flowedit: with Euler).
        seed, start_index, callback, batch_size, precision: see `pixelwright.sample`.

    Returns: uint8 [B,H,W,3].

    Raises: UserError: settings, images, masks, conditions that do not fit; NotFinite: as `sample`.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    task = _task(model, as_images(image), given)
    return _RUN[method](task)


@dataclasses.dataclass(frozen=True)
class _Task:
    """Images and what is to be done with them."""

    model: Denoiser
    images: Tensor  # uint8 [B,H,W,3]
    target: Condition
    sampler: SamplerSettings
    given: dict[str, Any]  # arguments of `edit` that were given
    indices: Sequence[int]

    @property
    def times(self) -> Tensor:
        return times_of(self.sampler)

    def run(self, draw: Callable[[Denoiser, Condition, slice], Tensor]) -> Tensor:
        how = {name: self.given[name] for name in ("batch_size", "precision") if name in self.given}
        return in_batches(self.model, self.target, self.indices, draw, **how)

    def strength(self, default: float) -> float:
        """That was given, or the method's own. Raises UserError: it is outside 0 to 1."""
        strength = float(self.given.get("strength", default))
        if not 0 <= strength <= 1:
            raise UserError(f"strength is {strength:g}; it must be 0 (the input) to 1 (all new)")
        return strength

    def image(self, rows: slice) -> Tensor:
        """Float [b,3,H,W] on the device."""
        return from_uint8(self.images[rows].to(self.model.device))

    def noise(self, rows: slice) -> Tensor:
        """That of `sample` for the same seed and indices."""
        size = self.images.shape[1], self.images.shape[2]
        noise = noise_of(self.indices[rows], size, self.given["seed"], self.model.device)
        return self.model.config.noise_scale * noise

    def fresh(self, rows: slice) -> methods.Fresh:
        """Further noise by name."""
        indices = torch.tensor(self.indices[rows], device=self.model.device)
        shape = 3, self.images.shape[1], self.images.shape[2]
        scale, path = self.model.config.noise_scale, (self.given["seed"], self.given["method"])
        return lambda name: scale * normal(indices, shape, *path, name)


def _task(model: Denoiser, images: Tensor, given: dict[str, Any]) -> _Task:
    """The arguments of `edit`, checked."""
    method = given["method"]
    if method not in METHODS:
        raise UserError(f'unknown method "{method}"{nearest(str(method), METHODS)}')
    for name in {name for names in METHODS.values() for name in names} - set(METHODS[method]):
        if name in given:
            those = " and ".join(each for each, names in METHODS.items() if name in names)
            raise UserError(f"{name} is given, which {method} does not have; it goes with {those}")
    if method != "outpaint":
        model.config.check_size(images.shape[1], images.shape[2])
    preset = flowedit_preset(model.config) if method == "flowedit" else model.config.sampler
    sampler = sampler_of(given.get("sampler") or preset, given.get("steps"), given.get("guidance_scale"))
    condition = condition_of(given.get("target"), len(images), model)
    return _Task(model, images, condition, sampler, given, as_indices(given["start_index"], len(images)))


def flowedit_preset(config: DenoiserConfig) -> SamplerPreset:
    """FlowEdit's sampler for a model: the model's own, with Euler and the steps and scale of `FLOWEDIT`."""
    defaults = _flowedit_defaults(config)
    own = config.sampler or SamplerSettings()
    settings = {field.name: getattr(own, field.name) for field in dataclasses.fields(SamplerSettings)}
    settings |= {"steps": defaults.steps, "guidance_scale": defaults.guidance_scale, "solver": "euler"}
    return SamplerPreset(**settings, name="flowedit", origin="FlowEdit's defaults")


def _flowedit_defaults(config: DenoiserConfig) -> FlowEditDefaults:
    return FLOWEDIT["text" if config.takes_text else "classes"]


def _sdedit(task: _Task) -> Tensor:
    strength = task.strength(0.6)

    def draw(network: Denoiser, part: Condition, rows: slice) -> Tensor:
        x, times = methods.begin(task.image(rows), task.noise(rows), task.times, strength)
        if len(times) < 2:
            return x
        velocity = model_velocity(network, part, task.sampler)
        return solve(velocity, x, times, task.sampler.solver, task.given.get("callback"))

    return task.run(draw)


def _repaint(task: _Task, mask: Tensor) -> Tensor:
    """Inpainting with a mask [B,H,W]."""
    strength, resampling = task.strength(1.0), task.given.get("resampling", 1)
    if not isinstance(resampling, int) or resampling < 1:
        raise UserError(f"resampling is {resampling!r}; give a whole number of at least 1 (1 = once)")

    def draw(network: Denoiser, part: Condition, rows: slice) -> Tensor:
        velocity = model_velocity(network, part, task.sampler)
        inside = mask[rows, None].to(task.model.device)
        how = strength, task.sampler.solver, task.given.get("callback"), resampling, task.fresh(rows)
        return methods.inpaint(velocity, task.image(rows), inside, task.noise(rows), task.times, *how)

    return torch.where(mask[..., None], task.run(draw), task.images)


def _inpaint(task: _Task) -> Tensor:
    images, padding = task.images, task.given.get("padding_mask_crop")
    mask = as_masks(task.given.get("mask_image"), images)
    if padding is None:
        return _repaint(task, mask)
    size = task.model.config.image_size or (images.shape[1], images.shape[2])
    parts, inside, boxes = cut_out(images, mask, padding, size)
    return put_back(_repaint(dataclasses.replace(task, images=parts), inside), images, mask, boxes)


def _outpaint(task: _Task) -> Tensor:
    margins = task.given.get("margins", ())
    canvas, mask = grow(task.images, margins, task.model.config.patch_size)
    drawn = _repaint(dataclasses.replace(task, images=canvas), mask)
    left, top, right, bottom = margins
    height, width = task.images.shape[1] + top + bottom, task.images.shape[2] + left + right
    return drawn[:, :height, :width].contiguous()


def _flowedit(task: _Task) -> Tensor:
    given, sampler = task.given, task.sampler
    defaults = _flowedit_defaults(task.model.config)
    source = condition_of(given.get("source"), len(task.images), task.model)
    guidance = guidance_of(sampler, given.get("source_guidance_scale", defaults.source_guidance_scale))
    n_max = given.get("n_max", max(1, round(sampler.steps * defaults.n_max / defaults.steps)))
    n_min, n_avg = given.get("n_min", defaults.n_min), given.get("n_avg", defaults.n_avg)

    def draw(network: Denoiser, part: Condition, rows: slice) -> Tensor:
        v_target = model_velocity(network, part, sampler)
        v_source = model_velocity(network, source[rows].to(task.model.device), sampler, guidance)
        image, fresh, callback = task.image(rows), task.fresh(rows), given.get("callback")
        how = n_max, n_min, n_avg, sampler.solver, callback
        return methods.flowedit(v_target, v_source, image, task.times, fresh, *how)

    return task.run(draw)


_RUN = {"sdedit": _sdedit, "inpaint": _inpaint, "outpaint": _outpaint, "flowedit": _flowedit}
