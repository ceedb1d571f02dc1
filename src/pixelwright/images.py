"""Images in and out: tensors in [-1,1] to uint8, PNG files and grids."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pixelwright.files import replacing


def to_uint8(x: Tensor) -> Tensor:
    """[B,3,H,W] in [-1,1] -> uint8 [B,H,W,3], rounded to the nearest level, clipped; NaN becomes 0."""
    levels = (x.float() * 127.5 + 127.5).round().clamp(0, 255).nan_to_num(0)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_uint8(images: Tensor) -> Tensor:
    """uint8 [B,H,W,3] -> float32 [B,3,H,W] in [-1,1]; `to_uint8` gives the same levels back."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def save_png(image: Tensor, path: str | os.PathLike[str]) -> None:
    """Write one uint8 [H,W,3] image; the file appears only when it is whole."""
    _write(Image.fromarray(image.numpy()), Path(path))


def load_png(path: str | os.PathLike[str]) -> Tensor:
    """Read an image as uint8 [H,W,3]; `save_png` writes the same one."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def save_grid(
    images: Tensor,
    path: str | os.PathLike[str],
    columns: int | None = None,
    scale: int = 1,
    titles: Sequence[str] | None = None,
    gap: int = 2,
) -> None:
    """Write uint8 [N,H,W,3] images as one PNG, row by row.

    Args:
        columns: images in a row; by default a grid about as wide as high.
        scale: whole-number enlargement without smoothing (small images are hard to see).
        titles: one heading per column.
        gap: white pixels between images.
    """
    count, height, width = images.shape[:3]
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    h, w, top = height * scale + gap, width * scale + gap, 16 if titles else 0
    sheet = Image.new("RGB", (columns * w + gap, rows * h + gap + top), "white")
    for i, image in enumerate(images):
        tile = Image.fromarray(image.numpy()).resize(
            (width * scale, height * scale), Image.Resampling.NEAREST
        )
        sheet.paste(tile, (gap + i % columns * w, top + gap + i // columns * h))
    for column, title in enumerate(titles or ()):
        ImageDraw.Draw(sheet).text((gap + column * w, 2), title, fill="black")
    _write(sheet, Path(path))


def _write(image: Image.Image, path: Path) -> None:
    with replacing(path) as part:
        image.save(part, format="PNG")
