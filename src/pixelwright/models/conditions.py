"""What a denoiser is conditioned on: class labels [B], or the features of captions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwright.errors import UserError


@dataclass(frozen=True, eq=False)
class TextCondition:
    """Captions as a text encoder left them.

    Raises:
        UserError: shapes that do not fit together.
    """

    features: Tensor
    """[B, L, C], the encoder's output token by token."""
    mask: Tensor | None = None
    """Bool [B, L]: true for a token, false for padding; None where every position is a token. Models with
    `mask_padding` off, such as the published one, attend to padding too."""
    null: "TextCondition | None" = None
    """The empty caption, [1, L', C], which stands for no condition; without it, that is no token at all."""

    def __post_init__(self) -> None:
        if self.features.ndim != 3 or not self.features.is_floating_point():
            shape = list(self.features.shape)
            raise UserError(
                f"text features are {self.features.dtype} {shape}; give floats [batch, tokens, C]"
            )
        if self.mask is not None and (
            self.mask.dtype != torch.bool or self.mask.shape != self.features.shape[:2]
        ):
            raise UserError(
                f"the text mask is {self.mask.dtype} {list(self.mask.shape)}; "
                f"give bool {list(self.features.shape[:2])}, like the features"
            )
        if self.null is not None and (len(self.null), self.null.width) != (1, self.width):
            raise UserError(
                f"the empty caption is {list(self.null.features.shape)}; give [1, tokens, {self.width}]"
            )

    def __len__(self) -> int:
        return len(self.features)

    @property
    def width(self) -> int:
        """C, channels of a token."""
        return self.features.shape[-1]

    @property
    def device(self) -> torch.device:
        return self.features.device

    def __getitem__(self, part: slice | Tensor) -> "TextCondition":
        """Some of the captions."""
        mask = None if self.mask is None else self.mask[part]
        return TextCondition(self.features[part], mask, self.null)

    def split(self, size: int) -> "tuple[TextCondition, ...]":
        """The captions in pieces of `size`, the last of which may be smaller."""
        return tuple(self[start : start + size] for start in range(0, len(self), size))

    def map(self, function: Callable[[Tensor], Tensor]) -> "TextCondition":
        """With every tensor, those of the empty caption too, as `function` makes it."""
        mask = None if self.mask is None else function(self.mask)
        return TextCondition(function(self.features), mask, self.null and self.null.map(function))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TextCondition":
        """The same on another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def clone(self) -> "TextCondition":
        """A copy, of all but the empty caption."""
        mask = None if self.mask is None else self.mask.clone()
        return TextCondition(self.features.clone(), mask, self.null)

    def empty(self) -> "TextCondition":
        """As many empty captions, for the unconditional branch."""
        count = len(self)
        if self.null is None:
            nothing = torch.zeros(count, 1, self.width, dtype=self.features.dtype, device=self.device)
            return TextCondition(nothing, torch.zeros(count, 1, dtype=torch.bool, device=self.device))
        mask = None if self.null.mask is None else self.null.mask.expand(count, -1)
        features = self.null.features.to(self.features.dtype)
        return TextCondition(features.expand(count, -1, -1), mask, self.null)

    def padded(self, length: int) -> "TextCondition":
        """With zeros up to `length` tokens, which the mask tells from tokens."""
        more = length - self.features.shape[1]
        if more <= 0:
            return self
        mask = self._mask()
        return TextCondition(F.pad(self.features, (0, 0, 0, more)), F.pad(mask, (0, more)), self.null)

    def _mask(self) -> Tensor:
        if self.mask is not None:
            return self.mask
        return torch.ones(self.features.shape[:2], dtype=torch.bool, device=self.device)


Condition = Tensor | TextCondition
"""Labels [B] or captions; sliced, moved, copied and counted alike."""
C = TypeVar("C", Tensor, TextCondition)


def null_like(condition: Condition, null_label: int) -> Condition:
    """The unconditional branch: a model's null label (`DenoiserConfig.null_label`), or empty captions."""
    if isinstance(condition, TextCondition):
        return condition.empty()
    return torch.full_like(condition, null_label)


def join(first: Condition, second: Condition) -> Condition:
    """Both in one batch, such as the conditional and the null branch of guidance."""
    if isinstance(first, TextCondition) and isinstance(second, TextCondition):
        first, second = _same_length(first, second)
        with torch.autocast(first.features.device.type, enabled=False):  # which knows no float16 on CPUs
            features = torch.cat((first.features, second.features))
        return TextCondition(features, _masks(first, second, lambda a, b: torch.cat((a, b))), first.null)
    assert isinstance(first, Tensor) and isinstance(second, Tensor), "labels and captions do not mix"
    return torch.cat((first, second))


def drop(condition: C, dropped: Tensor, num_classes: int) -> C:
    """Without the condition where `dropped` [B] is true: label or caption dropout in training."""
    if isinstance(condition, TextCondition):
        own, null = _same_length(condition, condition.empty())
        features = torch.where(dropped[:, None, None], null.features, own.features)
        masks = _masks(null, own, lambda a, b: torch.where(dropped[:, None], a, b))
        return TextCondition(features, masks, own.null)
    return torch.where(dropped, torch.full_like(condition, num_classes), condition)


def _same_length(a: TextCondition, b: TextCondition) -> tuple[TextCondition, TextCondition]:
    length = max(a.features.shape[1], b.features.shape[1])
    return a.padded(length), b.padded(length)


def _masks(a: TextCondition, b: TextCondition, combine: Any) -> Tensor | None:
    return None if a.mask is None and b.mask is None else combine(a._mask(), b._mask())
