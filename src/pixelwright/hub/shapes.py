"""What the shapes of a file's tensors say of a network. All raise `UserError` for names that are missing."""

import math
import re
from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor

from pixelwright.errors import UserError

Specs: TypeAlias = Mapping[str, Tensor]  # bare published name -> a tensor, of which only the shape is read


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
