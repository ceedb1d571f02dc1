"""Images that exist, in batches: of a folder, a zip, shards or an .npz, never all in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixelwright.data.config import DataConfig
from pixelwright.data.opening import open_source
from pixelwright.data.sources import Sample, Source, ZipSource
from pixelwright.data.transforms import CONVERTED, UnreadableImage, centre_crop
from pixelwright.errors import UserError
from pixelwright.evaluation.arrays import ArrayFile

IMAGES, LABELS = "arr_0", "arr_1"
"""What ADM calls the arrays of an .npz of images."""
SHEET = "grid.png"
"""The contact sheet that `pixelwright sample` puts beside its images."""


class ImageBatch(NamedTuple):
    """Some of the images of a set."""

    images: Tensor
    """uint8 [B,H,W,3]."""
    numbers: Tensor
    """int64 [B]: which of the set they are."""
    labels: Tensor | None = None
    """int64 [B]: their classes, where those are known."""


class ImageSet(Protocol):
    """Numbered images of one size, read in order.

    `skipped` (name -> reason) and `converted` (mode, such as L for grey and RGBA, laid on white -> how many)
    fill up as the images are read.
    """

    place: str
    skipped: dict[str, str]
    converted: Counter[str]

    def __len__(self) -> int:
        """How many there are, those included that will turn out unreadable."""
        ...

    def batches(self, size: int, start: int = 0) -> Iterator[ImageBatch]:
        """Those from number `start` on, up to `size` at a time.

        Raises UserError on images of several sizes.
        """
        ...


def open_images(path: str, size: int | None = None) -> ImageSet:
    """The images at `path`: an .npz with `arr_0`, or whatever data.path can be.

    Args:
        size: crop all to squares of this side by the rule of ADM; None takes them as they are, and they must
            be of one size.

    Raises:
        UserError: nothing there, no images in it, or damaged.
    """
    if size is not None and size < 1:
        raise UserError(f"--size is {size}: give a whole number of at least 1")
    if path.lower().endswith(".npz"):
        return ArrayImages(path, size)
    return SourceImages(path, size)


class SourceImages:
    """Image files, from any source of training images."""

    def __init__(self, path: str, size: int | None = None) -> None:
        self.place, self.size = path, size
        self.skipped: dict[str, str] = {}
        self.converted: Counter[str] = Counter()
        self.source = open_source(DataConfig(path) if size is None else DataConfig(path, size))
        self.indices = [i for i in range(len(self.source)) if self.source.name(i) != SHEET]
        if len(self.indices) < len(self.source):
            if not self.indices:
                raise UserError(f'"{path}" holds a {SHEET} and no other image: give a folder of images')
            self.skipped[SHEET] = "a contact sheet"
        self.skipped |= _doubles(self.source)
        self._shape: tuple[str, tuple[int, int]] | None = None  # name and size of the first image

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, size: int, start: int = 0) -> Iterator[ImageBatch]:
        for first in range(start, len(self), size):
            numbers = range(first, min(first + size, len(self)))
            read = [(number, sample) for number in numbers if (sample := self._read(number)) is not None]
            if read:
                images = torch.stack([torch.from_numpy(np.array(sample.image)) for _, sample in read])
                labels = torch.tensor([sample.label for _, sample in read])
                yield ImageBatch(images, torch.tensor([number for number, _ in read]), labels)

    def _read(self, number: int) -> Sample | None:
        """An image of the common size; None, and a line in `skipped`, if it cannot be read."""
        index = self.indices[number]
        name = self.source.name(index)
        try:
            sample = self.source[index]
        except UnreadableImage as error:
            self.skipped[name] = str(error)
            return None
        if (mode := sample.image.info.get(CONVERTED)) is not None:
            self.converted[mode] += 1
        image = sample.image if self.size is None else centre_crop(sample.image, self.size)
        self._shape = self._shape or (name, image.size)
        if image.size != self._shape[1]:
            raise UserError(_several_sizes(self.place, *self._shape, name, image.size))
        return sample._replace(image=image)


def _doubles(source: Source) -> dict[str, str]:
    """Members of a zip that were written twice; only the last is read."""
    if not isinstance(source, ZipSource):
        return {}
    return {f"{name} (again)": "named twice in the zip; the last is used" for name in source.doubles}


def _several_sizes(place: str, name: str, size: tuple[int, int], other: str, found: tuple[int, int]) -> str:
    return (
        f'"{place}" holds images of several sizes: "{name}" is {size[0]}x{size[1]}, "{other}" '
        f"{found[0]}x{found[1]}; give --size N to crop all to N x N"
    )


class ArrayImages:
    """The `arr_0` of an .npz, as ADM writes samples and references: uint8 [N,H,W,3]; `arr_1` are labels."""

    def __init__(self, path: str, size: int | None = None) -> None:
        self.place, self.size = path, size
        self.skipped: dict[str, str] = {}
        self.converted: Counter[str] = Counter()
        self.file = ArrayFile(path)
        if IMAGES not in self.file.names:
            raise UserError(
                f'"{path}" holds no {IMAGES}, where images are expected, but '
                f"{', '.join(self.file.names) or 'nothing'}"
            )
        shape, dtype = self.file.header(IMAGES)
        channels = shape[3] if len(shape) == 4 else 1
        if dtype != np.uint8 or len(shape) not in (3, 4) or channels not in (1, 3, 4) or not all(shape):
            raise UserError(
                f'"{path}": {IMAGES} is {dtype} {list(shape)}; images as uint8 [N,H,W,3] are expected in it'
            )
        self._count, self._channels = shape[0], channels

    def __len__(self) -> int:
        return self._count

    def _labels(self) -> Tensor | None:
        if LABELS not in self.file.names:
            return None
        labels = self.file.read(LABELS)
        if labels.shape != (self._count,) or labels.dtype.kind not in "iu":
            raise UserError(
                f'"{self.place}": {LABELS} is {labels.dtype} {list(labels.shape)}; '
                "one whole number an image is expected"
            )
        return torch.from_numpy(labels.astype(np.int64))

    def batches(self, size: int, start: int = 0) -> Iterator[ImageBatch]:
        labels = self._labels()
        for rows in self.file.rows(IMAGES, size, start):
            numbers = torch.arange(start, start + len(rows))
            images = torch.from_numpy(np.stack([self._rgb(row) for row in rows]))
            yield ImageBatch(images, numbers, None if labels is None else labels[numbers])
            start += len(rows)

    def _rgb(self, row: np.ndarray) -> np.ndarray:
        """One image of any number of channels as uint8 [H,W,3]."""
        if self._channels == 1:
            self.converted["L"] += 1
            row = row.reshape(*row.shape[:2], 1).repeat(3, axis=2)
        elif self._channels == 4:
            self.converted["RGBA"] += 1
            front = Image.fromarray(row)
            row = np.array(
                Image.alpha_composite(Image.new("RGBA", front.size, "white"), front).convert("RGB")
            )
        if self.size is not None and row.shape[:2] != (self.size, self.size):
            row = np.array(centre_crop(Image.fromarray(row), self.size))
        return row
