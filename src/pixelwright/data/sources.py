"""Where images come from: what a source is, and the two plain ones, a folder and a zip."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from pixelwright.data.captions import Captions, from_text, read_folder
from pixelwright.data.transforms import UnreadableImage, read_image, read_size
from pixelwright.errors import UserError

LABEL_FILE = "dataset.json"
KINDS = "avif bmp gif jfif jp2 jpeg jpg pbm pgm png pnm ppm qoi tga tif tiff webp"
SUFFIXES = frozenset(KINDS.split())
MEMBER_LIMIT = 1 << 30  # bytes; a zip member that claims more is not a picture


class Sample(NamedTuple):
    """One image with what is known about it."""

    image: Image.Image
    """RGB, of any size."""
    label: int
    """Class, 0 .. num_classes - 1."""
    caption: str | None
    """A sentence about the image, where there is one."""
    name: str
    """What messages call the image."""
    captions: Captions | None = None
    """All sentences about the image, with weights, from sources that may hold several."""

    @property
    def said(self) -> Captions | None:
        """All that is said of the image."""
        return self.captions or (from_text(self.caption) if self.caption else None)


class Source(Protocol):
    """A numbered set of labelled images, always in the same order.

    `source[i]` raises UnreadableImage for an image that is damaged; opening a source raises UserError.
    """

    @property
    def class_names(self) -> tuple[str, ...] | None: ...

    @property
    def num_classes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def name(self, index: int) -> str:
        """What messages call image `index`, readable or not."""
        ...


class _Files(ABC):
    """Named image files with labels; folders and zips differ only in how a file is listed and read."""

    def __init__(self, path: Path, names: Sequence[str], label_file: bytes | None):
        self.path, self._names = path, names
        self._labels, self._classes = _classify(names, label_file, path)
        self._count = len(self._classes) if self._classes is not None else max(self._labels) + 1

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._classes

    @property
    def num_classes(self) -> int:
        return self._count

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def __getitem__(self, index: int) -> Sample:
        name = self._names[index]
        image, said = read_image(self._data(name)), self._said(name)
        return Sample(image, self._labels[index], said and said.texts[0], name, said)

    @abstractmethod
    def _read(self, name: str) -> bytes:
        """The content of a file."""

    def _said(self, name: str) -> Captions | None:
        """The captions of an image."""
        return None

    def dimensions(self, index: int) -> tuple[int, int]:
        """(width, height) of an image, without decoding it; raises UnreadableImage."""
        return read_size(self._data(self._names[index]))

    def _data(self, name: str) -> bytes:
        try:
            return self._read(name)
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
            raise UnreadableImage(f"{type(error).__name__}: {error}") from error


class FolderSource(_Files):
    """The images in a folder; its sub-folders, sorted, are the classes, and a flat folder is one class.

    A `dataset.json` in the folder, as in a zip, overrides the sub-folders. Hidden files and files that are
    not images by their suffix are passed over. Captions come from `metadata.jsonl` in the folder, or else
    from a text file beside the image, `cat.txt` for `cat.jpg`.
    """

    def __init__(self, path: str | Path):
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise UserError(f'"{path}" is not a folder: give a folder of images')
        label_file = folder / LABEL_FILE
        labels = label_file.read_bytes() if label_file.is_file() else None
        super().__init__(folder, _image_names(_walk(folder)), labels)
        self._captions = read_folder(folder)

    def _read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def _said(self, name: str) -> Captions | None:
        if name in self._captions:
            return self._captions[name]
        beside = (self.path / name).with_suffix(".txt")
        return from_text(beside.read_text("utf-8", "replace")) if beside.is_file() else None


class ZipSource(_Files):
    """The images in a zip, read in place and never unpacked.

    Labels come from a `dataset.json` {"labels": [[name, class], ...]} (null: one class) or else from the
    folders in the zip; folders that wrap everything, as when a whole folder was zipped, are not classes. Safe
    in worker processes: each opens the file for itself.
    """

    def __init__(self, path: str | Path):
        file = Path(path).expanduser()
        self._handles: dict[int, zipfile.ZipFile] = {}
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.namelist()
                for member in members:
                    _refuse_escape(member, file)
                label_file = _label_member(members)
                labels = archive.read(label_file) if label_file else None
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
            raise UserError(f'"{path}" is not a whole zip file ({error}): give an intact .zip') from error
        except OSError as error:
            raise UserError(f'"{path}" cannot be opened ({error.strerror}): give a .zip file') from error
        names = _image_names(members)
        self.doubles = _image_names(name for name, count in Counter(members).items() if count > 1)
        """Images that were written twice; the last is read."""
        self._root = label_file.removesuffix(LABEL_FILE) if label_file else _wrapper(names)
        names = [name.removeprefix(self._root) for name in names if name.startswith(self._root)]
        super().__init__(file, names, labels)

    def _read(self, name: str) -> bytes:
        archive = self._handles.get(os.getpid())
        if archive is None:  # a forked worker must not share its parent's file position
            archive = self._handles[os.getpid()] = zipfile.ZipFile(self.path)
        info = archive.getinfo(self._root + name)
        if info.file_size > MEMBER_LIMIT:
            raise UnreadableImage(f"too large: {info.file_size} bytes")
        return archive.read(info)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}  # open files cannot travel to a spawned worker


def _refuse_escape(member: str, file: Path) -> None:
    parts = member.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or parts[0].endswith(":"):
        raise UserError(f'"{file}" holds the member "{member}", which points outside the zip: pack it anew')


def _label_member(members: Iterable[str]) -> str | None:
    """The `dataset.json` nearest the top, if there is one; names in it are relative to its own folder."""
    found = [m for m in members if m.rpartition("/")[2] == LABEL_FILE and not _hidden(m)]
    return min(found, key=lambda member: (member.count("/"), member), default=None)


def _wrapper(names: Sequence[str]) -> str:
    """The folders around all class folders: "set/" for "set/cat/1.png", "set/dog/2.png"."""
    if not names:
        return ""
    first, last = names[0].split("/"), names[-1].split("/")  # names are sorted, so these differ the most
    depth = 0
    while depth < min(map(len, (first, last))) and first[depth] == last[depth]:
        depth += 1
    while depth and not all(name.count("/") > depth for name in names):
        depth -= 1
    return "".join(part + "/" for part in first[:depth])


def _walk(folder: Path) -> Iterator[str]:
    """Files under `folder` as relative paths with forward slashes; links are followed, no folder twice."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        relative = Path(place).relative_to(folder)
        yield from ((relative / file).as_posix() for file in files)


def _hidden(name: str) -> bool:
    return name[0] == "." or "/." in name or "__MACOSX" in name.split("/")


def _image_names(names: Iterable[str]) -> list[str]:
    return sorted({n for n in names if n.rpartition(".")[2].lower() in SUFFIXES and not _hidden(n)})


def _classify(
    names: Sequence[str], label_file: bytes | None, where: Path
) -> tuple[list[int], tuple[str, ...] | None]:
    """Labels and class names: of the label file if there is one, else of the first folder in each name."""
    if not names:
        raise UserError(f'"{where}" holds no images: give one with files that end in one of {KINDS}')
    if label_file is not None:
        return _read_labels(label_file, names, where)
    folders = [name.split("/")[0] if "/" in name else None for name in names]
    if all(folder is None for folder in folders):
        return [0] * len(names), None
    if None in folders:
        stray = names[folders.index(None)]
        raise UserError(f'"{where}" holds class folders and "{stray}" beside them: move it into one')
    classes = tuple(sorted({folder for folder in folders if folder is not None}))
    number = {name: label for label, name in enumerate(classes)}
    return [number[folder] for folder in folders if folder is not None], classes


def _read_labels(
    label_file: bytes, names: Sequence[str], where: Path
) -> tuple[list[int], tuple[str, ...] | None]:
    """One label per name from {"labels": [["name", label], ...]}, or all 0 from {"labels": null}.

    Class names are those of {"class_names": [...]}, where the file has them.
    """
    place = f'{LABEL_FILE} in "{where}"'
    shape = 'it should read {"labels": [["file name", 0], ...]} or {"labels": null}'
    try:
        content = json.loads(label_file)
        entries = content["labels"]
        classes = tuple(map(str, content.get("class_names") or ())) or None
        table = dict.fromkeys(names, 0) if entries is None else {name: label for name, label in entries}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{place} is malformed ({type(error).__name__}: {error}): {shape}") from error
    for name, label in table.items():
        if not isinstance(label, int) or isinstance(label, bool) or label < 0:
            raise UserError(f'{place} gives "{name}" the label {label!r}: labels are whole numbers from 0')
        if classes is not None and label >= len(classes):
            raise UserError(f'{place} gives "{name}" the label {label} of {len(classes)} class names: add it')
    missing = [name for name in names if name not in table]
    if missing:
        raise UserError(
            f'{place} has no label for "{missing[0]}" ({len(missing)} in all): add or remove them'
        )
    return [table[name] for name in names], classes
