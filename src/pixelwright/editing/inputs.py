"""Images, masks, conditions and samplers of the arguments, checked before anything is drawn."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pixelwright.diffusion.sample import Denoiser, Labels, as_condition
from pixelwright.errors import UserError
from pixelwright.images import from_uint8, to_uint8
from pixelwright.models.conditions import Condition, null_like
from pixelwright.models.config import SamplerSettings

Images = Tensor | Image.Image | Sequence[Image.Image]
"""uint8 [B,H,W,3], a picture of PIL, or several of one size."""
Box = tuple[int, int, int, int]
"""top, left, height, width in pixels."""
OPAQUE = ("RGB", "L", "P", "1", "CMYK", "YCbCr", "HSV", "LAB")  # of PIL, of 8 bits


def as_images(image: Images) -> Tensor:
    """uint8 [B,H,W,3]. Raises UserError: another shape or type, pictures of several sizes, with transparency,
    or of 16 bits."""
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 4 or image.shape[3] != 3 or 0 in image.shape:
            raise UserError(f"image is {image.dtype} {list(image.shape)}; give uint8 [B, H, W, 3]")
        return image.cpu()
    pictures = [image] if isinstance(image, Image.Image) else list(image)
    if not pictures or not all(isinstance(picture, Image.Image) for picture in pictures):
        raise UserError("image is neither uint8 [B, H, W, 3] nor a PIL image nor a list of them")
    if len(sizes := {f"{picture.height}x{picture.width}" for picture in pictures}) > 1:
        raise UserError(f"the images have several sizes ({', '.join(sorted(sizes))}): edit them one by one")
    for picture in pictures:
        if picture.mode not in OPAQUE or "transparency" in picture.info:
            kind = f"{picture.mode}{' with transparency' if 'transparency' in picture.info else ''}"
            raise UserError(f"image has the mode {kind}; give one of 8 bits without alpha: convert to RGB")
    return torch.stack([torch.from_numpy(np.array(picture.convert("RGB"))) for picture in pictures])


def as_masks(mask: Tensor | Image.Image | Sequence[Image.Image] | None, images: Tensor) -> Tensor:
    """bool [B,H,W], true = repaint; one mask goes for all images. Pictures: from half white upwards.

    Raises UserError: none is given, another size or type, nothing or everything of an image masked.
    """
    count, height, width = images.shape[:3]
    if mask is None:
        raise UserError("mask_image is missing; give bool [B, H, W] or a PIL image, white = repaint")
    if not isinstance(mask, Tensor):
        pictures = [mask] if isinstance(mask, Image.Image) else list(mask)
        wrong = [picture for picture in pictures if picture.size != (width, height)]
        if wrong:
            size = f"{wrong[0].height}x{wrong[0].width}"
            raise UserError(f"mask_image is {size}, the image {height}x{width}: give a mask of its size")
        levels = [torch.from_numpy(np.array(picture.convert("L"))) for picture in pictures]
        mask = torch.stack(levels) >= 128
    if mask.dtype != torch.bool or mask.ndim not in (2, 3):
        raise UserError(f"mask_image is {mask.dtype} {list(mask.shape)}; give bool [B, H, W]")
    mask = mask.cpu() if mask.ndim == 3 else mask.cpu()[None]
    if mask.shape[1:] != (height, width) or len(mask) not in (1, count):
        raise UserError(
            f"mask_image is {list(mask.shape)}; give [{count}, {height}, {width}], of the images' size"
        )
    shares = mask.flatten(1).float().mean(1)
    if bool((shares == 0).any()):
        raise UserError("mask_image is black all over, nothing is to be repainted: paint white what is")
    if bool((shares == 1).any()):
        raise UserError("mask_image is white all over, nothing is kept: use method sdedit, or sample")
    return mask.expand(count, -1, -1)


def condition_of(labels: Labels | None, count: int, model: Denoiser) -> Condition:
    """The condition of `count` images: a label or prompt each, or one for all; None: none (the null class,
    the empty prompt). Raises UserError: another number of them, or what `as_condition` refuses."""
    takes_text = model.config.takes_text
    if labels is None and not takes_text:
        return null_like(torch.zeros(count, dtype=torch.long), model.config.null_label)
    condition = as_condition("" if labels is None else labels, model)
    if len(condition) not in (1, count):
        kind = "prompts" if takes_text else "labels"
        raise UserError(
            f"{len(condition)} {kind} are given for {count} images; give one each, or one for all"
        )
    if len(condition) == count:
        return condition
    return condition[torch.zeros(count, dtype=torch.long, device=condition.device)]


def sampler_of(
    sampler: SamplerSettings | None, steps: int | None = None, guidance_scale: float | None = None
) -> SamplerSettings:
    """A sampler, by default `SamplerSettings()`, with the steps and scale that are given."""
    given: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale}
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(sampler or SamplerSettings(), **changes)


def grow(images: Tensor, margins: Sequence[int], patch: int) -> tuple[Tensor, Tensor]:
    """Images on a larger canvas, and the mask of what is new. The canvas is filled up on the right and below
    to whole patches, its new pixels repeat the nearest old ones.

    Args:
        margins: pixels to add: left, top, right, bottom.

    Raises:
        UserError: margins that are not four numbers of at least 0, or all 0.
    """
    if len(margins) != 4 or min(margins) < 0 or sum(margins) == 0:
        raise UserError(f"margins is {list(margins)}; give pixels to add left, top, right and bottom")
    left, top, right, bottom = margins
    height, width = images.shape[1] + top + bottom, images.shape[2] + left + right
    sides = (left, right + -width % patch, top, bottom + -height % patch)
    canvas = F.pad(images.permute(0, 3, 1, 2).float(), sides, mode="replicate")
    mask = torch.ones(len(images), *canvas.shape[2:], dtype=torch.bool)
    mask[:, top : top + images.shape[1], left : left + images.shape[2]] = False
    return canvas.to(torch.uint8).permute(0, 2, 3, 1).contiguous(), mask


def crop_box(mask: Tensor, padding: int, size: tuple[int, int]) -> Box:
    """Where to cut out what a mask [H,W] marks, `padding` pixels around it, as far as the image goes in the
    proportions of `size` (height, width)."""
    ends = []
    rows, columns = (mask.any(1 - axis).nonzero().flatten() for axis in (0, 1))
    spans = [int(line[-1] - line[0]) + 1 + 2 * padding for line in (rows, columns)]
    scale = max(span / side for span, side in zip(spans, size, strict=True))
    for line, span, side, limit in zip((rows, columns), spans, size, mask.shape, strict=True):
        length = min(max(span, round(side * scale)), limit)
        middle = (int(line[0]) + int(line[-1]) + 1) / 2
        ends.append((min(max(0, round(middle - length / 2)), limit - length), length))
    (top, height), (left, width) = ends
    return top, left, height, width


def cut_out(
    images: Tensor, mask: Tensor, padding: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor, list[Box]]:
    """What a mask [B,H,W] marks in uint8 [B,H,W,3] and `padding` pixels around it, resized to (height, width)
    bicubically, with its mask, and where it was; see `crop_box`. Raises UserError: no number of pixels."""
    if not isinstance(padding, int) or padding < 0:
        raise UserError(f"padding_mask_crop is {padding!r}; give a whole number of pixels of at least 0")
    boxes = [crop_box(each, padding, size) for each in mask]
    shown = (mask[..., None].expand(-1, -1, -1, 3) * 255).to(torch.uint8)

    def parts(of: Tensor) -> Tensor:
        return torch.cat([resize(_inside(each, box), size) for each, box in zip(of, boxes, strict=True)])

    return parts(images), parts(shown)[..., 0] > 0, boxes


def put_back(parts: Tensor, images: Tensor, mask: Tensor, boxes: Sequence[Box]) -> Tensor:
    """The images with what `cut_out` gave where they are masked."""
    result = images.clone()
    for image, part, box in zip(result, parts, boxes, strict=True):
        _inside(image, box)[:] = resize(part[None], box[2:])
    return torch.where(mask[..., None], result, images)


def _inside(image: Tensor, box: Box) -> Tensor:
    """[H,W,3] -> a view of the box, [1,height,width,3]."""
    top, left, height, width = box
    return image[None, top : top + height, left : left + width]


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [B,H,W,3] in another size, bicubic with antialiasing; in their own size the same bytes."""
    if tuple(images.shape[1:3]) == tuple(size):
        return images
    resized = F.interpolate(from_uint8(images), size=size, mode="bicubic", antialias=True)
    return to_uint8(resized)
