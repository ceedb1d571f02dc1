"""What the names in a set of images mean, alike for folders, zips, shards and parquet files.

Pictures are told by their suffix; hidden and system files are passed over; one folder around everything is no
class; folders or files of several splits side by side are refused. What is left out is counted and named.
"""

import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec

from pixelwright.errors import UserError

KINDS = "avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm qoi tga tif tiff webp"
HEIF = frozenset(("heic", "heif", "hif"))  # read where pillow-heif is installed
SUFFIXES = frozenset(KINDS.split()) | (HEIF if find_spec("pillow_heif") else frozenset())
_RAW = "arw cr2 cr3 dng nef orf pef raf raw rw2 srw"
_OTHER = (
    "apng avifs cur dcm dds dib emf eps exr fits hdr heic heics heif hif icns ico j2c j2k jls jpc jpf jpx"
)
_OTHER += " jxl jxr mpo pcx pfm psd rgb sgi svg svgz wdp wmf xbm xcf xpm"
FOREIGN = frozenset(f"{_RAW} {_OTHER}".split()) - SUFFIXES  # of pictures that are not read
TEXTS = ("caption", "text", "txt")  # suffixes of captions; a later one goes before an earlier one
SYSTEM = frozenset(("__macosx", "@eadir", "$recycle.bin", "#recycle", "recycler", "@recycle", "#snapshot"))
SYSTEM |= {"@recently-snapshot", "system volume information", "lost+found"}
_SPLIT_OF = dict.fromkeys(("train", "training", "trainset", "trainval"), "train")
_SPLIT_OF |= dict.fromkeys(("val", "valid", "validation", "dev", "valset", "minival"), "validation")
_SPLIT_OF |= dict.fromkeys(("test", "testing", "testset", "eval", "evaluation", "holdout"), "test")
_SPLIT_OF |= dict.fromkeys(("unlabeled", "unlabelled"), "unlabelled") | {"extra": "extra"}
_FILLERS = frozenset(("set", "split", "data", "dataset", "image", "images", "img", "imgs", "shard", "shards"))


def tidy(name: str) -> str:
    """The name of a member of an archive as all write it: "./a\\\\b.png", "../a//b.png" -> "a/b.png"."""
    return re.sub(r"^(\.\./|/)+", "", posixpath.normpath(name.replace("\\", "/")))


def comparable(name: str) -> str:
    """A name as two files or tables may both write it."""
    return unicodedata.normalize("NFC", tidy(name))


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, or in a folder that is or that belongs to an operating system."""
    return any(part.startswith(".") or part.lower() in SYSTEM for part in name.split("/"))


def suffix(name: str) -> str:
    """ "cat/A.JPG" -> "jpg"; "" if there is none."""
    base = name.rpartition("/")[2]
    return base.rpartition(".")[2].lower() if "." in base else ""


def shown(name: str) -> str:
    """A file's name as it can be printed, even if it is not in UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def top(name: str) -> str:
    """The first folder of a name, "" if there is none."""
    return name.partition("/")[0] if "/" in name else ""


def image_names(names: Iterable[str]) -> list[str]:
    """The pictures among files, sorted."""
    return sorted({name for name in names if suffix(name) in SUFFIXES})


def unread(names: Sequence[str]) -> list[str]:
    """What a set of files and folders ("dog/") leaves out: pictures of kinds that are not read, files without
    a suffix, folders without a picture beside those that have one. A sentence for each."""
    found, notes = image_names(names), []
    if foreign := [name for name in names if suffix(name) in FOREIGN]:
        counts = ", ".join(f"{n} .{kind}" for kind, n in sorted(Counter(map(suffix, foreign)).items()))
        text = f'left out {counts}, which are not read, such as "{shown(foreign[0])}"'
        extra = ', or pip install "pixelwright[heif]"' if HEIF & set(map(suffix, foreign)) else ""
        notes.append(f"{text}: convert them to PNG or JPEG{extra}")
    if bare := [name for name in names if name and not suffix(name) and not name.endswith("/")]:
        notes.append(f'left out {len(bare)} files without a suffix, such as "{shown(bare[0])}"')
    root = wrapper(found)
    kept = {top(name.removeprefix(root)) for name in found}
    gone = {top(name.removeprefix(root)) for name in names if name.startswith(root)} - kept - {""}
    if gone and "" not in kept:
        listed = ", ".join(map(shown, sorted(gone)[:9])) + (", ..." if len(gone) > 9 else "")
        notes.append(f"nothing is left of {listed}, where no image is")
    return notes


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


def _split(name: str) -> tuple[str, str] | None:
    """The split that a name tells and its other words: "seg_train2" -> ("train", "seg"); None without."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    splits = [_SPLIT_OF[word] for word in words if word in _SPLIT_OF]
    rest = " ".join(word for word in words if word not in _SPLIT_OF and word not in _FILLERS)
    return (splits[-1], rest) if splits else None


def refuse_splits(
    names: Iterable[str], where: object, remedy: Callable[[str], str], files: bool = False
) -> None:
    """Raise UserError if folders of several splits (with `files`, also files) lie side by side. `remedy`
    makes the end of the message of the name of one of them."""
    found: dict[tuple[str, str], dict[str, str]] = {}  # (folder, rest of the name) -> split -> what is of it
    every = list(names)
    for folder in sorted({name.rpartition("/")[0] for name in every}):
        parts = folder.split("/")
        for depth, part in enumerate(parts):
            if split := _split(part):
                place = "/".join(parts[:depth]), split[1]
                found.setdefault(place, {})[split[0]] = "/".join(parts[: depth + 1])
    for name in every if files else ():
        stem = name.rpartition("/")[2].rpartition(".")[0]
        numbered, split = re.match(r"(.+?)-\d+-of-\d+", stem), _split(stem)
        if numbered or split:
            found.setdefault(("", ""), {})[numbered[1] if numbered else split[0] if split else ""] = name
    for beside in found.values():
        if len(beside) > 1:
            example = beside.get("train") or max(beside.values())
            splits = ", ".join(sorted(beside))
            raise UserError(f'"{where}" holds the splits {splits} side by side: {remedy(example)}')


def folder_classes(names: Sequence[str], where: object) -> tuple[list[int], tuple[str, ...] | None]:
    """The label of each picture and the class names, by its first folder; one class without names if all are
    in none. Raises UserError: only some are, or names that are not UTF-8 or differ in their bytes alone."""
    folders = [top(name) for name in names]
    if "" in folders:
        if not any(folders):
            return [0] * len(names), None
        stray = shown(names[folders.index("")])
        raise UserError(f'"{where}" holds class folders and "{stray}" beside them: move it into one')
    written: dict[str, str] = {}
    for name in sorted(set(folders)):
        if shown(name) != name:
            raise UserError(f'"{where}" holds the class "{shown(name)}", whose name is not UTF-8: rename it')
        if written.setdefault(comparable(name), name) != name:
            raise UserError(f'"{where}" holds two classes that are both written "{name}": rename one')
    return number_classes([comparable(folder) for folder in folders], str)


def number_classes(
    values: Sequence[object], place: Callable[[int], str], names: Sequence[str] | None = None
) -> tuple[list[int], tuple[str, ...] | None]:
    """Labels as numbers, and the names of the classes: from labels that are all whole numbers, which `names`
    may name, or all names, whose classes are then in the order of the alphabet.

    Raises UserError: a label that is neither, or has no name, or a name that is there twice; `place` says
    what has label i.
    """
    words = [unicodedata.normalize("NFC", v) for v in values if isinstance(v, str)]
    if words and len(words) == len(values):
        number = {name: label for label, name in enumerate(sorted(set(words)))}
        return [number[word] for word in words], tuple(number)
    classes = tuple(unicodedata.normalize("NFC", str(name)) for name in names or ()) or None
    if classes and (twice := [name for name, count in Counter(classes).items() if count > 1]):
        raise UserError(f'{place(0)} is of a set that names the class "{twice[0]}" twice: rename one')
    numbers = []
    for i, value in enumerate(values):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            text = f"{place(i)} has the label {value!r}: labels are whole numbers from 0"
            raise UserError(f"{text}, or all are names (splits without labels, such as test, cannot be used)")
        if classes and value >= len(classes):
            raise UserError(f"{place(i)} has the label {value} of {len(classes)} class names: add its name")
        numbers.append(value)
    return numbers, classes
