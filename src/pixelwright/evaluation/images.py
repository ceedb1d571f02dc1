"""Images and arrays that exist, read safely and piece by piece: a folder, a zip, shards or an .npz."""

import hashlib
import io
import math
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixelwright.data.config import DataConfig
from pixelwright.data.open import open_source
from pixelwright.data.sources import Sample, ZipSource
from pixelwright.data.transforms import CONVERTED, FORMAT, UnreadableImage, centre_crop
from pixelwright.errors import UserError

BATCH = 64  # images that an extractor sees at a time, whatever they come from
IMAGES, LABELS = "arr_0", "arr_1"  # what ADM calls the arrays of an .npz of images
SHEET = "grid.png"  # the contact sheet that `pixelwright sample` puts beside its images
AT_ONCE, PACKED = 256 << 20, 20
"""An array may take so many bytes in memory, or so many times its bytes in the file; real ones stay below."""
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, RuntimeError, OSError)
"""What a broken file raises while it is read."""

Array = np.ndarray
Progress = Callable[[int], object]  # is called with how many more are done


# ---------------------------------------------------------------- .npz
class ArrayFile:
    """The arrays of an .npz. Nothing in it is unpickled, and none takes far more memory than its file.

    Raises UserError: no such file, not a zip of arrays, a damaged one, arrays of Python objects, which only
    unpickling could read, or arrays packed so densely that they would fill the memory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            kind = "is a folder" if self.path.is_dir() else "does not exist"
            raise UserError(f'"{path}" {kind}: give an .npz')
        with self._checked("the list of arrays"), zipfile.ZipFile(self.path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise self.error(f"it holds {twice[0]} twice: write it anew")
        self.names = tuple(names)

    def error(self, reason: str) -> UserError:
        """What to raise where the file is not as it should be."""
        return UserError(f'"{self.path}": {reason}')

    @contextmanager
    def _checked(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except DAMAGE as error:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise self.error(f"damaged, or no .npz ({what}: {reason}): fetch or make it anew") from None

    @contextmanager
    def _open(self, name: str, rows: int | None = 0) -> Iterator[tuple[Any, tuple[int, ...], np.dtype[Any]]]:
        """The values of an array as a file, shape, dtype; `rows` (None: all) are to be read at once."""
        with self._checked(name), zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
            old = np.lib.format.read_magic(file) == (1, 0)
            read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if dtype.hasobject:
                raise self.error(f"{name} holds Python objects, which could run code: save plain arrays")
            if fortran and len(shape) > 1:
                raise self.error(f"{name} is in column order: save it with numpy.ascontiguousarray")
            part = shape if rows is None else (min([rows, *shape[:1]]), *shape[1:])
            size, packed = math.prod(part) * dtype.itemsize, archive.getinfo(f"{name}.npy").compress_size
            if size > max(AT_ONCE, PACKED * packed):
                needs = f"{size / 2**30:.3g} GiB of memory at once, out of a much smaller file"
                raise self.error(f"{name} takes {needs}: write it with numpy.savez")
            yield file, shape, dtype

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of an array."""
        with self._open(name) as (_, shape, dtype):
            return shape, dtype

    def read(self, name: str) -> Array:
        """A whole array."""
        with self._open(name, None) as (file, shape, dtype):
            size = math.prod(shape) * dtype.itemsize
            data = bytearray(file.read(size))  # to the end, which checks the zip's checksum
            if len(data) != size or file.read(1):
                raise ValueError("its header says another size")
            return np.frombuffer(data, dtype).reshape(shape)

    def rows(self, name: str, size: int, start: int = 0) -> Iterator[Array]:
        """An array in pieces of up to `size` rows, from row `start` on, in order; one piece is in memory.
        Reading to the end also checks the file's own checksum of the array, if it begins at row 0."""
        with self._open(name, size) as (file, shape, dtype):
            each = math.prod(shape[1:]) * dtype.itemsize
            file.seek(start * each, io.SEEK_CUR)
            for first in range(start, shape[0], size):
                rows = min(size, shape[0] - first)
                data = file.read(rows * each)
                if len(data) < rows * each:
                    raise EOFError(f"row {first + len(data) // each} of {shape[0]} is missing")
                yield np.frombuffer(data, dtype).reshape(rows, *shape[1:])
            if file.read(1):
                raise ValueError("there is more in it than its header says")


# ---------------------------------------------------------------- images
class ImageBatch(NamedTuple):
    """Some of the images of a set."""

    images: Tensor  # uint8 [B,H,W,3]
    numbers: Tensor  # int64 [B]: which of the set they are
    labels: Tensor | None = None  # int64 [B]: their classes, where those are known


@dataclass(frozen=True)
class SourceInfo:
    """Which images something was computed of."""

    path: str
    count: int  # images that were used
    checksum: str  # of the pixels, in order; the same for the same images in any container
    image_size: tuple[int, int]  # rows and columns
    skipped: Mapping[str, str] = field(default_factory=dict)  # images that were not used, and why
    converted: Mapping[str, int] = field(default_factory=dict)
    """Images that were not RGB, by their mode in the file, such as L for grey and RGBA, laid on white."""
    jpeg: int = 0  # images that were JPEG files, whose compression is measured too
    class_names: tuple[str, ...] | None = None


class ImageSet(ABC):
    """Numbered images of one size, read in order; `skipped`, `converted` and `jpeg` fill up as they are
    read."""

    class_names: tuple[str, ...] | None = None

    def __init__(self, path: str, size: int | None = None) -> None:
        self.path, self.size, self.jpeg = path, size, 0
        self.skipped: dict[str, str] = {}
        self.converted: Counter[str] = Counter()

    @abstractmethod
    def __len__(self) -> int:
        """How many there are, those included that will turn out unreadable."""

    @abstractmethod
    def batches(self, size: int, start: int = 0) -> Iterator[ImageBatch]:
        """Those from number `start` on, up to `size` at a time. Raises UserError on images of several
        sizes."""

    def info(self, count: int, checksum: str, image_size: tuple[int, int]) -> SourceInfo:
        """What is written down of them when all are read."""
        read = (dict(self.skipped), dict(self.converted), self.jpeg, self.class_names)
        return SourceInfo(self.path, count, checksum, image_size, *read)


def open_images(path: str, size: int | None = None) -> ImageSet:
    """The images at `path`: an .npz with `arr_0`, or whatever data.path can be. With `size`, all are cropped
    to squares of this side by the rule of ADM; None takes them as they are, and they must be of one size.

    Raises UserError: nothing there, no images in it, or damaged.
    """
    if size is not None and size < 1:
        raise UserError(f"--size is {size}: give a whole number of at least 1")
    return (ArrayImages if path.lower().endswith(".npz") else SourceImages)(path, size)


class SourceImages(ImageSet):
    """Image files, from any source of training images."""

    def __init__(self, path: str, size: int | None = None) -> None:
        super().__init__(path, size)
        self.source = open_source(DataConfig(path) if size is None else DataConfig(path, size))
        self.class_names = self.source.class_names
        self.indices = [i for i in range(len(self.source)) if self.source.name(i) != SHEET]
        if len(self.indices) < len(self.source):
            if not self.indices:
                raise UserError(f'"{path}" holds a {SHEET} and no other image: give a folder of images')
            self.skipped[SHEET] = "a contact sheet"
        for name in self.source.doubles if isinstance(self.source, ZipSource) else ():
            self.skipped[f"{name} (again)"] = "named twice in the zip; the last is used"
        self._first: tuple[str, tuple[int, int]] | None = None  # name and size of the first image

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
        self.jpeg += sample.image.info.get(FORMAT) == "JPEG"
        image = sample.image if self.size is None else centre_crop(sample.image, self.size)
        self._first = self._first or (name, image.size)
        if image.size != self._first[1]:
            first, (width, height) = self._first
            sizes = f'"{first}" is {width}x{height}, "{name}" {image.width}x{image.height}'
            text = f'"{self.path}" holds images of several sizes: {sizes}'
            raise UserError(f"{text}; give --size N to crop all to N x N")
        return sample._replace(image=image)


class ArrayImages(ImageSet):
    """The `arr_0` of an .npz, as ADM writes samples and references: uint8 [N,H,W,3]; `arr_1` are labels."""

    def __init__(self, path: str, size: int | None = None) -> None:
        super().__init__(path, size)
        self.file = ArrayFile(path)
        if IMAGES not in self.file.names:
            found = ", ".join(self.file.names) or "nothing"
            raise self.file.error(f"it holds no {IMAGES}, where images are expected, but {found}")
        shape, dtype = self.file.header(IMAGES)
        channels = shape[3] if len(shape) == 4 else 1
        if dtype != np.uint8 or len(shape) not in (3, 4) or channels not in (1, 3, 4) or not all(shape):
            raise self.file.error(f"{IMAGES} is {dtype} {list(shape)}; images are expected, uint8 [N,H,W,3]")
        self._count, self._channels = shape[0], channels

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int, start: int = 0) -> Iterator[ImageBatch]:
        labels: Tensor | None = None
        if LABELS in self.file.names:
            given = self.file.read(LABELS)
            if given.shape != (self._count,) or given.dtype.kind not in "iu":
                found = f"{given.dtype} {list(given.shape)}"
                raise self.file.error(f"{LABELS} is {found}; one whole number an image is expected")
            labels = torch.from_numpy(given.astype(np.int64))
        for rows in self.file.rows(IMAGES, size, start):
            numbers = torch.arange(start, start + len(rows))
            images = torch.from_numpy(np.stack([self._rgb(row) for row in rows]))
            yield ImageBatch(images, numbers, None if labels is None else labels[numbers])
            start += len(rows)

    def _rgb(self, row: Array) -> Array:
        """One image of any number of channels as uint8 [H,W,3]."""
        if self._channels == 1:
            self.converted["L"] += 1
            row = row.reshape(*row.shape[:2], 1).repeat(3, axis=2)
        elif self._channels == 4:
            self.converted["RGBA"] += 1
            front = Image.fromarray(row)
            white = Image.new("RGBA", front.size, "white")
            row = np.array(Image.alpha_composite(white, front).convert("RGB"))
        if self.size is not None and row.shape[:2] != (self.size, self.size):
            row = np.array(centre_crop(Image.fromarray(row), self.size))
        return row


def pixel_digest(state: str, images: Tensor) -> str:
    """Checksum of a sequence of images, which begins with those of `state` and goes on with uint8 [B,H,W,3].
    "" is the state of no images; how a sequence is cut into batches makes no difference."""
    for image in images.contiguous().numpy():
        one = hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()
        state = hashlib.sha256(f"{state}{one}".encode()).hexdigest()
    return state
