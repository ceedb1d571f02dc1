"""Hugging Face image sets: parquet files with a column of images, as ImageNet is distributed."""

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from pixelwright.data.captions import KEYS, Captions, from_meta
from pixelwright.data.layout import number_classes
from pixelwright.data.sources import StoredImages, open_each
from pixelwright.data.transforms import UnreadableImage
from pixelwright.errors import UserError

IMAGE_COLUMNS = ("image", "img", "jpg", "png")
LABEL_COLUMNS = ("labels", "class", "category")
SCALARS = ("int", "uint", "string", "large_string", "dictionary<")
KEPT_GROUPS = 2  # row groups each process keeps decoded
logger = logging.getLogger(__name__)


class ParquetSource(StoredImages):
    """The rows of several parquet files, in order.

    The image column is that of type Image in the schema's Hugging Face metadata, else `image` or `img`: a
    struct of `bytes` and `path`, or plain bytes. The label is the column `label`, else the only one of type
    ClassLabel, else `labels`, `class` or `category`: whole numbers, which ClassLabel gives names, or names. A
    read fetches the row group of the sample, which is a hundred images in most published sets: `pixelwright
    data prepare` makes shards for fast shuffled reading.

    Raises UserError if pyarrow is missing, no file is whole, or columns cannot be told.
    """

    def __init__(self, files: Sequence[Path]):
        try:
            parquet, invalid = import_module("pyarrow.parquet"), import_module("pyarrow").ArrowInvalid
        except ImportError as error:
            raise UserError('parquet files need pyarrow: pip install "pixelwright[data]"') from error
        self.path = files[0] if len(files) == 1 else files[0].parent
        self.files, self.damaged, opened = open_each(files, parquet.ParquetFile, invalid)
        schema = opened[0].schema_arrow
        for file, other in zip(self.files, opened, strict=True):
            if set(other.schema_arrow.names) != set(schema.names):
                columns = f'{_list(other.schema_arrow.names)} and "{self.files[0]}" {_list(schema.names)}'
                raise UserError(f'"{file}" has the columns {columns}: give the files of one set')
        features = _features(schema.metadata)
        self._image = self._image_column(schema, features)
        label = self._label_column(schema, features)
        self._text = [name for name in (*KEYS, "weights") if name in schema.names and name != label]
        sizes = [[f.metadata.row_group(g).num_rows for g in range(f.metadata.num_row_groups)] for f in opened]
        self._groups = [(file, g) for file, rows in enumerate(sizes) for g in range(len(rows))]
        self._starts = np.cumsum([0, *(n for rows in sizes for n in rows)])  # first row of each group; end
        self._first_rows = np.cumsum([0, *map(sum, sizes)])  # of each file
        if not self._starts[-1]:
            raise UserError(f'"{self.path}" holds no rows: give parquet files with images')
        self.set_labels(*self._read_labels(opened, label))
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._handles: dict[tuple[int, int], Any] = {}
        for file in opened:
            file.close()

    def _image_column(self, schema: Any, features: dict[str, Any]) -> str:
        found = [name for name, f in features.items() if f.get("_type") == "Image" and name in schema.names]
        found = found or [name for name in IMAGE_COLUMNS if name in schema.names]
        if not found or (len(found) > 1 and "image" not in found):
            many = "several" if found else "none"
            text = f'"{self.path}" has the columns {_list(schema.names)} and {many} of images'
            raise UserError(f'{text}: name one "image"')
        return "image" if "image" in found else found[0]

    def _label_column(self, schema: Any, features: dict[str, Any]) -> str | None:
        if "label" in schema.names:
            return "label"
        typed = [name for name, f in features.items() if f.get("_type") == "ClassLabel"]
        named = [name for name in LABEL_COLUMNS if name in schema.names and _is(schema, name, SCALARS)]
        found = typed or named
        if len(found) > 1:
            raise UserError(f'"{self.path}" has the label columns {_list(found)}: name one of them "label"')
        others = [name for name in schema.names if name not in KEYS and _is(schema, name, SCALARS)]
        if not found and others:
            text = '"%s" has no column of labels (%s), so all images are one class; its columns: %s'
            logger.warning(text, self.path, ", ".join(("label", *LABEL_COLUMNS)), _list(schema.names))
        return found[0] if found else None

    def _read_labels(
        self, opened: Sequence[Any], column: str | None
    ) -> tuple[Sequence[int], tuple[str, ...] | None]:
        """Labels [n] and class names. Files may number their classes in different orders: names tell."""
        if column is None:
            return [0] * int(self._starts[-1]), None
        named = [_features(file.schema_arrow.metadata).get(column, {}).get("names") for file in opened]
        if any(named) and not all(named):
            bare, other = self.files[named.index(None)], self.files[[bool(n) for n in named].index(True)]
            raise UserError(
                f'"{bare}" does not name its classes, as "{other}" does: give the files of one set'
            )
        rows: list[object] = []
        names: dict[str, int] = {}
        for number, file in enumerate(opened):
            try:
                values = file.read([column], use_threads=False)[column].to_pylist()
            except UnicodeDecodeError as error:
                raise UserError(
                    f'"{self.files[number]}" has a {column} that is not UTF-8: mend it'
                ) from error
            if own := named[number]:
                first = int(self._first_rows[number])
                values, classes = number_classes(values, partial(self._row, first), own)
                joined = [names.setdefault(name, len(names)) for name in classes or ()]
                values = [joined[value] for value in values]
            rows += values
        return number_classes(rows, partial(self._row, 0), tuple(names))

    def _row(self, first: int, row: int) -> str:
        return f'"{self.name(first + row)}"'

    def _place(self, index: int) -> tuple[int, int]:
        """The row group of a sample and the row in it."""
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return group, index - int(self._starts[group])

    def name(self, index: int) -> str:
        file = self._groups[self._place(index)[0]][0]
        return f"{self.files[file].name}#{index - self._first_rows[file]}"

    def _data(self, index: int) -> bytes:
        group, row = self._place(index)
        cell = self._group(group)[self._image][row].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise UnreadableImage("the row holds no image bytes")
        return data

    def _captions(self, index: int) -> Captions | None:
        group, row = self._place(index)
        return self._caption([self._group(group)[c][row] for c in self._text], f'"{self.name(index)}"')

    def _caption(self, cells: Sequence[Any], name: str) -> Captions | None:
        try:
            return from_meta({c: cell.as_py() for c, cell in zip(self._text, cells, strict=True)}, name)
        except UnicodeDecodeError as error:
            raise UserError(f"a text of {name} is not UTF-8: save it as UTF-8") from error

    def uncaptioned(self) -> int:
        captioned = 0
        for number in range(len(self.files) if self._text else 0):
            table = self._open(number).read(self._text, use_threads=False)
            for cells in zip(*map(table.column, self._text), strict=True):
                with suppress(UserError):
                    captioned += self._caption(cells, "a row") is not None
        return len(self) - captioned

    def _group(self, group: int) -> Any:
        if group not in self._kept:
            (number, inner), columns = self._groups[group], [self._image, *self._text]
            try:
                table = self._open(number).read_row_group(inner, columns, use_threads=False)
            except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
                raise UnreadableImage(f"row group {inner}: {' '.join(str(error).split())}") from error
            self._kept[group] = table
            if len(self._kept) > KEPT_GROUPS:
                self._kept.popitem(last=False)
        return self._kept[group]

    def _open(self, number: int) -> Any:
        """The file, opened by this very process: a forked worker must not share its parent's position."""
        key = os.getpid(), number
        if key not in self._handles:
            if len(self._handles) >= 64:  # of hundreds of files, few handles are open
                self._handles.clear()
            self._handles[key] = import_module("pyarrow.parquet").ParquetFile(self.files[number])
        return self._handles[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}, "_kept": OrderedDict()}


def _is(schema: Any, column: str, kinds: tuple[str, ...]) -> bool:
    return str(schema.field(column).type).startswith(kinds)


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """The Hugging Face description of the columns, {} where there is none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: f if isinstance(f, dict) else {} for name, f in features.items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _list(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names) or "(none)"
