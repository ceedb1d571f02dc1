"""An uploaded picture, changed: what the form under Edit holds, and the result step by step."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from pixelwright.acceleration import AcceleratedDenoiser
from pixelwright.config import read
from pixelwright.data.transforms import UnreadableImage, cover, read_image, read_size
from pixelwright.diffusion.solvers import StepCallback
from pixelwright.editing import edit, restore
from pixelwright.editing.operators import AveragePool
from pixelwright.editing.tasks import TASKS, TaskSettings
from pixelwright.errors import UserError
from pixelwright.files import read_bytes
from pixelwright.images import from_uint8, to_uint8
from pixelwright.models.config import DenoiserConfig
from pixelwright.studio import texts
from pixelwright.studio.drawing import Frame, as_number, follow, whole

MOST_PIXELS = 16_000_000
METHODS = {
    "inpaint": texts.INPAINT,
    "sdedit": texts.SDEDIT,
    "flowedit": texts.FLOWEDIT,
    **{name: f"{name}: {task.help}" for name, task in TASKS.items()},
}
USES = {  # fields of the form that only some methods read
    "inpaint": ("strength",),
    "sdedit": ("strength",),
    "flowedit": ("source",),
    **{name: (*task.uses, *(("simulate",) if task.measured else ())) for name, task in TASKS.items()},
}


@dataclass(frozen=True)
class Edit:
    """The form under Edit."""

    picture: Path | None
    painted: Image.Image | None = None  # RGBA, of any size: what covers it is repainted
    method: str = "inpaint"
    target: str = ""
    source: str = ""
    strength: float = 0.6
    guidance_scale: float | None = None
    steps: int | None = None
    seed: int = 0
    fit: bool = True
    simulate: bool = False
    lost: TaskSettings = field(default_factory=TaskSettings)

    @staticmethod
    def of(picture: str | None, painted: Image.Image | None, *values: Any) -> "Edit":
        """From the fields of the form, in their order. Raises UserError: an empty or impossible number."""
        method, target, source, strength, guidance, steps, seed, fit, simulate, *numbers = values
        length, levels, sigma, angle, share = numbers
        count = whole(as_number(steps), texts.STEPS) if steps else None
        scale: Any = as_number(guidance) if guidance else None
        path = None if picture is None else Path(picture)
        lost = {"length": whole(length, texts.LENGTH), "levels": whole(levels, texts.LEVELS)}
        lost |= {"sigma": sigma, "angle": angle, "share": share, "seed": whole(seed, texts.SEED)}
        settings = read(TaskSettings, lost)
        how = strength, scale, count, whole(seed, texts.SEED), fit, simulate, settings
        return Edit(path, painted, method, target.strip(), source.strip(), *how)


def read_upload(path: Path | None) -> Image.Image:
    """An uploaded picture, RGB and upright; whether it may be decoded is seen from its first bytes. Raises
    UserError: none, one that is too large, or that cannot be read."""
    if path is None:
        raise UserError(texts.NO_PICTURE)
    try:
        data = read_bytes(path)
        width, height = read_size(data)
        if width * height > MOST_PIXELS:
            size = f"{width * height / 1e6:.0f} megapixels; the page takes up to {MOST_PIXELS / 1e6:.0f}"
            raise UserError(f"the picture has {size}")
        return read_image(data)
    except UnreadableImage as error:
        raise UserError(f"the picture cannot be read: {error}") from None


def prepared(picture: Image.Image, config: DenoiserConfig, fit: bool) -> Tensor:
    """A picture as it is edited, uint8 [1,H,W,3]: `fit` scales it and cuts its centre to the size of the
    model's images, else it is cut to multiples of the patch size."""
    if fit and config.image_size is not None:
        picture = cover(picture, *config.image_size)
    else:
        width, height = (side // config.patch_size * config.patch_size for side in picture.size)
        picture = picture.crop((0, 0, width, height))
    return torch.from_numpy(np.array(picture))[None]


def mask_of(painted: Image.Image | None, size: tuple[int, int]) -> Tensor:
    """bool [1,H,W] of `size` from a layer that was painted on: whatever a stroke touches, at any scale."""
    if painted is None:
        return torch.zeros(1, *size, dtype=torch.bool)
    alpha = torch.from_numpy(np.array(painted.convert("RGBA"))[..., 3] > 0).float()[None, None]
    return adaptive_max_pool2d(alpha, size)[0] > 0


def edited(model: AcceleratedDenoiser, form: Edit, stop: threading.Event) -> Iterator[Frame]:
    """Frames of the result, see `follow`; before it what it is made of: the picture as it was taken, its
    measurement where that is another."""
    before, draw = (_restoration if form.method in TASKS else _edit)(model, form)
    for frame in follow(draw, stop):
        yield frame._replace(images=torch.cat([before, frame.images]))


def _edit(model: AcceleratedDenoiser, form: Edit) -> tuple[Tensor, Callable[[StepCallback], Tensor]]:
    image = prepared(read_upload(form.picture), model.config, form.fit)
    more: dict[str, Any] = {"guidance_scale": form.guidance_scale, "steps": form.steps, "seed": form.seed}
    if form.method == "flowedit":
        more["source"] = [form.source] if form.source else None
    else:
        more["strength"] = form.strength
    if form.method == "inpaint":
        more["mask_image"] = mask = mask_of(form.painted, (image.shape[1], image.shape[2]))
        if not mask.any():
            raise UserError(texts.NOTHING_PAINTED)
    target = [form.target] if form.target else None
    return image, lambda preview: edit(model, image, target, method=form.method, callback=preview, **more)


def _restoration(model: AcceleratedDenoiser, form: Edit) -> tuple[Tensor, Callable[[StepCallback], Tensor]]:
    task, picture, config = TASKS[form.method], read_upload(form.picture), model.config
    image = prepared(picture, config, form.fit)
    size = image.shape[1], image.shape[2]
    operator = task.operator(replace(form.lost, mask=mask_of(form.painted, size)[0]), size)
    factor = operator.factor if isinstance(operator, AveragePool) else 1
    simulated = form.simulate or not task.measured
    if simulated:
        measured = operator.A(from_uint8(image))
    elif factor > 1:  # the picture is the small one
        height, width = size if form.fit and config.image_size else (s * factor for s in picture.size[::-1])
        small = cover(picture, height // factor, width // factor)
        measured = from_uint8(torch.from_numpy(np.array(small))[None])
    else:
        measured = from_uint8(image)
    shown = to_uint8(measured.expand(-1, 3, -1, -1))
    shown = shown.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    more: dict[str, Any] = {"steps": form.steps or 50, "seed": form.seed, "noise": task.noise}
    more |= {} if form.guidance_scale is None else {"guidance_scale": form.guidance_scale}
    target = [form.target] if form.target else None
    return torch.cat([image, shown]) if simulated else shown, lambda preview: restore(
        model, measured, operator, labels=target, callback=preview, **more
    )
