"""WebDataset shards with random access: tar files whose members are found through an index made once.

A sample is the members of a shard that share a key (the name up to the first dot of its last part):
`KEY.jpg`, and beside it `KEY.cls` (the class number), `KEY.json` ("label", "class", and captions as
`captions.from_meta` reads them) and `KEY.txt` (one caption, before those of the .json). Where no sample has
a label or a caption, the folders in the names are classes, as in a zip.
"""

import json
import logging
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from pixelwright.data import layout
from pixelwright.data.captions import from_meta, from_text
from pixelwright.data.layout import SUFFIXES, image_names, is_hidden, shown, suffix, tidy
from pixelwright.data.sources import Sample
from pixelwright.data.transforms import UnreadableImage, read_image, read_size
from pixelwright.errors import UserError
from pixelwright.files import LIMIT, cache_folder, digest, parse_json, write_text

INDEX_VERSION = 3
BLOCK = 512  # bytes; a tar is made of such blocks
TEXT_LIMIT = 1 << 24  # bytes of a .json, .txt or .cls
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd")  # how gzip, bzip2, xz and zstd begin
Span = tuple[int, int]  # first byte and number of bytes
Parts = dict[str, tarfile.TarInfo]  # the members of a shard that share a key, by suffix
Content = TypeVar("Content")
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
        pairs = list(zip(self.files, indices, strict=True))
        self._names = [f"{shard.name}/{shown(key)}" for shard, index in pairs for key in index.keys]
        if not self._names:
            raise UserError(f'"{self.path}" holds no images: give shards with .jpg, .png or .webp members')
        self._shard = np.repeat(np.arange(len(indices)), [len(i.keys) for i in indices])  # [n]
        self._images = _spans([i.images for i in indices])  # [n, 2]
        self._captions = _spans([i.captions for i in indices])  # [n, 2], size 0: none
        self._in_json = np.concatenate([np.array(i.in_json, bool) for i in indices])  # [n]
        labels = np.concatenate([np.array(i.labels, np.int64) for i in indices])  # [n], -1: none
        missing = np.flatnonzero(labels < 0)
        if 0 < len(missing) < len(labels):
            text = f'"{self._names[missing[0]]}" in "{self.path}" has no label while other samples have'
            remedy = "give each a .cls member, or name only the labelled shards"
            raise UserError(f"{text} ({len(missing)} in all): {remedy}")
        self._labels, classes = np.maximum(labels, 0), _join_classes(pairs)
        keys = [key for index in indices for key in index.keys]
        layout.refuse_splits(keys, self.path, lambda part: f'make shards of one alone, such as "{part}"')
        if (labels < 0).all() and not self._captions[:, 1].any():  # then folders side by side are classes
            root = layout.wrapper(sorted(keys))
            inner = [key.removeprefix(root) for key in keys]
            if len({key.partition("/")[0] for key in inner if "/" in key}) > 1:
                numbers, classes = layout.folder_classes(inner, self.path)
                self._labels = np.array(numbers, np.int64)
        count = int(self._labels.max()) + 1
        self.num_classes = max(count, len(classes or ()))
        self.class_names = classes if classes and len(classes) >= count else None

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def __getitem__(self, index: int) -> Sample:
        image, text = self._members(index, self._images, self._captions)
        name, label = self._names[index], int(self._labels[index])
        if self._in_json[index]:
            captions = from_meta(parse_json(text, f'the .json of "{name}"'), f'"{name}"')
        else:
            captions = from_text(text, f'the .txt of "{name}"')
        return Sample(read_image(image), label, captions and captions.texts[0], name, captions)

    def dimensions(self, index: int) -> tuple[int, int]:
        """(width, height) of an image, without decoding it; raises UnreadableImage."""
        return read_size(self._members(index, self._images)[0])

    def _members(self, index: int, *spans: np.ndarray) -> list[bytes]:
        try:
            with self.files[self._shard[index]].open("rb") as file:
                return [_read(file, span[index]) for span in spans]
        except OSError as error:
            raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _join_classes(pairs: Sequence[tuple[Path, "Index"]]) -> tuple[str, ...] | None:
    names: dict[int, str] = {}
    for shard, index in pairs:
        for label, name in index.classes.items():
            if names.setdefault(label, name) != name:
                text = f'class {label} is "{names[label]}" in earlier shards and "{name}" in "{shard}"'
                raise UserError(f"{text}: give shards of one data set")
    return tuple(names[i] for i in range(len(names))) if names.keys() == set(range(len(names))) else None


def _spans(parts: Sequence[Sequence[Span]]) -> np.ndarray:
    return np.array([span for part in parts for span in part], np.int64).reshape(-1, 2)


def _read(file: BinaryIO, span: np.ndarray) -> bytes:
    offset, size = map(int, span)
    if size > LIMIT:
        raise UnreadableImage(f"too large: {size} bytes")
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise UnreadableImage(f"the shard ends {size - len(data)} bytes early")
    return data


def open_each(
    files: Sequence[Path], read: Callable[[Path], Content], damage: type[Exception]
) -> tuple[list[Path], dict[str, str], list[Content]]:
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


def identity(file: Path) -> tuple[str, int, int, int, int]:
    """What changes whenever a file does: also if another of the same size and time takes its place."""
    state = file.stat()
    return str(file.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


# --- the index of a shard ---
class Index(NamedTuple):
    """What a shard holds, a list entry per sample."""

    keys: list[str]
    images: list[Span]
    labels: list[int]  # -1: none
    captions: list[Span]  # size 0: none
    in_json: list[bool]  # whether the captions are in a .json rather than a .txt
    classes: dict[int, str]  # names of labels, where the samples tell them


def read_index(shard: Path) -> Index:
    """The index of a shard, from the cache if the file is the one it was made of. Raises tarfile.TarError if
    the shard is damaged, OSError if it cannot be read."""
    kept = cache_folder() / "shards" / f"{digest(INDEX_VERSION, *identity(shard))}.json"
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        found["classes"] = {int(label): name for label, name in found["classes"].items()}
        return Index(**found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # not there, or not as it should be: made anew
    index = _make_index(shard)
    try:
        write_text(kept, json.dumps(index._asdict()))
    except OSError as error:
        logger.warning("the index of %s is not kept: %s", shard, error)
    return index


def _make_index(shard: Path) -> Index:
    index = Index([], [], [], [], [], {})
    with shard.open("rb") as file:
        if file.read(4).startswith(PACKED):
            raise UserError(f'"{shard}" is compressed and cannot be read in place: unpack it')
        members = list(_members(file, shard))
        image_names((name for name, _ in members), shard)  # which tells of kinds that are not read
        beside = [name for name, _ in members if suffix(name) in SUFFIXES]
        for key, parts in _samples(members):
            _add(index, parts, file, f'sample "{shown(key)}" of "{shard}"', key)
    if lost := len(beside) - len(index.keys):
        used = {f"{key}." for key in index.keys}
        odd = next((n for n in beside if _split(n)[0] + "." not in used or _split(n)[1] not in SUFFIXES), "")
        text = '"%s": left out %d images beside the one of their sample, such as "%s"'
        logger.warning(text, shard, lost, shown(odd))
    return index


def _samples(members: Sequence[tuple[str, tarfile.TarInfo]]) -> list[tuple[str, Parts]]:
    """Members by key, in the order in which the keys appear; a suffix that comes again begins a new sample.

    Where nothing under a key is an image by all that follows the first dot, as with "img_0.5.png", names are
    split at their last dot.
    """
    plain = {key for key, extension in (_split(name) for name, _ in members) if extension in SUFFIXES}
    samples: list[tuple[str, Parts]] = []
    newest: dict[str, Parts] = {}
    for name, member in members:
        key, extension = _split(name)
        if key not in plain and "." in extension:
            key, _, extension = name.rpartition(".")
        if key not in newest or extension.lower() in newest[key]:
            newest[key] = {}
            samples.append((key, newest[key]))
        newest[key][extension.lower()] = member
    return samples


def _members(file: BinaryIO, shard: Path) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files in a tar, or in several that were joined, with tidy names and links resolved. tarfile takes a
    damaged header for the end; what follows the last member tells."""
    start: int | None = 0
    while start is not None:
        end = start
        seen: dict[str, tarfile.TarInfo] = {}
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.issparse():
                    raise tarfile.ReadError(f'"{member.name}" is sparse: pack it anew without holes')
                end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
                found: tarfile.TarInfo | None = member
                if member.islnk() or member.issym():
                    inside = posixpath.dirname(member.name) if member.issym() else ""
                    found = seen.get(tidy(posixpath.normpath(posixpath.join(inside, member.linkname))))
                    if found is None:
                        logger.warning('"%s": left out "%s", a link to nowhere', shard, shown(member.name))
                name = tidy(member.name)
                if found is not None and found.isreg() and not is_hidden(name):
                    seen[name] = found
                    yield name, found
        start = _further(file, end, shard)


def _further(file: BinaryIO, end: int, shard: Path) -> int | None:
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
                logger.warning('"%s": what follows byte %d, behind its end, is no tar: left out', shard, at)
                return None
        at += BLOCK
    return None


def _split(name: str) -> tuple[str, str]:
    """ "a/000.seg.png" -> ("a/000", "seg.png"), the rule of WebDataset."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _add(index: Index, parts: Parts, file: BinaryIO, place: str, key: str) -> None:
    images = [extension for extension in parts if extension in SUFFIXES]
    if not images:
        return
    if len(images) > 1:
        raise UserError(f"{place} has {len(images)} images ({', '.join(images)}): keep one of them")
    meta_text = _content(file, parts["json"], place) if "json" in parts else b"{}"
    meta = parse_json(meta_text, f"the .json of {place}")
    meta = meta if isinstance(meta, dict) else {}
    label = _label(_content(file, parts["cls"], place) if "cls" in parts else None, meta, place)
    if label >= 0 and isinstance(meta.get("class"), str):
        index.classes.setdefault(label, meta["class"])
    in_json = from_meta(meta, place) is not None
    if in_json and "txt" in parts:  # which comes first, unless it is empty
        in_json = not _content(file, parts["txt"], place).strip()
    text = parts.get("json" if in_json else "txt")
    index.keys.append(key)
    index.images.append((parts[images[0]].offset_data, parts[images[0]].size))
    index.labels.append(label)
    index.in_json.append(in_json)
    index.captions.append((0, 0) if text is None else (text.offset_data, text.size))


def _content(file: BinaryIO, member: tarfile.TarInfo, place: str) -> bytes:
    if member.size > TEXT_LIMIT:
        raise UserError(f"{place}: {member.name} has {member.size} bytes, more than any label or caption")
    file.seek(member.offset_data)
    return file.read(member.size)


def _label(text: bytes | None, meta: dict[str, Any], place: str) -> int:
    """The label of a sample, -1 if it has none."""
    value: object = meta.get("label")
    if text is not None:
        word = text.decode("utf-8-sig", "replace").strip()
        value = int(word) if word.isascii() and word.isdigit() else word
    if value is None:
        return -1
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"{place} has the label {value!r}: labels are whole numbers from 0")
    return value
