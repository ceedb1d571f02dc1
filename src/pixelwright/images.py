"""Images in and out: tensors in [-1,1] to uint8, PNG files and grids."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from pixelwright.files import replacing

NOTE = "pixelwright"
"""The text chunk of a drawn PNG with how it was drawn: its line of samples.jsonl."""


def to_uint8(x: Tensor) -> Tensor:
    """[B,3,H,W] in [-1,1] -> uint8 [B,H,W,3], rounded to the nearest level, clipped; NaN becomes 0."""
    levels = (x.float() * 127.5 + 127.5).round().clamp(0, 255).nan_to_num(0)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_uint8(images: Tensor) -> Tensor:
    """uint8 [B,H,W,3] -> float32 [B,3,H,W] in [-1,1]; `to_uint8` gives the same levels back."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def save_png(
    image: Tensor,
    path: str | os.PathLike[str],
    notes: Mapping[str, str] | None = None,
    alpha: Image.Image | None = None,
    profile: bytes | None = None,
) -> None:
    """Write one uint8 [H,W,3] image; the file appears only when it is whole. `notes` become text chunks;
    `alpha`, of mode L and the same size, and `profile`, an ICC profile, go with the pixels."""
    picture = Image.fromarray(image.numpy())
    if alpha is not None:
        picture.putalpha(alpha)
    with replacing(Path(path)) as part:
        picture.save(part, format="PNG", pnginfo=_chunks(notes), icc_profile=profile)


def _chunks(notes: Mapping[str, str] | None) -> PngInfo:
    chunks = PngInfo()
    for key, text in (notes or {}).items():
        chunks.add_itxt(key, text)
    return chunks


def read_notes(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text chunks of a PNG file."""
    with Image.open(path) as image:
        image.load()  # they may stand behind the pixels
        return {str(key): text for key, text in image.info.items() if isinstance(text, str)}


def png_name(number: int, word: str) -> str:
    """The file of a drawn image: its number, and the class or prompt."""
    return f"{number:06d}-{slug(word) or 'image'}.png"


def slug(text: str) -> str:
    """A text as part of a file's name, in letters that every system takes; "" where it has none."""
    return re.sub(r"[^\w]+", "-", text)[:40].strip("-").lower()


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
    captions: Sequence[str] | None = None,
    gap: int = 2,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write uint8 [N,H,W,3] images as one PNG, row by row.

    Args:
        columns: images in a row; by default a grid about as wide as high.
        scale: whole-number enlargement without smoothing (small images are hard to see).
        titles: one heading per column.
        captions: a text under each image, cut to its width.
        gap: white pixels between images.
        notes: text chunks of the file.
    """
    count, height, width = images.shape[:3]
    columns = columns or math.ceil(math.sqrt(count))
    rows, top, foot = math.ceil(count / columns), 16 if titles else 0, 12 if captions else 0
    h, w = height * scale + gap + foot, width * scale + gap
    sheet = Image.new("RGB", (columns * w + gap, rows * h + gap + top), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        tile = Image.fromarray(image.numpy()).resize(
            (width * scale, height * scale), Image.Resampling.NEAREST
        )
        x, y = gap + i % columns * w, top + gap + i // columns * h
        sheet.paste(tile, (x, y))
        if captions:
            draw.text((x, y + height * scale), _fitted(draw, captions[i], width * scale), fill="black")
    for column, title in enumerate(titles or ()):
        draw.text((gap + column * w, 2), title, fill="black")
    with replacing(Path(path)) as part:
        sheet.save(part, format="PNG", pnginfo=_chunks(notes))


def columns_of(count: int, around: int) -> int | None:
    """Columns of a grid in which `around` labels come in turn: a multiple of them, so that a column holds one
    label alone, and at most 1.5 times as high as wide; None where there are too many or too few."""
    if not 0 < around <= min(count, 16):
        return None
    fitting = (columns for columns in range(around, 17, around) if -(-count // columns) <= 1.5 * columns)
    return next(fitting, None)


def _fitted(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """As much of a text as fits; the built-in font has Latin letters alone."""
    text = text.encode("latin-1", "replace").decode("latin-1")
    while text and draw.textlength(text) > width:
        text = text[:-1]
    return text
