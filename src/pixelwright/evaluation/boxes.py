"""Where one box lies relative to another, by the rule of GenEval."""

from __future__ import annotations

import math

Box = tuple[float, float, float, float]
"""Left, top, right, bottom; x to the right, y down."""

SLACK = 0.1
"""Of the two boxes' widths (or heights) together, the distance that does not count."""


def relations(first: Box, second: Box) -> frozenset[str]:
    """The words among "left of", "right of", "above" and "below" that hold for the first box.

    Distances between the centres are shortened by SLACK; a word holds if what is left along its axis is more
    than half of the whole distance. So near a diagonal two may hold, and for boxes at one place none.
    """
    offsets = [(first[axis] + first[axis + 2] - second[axis] - second[axis + 2]) / 2 for axis in (0, 1)]
    distance = math.hypot(*offsets)
    found = set()
    for axis, (before, after) in enumerate((("left of", "right of"), ("above", "below"))):
        extent = first[axis + 2] - first[axis] + second[axis + 2] - second[axis]
        if abs(offsets[axis]) - SLACK * extent > distance / 2:
            found.add(before if offsets[axis] < 0 else after)
    return frozenset(found)
