"""Reading .npz files without unpickling anything and without loading large arrays whole."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pixelwright.errors import UserError

Array = np.ndarray
SUFFIX = ".npy"
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, RuntimeError, OSError)
"""What a broken file raises while it is read."""


class Header(NamedTuple):
    """What an array in a file is, before its values are read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class ArrayFile:
    """The arrays of an .npz.

    Raises:
        UserError: no such file, not a zip of arrays, a damaged one, or arrays of Python objects, which only
            unpickling could read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise UserError(
                f'"{path}" {"is a folder" if self.path.is_dir() else "does not exist"}: give an .npz'
            )
        with self._reading("the list of arrays"), zipfile.ZipFile(self.path) as archive:
            self.names = tuple(
                name.removesuffix(SUFFIX) for name in archive.namelist() if name.endswith(SUFFIX)
            )
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise UserError(f'"{path}" holds the array "{twice}" twice: write it anew')

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except DAMAGE as error:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise UserError(
                f'"{self.path}" is damaged or no .npz ({what}: {reason}): fetch or make it anew'
            ) from None

    def header(self, name: str) -> Header:
        """Shape and dtype of an array."""
        with self._reading(name), zipfile.ZipFile(self.path) as archive, archive.open(name + SUFFIX) as file:
            return _read_header(file, name, self.path)

    def read(self, name: str) -> Array:
        """A whole array."""
        with self._reading(name), zipfile.ZipFile(self.path) as archive:
            data = io.BytesIO(archive.read(name + SUFFIX))
            return np.lib.format.read_array(data, allow_pickle=False)

    def rows(self, name: str, size: int, start: int = 0) -> Iterator[Array]:
        """An array in pieces of up to `size` rows, from row `start` on, in order; one piece is in memory.

        Reading to the end also checks the file's own checksum of the array, if it begins at row 0.
        """
        with self._reading(name), zipfile.ZipFile(self.path) as archive, archive.open(name + SUFFIX) as file:
            shape, dtype = _read_header(file, name, self.path)
            width = int(np.prod(shape[1:])) * dtype.itemsize
            if start:
                file.seek(start * width, io.SEEK_CUR)
            for first in range(start, shape[0], size):
                count = min(size, shape[0] - first)
                data = file.read(count * width)
                if len(data) < count * width:
                    raise EOFError(f"row {first + len(data) // width} of {shape[0]} is missing")
                yield np.frombuffer(data, dtype).reshape(count, *shape[1:])
            if file.read(1):
                raise ValueError("there is more in it than its header says")


def _read_header(file: Any, name: str, path: Path) -> Header:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise UserError(
            f'"{path}": "{name}" holds Python objects, which could run code when read: save plain arrays'
        )
    if fortran and len(shape) > 1:
        raise UserError(f'"{path}": "{name}" is in column order: save it with numpy.ascontiguousarray')
    return Header(shape, dtype)
