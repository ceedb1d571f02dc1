"""The published form of a family of networks, and what the shapes of a file's tensors say of a network.

`layouts` has all families. The functions raise `UserError` for names that are missing.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.models.config import DenoiserConfig

Specs: TypeAlias = Mapping[str, Tensor]  # bare published name -> a tensor, of which only the shape is read
Table: TypeAlias = Sequence[tuple[str, str]]
"""Beginnings of names, ours <-> theirs; the first entry that fits a name is used, `#` stands for a number.
Our SwiGLU's w13 is their w1 and w3, unless an entry ends in "w13."."""
Settings: TypeAlias = Mapping[str, Any]
"""What a file does not tell, by the names of the fields of a backbone's config, its detailer's or a
`DenoiserConfig`."""


@dataclass(frozen=True)
class Layout:
    """The published form of a family of networks."""

    family: str
    marks: tuple[str, ...]
    """Keys that its files have, and with "!" before them have not, and no other family's files."""
    parts: tuple[tuple[type, type], ...]
    """Types of the configs of backbone and detailer that may have this form."""
    table: Callable[[DenoiserConfig], Table]
    infer: Callable[[Specs, Settings], DenoiserConfig]
    """The config that names and shapes tell, without its name. Raises UserError."""
    untold: tuple[str, ...] = ()
    """Fields of the backbone's config, or the detailer's, that no file tells."""
    constants: Callable[[DenoiserConfig], dict[str, Tensor]] = lambda config: {}
    """Tensors of a file that are not learned and not among our weights, such as a table of positions."""

    prefix: str | None = None
    """Before each name in a pickled file; None: that of Lightning's two sets."""
    containers: tuple[str, ...] = ("state_dict",)
    """Keys of a pickled file under which all tensors are."""

    def marked(self, names: Specs) -> bool:
        """Whether a file has these keys."""
        return all((mark.removeprefix("!") in names) != mark.startswith("!") for mark in self.marks)


# ---------------------------------------------------------------- shapes
def shape_of(weights: Specs, key: str, ndim: int) -> tuple[int, ...]:
    """The shape of a tensor, none of whose `ndim` axes may be empty."""
    if key not in weights:
        raise UserError(f'the checkpoint misses "{key}"')
    shape = tuple(weights[key].shape)
    if len(shape) != ndim or not all(shape):
        raise UserError(f'"{key}" has the shape {list(shape)}; expected {ndim} axes, none of them empty')
    return shape


def count_of(weights: Specs, blocks: str) -> int:
    """How many blocks there are, numbered from 0."""
    numbers = {int(m[1]) for key in weights if (m := re.match(rf"{re.escape(blocks)}\.(\d+)\.", key))}
    if not numbers:
        raise UserError(f'the checkpoint misses "{blocks}.0"')
    gaps = set(range(max(numbers) + 1)) - numbers if max(numbers) < 10_000 else {0}
    if gaps:
        raise UserError(f'the checkpoint misses "{blocks}.{min(gaps)}"; its blocks go up to {max(numbers)}')
    return len(numbers)


def heads_of(weights: Specs, key: str, size: int) -> int:
    """The number of heads of width `size`, from the norm of the queries of one."""
    (head_size,) = shape_of(weights, key, 1)
    if size % head_size:
        raise UserError(f'"{key}" has {head_size} channels, which does not divide width {size}')
    return size // head_size


def embedder_of(weights: Specs, key: str = "s_embedder.proj.weight") -> tuple[int, int]:
    """Width and patch size, from the linear layer over the pixels of a patch."""
    hidden_size, pixels = shape_of(weights, key, 2)
    patch_size = math.isqrt(pixels // 3)
    if 3 * patch_size**2 != pixels:
        raise UserError(f"{key} takes {pixels} inputs, which is no 3·P·P")
    return hidden_size, patch_size


def classes_of(weights: Specs) -> int:
    """The number of classes; the last row of the table is the null class."""
    return shape_of(weights, "y_embedder.embedding_table.weight", 2)[0] - 1
