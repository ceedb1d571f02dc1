"""Labels as people write them: numbers, ranges, names."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pixelwright.diffusion.labels import Classes, balanced_labels
from pixelwright.errors import UserError
from pixelwright.files import read_lines
from pixelwright.rng import generator

REPEATED = re.compile(r"(.+?)\s*\*\s*([1-9][0-9]{0,6})")


def parse_labels(
    words: Iterable[str], num_classes: int, class_names: Sequence[str] | None = None
) -> list[int]:
    """The classes that `words` mean, one per image, in order.

    Args:
        words: each a class name, or one or several of the following with commas between: a number, a range
            `0-9` (both ends included), a class name, `all`; each may be followed by `*N` for N times.
        num_classes: labels run from 0 to num_classes - 1.
        class_names: one name per class, where the model has them; see `Classes`.

    Raises:
        UserError: naming the word, for anything else, for what could mean several classes, and for no label.
    """
    classes = Classes(num_classes, class_names)
    labels: list[int] = []
    for word in words:
        # A name may hold a comma ("tench, Tinca tinca"), so the whole word is tried as a name first.
        for piece in map(str.strip, [word] if classes.named(word) else word.split(",")):
            many = None if classes.named(piece) else REPEATED.fullmatch(piece)  # cat*3
            piece, times = (piece, 1) if many is None else (many[1], int(many[2]))
            labels += [*_labels(piece, classes)] * times
    if not labels:
        raise UserError("no label is given; try --labels 0-9 or --labels all")
    return labels


def _labels(word: str, classes: Classes) -> Sequence[int]:
    if not word:
        raise UserError("a label is empty; give numbers, ranges such as 0-9, class names or all")
    if word == "all":
        _check_meaning(word, "every class", classes)
        return range(classes.count)
    ends = re.fullmatch(r"([0-9]+)-([0-9]+)", word)
    if ends is None:
        return [classes.find(word)]
    _check_meaning(word, "a range", classes)
    low, high = map(int, ends.groups())
    if low > high:
        raise UserError(f'label range "{word}" runs backwards; write {high}-{low}')
    if high >= classes.count:
        raise UserError(f"label {word} is out of range; the model has classes 0 to {classes.count - 1}")
    return range(low, high + 1)


def _check_meaning(word: str, meaning: str, classes: Classes) -> None:
    """Raise UserError if a word with a meaning of its own is the name of a class, too."""
    if named := classes.named(word):
        raise UserError(f'"{word}" means {meaning}, and class {named[0]} is called so; give numbers')


def labels_for(
    words: Sequence[str],
    count: int,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> Tensor:
    """The class of each of `count` images, int64 [count].

    Args:
        words: `balanced` (`sampling.balanced_labels`), `random` (by seed and index), a file with one label
            a line, or what `parse_labels` takes, which is gone through again and again.

    Raises:
        UserError: labels that the model does not have, or a file with another number of them.
    """
    classes, word = Classes(num_classes, class_names), words[0] if len(words) == 1 else ""
    if word in ("balanced", "random"):
        _check_meaning(word, f"{word} labels", classes)
    if word == "balanced":
        return balanced_labels(count, num_classes)
    if word == "random":
        draws = [torch.randint(num_classes, (), generator=generator(seed, "label", i)) for i in range(count)]
        return torch.stack(draws)
    if word and Path(word).is_file():
        _check_meaning(word, "the labels in that file", classes)
        lines = [line for line in read_lines(Path(word)) if line.strip()]
        found = parse_labels(lines, num_classes, class_names)
        if len(found) != count:
            raise UserError(f"{word} holds {len(found)} labels for {count} images; give one a line")
        return torch.tensor(found)
    found = parse_labels(words, num_classes, class_names)
    return torch.tensor(found)[torch.arange(count) % len(found)]
