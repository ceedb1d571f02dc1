"""Where images come from: what a source is, what all have in common, and two of them: a folder and a zip."""

import hashlib
import logging
import os
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from PIL import Image

from pixelwright.data import layout
from pixelwright.data.captions import METADATA, Captions, from_meta, from_text, read_metadata
from pixelwright.data.layout import KINDS, TEXTS, comparable, image_names, is_hidden, shown, suffix, tidy
from pixelwright.data.transforms import UnreadableImage, read_image, read_size
from pixelwright.errors import UserError
from pixelwright.files import parse_json, read_bytes, read_member

LABEL_FILE = "dataset.json"
DAMAGE = (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, NotImplementedError)
"""What a broken zip raises while it is read."""
SAMPLED = 1 << 16  # bytes at both ends of a file that `identity` looks at
Content = TypeVar("Content")
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


class StoredImages(ABC):
    """What all sources have in common whose images are files, or parts of files."""

    path: Path
    class_names: tuple[str, ...] | None
    class_captions = False  # whether the name of its class is the caption of an image that has none

    def set_labels(self, labels: Sequence[int], class_names: Sequence[str] | None) -> None:
        """`labels` [n] are numbers, one for each image."""
        self.labels, self.class_names = labels, tuple(class_names) if class_names else None
        self.num_classes = len(class_names) if class_names else int(max(labels)) + 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        image, captions = read_image(self._data(index)), None
        try:
            captions = self._captions(index)
        except UserError as error:
            logger.warning("%s; until then it is no caption", error)
        if captions is None and self.class_captions and self.class_names:
            captions = Captions((self.class_names[int(self.labels[index])],), (1.0,))
        first = captions and captions.texts[0]
        return Sample(image, int(self.labels[index]), first, self.name(index), captions)

    def dimensions(self, index: int) -> tuple[int, int]:
        """(width, height) of an image, without decoding it; raises UnreadableImage."""
        return read_size(self._data(index))

    @abstractmethod
    def name(self, index: int) -> str:
        """See `Source`."""

    @abstractmethod
    def _data(self, index: int) -> bytes:
        """The file of an image. Raises UnreadableImage."""

    @abstractmethod
    def _captions(self, index: int) -> Captions | None:
        """The captions of an image, None if it has none. Raises UserError: those it has cannot be read."""

    @abstractmethod
    def uncaptioned(self) -> int:
        """How many images have no caption; texts in files of their own are not opened for that."""


class _Files(StoredImages):
    """Named image files with labels; folders and zips differ only in how files are listed and read.

    Labels come from a `dataset.json` {"labels": [[name, class], ...]} (null: one class), the one nearest the
    top, or else from the first folder in each name. Captions come from the `metadata.jsonl` of a folder, or
    else from a file beside the image: `cat.txt` or `cat.jpg.txt` for `cat.jpg`, one in `.caption` or `.json`.
    """

    def __init__(self, path: Path, names: Iterable[str], remedy: Callable[[str], str]):
        """`names` are those of all files and folders ("dog/") in `path`; see `refuse_splits` for `remedy`."""
        self.path = path
        visible = [name for name in names if not is_hidden(name)]
        images = image_names(visible)
        for note in layout.unread(visible):
            logger.warning('"%s": %s', path, note)
        if not images:
            raise UserError(f'"{path}" holds no images: give one with files that end in one of {KINDS}')
        tables = [name for name in visible if name.rpartition("/")[2] == LABEL_FILE]
        table = min(tables, key=lambda name: (name.count("/"), name), default=None)
        if table is None:
            layout.refuse_splits(images, path, remedy)
        root = self._root = table.removesuffix(LABEL_FILE) if table else layout.wrapper(images)
        self._names = [name.removeprefix(root) for name in images if name.startswith(root)]
        if len(self._names) < len(images):
            left = len(images) - len(self._names)
            logger.warning('"%s": left out %d images outside the folder of "%s"', path, left, table)
        if table is None:
            self.set_labels(*layout.folder_classes(self._names, path))
        else:
            self.set_labels(*_read_labels(self._read(table), self._names, f'"{path}/{table}"'))
        texts = {name for name in visible if suffix(name) in (*TEXTS, "json")}
        ordered = sorted(texts, key=lambda name: (*TEXTS[::-1], "json").index(suffix(name)))
        named: dict[str, list[str]] = {}
        for name in ordered:
            named.setdefault(name.rpartition(".")[0].removeprefix(root), []).append(name)
        found = {
            name: [*named.get(name.rpartition(".")[0], ()), *named.get(name, ())] for name in self._names
        }
        self._beside = {name: own for name, own in found.items() if own}
        self._metadata = self._read_metadata(visible)
        texts -= {name for own in self._beside.values() for name in own}
        if left_out := sorted(name for name in texts if suffix(name) != "json"):
            text = '"%s": left out %d texts beside no image of their name, such as "%s"'
            logger.warning(text, path, len(left_out), shown(left_out[0]))

    def _read_metadata(self, names: Iterable[str]) -> dict[str, Captions]:
        """Captions by name of the image, from all `metadata.jsonl`."""
        found: dict[str, Captions] = {}
        known = {comparable(self._root + name): name for name in self._names}
        for name in names:
            folder, _, base = name.rpartition("/")
            if base in ("metadata.csv", "metadata.parquet"):
                logger.warning('"%s/%s" is not read: captions come from %s', self.path, name, METADATA)
            if base != METADATA:
                continue
            named = read_metadata(self._read(name), f'"{self.path}/{name}"')
            in_set = {comparable(f"{folder}/{image}"): text for image, text in named.items()}
            if strange := [image for image in in_set if image not in known]:
                text = '"%s/%s" names %d images that are not there, such as "%s"'
                logger.warning(text, self.path, name, len(strange), shown(strange[0]))
            found |= {known[image]: text for image, text in in_set.items() if image in known}
        return found

    def name(self, index: int) -> str:
        return shown(self._names[index])

    @abstractmethod
    def _read(self, name: str) -> bytes:
        """The content of a file. Raises UserError."""

    def _data(self, index: int) -> bytes:
        try:
            return self._read(self._root + self._names[index])
        except UserError as error:
            raise UnreadableImage(str(error)) from error

    def _captions(self, index: int) -> Captions | None:
        name = self._names[index]
        if name in self._metadata:
            return self._metadata[name]
        for text in self._beside.get(name, ()):
            data, place = self._read(text), f'"{self.path}/{shown(text)}"'
            meta = parse_json(data, place) if suffix(text) == "json" else None
            own = from_meta(meta, place) if isinstance(meta, dict) else None
            if found := from_text(data, place) if suffix(text) != "json" else own:
                return found
        return None

    def uncaptioned(self) -> int:
        return len(set(self._names) - self._beside.keys() - self._metadata.keys())


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


class ZipSource(_Files):
    """The images in a zip, read in place and never unpacked; all else is as in a folder. Safe in worker
    processes: each opens the file for itself."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self._handles: dict[int, zipfile.ZipFile] = {}
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = archive.infolist()
        except OSError as error:
            raise UserError(f'"{path}" cannot be opened ({error.strerror}): give a .zip file') from error
        except DAMAGE as error:
            raise UserError(f'"{path}" is not a whole zip file ({error}): give an intact .zip') from error
        self._members: dict[str, str] = {}  # the names as all write them -> in the zip
        folders, notes = [], Counter[str]()
        counts = Counter(member.filename for member in members)
        for member in members:
            name = _decoded(member)
            parts = name.replace("\\", "/").split("/")
            if ".." in parts or parts[0] == "" or parts[0].endswith(":"):
                text = f'"{path}" holds the member "{name}", which points outside the zip: pack it anew'
                raise UserError(text)
            if member.is_dir():
                folders.append(tidy(name) + "/")
                continue
            if stat.S_ISLNK(member.external_attr >> 16) and not is_hidden(tidy(name)):
                notes["left out %d links, which zips cannot follow"] += 1
                continue
            if not (member.flag_bits & 0x800 or name.isascii() or name != member.filename):
                notes["%d names are not in UTF-8; they are taken for those of code page 437"] += 1
            self._members[tidy(name)] = member.filename
        double = (tidy(name) for name, count in counts.items() if count > 1)
        self.doubles = image_names(name for name in double if not is_hidden(name))
        """Images that were written twice; the last is read."""
        notes["%d images are there twice; the last of each is read"] += len(self.doubles)
        for text, count in notes.items():
            if count:
                logger.warning('"%s": ' + text, path, count)
        names = [*self._members, *folders]
        super().__init__(self.path, names, lambda part: f'pack one of them alone, such as "{part}"')

    def _read(self, name: str) -> bytes:
        try:
            archive = self._handles.get(os.getpid())
            if archive is None:  # a forked worker must not share its parent's file position
                archive = self._handles[os.getpid()] = zipfile.ZipFile(self.path)
            return read_member(archive, self._members[name])
        except DAMAGE as error:
            reason = f"({type(error).__name__}: {error})"
            raise UserError(f'"{shown(name)}" in "{self.path}" cannot be read {reason}: mend it') from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}  # open files cannot travel to a spawned worker


def _decoded(member: zipfile.ZipInfo) -> str:
    """The name of a member of a zip, in UTF-8 even where the zip does not say so, as those of macOS."""
    if member.flag_bits & 0x800:
        return member.filename
    try:
        return member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename


def walk(folder: Path) -> Iterator[str]:
    """The files and folders ("dog/") under `folder` as relative paths with forward slashes. Links are
    followed, except to a folder that they lie in. Hidden folders and those of the system are not looked into.
    Raises UserError: a folder that cannot be read."""

    def stop(error: OSError) -> None:
        raise UserError(f'"{error.filename}" cannot be read ({error.strerror}): allow it') from error

    above = {str(folder): {os.path.realpath(folder)}}  # what each folder lies in, itself included
    for place, folders, files in os.walk(folder, onerror=stop, followlinks=True):
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
        yield from (f"{prefix}{name}/" for name in folders)


def _read_labels(data: bytes, names: list[str], place: str) -> tuple[list[int], tuple[str, ...] | None]:
    """One label per name from {"labels": [["name", label], ...]}, or all 0 from {"labels": null}. Class names
    are those of {"class_names": [...]}, where the file has them."""
    content, known = parse_json(data, place), [comparable(name) for name in names]
    try:
        entries, classes = content["labels"], content.get("class_names")
        pairs = [(comparable(name), label) for name, label in entries or ()]
        table: dict[str, Any] = dict.fromkeys(known, 0) if entries is None else dict(pairs)
        if not isinstance(classes, list | None):
            raise TypeError("class_names is no list")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        form = 'it should read {"labels": [["file name", 0], ...]} or {"labels": null}'
        raise UserError(f"{place} is malformed ({type(error).__name__}: {error}): {form}") from error
    for name, label in pairs:
        if table[name] != label:
            raise UserError(f'{place} gives "{name}" the labels {label} and {table[name]}: keep one')
    if strange := table.keys() - set(known):
        text = "%s labels %d images that are not there, such as %s"
        logger.warning(text, place, len(strange), min(strange))
    if missing := [name for name in known if name not in table]:
        many = len(missing)
        raise UserError(f'{place} has no label for "{missing[0]}" ({many} in all): add or remove them')
    return layout.number_classes(
        [table[name] for name in known], lambda i: f'"{names[i]}" in {place}', classes
    )


# --- sources of several files ---
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


def identity(file: Path) -> tuple[object, ...]:
    """What changes whenever a file does, also if another of the same size and time takes its place on a disk
    that tells no more: path, size, times, number, and what stands at both ends."""
    with file.open("rb") as opened:
        state, ends = os.fstat(opened.fileno()), hashlib.blake2b(opened.read(SAMPLED), digest_size=16)
        opened.seek(max(0, state.st_size - SAMPLED))
        ends.update(opened.read())
    times = state.st_mtime_ns, state.st_ctime_ns
    return str(file.resolve()), state.st_size, *times, state.st_ino, ends.hexdigest()
