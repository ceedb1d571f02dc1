"""From `data.path` to a source: what the path names, told apart by what is there."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pixelwright.data.config import PROCEDURAL, SHAPES, SHAPES_COUNT, DataConfig
from pixelwright.data.sources import SUFFIXES, FolderSource, Source, ZipSource
from pixelwright.data.transforms import UnreadableImage
from pixelwright.errors import UserError

FORMS = 'give "shapes", a folder, a .zip file, or .tar or .parquet files (a pattern or an address will do)'
DAMAGED_SHARE = 10  # of this many files, one may be damaged; of fewer (but at least two), one
UNFINISHED = ".prepare"  # at the end of the name of a folder that `pixelwright data prepare` still works in
logger = logging.getLogger(__name__)


def open_source(config: DataConfig) -> Source:
    """The source that `config.path` names. Raises UserError if there is none or it holds no usable images.

    Files that are damaged as a whole (shards, parquet files) are left out with a warning each, unless they
    are more than one in ten.
    """
    source = find_source(config)
    if config.path not in PROCEDURAL:
        _check_damage(source, config.path)
        _check_readable(source, config.path)
    return source


def find_source(config: DataConfig) -> Source:
    """Like `open_source`, but without a look at how much of it is damaged."""
    if config.path in PROCEDURAL:
        return _procedural(config)
    files = _files(config.path)
    if len(files) == 1 and files[0].is_dir():
        return _open_folder(files[0])
    return _open_files(files, config.path)


def _procedural(config: DataConfig) -> Source:
    """The set "shapes" or "shapes-captions"."""
    seed, count = config.shapes_seed or 0, config.shapes_count or SHAPES_COUNT
    if config.path == SHAPES:
        from pixelwright.data.shapes import Shapes

        variation = 1.0 if config.shapes_variation is None else config.shapes_variation
        return Shapes(config.size, seed, count, variation)
    from pixelwright.data.captioned import CaptionedShapes

    return CaptionedShapes(config.size, seed, count)


def _files(path: str) -> list[Path]:
    """The folder or the files that `path` names; those behind addresses are fetched."""
    if "://" in path:
        from pixelwright import remote  # late: not everyone has fsspec's extras

        words = list(expand_braces(path))
        found = [name for word in words for name in (remote.glob(word) if "*" in word else [word])]
        if not found:
            raise UserError(f'data.path "{path}": no file matches; check the pattern')
        return remote.fetch(found)
    plain = Path(path).expanduser()
    if plain.is_dir() or plain.is_file():
        return [plain]
    if not re.search(r"[*?[{]", path):
        raise UserError(f'data.path "{path}" does not exist: {FORMS}')
    found = []
    for pattern in expand_braces(str(plain)):
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise UserError(f'data.path "{path}": no file matches "{pattern}"; check the pattern')
        found += matches
    if len(set(found)) < len(found):
        raise UserError(f'data.path "{path}" names "{_double(found)}" twice: name each file once')
    return [Path(name) for name in found]


def _double(names: Sequence[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])


def expand_braces(pattern: str) -> Iterator[str]:
    """ "a-{00..02}.tar" -> "a-00.tar", "a-01.tar", "a-02.tar"; "{x,y}.tar" -> "x.tar", "y.tar"."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", found[1]):
        first, last = numbers.groups()
        if int(last) < int(first):
            raise UserError(
                f'data.path "{pattern}" counts down from {first} to {last}: put the smaller first'
            )
        width = len(first) if first.startswith("0") else 0
        words = [f"{n:0{width}}" for n in range(int(first), int(last) + 1)]
    elif "," in found[1]:
        words = found[1].split(",")
    else:
        raise UserError(f'data.path "{pattern}": {found[0]} is no range; write {{00..12}} or {{a,b}}')
    for word in words:
        yield from expand_braces(pattern[: found.start()] + word + pattern[found.end() :])


def _open_folder(folder: Path) -> Source:
    """Shards or parquet files at the top of a folder (or in its `data`, as the Hub has it), else images."""
    if folder.name.endswith(UNFINISHED):
        raise UserError(f'"{folder}" is not finished: run the same `pixelwright data prepare` again')
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    shards = sorted(e for e in entries if e.suffix.lower() == ".tar")
    tables = sorted([*(e for e in entries if e.suffix.lower() == ".parquet"), *folder.glob("data/*.parquet")])
    if not shards and not tables:
        return FolderSource(folder)
    others = [e for e in entries if e.is_dir() and not (tables and e.name == "data")]
    images = [e for e in entries if e.suffix.lower().lstrip(".") in SUFFIXES] or others
    kinds = [kind[0].name for kind in (shards, tables, images) if kind]
    if len(kinds) > 1:
        pattern = shards[0] if shards else tables[0]
        raise UserError(
            f'"{folder}" holds both "{kinds[0]}" and "{kinds[1]}": keep one kind in it, or give the pattern '
            f'"{pattern.parent}/*{pattern.suffix}"'
        )
    return _open_files(shards or tables, str(folder))


def _open_files(files: Sequence[Path], path: str) -> Source:
    """Several files of one kind as one source."""
    kinds = {file.suffix.lower() for file in files}
    if len(kinds) > 1:
        raise UserError(
            f'data.path "{path}" names files of different kinds ({", ".join(sorted(kinds))}): give one kind'
        )
    kind = kinds.pop()
    if kind == ".tar":
        from pixelwright.data.shards import ShardSource

        return ShardSource(files)
    if kind == ".parquet":
        from pixelwright.data.parquet import ParquetSource

        _check_splits(files, path)
        return ParquetSource(files)
    if kind in (".gz", ".tgz", ".bz2", ".xz", ".zst"):
        raise UserError(f'"{files[0]}" is compressed and cannot be read in place: unpack it to a .tar')
    if len(files) > 1:
        raise UserError(f'data.path "{path}" names {len(files)} files "{files[0].name}", ...: {FORMS}')
    return ZipSource(files[0])


def _check_splits(files: Sequence[Path], path: str) -> None:
    """`train-00000-of-00294.parquet` beside `test-...`: both at once would train on the test images."""
    found = {m[1]: f for f in files if (m := re.match(r"(.+?)-\d+-of-\d+", f.name))}
    if len(found) > 1:
        example = f"{files[0].parent}/{max(found)}-*.parquet"
        raise UserError(
            f'data.path "{path}" names the splits {", ".join(sorted(found))}: give one, such as "{example}"'
        )


def _check_damage(source: Source, path: str) -> None:
    damaged: dict[str, str] = getattr(source, "damaged", {})
    total = len(damaged) + len(getattr(source, "files", ()))
    for name, reason in damaged.items():
        logger.warning('left out "%s": %s (%d of %d files)', name, reason, len(damaged), total)
    if len(damaged) > max(1, total // DAMAGED_SHARE):
        name, reason = next(iter(damaged.items()))
        raise UserError(
            f'{len(damaged)} of the {total} files of data.path "{path}" are damaged, such as "{name}" '
            f"({reason}): fetch them anew, or name the whole ones only"
        )


def _check_readable(source: Source, path: str) -> None:
    """Raise UserError if no image can be read, before a run begins; one that can be read is enough."""
    reasons = []
    for index in range(len(source)):
        try:
            source[index]
            return
        except UnreadableImage as error:
            reasons.append(f'"{source.name(index)}": {error}')
    raise UserError(f'none of the {len(source)} images of "{path}" can be read: {reasons[0]}')
