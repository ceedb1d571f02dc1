"""Where images come from: what a source is, and the two plain ones, a folder and a zip."""

import logging
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from pixelwright.data import layout
from pixelwright.data.captions import METADATA, Captions, from_text, read_metadata
from pixelwright.data.layout import KINDS, image_names, is_hidden, shown, tidy
from pixelwright.data.transforms import UnreadableImage, read_image, read_size
from pixelwright.errors import UserError
from pixelwright.files import parse_json, read_bytes, read_member

LABEL_FILE = "dataset.json"
DAMAGE = (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, NotImplementedError)
"""What a broken zip raises while it is read."""
logger = logging.getLogger(__name__)


class Sample(NamedTuple):
    """One image with what is known about it."""

    image: Image.Image  # RGB, of any size
    label: int  # class, 0 .. num_classes - 1
    caption: str | None  # a sentence about the image, where there is one
    name: str  # what messages call the image
    captions: Captions | None = None
    """All sentences about the image, with weights, from sources that may hold several."""

    @property
    def all_captions(self) -> Captions | None:
        """The captions with their weights, also where there is but one."""
        return self.captions or (Captions((self.caption,), (1.0,)) if self.caption else None)


class Source(Protocol):
    """A numbered set of labelled images, always in the same order. `source[i]` raises UnreadableImage for an
    image that is damaged; opening a source raises UserError."""

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
    """Named image files with labels; folders and zips differ only in how files are listed and read.

    Labels come from a `dataset.json` {"labels": [[name, class], ...]} (null: one class), the one nearest the
    top, or else from the first folder in each name. Captions come from the `metadata.jsonl` of a folder, or
    else from a text file beside the image, `cat.txt` for `cat.jpg`.
    """

    def __init__(self, path: Path, names: Iterable[str], remedy: Callable[[str], str]):
        """`names` are those of all files in `path`; see `refuse_splits` for `remedy`."""
        self.path = path
        visible = [name for name in names if not is_hidden(name)]
        images = image_names(visible, path)
        if not images:
            raise UserError(f'"{path}" holds no images: give one with files that end in one of {KINDS}')
        tables = [name for name in visible if name.rpartition("/")[2] == LABEL_FILE]
        table = min(tables, key=lambda name: (name.count("/"), name), default=None)
        if table is None:
            layout.refuse_splits(images, path, remedy)
        self._root = table.removesuffix(LABEL_FILE) if table else layout.wrapper(images)
        self._names = [name.removeprefix(self._root) for name in images if name.startswith(self._root)]
        if len(self._names) < len(images):
            left = len(images) - len(self._names)
            logger.warning('"%s": left out %d images outside the folder of "%s"', path, left, table)
        if table is None:
            self._labels, self.class_names = layout.folder_classes(self._names, path)
        else:
            self._labels, self.class_names = _read_labels(self._read(table), self._names, f'"{path}/{table}"')
        self.num_classes = len(self.class_names) if self.class_names else max(self._labels) + 1
        self._captions = self._read_metadata(visible)

    def _read_metadata(self, names: Iterable[str]) -> dict[str, Captions]:
        found: dict[str, Captions] = {}
        known = set(self._names)
        for name in names:
            folder, _, base = name.rpartition("/")
            if base in ("metadata.csv", "metadata.parquet"):
                logger.warning('"%s/%s" is not read: captions come from %s', self.path, name, METADATA)
            if base != METADATA:
                continue
            captions = read_metadata(self._read(name), f'"{self.path}/{name}"')
            prefix = f"{folder}/".removeprefix("/").removeprefix(self._root)
            named = {prefix + tidy(image): text for image, text in captions.items()}
            if strange := [image for image in named if image not in known]:
                text = '"%s/%s" names %d images that are not there, such as "%s"'
                logger.warning(text, self.path, name, len(strange), shown(strange[0]))
            found |= named
        return found

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return shown(self._names[index])

    def __getitem__(self, index: int) -> Sample:
        name, captions = self._names[index], None
        beside = f"{self._root}{name.rpartition('.')[0]}.txt"
        if name in self._captions:
            captions = self._captions[name]
        elif self._has(beside):
            captions = from_text(self._read(beside), f'"{self.path}/{shown(beside)}"')
        image = read_image(self._data(index))
        return Sample(image, self._labels[index], captions and captions.texts[0], self.name(index), captions)

    @abstractmethod
    def _read(self, name: str) -> bytes:
        """The content of a file. Raises UserError, or one of DAMAGE."""

    @abstractmethod
    def _has(self, name: str) -> bool:
        """Whether there is such a file."""

    def dimensions(self, index: int) -> tuple[int, int]:
        """(width, height) of an image, without decoding it; raises UnreadableImage."""
        return read_size(self._data(index))

    def _data(self, index: int) -> bytes:
        try:
            return self._read(self._root + self._names[index])
        except UserError as error:
            raise UnreadableImage(str(error)) from error
        except DAMAGE as error:
            raise UnreadableImage(f"{type(error).__name__}: {error}") from error


class FolderSource(_Files):
    """The images in a folder; its sub-folders, sorted, are the classes, and a flat folder is one class.

    A single folder around the class folders is no class. Hidden files and files that are not images by their
    suffix are passed over. Links are followed.
    """

    def __init__(self, path: str | Path, names: Iterable[str] | None = None):
        """`names` are those of `walk(path)`, where that is known already."""
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise UserError(f'"{path}" is not a folder: give a folder of images')
        names = walk(folder) if names is None else names
        super().__init__(folder, names, lambda part: f'give one, such as "{folder / part}"')

    def _read(self, name: str) -> bytes:
        return read_bytes(self.path / name)

    def _has(self, name: str) -> bool:
        return (self.path / name).is_file()


class ZipSource(_Files):
    """The images in a zip, read in place and never unpacked; all else is as in a folder. Safe in worker
    processes: each opens the file for itself."""

    def __init__(self, path: str | Path):
        file = Path(path).expanduser()
        self._handles: dict[int, zipfile.ZipFile] = {}
        self.path = file
        try:
            with zipfile.ZipFile(file) as archive:
                every = archive.namelist()
        except OSError as error:
            raise UserError(f'"{path}" cannot be opened ({error.strerror}): give a .zip file') from error
        except DAMAGE as error:
            raise UserError(f'"{path}" is not a whole zip file ({error}): give an intact .zip') from error
        for member in every:
            parts = member.replace("\\", "/").split("/")
            if ".." in parts or parts[0] == "" or parts[0].endswith(":"):
                text = f'"{file}" holds the member "{member}", which points outside the zip: pack it anew'
                raise UserError(text)
        self._members = {tidy(member): member for member in every if not member.endswith("/")}
        double = (name for name, count in Counter(map(tidy, every)).items() if count > 1)
        self.doubles = image_names((name for name in double if not is_hidden(name)), path)
        """Images that were written twice; the last is read."""
        try:
            super().__init__(file, self._members, lambda part: f'pack one of them alone, such as "{part}"')
        except DAMAGE as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f'"{path}" is not a whole zip file ({error}): give an intact .zip') from error

    def _read(self, name: str) -> bytes:
        archive = self._handles.get(os.getpid())
        if archive is None:  # a forked worker must not share its parent's file position
            archive = self._handles[os.getpid()] = zipfile.ZipFile(self.path)
        return read_member(archive, self._members[name])

    def _has(self, name: str) -> bool:
        return name in self._members

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}  # open files cannot travel to a spawned worker


def walk(folder: Path) -> Iterator[str]:
    """The files under `folder` as relative paths with forward slashes. Links are followed, except to a folder
    that they lie in. Hidden folders and those of the system are not looked into."""
    above = {str(folder): {os.path.realpath(folder)}}  # what each folder lies in, itself included
    for place, folders, files in os.walk(folder, followlinks=True):
        inside = above.pop(place)
        for name in list(folders):
            path = os.path.join(place, name)
            real = os.path.realpath(path)
            if real in inside or is_hidden(name):
                folders.remove(name)
            else:
                above[path] = inside | {real}
        prefix = "" if place == str(folder) else Path(place).relative_to(folder).as_posix() + "/"
        yield from (prefix + file for file in files)


def _read_labels(data: bytes, names: list[str], place: str) -> tuple[list[int], tuple[str, ...] | None]:
    """One label per name from {"labels": [["name", label], ...]}, or all 0 from {"labels": null}. Class names
    are those of {"class_names": [...]}, where the file has them."""
    content = parse_json(data, place)
    try:
        entries = content["labels"]
        classes = tuple(map(str, content.get("class_names") or ())) or None
        pairs = [(tidy(name), label) for name, label in entries or ()]
        table = dict.fromkeys(names, 0) if entries is None else dict(pairs)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        form = 'it should read {"labels": [["file name", 0], ...]} or {"labels": null}'
        raise UserError(f"{place} is malformed ({type(error).__name__}: {error}): {form}") from error
    for name, label in pairs:
        if not isinstance(label, int) or isinstance(label, bool) or label < 0:
            raise UserError(f'{place} gives "{name}" the label {label!r}: labels are whole numbers from 0')
        if classes is not None and label >= len(classes):
            raise UserError(f'{place} gives "{name}" the label {label} of {len(classes)} class names: add it')
        if table[name] != label:
            raise UserError(f'{place} gives "{name}" the labels {label} and {table[name]}: keep one')
    if strange := table.keys() - set(names):
        text = "%s labels %d images that are not there, such as %s"
        logger.warning(text, place, len(strange), min(strange))
    if missing := [name for name in names if name not in table]:
        many = len(missing)
        raise UserError(f'{place} has no label for "{missing[0]}" ({many} in all): add or remove them')
    return [table[name] for name in names], classes
