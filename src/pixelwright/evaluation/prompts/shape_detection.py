"""Finding plain shapes in an image: which ones, of which colour, where, by classical segmentation.

Nothing is learned. The ground is the colour of the border; every pixel is given to the ground or to the
nearest colour of Shapes in OKLab; what hangs together is an object; its shape is that whose outline, drawn
with the object's area and centre at all angles, agrees with it best. Needs scipy (extra `eval`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import numpy as np

from pixelwright.data.shapes import COLOURS, POLYGONS, SHAPES, Array, coverage
from pixelwright.errors import UserError
from pixelwright.evaluation.prompts.common import Box

ODD = len(COLOURS) + 1  # the number of what is neither ground nor of a colour with a name
AWAY = 0.15  # OKLab distance from the ground at which a pixel is no ground
FAR = 0.12  # OKLab distance from which on a colour has no name; the nearest two that have one are 0.17 apart
CORE = 0.004  # of the image, the least area of an object without its outermost pixels
SHARE = 0.2  # of what hangs together, the least part that another colour makes an object of its own
MATCH = 0.8  # least agreement (intersection over union) with an outline for a shape to have a name
SOFT = 0.8  # pixels by which image and outline are blurred alike, so that an edge may be soft or ragged
TURN = math.radians(7.5)  # between the angles that are tried


@dataclass(frozen=True)
class ShapeDetection:
    """An object found in an image. `shape` and `colour` are None where it is like none we know."""

    shape: str | None
    colour: str | None
    box: Box  # in units of the image side
    match: float  # agreement with the outline of the best shape, 0 to 1

    def __str__(self) -> str:
        return f"{self.colour or 'odd-coloured'} {self.shape or 'blot'}"


def find_shapes(image: Array) -> tuple[ShapeDetection, ...]:
    """The objects in a square image, uint8 [S, S, 3], the largest first."""
    if image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3:
        shape = list(image.shape)
        raise UserError(f"an image has the shape {shape}; shapes are found in square ones, [S, S, 3]")
    # The ground is the median along the edges, which objects do not touch.
    edge = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])  # [4S - 4, 3]
    ground = np.median(edge, axis=0)  # [3]
    references = np.concatenate([oklab(ground)[None], _palette()])
    distances = np.linalg.norm(oklab(image)[:, :, None] - references, axis=-1)  # [S, S, 1 + colours]
    names = np.argmin(distances, axis=-1)  # [S, S], 0 is the ground
    names[(names == 0) & (distances[..., 0] > AWAY)] = ODD
    parts = sorted(_parts(names), key=lambda part: -int(part.sum()))
    return tuple(_describe(image, part, names, ground) for part in parts)


def oklab(rgb: Array) -> Array:
    """sRGB in 0..255, [..., 3] -> OKLab [..., 3], in which distances are about those the eye sees."""
    share = np.asarray(rgb, np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T)


_TO_CONES = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929],
     [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
_TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468],
     [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip


@cache
def _palette() -> Array:
    return oklab(np.array([first for first, _ in COLOURS.values()]))  # [colours, 3]


def _parts(names: Array) -> Iterator[Array]:
    """Masks [S, S] of objects: what hangs together, taken apart where different colours meet in it. What is a
    pixel or two thin is no object: mostly it is an edge, whose mixed colours look like a third."""
    least = max(1.0, CORE * names.size)
    for whole in chain(_pieces((names > 0) & (names < ODD)), _pieces(names == ODD)):
        core = _erode(whole)
        if core.sum() < least:
            continue
        colours, counts = np.unique(names[core], return_counts=True)
        if (counts >= SHARE * counts.sum()).sum() < 2:
            yield whole
            continue
        for colour in colours:
            yield from (p for p in _pieces(whole & (names == colour)) if _erode(p).sum() >= least)


def _pieces(mask: Array) -> Iterator[Array]:
    """What hangs together, a mask each."""
    labels, count = _scipy().label(mask)
    return (labels == number for number in range(1, count + 1))


def _erode(mask: Array) -> Array:
    return np.asarray(_scipy().binary_erosion(mask))


def _scipy() -> Any:
    from scipy import ndimage  # late: it is an extra

    return ndimage


def _describe(image: Array, part: Array, names: Array, ground: Array) -> ShapeDetection:
    colour = np.median(image[_erode(part)], axis=0)  # [3]
    away = np.linalg.norm(_palette() - oklab(colour), axis=-1)
    name = tuple(COLOURS)[int(away.argmin())] if away.min() < FAR else None
    # How much of each pixel the object covers, [S, S]: where its edge is mixed with the ground, a part.
    way = colour - ground
    mix = np.clip((image - ground) @ way / max(float(way @ way), 1.0), 0, 1)
    other = (names > 0) & (names < ODD) & ~part
    near = _scipy().binary_dilation(part, np.ones((3, 3)))
    shape, match = _shape(np.where(near & ~other, mix, 0))
    rows, columns = np.nonzero(part)
    ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    left, top, right, bottom = (float(end) / len(image) for end in ends)
    box = (left, top, right, bottom)
    return ShapeDetection(shape if match >= MATCH else None, name, box, match)


def _shape(covered: Array) -> tuple[str, float]:
    """The shape that agrees best, and how well."""
    blur = _scipy().gaussian_filter
    rows, columns = (np.flatnonzero(covered.any(axis)) for axis in (1, 0))
    margin = 3  # pixels
    window = np.pad(covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], margin)
    area = float(window.sum())
    y, x = np.indices(window.shape)
    dx, dy = x - (x * window).sum() / area, y - (y * window).sum() / area  # from the centre of mass
    window = blur(window, SOFT)
    best = ("", 0.0)
    for shape in SHAPES:
        corners, inner, _ = POLYGONS.get(shape, (0, 0, 0))
        unit = corners * inner * math.sin(math.pi / corners) if corners else math.pi  # area at radius 1
        radius = math.sqrt(area / unit)
        period = 2 * math.pi / corners if corners else TURN
        angles = np.arange(0, period, TURN)[:, None, None]
        cos, sin = np.cos(angles), np.sin(angles)
        outlines = coverage(shape, radius, dx * cos + dy * sin, dy * cos - dx * sin)  # [angles, h, w]
        outlines = blur(outlines, (0, SOFT, SOFT))
        both, either = np.minimum(outlines, window), np.maximum(outlines, window)
        match = float((both.sum((1, 2)) / either.sum((1, 2))).max())
        best = max(best, (shape, match), key=lambda pair: pair[1])
    return best
