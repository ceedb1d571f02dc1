"""WebDataset shards with random access: tar files whose members are found through an index made once.

A sample is the members of a shard that share a key (the name up to the first dot of its last part):
`KEY.jpg`, and beside it `KEY.cls` (the class number), `KEY.json` ("label", "class", and captions as
`captions.from_meta` reads them) and `KEY.txt` (one caption, before those of the .json). Where no sample has
a label or a caption, the folders in the names are classes, as in a zip.
"""

import json
import logging
import os
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pixelwright.data import layout
from pixelwright.data.captions import Captions, from_meta, from_text, halves
from pixelwright.data.layout import FOREIGN, HEIF, SUFFIXES, TEXTS, is_hidden, shown, suffix, tidy
from pixelwright.data.sources import StoredImages, identity, open_each
from pixelwright.data.transforms import UnreadableImage
from pixelwright.errors import UserError
from pixelwright.files import LIMIT, cache_folder, digest, parse_json, write_text

INDEX_VERSION = 5
BLOCK = 512  # bytes; a tar is made of such blocks
TEXT_LIMIT = 1 << 24  # bytes of a .json, .txt or .cls
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd")  # how gzip, bzip2, xz and zstd begin
BLANK = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"  # bytes of an empty text, with or without a byte order mark
LINKS = 40  # links on the way from a link to a file
CLASS_KEYS = ("label", "labels", "class", "category")
Span = tuple[int, int]  # first byte and number of bytes
Parts = dict[str, tarfile.TarInfo]  # the members of a shard that share a key, by suffix
logger = logging.getLogger(__name__)


class ShardSource(StoredImages):
    """The images of several tar shards, in the order of the shards and of the samples in them.

    Only the index is held in memory; an image is one seek and one read, so that any process may read any
    sample at any time. Shards that are damaged as tar files are left out and named in `damaged`.

    Raises UserError if no shard is whole, if labels are malformed, or if only some samples have one.
    """

    def __init__(self, shards: Sequence[Path]):
        self.path = shards[0] if len(shards) == 1 else shards[0].parent
        self.files, self.damaged, indices = open_each(shards, read_index, tarfile.TarError)
        pairs = list(zip(self.files, indices, strict=True))
        self._names = [f"{shard.name}/{shown(key)}" for shard, index in pairs for key in index.keys]
        if not self._names:
            raise UserError(f'"{self.path}" holds no images: give shards with .jpg, .png or .webp members')
        self._shard = np.repeat(np.arange(len(indices)), [len(i.keys) for i in indices])  # [n]
        self._images = _spans([i.images for i in indices])  # [n, 2]
        self._texts = _spans([i.captions for i in indices])  # [n, 2], size 0: none
        self._in_json = np.concatenate([np.array(i.in_json, bool) for i in indices])  # [n]
        keys = [key for index in indices for key in index.keys]
        layout.refuse_splits(keys, self.path, lambda part: f'make shards of one alone, such as "{part}"')
        labels, classes = self._read_labels(pairs, keys)
        self.set_labels(np.array(labels, np.int64), classes)  # type: ignore[arg-type]

    def _read_labels(
        self, pairs: Sequence[tuple[Path, "Index"]], keys: Sequence[str]
    ) -> tuple[list[int], tuple[str, ...] | None]:
        """The label of each sample, from its own members or else from its folder, and the class names."""
        values: list[Any] = [label for _, index in pairs for label in index.labels]
        if missing := [i for i, value in enumerate(values) if value is None]:
            if len(missing) < len(values):
                text = f'"{self._names[missing[0]]}" in "{self.path}" has no label while other samples have'
                remedy = "give each a .cls member, or name only the labelled shards"
                raise UserError(f"{text} ({len(missing)} in all): {remedy}")
            if self._texts[:, 1].any():
                return [0] * len(values), None
            root = layout.wrapper(sorted(keys))
            inner = [key.removeprefix(root) for key in keys]
            if len(set(map(layout.top, inner)) - {""}) > 1:
                return layout.folder_classes(inner, self.path)
            if len(pairs) > 1:
                logger.warning('"%s": no sample has a label, so all images are one class', self.path)
            return [0] * len(values), None
        names: dict[int, str] = {}
        for shard, index in pairs:
            for label, name in index.classes.items():
                if names.setdefault(label, name) != name:
                    text = f'class {label} is "{names[label]}" in earlier shards and "{name}" in "{shard}"'
                    raise UserError(f"{text}: give shards of one data set")
        whole = [names.get(i) for i in range(max(names, default=-1) + 1)]
        known = whole if whole and None not in whole and len(whole) > max(map(int, values)) else None
        return layout.number_classes(values, lambda i: f'"{self._names[i]}"', known)  # type: ignore[arg-type]

    def name(self, index: int) -> str:
        return self._names[index]

    def _data(self, index: int) -> bytes:
        return self._read(index, self._images[index])

    def _captions(self, index: int) -> Captions | None:
        if not self._texts[index, 1]:
            return None
        text, name = self._read(index, self._texts[index]), f'"{self._names[index]}"'
        if self._in_json[index]:
            return from_meta(parse_json(text, f"the .json of {name}"), name)
        return from_text(text, f"the .txt of {name}")

    def uncaptioned(self) -> int:
        return int((self._texts[:, 1] == 0).sum())

    def _read(self, index: int, span: np.ndarray) -> bytes:
        offset, size = map(int, span)
        if size > LIMIT:
            raise UnreadableImage(f"too large: {size} bytes")
        try:
            with self.files[self._shard[index]].open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise UnreadableImage(f"{type(error).__name__}: {error}") from error
        if len(data) < size:
            raise UnreadableImage(f"the shard ends {size - len(data)} bytes early")
        return data


def _spans(parts: Sequence[Sequence[Span]]) -> np.ndarray:
    return np.array([span for part in parts for span in part], np.int64).reshape(-1, 2)


# --- the index of a shard ---
class Index(NamedTuple):
    """What a shard holds, a list entry per sample."""

    keys: list[str]
    images: list[Span]
    labels: list[int | str | None]  # numbers or names of classes
    captions: list[Span]  # size 0: none
    in_json: list[bool]  # whether the captions are in a .json rather than a .txt
    classes: dict[int, str]  # names of labels, where the samples tell them
    notes: list[str]  # what was left out, a sentence each


def read_index(shard: Path) -> Index:
    """The index of a shard, from the cache if the file is the one it was made of. What the shard leaves out
    is told in a warning. Raises tarfile.TarError if the shard is damaged, OSError if it cannot be read."""
    kept = cache_folder() / "shards" / f"{digest(INDEX_VERSION, HEIF <= SUFFIXES, *identity(shard))}.json"
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        index = Index(**found)._replace(classes={int(k): name for k, name in found["classes"].items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not there, or not as it should be
        index = _make_index(shard)
        try:
            write_text(kept, json.dumps(index._asdict()))
        except OSError as error:
            logger.warning("the index of %s is not kept: %s", shard, error)
    for note in index.notes:
        logger.warning('"%s": %s', shard, note)
    return index


def _make_index(shard: Path) -> Index:
    index = Index([], [], [], [], [], {}, [])
    with shard.open("rb") as file:
        if file.read(4).startswith(PACKED):
            raise UserError(f'"{shard}" is compressed and cannot be read in place: unpack it')
        members = list(_members(file, index.notes))
        index.notes.extend(layout.unread([name for name, _ in members]))
        samples, again = _samples(members)
        broken = sum(
            _add(index, parts, file, f'sample "{shown(key)}" of "{shard}"', key) for key, parts in samples
        )
    pictures = SUFFIXES | FOREIGN
    if bare := [
        key for key, parts in samples if pictures.isdisjoint(end.rpartition(".")[2] for end in parts)
    ]:
        index.notes.append(f'left out {len(bare)} samples without an image, such as "{shown(bare[0])}"')
    if broken:
        index.notes.append(f"{broken} texts with halves of characters, which are replaced")
    if again:
        text = f'{len(again)} names come again, such as "{shown(again[0])}"'
        index.notes.append(f"{text}: each is taken for another sample")
    beside = [(name, *_split(name)) for name, _ in members if suffix(name) in SUFFIXES]
    if lost := len(beside) - len(index.keys):
        used = set(index.keys)
        odd = next((name for name, key, end in beside if key not in used or end not in SUFFIXES), "")
        text = f'left out {lost} images beside the one of their sample, such as "{shown(odd)}"'
        index.notes.append(text)
    return index


def _samples(members: Sequence[tuple[str, tarfile.TarInfo]]) -> tuple[list[tuple[str, Parts]], list[str]]:
    """Members by key, in the order in which the keys appear; a suffix that comes again begins a new sample.
    And the names that came again.

    Where nothing under a key is an image by all that follows the first dot, as with "img_0.5.png", names are
    split at their last dot.
    """
    plain = {key for key, extension in (_split(name) for name, _ in members) if extension in SUFFIXES}
    samples: list[tuple[str, Parts]] = []
    newest: dict[str, Parts] = {}
    again = []
    for name, member in members:
        key, extension = _split(name)
        if key not in plain and "." in extension:
            key, _, extension = name.rpartition(".")
        if key not in newest or extension.lower() in newest[key]:
            again += [name] if key in newest else []
            newest[key] = {}
            samples.append((key, newest[key]))
        newest[key][extension.lower()] = member
    return samples, again


def _members(file: BinaryIO, notes: list[str]) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files in a tar, or in several that were joined, with tidy names and links resolved. tarfile takes a
    damaged header for the end; what follows the last member tells."""
    start: int | None = 0
    while start is not None:
        file.seek(start)
        every: list[tarfile.TarInfo] = []
        with tarfile.open(fileobj=file, mode="r:") as archive:
            try:
                for member in archive:
                    every.append(member)
            except tarfile.ReadError:  # which may be for want of no more than the padding of the last member
                size = os.fstat(file.fileno()).st_size
                if not every or every[-1].offset_data + every[-1].size > size:
                    raise
        end, found = start, {tidy(member.name): member for member in every}
        for member in every:
            if member.issparse():
                raise tarfile.ReadError(f'"{member.name}" is sparse: pack it anew without holes')
            end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
            target, name = _target(member, found), tidy(member.name)
            if is_hidden(name) or member.isdir():
                continue
            if target is not None and target.isreg():
                yield name, target
            else:
                notes.append(f'left out "{shown(name)}", a link to nowhere or no file')
        start = _further(file, end, notes)


def _target(member: tarfile.TarInfo, found: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The member itself, or what a link leads to in the end."""
    target: tarfile.TarInfo | None = member
    for _ in range(LINKS):
        if target is None or not (target.islnk() or target.issym()):
            return target
        folder = posixpath.dirname(target.name) if target.issym() else ""
        target = found.get(tidy(posixpath.join(folder, target.linkname)))
    return None


def _further(file: BinaryIO, end: int, notes: list[str]) -> int | None:
    """Where another tar begins behind the end of one, None if there is none."""
    file.seek(end)
    if any(file.read(BLOCK)):
        raise tarfile.ReadError(f"bad header at byte {end}")
    at = end + BLOCK
    while block := file.read(BLOCK):
        if any(block):
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                return at
            except tarfile.HeaderError:
                notes.append(f"what follows byte {at}, behind its end, is no tar: left out")
                return None
        at += BLOCK
    return None


def _split(name: str) -> tuple[str, str]:
    """ "a/000.seg.png" -> ("a/000", "seg.png"), the rule of WebDataset."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    image, _, last = extension.lower().rpartition(".")
    beside = image in SUFFIXES and last in (*TEXTS, "json", "cls")  # "0.png.txt" is beside "0.png"
    return folder + slash + stem, last if beside else extension.lower()


def _add(index: Index, parts: Parts, file: BinaryIO, place: str, key: str) -> int:
    """Add a sample to the index; returns how many of its texts are damaged."""
    images = [extension for extension in parts if extension in SUFFIXES]
    if not images:
        return 0
    if len(images) > 1:
        raise UserError(f"{place} has {len(images)} images ({', '.join(images)}): keep one of them")
    meta = (
        parse_json(_content(file, parts["json"], place), f"the .json of {place}") if "json" in parts else {}
    )
    meta = meta if isinstance(meta, dict) else {}
    label = _label(_content(file, parts["cls"], place) if "cls" in parts else None, meta, place)
    if isinstance(label, int) and isinstance(meta.get("class"), str):
        index.classes.setdefault(label, meta["class"])
    in_json, beside = from_meta(meta, place) is not None, [parts[end] for end in TEXTS if end in parts]
    if in_json and beside:  # which comes first, unless it is empty
        in_json = not _content(file, beside[-1], place).strip(BLANK)
    text = parts["json"] if in_json else beside[-1] if beside else None
    index.keys.append(key)
    index.images.append((parts[images[0]].offset_data, parts[images[0]].size))
    index.labels.append(label)
    index.in_json.append(in_json)
    index.captions.append((0, 0) if text is None else (text.offset_data, text.size))
    return halves(meta) if in_json else 0


def _content(file: BinaryIO, member: tarfile.TarInfo, place: str) -> bytes:
    if member.size > TEXT_LIMIT:
        raise UserError(f"{place}: {member.name} has {member.size} bytes, more than any label or caption")
    file.seek(member.offset_data)
    return file.read(member.size)


def _label(text: bytes | None, meta: dict[str, Any], place: str) -> int | str | None:
    """The label of a sample: a number, or the name of its class from the .json; None if it has none."""
    value: object = next((meta[key] for key in CLASS_KEYS if meta.get(key) is not None), None)
    if text is not None:
        word = text.strip(BLANK).decode("utf-8", "replace")
        value = int(word) if word.isascii() and word.isdigit() else word
    good = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value is None or good or (isinstance(value, str) and value and text is None):
        return value  # type: ignore[return-value]
    raise UserError(f"{place} has the label {value!r}: labels are whole numbers from 0")
