"""Labels as people write them: numbers, ranges, names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pixelwright.errors import UserError, nearest


def parse_labels(
    words: Iterable[str], num_classes: int, class_names: Sequence[str] | None = None
) -> list[int]:
    """The classes that `words` mean, one per image, in order.

    Args:
        words: each a class name, or one or several of the following with commas between: a number, a range
            `0-9` (both ends included), a class name, `all`.
        num_classes: labels run from 0 to num_classes - 1.
        class_names: one name per class, where the model has them; case does not matter.

    Raises:
        UserError: naming the word, for anything else and for no label at all.
    """
    names = {name.lower(): index for index, name in enumerate(class_names or ())}
    labels: list[int] = []
    for word in words:
        # A name may hold a comma ("tench, Tinca tinca"), so the whole word is tried as a name first.
        pieces = [word] if word.strip().lower() in names else word.split(",")
        for piece in pieces:
            labels += _labels(piece.strip(), num_classes, names)
    if not labels:
        raise UserError("no label is given; try --labels 0-9 or --labels all")
    return labels


def _labels(word: str, num_classes: int, names: dict[str, int]) -> Sequence[int]:
    if not word:
        raise UserError("a label is empty; give numbers, ranges such as 0-9, class names or all")
    if word.lower() in names:
        return [names[word.lower()]]
    if word == "all":
        return range(num_classes)
    if re.fullmatch(r"-?\d+", word):
        return [_class(int(word), word, num_classes)]
    if ends := re.fullmatch(r"(\d+)-(\d+)", word):
        low, high = (_class(int(end), word, num_classes) for end in ends.groups())
        if low > high:
            raise UserError(f'label range "{word}" runs backwards; write {high}-{low}')
        return range(low, high + 1)
    if not names:
        raise UserError(
            f'label "{word}" is not a number, a range such as 0-9, or "all"; the model has no class names'
        )
    raise UserError(f'unknown class "{word}"{nearest(word.lower(), names)}')


def _class(label: int, word: str, num_classes: int) -> int:
    if not 0 <= label < num_classes:
        raise UserError(f"label {word} is out of range; the model has classes 0 to {num_classes - 1}")
    return label
