"""Classes as people name them, by number or by name: the same in Python and on the command line."""

import re
import unicodedata
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pixelwright.errors import UserError, nearest
from pixelwright.models.config import DenoiserConfig


class Classes:
    """The classes of a model, found by what people write.

    Names are compared in Unicode's composed form (NFC), and without regard to case where none is written
    exactly so.

    Args:
        count: labels run from 0 to count - 1.
        names: one per class, where the model has them.
    """

    def __init__(self, count: int, names: Sequence[str] | None = None) -> None:
        self.count, self.names = count, names or ()
        self._exact: dict[str, list[int]] = {}
        self._folded: dict[str, list[int]] = {}
        for i, name in enumerate(map(_composed, self.names)):
            self._exact.setdefault(name, []).append(i)
            self._folded.setdefault(name.casefold(), []).append(i)

    def named(self, word: str) -> list[int]:
        """The classes of this name."""
        word = _composed(word)
        return self._exact.get(word) or self._folded.get(word.casefold(), [])

    def find(self, word: str) -> int:
        """The class of a name or number. Raises UserError: there is none, or more than one that is meant."""
        found = self.named(word)
        if re.fullmatch(r"-?[0-9]+", word) and int(word) not in found:
            found = [*found, int(word)] if not found or 0 <= int(word) < self.count else found
        if len(found) > 1:
            which = " or ".join(f'{i} ("{self.names[i]}")' for i in found)
            number = f"the number (on the command line as {found[0]}-{found[0]})"
            raise UserError(f'"{word}" could be class {which}: give {number}')
        if not found:
            hint = nearest(_composed(word).casefold(), self._folded)
            hint = hint if self.names else "; the model has no class names, give numbers"
            raise UserError(f'unknown class "{word}"{hint}')
        if not 0 <= found[0] < self.count:
            raise UserError(f"label {word} is out of range; the model has classes 0 to {self.count - 1}")
        return found[0]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip())


def as_labels(labels: Tensor | Sequence[Any] | float | str, config: DenoiserConfig) -> Tensor:
    """Class indices int64 [B] from numbers or class names of a model's config; see `Classes`.

    Raises:
        UserError: no labels, an index outside 0 … num_classes (the null class is allowed), a name that is
            unknown or could be several classes.
    """
    if isinstance(labels, Tensor):
        labels = labels.reshape(-1).tolist() if labels.ndim < 2 else labels.tolist()
    values: list[Any] = [labels] if isinstance(labels, (float, int, str)) else list(labels)
    if not values or not all(isinstance(value, (Real, str)) for value in values):
        raise UserError(f"labels is {labels!r}; give a list of at least one class")
    classes = Classes(config.num_classes, config.class_names)
    numbers = [classes.find(value) if isinstance(value, str) else value for value in values]
    for value in numbers:
        if not (value == value and 0 <= value <= config.num_classes and value == int(value)):
            last = config.num_classes - 1
            raise UserError(f"label {value} is outside 0 to {last} (or {last + 1}, the null class)")
    return torch.tensor([int(value) for value in numbers])


def balanced_labels(count: int, num_classes: int) -> Tensor:
    """Each class in turn, int64 [count]; where there are fewer images than classes, spread over them."""
    index = torch.arange(count)
    return index % num_classes if count >= num_classes else index * num_classes // count
