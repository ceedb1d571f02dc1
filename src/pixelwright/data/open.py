"""From `data.path` to a source: what the path names, told apart by what is there."""

import glob
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pixelwright.data.captioned import CaptionedShapes
from pixelwright.data.config import PROCEDURAL, SHAPES, SHAPES_CAPTIONS, SHAPES_COUNT, DataConfig
from pixelwright.data.layout import SUFFIXES, is_hidden, refuse_splits, shown, suffix, top
from pixelwright.data.parquet import ParquetSource
from pixelwright.data.shapes import Shapes
from pixelwright.data.shards import ShardSource
from pixelwright.data.sources import FolderSource, Source, StoredImages, ZipSource, walk
from pixelwright.data.transforms import UnreadableImage
from pixelwright.errors import UserError
from pixelwright.remote import fetch, is_address
from pixelwright.remote import glob as find_addresses

FORMS = 'give "shapes", a folder, a .zip file, or .tar or .parquet files (a pattern or an address will do)'
DAMAGED_SHARE = 10  # of this many files, one may be damaged; of fewer (but at least two), one
PACKED_TAR = re.compile(r"\.(tar\.(gz|bz2|xz|zstd?|lz4|lzma|z|br|sz)|t[gbx]z2?|tzst|tlz4?)$")
PACKED = re.compile(r"\.(7z|rar|gz|bz2|xz|zst|lz4)$")
PART = re.compile(r"\.(tar|zip|parquet)\.(part(ial)?|te?mp|download|crdownload|incomplete|aria2|\d+)$")
UNFINISHED = ".prepare"  # at the end of the name of a folder that `pixelwright data prepare` still works in
logger = logging.getLogger(__name__)


def open_source(config: DataConfig) -> Source:
    """The source that `config.path` names. Raises UserError if there is none or it holds no usable images.

    Files that are damaged as a whole (shards, parquet files) are left out with a warning each, unless they
    are more than one in ten.
    """
    source = find_source(config)
    if config.path in PROCEDURAL:
        return source
    damaged: dict[str, str] = getattr(source, "damaged", {})
    total = len(damaged) + len(getattr(source, "files", ()))
    for name, reason in damaged.items():
        logger.warning('left out "%s": %s (%d of %d files)', name, reason, len(damaged), total)
    if len(damaged) > max(1, total // DAMAGED_SHARE):
        name, reason = next(iter(damaged.items()))
        many = f'{len(damaged)} of the {total} files of data.path "{config.path}" are damaged'
        remedy = "fetch them anew, or name the whole ones only"
        raise UserError(f'{many}, such as "{name}" ({reason}): {remedy}')
    reasons = []
    for index in range(len(source)):  # one that can be read is enough
        try:
            source[index]
            return source
        except UnreadableImage as error:
            reasons.append(f'"{source.name(index)}": {error}')
    raise UserError(f'none of the {len(source)} images of "{config.path}" can be read: {reasons[0]}')


def find_source(config: DataConfig) -> Source:
    """Like `open_source`, but without a look at how much of it is damaged."""
    seed, count = config.shapes_seed or 0, config.shapes_count or SHAPES_COUNT
    if config.path == SHAPES:
        variation = 1.0 if config.shapes_variation is None else config.shapes_variation
        return Shapes(config.size, seed, count, variation)
    if config.path == SHAPES_CAPTIONS:
        return CaptionedShapes(config.size, seed, count)
    files, names = _files(config.path)
    alone = len(files) == 1 and files[0].is_dir()
    source = _open_folder(files[0]) if alone else _open_files(files, names, config.path)
    if config.class_captions and source.class_names is None:
        raise UserError(f'data.class_captions is true, but the classes of "{config.path}" have no names')
    source.class_captions = config.class_captions
    return source


def _files(path: str) -> tuple[list[Path], list[str]]:
    """The folder or the files that `path` names, fetched where it is an address, and what they are called."""
    if is_address(path):
        words = list(expand_braces(path))
        found = [name for word in words for name in (find_addresses(word) if "*" in word else [word])]
        if not found:
            raise UserError(f'data.path "{path}": no file matches; check the pattern')
        return fetch(found), found
    plain = Path(path).expanduser()
    if plain.is_dir() or plain.is_file():
        return [plain], [str(plain)]
    if not re.search(r"[*?[{]", path):
        raise UserError(f'data.path "{path}" does not exist: {FORMS}')
    found = []
    for pattern in expand_braces(str(plain)):
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise UserError(f'data.path "{path}": no file matches "{pattern}"; check the pattern')
        found += matches
    if len(set(found)) < len(found):
        double = next(name for name, count in Counter(found).items() if count > 1)
        raise UserError(f'data.path "{path}" names "{double}" twice: name each file once')
    return [Path(name) for name in found], found


def expand_braces(pattern: str) -> Iterator[str]:
    """ "a-{00..02}.tar" -> "a-00.tar", "a-01.tar", "a-02.tar"; "{x,y}.tar" -> "x.tar", "y.tar"."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", found[1]):
        first, last = numbers.groups()
        if int(last) < int(first):
            raise UserError(f'data.path "{pattern}" counts down from {first} to {last}: smaller first')
        width = len(first) if first.startswith("0") else 0
        words = [f"{n:0{width}}" for n in range(int(first), int(last) + 1)]
    elif "," in found[1]:
        words = found[1].split(",")
    else:
        raise UserError(f'data.path "{pattern}": {found[0]} is no range; write {{00..12}} or {{a,b}}')
    for word in words:
        yield from expand_braces(pattern[: found.start()] + word + pattern[found.end() :])


def _open_folder(folder: Path) -> StoredImages:
    """The shards or parquet files in a folder, or else its images."""
    if folder.name.endswith(UNFINISHED):
        raise UserError(f'"{folder}" is not finished: run the same `pixelwright data prepare` again')
    names = [name for name in walk(folder) if not is_hidden(name)]
    archives = sorted(name for name in names if _kind(name))
    sets = [name for name in archives if _kind(name) != "packed"] or archives
    images = next((name for name in names if suffix(name) in SUFFIXES), None)
    beside = [name for name in sets if "/" not in name and _kind(name) not in (".zip", "packed")]
    if beside and images is not None:
        text = f'"{folder}" holds both "{beside[0]}" and "{top(images) or images}": keep one kind in it'
        raise UserError(f'{text}, or give the pattern "{folder}/*{Path(beside[0]).suffix}"')
    left_out = [name for name in names if PART.search(name.lower())]
    left_out += archives if images is not None else [name for name in archives if name not in sets]
    if left_out:
        text = '"%s": left out %d archives, such as "%s"'
        logger.warning(text, folder, len(left_out), shown(left_out[0]))
    if sets and images is None:
        inside = [folder / name for name in sets]
        return _open_files(inside, [str(file) for file in inside], str(folder))
    return FolderSource(folder, names)


def _kind(name: str) -> str | None:
    """What a file is that may hold many images: its suffix, or that it is packed; None for other files."""
    lower = name.lower()
    if whole := re.search(r"\.(tar|parquet|zip)$", lower):
        return whole[0]
    return "packed tar" if PACKED_TAR.search(lower) else "packed" if PACKED.search(lower) else None


def _open_files(files: Sequence[Path], names: Sequence[str], path: str) -> StoredImages:
    """Several files of one kind as one source."""
    names = [name.partition("?")[0] if is_address(name) else name for name in names]
    packed = [name for name in names if (_kind(name) or "").startswith("packed")]
    kinds = {Path(name).suffix.lower() for name in names if name not in packed}
    if len(kinds) > 1:
        many = ", ".join(sorted(kinds))
        raise UserError(f'data.path "{path}" names files of different kinds ({many}): give one kind')
    if packed:
        raise UserError(f'"{packed[0]}" is compressed and cannot be read in place: unpack it to a .tar')
    kind = kinds.pop()
    if kind in (".tar", ".parquet"):
        refuse_splits(names, path, _pattern, files=True)
        folders = sorted({name.rpartition("/")[0] for name in names})
        if len(folders) > 1 and Path(path).is_dir():
            text = f'"{path}" holds {kind} files in several folders, "{folders[0]}" and "{folders[1]}"'
            raise UserError(f'{text}: give one, or the pattern "{path}/**/*{kind}" for all')
        return ShardSource(files) if kind == ".tar" else ParquetSource(files)
    if len(files) > 1:
        raise UserError(f'data.path "{path}" names {len(files)} files "{files[0].name}", ...: {FORMS}')
    return ZipSource(files[0])


def _pattern(example: str) -> str:
    """What to give instead of several splits: a folder, or the pattern of the files of one."""
    folder, _, name = example.rpartition("/")
    return f'give one, such as "{folder}/{re.sub("[0-9]+(-of-[0-9]+)?", "*", name) if _kind(name) else name}"'
