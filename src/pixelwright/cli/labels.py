"""Labels as people write them: numbers, ranges, names."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pixelwright.diffusion.sample import balanced_labels
from pixelwright.errors import UserError, nearest
from pixelwright.files import read_text, split_lines
from pixelwright.rng import generator


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
        known = 'a number, a range such as 0-9, or "all"; the model has no class names'
        raise UserError(f'label "{word}" is not {known}')
    raise UserError(f'unknown class "{word}"{nearest(word.lower(), names)}')


def _class(label: int, word: str, num_classes: int) -> int:
    if not 0 <= label < num_classes:
        raise UserError(f"label {word} is out of range; the model has classes 0 to {num_classes - 1}")
    return label


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
    if list(words) == ["balanced"]:
        return balanced_labels(count, num_classes)
    if list(words) == ["random"]:
        draws = [torch.randint(num_classes, (), generator=generator(seed, "label", i)) for i in range(count)]
        return torch.stack(draws)
    if len(words) == 1 and Path(words[0]).is_file():
        lines = [line for line in split_lines(read_text(Path(words[0]))) if line.strip()]
        found = parse_labels(lines, num_classes, class_names)
        if len(found) != count:
            raise UserError(f"{words[0]} holds {len(found)} labels for {count} images; give one a line")
        return torch.tensor(found)
    found = parse_labels(words, num_classes, class_names)
    return torch.tensor(found)[torch.arange(count) % len(found)]
