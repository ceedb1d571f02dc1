"""Range checks that configs of several parts share."""

from typing import Any

from pixelwright.errors import UserError


def check_heads(config: Any, size: int, num_heads: int) -> None:
    """Raise UserError unless `size` channels divide into heads that the 2-D rotary embedding can turn."""
    if size % num_heads or (size // num_heads) % 4:
        raise UserError(
            f"{type(config).__name__}: width {size} does not divide into {num_heads} heads of a multiple of "
            f"4 channels ({size} / {num_heads} = {size / num_heads:g}); rotary embedding needs that"
        )
