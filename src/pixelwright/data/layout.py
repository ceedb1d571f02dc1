"""What the names in a set of images mean, alike for folders, zips, shards and parquet files.

Pictures are told by their suffix; hidden and system files are passed over; one folder around everything is no
class; folders or files of several splits side by side are refused. What is left out is counted and named.
"""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from pixelwright.errors import UserError

KINDS = "avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm qoi tga tif tiff webp"
SUFFIXES = frozenset(KINDS.split())
FOREIGN_KINDS = "arw cr2 cr3 dng exr hdr heic heif jpf jxl jxr nef orf psd raf raw rw2 svg"
FOREIGN = frozenset(FOREIGN_KINDS.split())  # suffixes of pictures that are not read
SYSTEM = ("__macosx", "@eadir", "$recycle.bin", "#recycle", "system volume information", "lost+found")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_SPLIT_OF = dict.fromkeys(("train", "training"), "train")
_SPLIT_OF |= dict.fromkeys(("val", "valid", "validation", "dev"), "validation")
_SPLIT_OF |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
logger = logging.getLogger(__name__)


def tidy(name: str) -> str:
    """The name of a member of an archive as all write it: "./a\\\\b.png" -> "a/b.png"."""
    name = name.replace("\\", "/")
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, or in a folder that is or that belongs to an operating system."""
    return any(part.startswith(".") or part.lower() in SYSTEM for part in name.split("/"))


def suffix(name: str) -> str:
    """ "cat/A.JPG" -> "jpg"."""
    return name.rpartition("/")[2].rpartition(".")[2].lower()


def shown(name: str) -> str:
    """A file's name as it can be printed, even if it is not in UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def image_names(names: Iterable[str], where: object) -> list[str]:
    """The pictures among files, sorted; those of kinds that are not read are counted in a warning."""
    every = list(names)
    found = sorted({name for name in every if suffix(name) in SUFFIXES})
    foreign = [name for name in every if suffix(name) in FOREIGN]
    if foreign:
        counts = ", ".join(f"{n} .{kind}" for kind, n in sorted(Counter(map(suffix, foreign)).items()))
        gone = sorted({top(name) for name in foreign} - {top(name) for name in found} - {""})
        lost = f"; nothing is left of {', '.join(map(shown, gone))}" if gone else ""
        text = '"%s": left out %s, which are not read, such as "%s"%s: convert them to PNG or JPEG'
        logger.warning(text, where, counts, shown(foreign[0]), lost)
    return found


def top(name: str) -> str:
    """The first folder of a name, "" if there is none."""
    return name.partition("/")[0] if "/" in name else ""


def wrapper(names: Sequence[str]) -> str:
    """The folders around all class folders: "set/" for sorted names like "set/cat/1.png", "set/dog/2.png"."""
    if not names:
        return ""
    first, last = names[0].split("/"), names[-1].split("/")  # names are sorted, so these differ the most
    depth = 0
    while depth < min(map(len, (first, last))) and first[depth] == last[depth]:
        depth += 1
    while depth and not all(name.count("/") > depth for name in names):
        depth -= 1
    return "".join(part + "/" for part in first[:depth])


def refuse_splits(
    names: Iterable[str], where: object, remedy: Callable[[str], str], files: bool = False
) -> None:
    """Raise UserError if folders of several splits (with `files`, also files) lie side by side. `remedy`
    makes the end of the message of the name of one of them."""
    found: dict[str, dict[str, str]] = {}  # folder -> split -> what is of it
    every = list(names)
    for folder in sorted({name.rpartition("/")[0] for name in every}):
        parts = folder.split("/")
        for depth, part in enumerate(parts):
            if split := _SPLIT_OF.get(re.sub(r"[-_. ]?\d+$", "", part).lower()):
                found.setdefault("/".join(parts[:depth]), {})[split] = "/".join(parts[: depth + 1])
    for name in every if files else ():
        numbered = re.match(r"(.+?)-\d+-of-\d+", name.rpartition("/")[2])
        stem = numbered[1] if numbered else name.rpartition("/")[2].partition(".")[0]
        words = [_SPLIT_OF[word] for word in re.split(r"[^a-z]+", stem.lower()) if word in _SPLIT_OF]
        if words or numbered:
            found.setdefault("", {})[stem if numbered else words[-1]] = name
    for beside in found.values():
        if len(beside) > 1:
            example = beside.get("train") or max(beside.values())
            splits = ", ".join(sorted(beside))
            raise UserError(f'"{where}" holds the splits {splits} side by side: {remedy(example)}')


def folder_classes(names: Sequence[str], where: object) -> tuple[list[int], tuple[str, ...] | None]:
    """The label of each picture and the class names, by its first folder; one class without names if all are
    in none."""
    folders = [top(name) for name in names]
    classes = tuple(sorted(set(folders)))
    if classes == ("",):
        return [0] * len(names), None
    if "" in classes:
        stray = shown(names[folders.index("")])
        raise UserError(f'"{where}" holds class folders and "{stray}" beside them: move it into one')
    same: dict[str, str] = {}
    for name in classes:
        if shown(name) != name:
            raise UserError(f'"{where}" holds the class "{shown(name)}", whose name is not UTF-8: rename it')
        if (other := same.setdefault(unicodedata.normalize("NFC", name), name)) != name:
            raise UserError(f'"{where}" holds two classes that are both written "{other}": rename one')
    number = {name: label for label, name in enumerate(classes)}
    return [number[folder] for folder in folders], classes
