"""Range checks that configs of several parts share."""

from __future__ import annotations

from typing import Any

from pixelwright.errors import UserError


def check_positive(config: Any, *names: str) -> None:
    """Raise UserError unless these fields are whole numbers of at least 1."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            kind = type(config).__name__
            raise UserError(f"{kind}.{name} is {value!r}; it must be a whole number of at least 1")


def check_flag(config: Any, *names: str) -> None:
    """Raise UserError unless these fields are true or false."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise UserError(
                f"{type(config).__name__}.{name} is {getattr(config, name)!r}; it must be true or false"
            )


def check_heads(config: Any, size: int, num_heads: int) -> None:
    """Raise UserError unless `size` channels divide into heads that the 2-D rotary embedding can turn."""
    if size % num_heads or (size // num_heads) % 4:
        raise UserError(
            f"{type(config).__name__}: width {size} does not divide into {num_heads} heads of a multiple of "
            f"4 channels ({size} / {num_heads} = {size / num_heads:g}); rotary embedding needs that"
        )
