"""Where generated images are kept: a folder of PNG files, a zip of them, or ADM's .npz."""

from __future__ import annotations

import json
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO

import numpy as np
from torch import Tensor

from pixelwright.data.sources import LABEL_FILE
from pixelwright.files import raw_bytes, replacing, write_text
from pixelwright.images import save_png

DATE = (1980, 1, 1, 0, 0, 0)  # of every member of a zip, so that equal content makes equal files
COPIED = 1 << 22  # bytes copied at a time
ENCODERS = 4  # threads that write PNG files


class Store(ABC):
    """Images on their way to disk. Any number of processes may `write`; one calls `begin` and `finish`."""

    def __init__(self, work: Path, count: int, size: tuple[int, int]) -> None:
        self.work, self.shape = work, (count, *size, 3)

    @property
    @abstractmethod
    def bytes_needed(self) -> int:
        """Room on the disk that is enough for all."""

    @abstractmethod
    def begin(self) -> None:
        """Make the work folder ready for `write`."""

    @abstractmethod
    def write(self, start: int, images: Tensor) -> None:
        """Keep images start … start+b−1, uint8 [b,H,W,3]; they are safe from a kill when it returns."""

    @abstractmethod
    def finish(self, out: Path, labels: Tensor) -> None:
        """Make `out` of all images, in one step. `labels` int64 [N]."""


def store_for(out: Path, work: Path, count: int, size: tuple[int, int]) -> Store:
    """The store for an outcome of this name: .npz, .zip, or else a folder of PNG files."""
    kinds: dict[str, type[Store]] = {".npz": ArrayStore, ".zip": ZipStore}
    return kinds.get(out.suffix.lower(), FolderStore)(work, count, size)


class FolderStore(Store):
    """PNG files by index, and their labels in a dataset.json as EDM2 writes it."""

    @property
    def bytes_needed(self) -> int:
        return int(np.prod(self.shape))  # PNG is smaller, but for noise

    @property
    def images(self) -> Path:
        return self.work / "images"

    def begin(self) -> None:
        self.images.mkdir(parents=True, exist_ok=True)

    def write(self, start: int, images: Tensor) -> None:
        with ThreadPoolExecutor(ENCODERS) as pool:
            names = [self.images / self._name(start + i) for i in range(len(images))]
            list(pool.map(save_png, images, names))

    def finish(self, out: Path, labels: Tensor) -> None:
        write_text(self.images / LABEL_FILE, self._label_file(labels))
        os.replace(self.images, out)

    def _name(self, index: int) -> str:
        return f"{index:06d}.png"

    def _names(self) -> Iterator[str]:
        return map(self._name, range(self.shape[0]))

    def _label_file(self, labels: Tensor) -> str:
        return json.dumps({"labels": list(zip(self._names(), labels.tolist(), strict=True))})


class ZipStore(FolderStore):
    """The same in a zip, stored without further compression."""

    @property
    def bytes_needed(self) -> int:
        return 2 * super().bytes_needed

    def finish(self, out: Path, labels: Tensor) -> None:
        with replacing(out) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            for name in self._names():
                archive.writestr(zipfile.ZipInfo(name, DATE), (self.images / name).read_bytes())
            archive.writestr(zipfile.ZipInfo(LABEL_FILE, DATE), self._label_file(labels))


class ArrayStore(Store):
    """ADM's .npz: until all is there, a file of the size of the array, each batch written at its place.

    Neither writing nor closing it holds more than a batch in memory.
    """

    @property
    def bytes_needed(self) -> int:
        return 2 * int(np.prod(self.shape))

    @property
    def array(self) -> Path:
        return self.work / "arr_0.npy"

    def begin(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        with self.array.open("wb") as file:
            _write_header(file, self.shape, "|u1")
            file.truncate(file.tell() + int(np.prod(self.shape)))

    def write(self, start: int, images: Tensor) -> None:
        total, each = int(np.prod(self.shape)), int(np.prod(self.shape[1:]))
        with self.array.open("r+b") as file:
            header = self.array.stat().st_size - total
            file.seek(header + start * each)
            file.write(raw_bytes(images))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, out: Path, labels: Tensor) -> None:
        with replacing(out) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            member = zipfile.ZipInfo("arr_0.npy", DATE)
            with archive.open(member, "w", force_zip64=True) as target, self.array.open("rb") as source:
                copyfileobj(source, target, COPIED)
            with archive.open(zipfile.ZipInfo("arr_1.npy", DATE), "w") as target:
                np.lib.format.write_array(target, labels.numpy())


def _write_header(file: BinaryIO, shape: tuple[int, ...], descr: str) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
