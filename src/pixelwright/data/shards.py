"""WebDataset shards with random access: tar files whose members are found through an index made once.

A sample is the run of neighbouring members that share a key (the name up to the first dot of its last part):
`KEY.jpg`, and beside it `KEY.cls` (the class number), `KEY.json` ("label", "class", and captions as
`captions.from_meta` reads them) and `KEY.txt` (one caption, before those of the .json).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pixelwright.data.captions import Captions, from_meta, from_text
from pixelwright.data.sources import MEMBER_LIMIT, SUFFIXES, Sample
from pixelwright.data.transforms import UnreadableImage, read_image, read_size
from pixelwright.errors import UserError
from pixelwright.files import cache_folder

INDEX_VERSION = 2
BLOCK = 512  # bytes; a tar is made of such blocks
Span = tuple[int, int]  # first byte and number of bytes
logger = logging.getLogger(__name__)


class ShardSource:
    """The images of several tar shards, in the order of the shards and of the samples in them.

    Only the index is held in memory; an image is one seek and one read, so that any process may read any
    sample at any time. Shards that are damaged as tar files are left out and named in `damaged`.

    Raises UserError if no shard is whole, if labels are malformed, or if only some samples have one.
    """

    def __init__(self, shards: Sequence[Path]):
        self.path = shards[0] if len(shards) == 1 else shards[0].parent
        self.files, self.damaged, indices = open_each(shards, read_index, tarfile.TarError)
        self._names = [
            f"{shard.name}/{key}" for shard, i in zip(self.files, indices, strict=True) for key in i.keys
        ]
        if not self._names:
            raise UserError(f'"{self.path}" holds no images: give shards with .jpg, .png or .webp members')
        self._shard = np.repeat(np.arange(len(indices)), [len(i.keys) for i in indices])  # [n]
        self._images = _spans([i.images for i in indices])  # [n, 2]
        self._captions = _spans([i.captions for i in indices])  # [n, 2], size 0: none
        self._in_json = np.concatenate([np.array(i.in_json, bool) for i in indices])  # [n]
        self._labels = self._join_labels(np.concatenate([np.array(i.labels, np.int64) for i in indices]))
        self._classes = self._join_classes(indices)

    def _join_labels(self, labels: np.ndarray) -> np.ndarray:
        missing = np.flatnonzero(labels < 0)
        if len(missing) == len(labels):
            return np.zeros_like(labels)
        if len(missing):
            name = self._names[missing[0]]
            raise UserError(
                f'"{name}" in "{self.path}" has no label while other samples have ({len(missing)} in all): '
                "give each a .cls member, or name only the labelled shards"
            )
        return labels

    def _join_classes(self, indices: Sequence[Index]) -> tuple[str, ...] | None:
        names: dict[int, str] = {}
        for shard, index in zip(self.files, indices, strict=True):
            for label, name in index.classes.items():
                if names.setdefault(label, name) != name:
                    raise UserError(
                        f'class {label} is "{names[label]}" in earlier shards and "{name}" in "{shard}": '
                        "give shards of one data set"
                    )
        return tuple(names[i] for i in range(len(names))) if names.keys() == set(range(len(names))) else None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        count = int(self._labels.max()) + 1
        return self._classes if self._classes and len(self._classes) >= count else None

    @property
    def num_classes(self) -> int:
        return max(int(self._labels.max()) + 1, len(self._classes or ()))

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def __getitem__(self, index: int) -> Sample:
        image, caption = self._members(index, self._images, self._captions)
        said, name = self._said(index, caption.decode("utf-8", "replace")), self._names[index]
        return Sample(read_image(image), int(self._labels[index]), said and said.texts[0], name, said)

    def dimensions(self, index: int) -> tuple[int, int]:
        """(width, height) of an image, without decoding it; raises UnreadableImage."""
        return read_size(self._members(index, self._images)[0])

    def _members(self, index: int, *spans: np.ndarray) -> list[bytes]:
        try:
            with self.files[self._shard[index]].open("rb") as file:
                return [_read(file, span[index]) for span in spans]
        except OSError as error:
            raise UnreadableImage(f"{type(error).__name__}: {error}") from error

    def _said(self, index: int, text: str) -> Captions | None:
        if not self._in_json[index]:
            return from_text(text)
        return from_meta(json.loads(text), f'"{self._names[index]}"')


def _spans(parts: Sequence[Sequence[Span]]) -> np.ndarray:
    return np.array([span for part in parts for span in part], np.int64).reshape(-1, 2)


def _read(file: Any, span: np.ndarray) -> bytes:
    offset, size = map(int, span)
    if size > MEMBER_LIMIT:
        raise UnreadableImage(f"too large: {size} bytes")
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise UnreadableImage(f"the shard ends {size - len(data)} bytes early")
    return data


def open_each(
    files: Sequence[Path], read: Any, damage: type[Exception]
) -> tuple[list[Path], dict[str, str], list[Any]]:
    """The whole ones among `files`, the reasons against the others by name, and what `read` made of each.

    Only `damage` in the content makes a file "damaged". One that cannot be read at all (no permission, a disk
    that fails) is an error: processes that saw different files would train on different data.
    """
    whole, damaged, contents = [], {}, []
    for file in files:
        try:
            contents.append(read(file))
        except damage as error:
            damaged[str(file)] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            continue
        except OSError as error:
            raise UserError(f'"{file}" cannot be read ({error.strerror or error}): mend it') from error
        whole.append(file)
    if not whole:
        name, reason = next(iter(damaged.items()))
        raise UserError(f'"{name}" is damaged ({reason}), as are all {len(files)} files: fetch them anew')
    return whole, damaged, contents


# ---------------------------------------------------------------- the index of a shard


class Index(NamedTuple):
    """What a shard holds, a list entry per sample."""

    keys: list[str]
    images: list[Span]
    labels: list[int]  # -1: none
    captions: list[Span]  # size 0: none
    in_json: list[bool]  # whether the captions are in a .json rather than a .txt
    classes: dict[int, str]  # names of labels, where the samples tell them


def read_index(shard: Path) -> Index:
    """The index of a shard, from the cache if the file is the one it was made of.

    Raises tarfile.TarError if the shard is damaged, OSError if it cannot be read.
    """
    state = shard.stat()
    identity = [INDEX_VERSION, str(shard.resolve()), state.st_size, state.st_mtime_ns]
    digest = hashlib.blake2b(json.dumps(identity).encode(), digest_size=16).hexdigest()
    kept = cache_folder() / "shards" / f"{digest}.json"
    try:
        found = json.loads(kept.read_text())
        found["classes"] = {int(label): name for label, name in found["classes"].items()}
        return Index(**found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # not there, or not as it should be: made anew
    index = _make_index(shard)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(index._asdict()))
        os.replace(part, kept)
    except OSError as error:
        logger.warning("the index of %s is not kept: %s", shard, error)
    return index


def _make_index(shard: Path) -> Index:
    index = Index([], [], [], [], [], {})
    with tarfile.open(shard, "r:") as archive:
        for key, members in groupby(_members(archive, shard), key=lambda member: _split(member.name)[0]):
            _add(index, key, {_split(m.name)[1]: m for m in members}, archive, shard)
    return index


def _members(archive: tarfile.TarFile, shard: Path) -> Iterator[tarfile.TarInfo]:
    """The files in a tar. tarfile takes a damaged header for the end; what follows the last member tells."""
    end = 0
    for member in archive:
        end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
        if member.isreg() and not any(part.startswith(".") for part in member.name.split("/")):
            yield member
    with shard.open("rb") as file:
        file.seek(end)
        if any(file.read(BLOCK)):
            raise tarfile.ReadError(f"bad header at byte {end}")


def _split(name: str) -> tuple[str, str]:
    """ "a/000.seg.png" -> ("a/000", "seg.png"), the rule of WebDataset."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _add(
    index: Index, key: str, parts: dict[str, tarfile.TarInfo], archive: tarfile.TarFile, shard: Path
) -> None:
    images = [extension for extension in parts if extension in SUFFIXES]
    if not images:
        return
    place = f'sample "{key}" of "{shard}"'
    if len(images) > 1:
        raise UserError(f"{place} has {len(images)} images ({', '.join(images)}): keep one of them")
    meta = _meta(archive, parts, place)
    label = _label(archive, parts, meta, place)
    if label >= 0 and isinstance(meta.get("class"), str):
        index.classes.setdefault(label, meta["class"])
    index.keys.append(key)
    index.images.append(_span(parts[images[0]]))
    index.labels.append(label)
    in_json = "txt" not in parts and from_meta(meta, place) is not None
    index.in_json.append(in_json)
    text = parts.get("json" if in_json else "txt")
    index.captions.append((0, 0) if text is None else _span(text))


def _span(member: tarfile.TarInfo) -> Span:
    return member.offset_data, member.size


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # a regular file
    return file.read()


def _meta(archive: tarfile.TarFile, parts: dict[str, tarfile.TarInfo], place: str) -> dict[str, Any]:
    if "json" not in parts:
        return {}
    try:
        meta = json.loads(_content(archive, parts["json"]))
    except ValueError as error:
        raise UserError(f"the .json of {place} is malformed ({error}): mend or remove it") from error
    return meta if isinstance(meta, dict) else {}


def _label(
    archive: tarfile.TarFile, parts: dict[str, tarfile.TarInfo], meta: dict[str, Any], place: str
) -> int:
    value: object = meta.get("label")
    if "cls" in parts:
        text = _content(archive, parts["cls"]).decode("utf-8", "replace").strip()
        value = int(text) if text.isascii() and text.isdigit() else text
    if value is None:
        return -1
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"{place} has the label {value!r}: labels are whole numbers from 0")
    return value
