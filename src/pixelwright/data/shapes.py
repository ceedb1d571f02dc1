"""Shapes: pictures of textured shapes on muted backgrounds, drawn from a description, at any resolution.

Everything is measured in units of the image side, x to the right and y down, so that `render(scene, size)` draws the
same scene at every size. Edges come from signed distances: a pixel is covered to the part 1/2 - distance in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from pixelwright.data.config import SHAPES_COUNT
from pixelwright.data.sources import Sample
from pixelwright.errors import UserError, nearest
from pixelwright.streams import generator

Array = np.ndarray
RGB = tuple[int, int, int]

# A polygon has `corners` tips on its circumscribed circle and, half-way between them, points at `inner` times that
# radius: on the straight edge for a regular polygon, nearer the centre for a star.
# (corners, inner, circumscribed radius at which the shapes look equally large)
POLYGONS: dict[str, tuple[int, float, float]] = {
    "square": (4, math.cos(math.pi / 4), 0.37),
    "triangle": (3, math.cos(math.pi / 3), 0.40),
    "star": (5, 0.48, 0.42),
}
SHAPE_RADIUS = {"circle": 0.32, **{name: radius for name, (_, _, radius) in POLYGONS.items()}}
SHAPES = tuple(SHAPE_RADIUS)

# (the colour, the second colour of its textures)
COLOURS: dict[str, tuple[RGB, RGB]] = {
    "red": ((222, 30, 38), (255, 226, 220)),
    "orange": ((250, 130, 10), (255, 240, 215)),
    "yellow": ((255, 218, 20), (120, 88, 0)),
    "green": ((20, 160, 60), (218, 250, 215)),
    "blue": ((30, 80, 225), (214, 232, 255)),
    "purple": ((135, 40, 185), (240, 218, 255)),
}

GROUNDS: dict[str, RGB] = {
    "grey": (150, 150, 150),
    "charcoal": (62, 64, 68),
    "beige": (205, 190, 162),
    "brown": (108, 86, 70),
    "slate": (104, 118, 134),
    "sage": (142, 156, 134),
}
PATTERNS = ("plain", "gradient", "spotlight")

STRIPE, CHECK, DOT = 5 / 32, 7 / 32, 5.5 / 32  # periods of the textures
DOT_RADIUS = 0.3  # in periods
RIM = 0.025  # width of the untextured edge, which keeps the outline clear


@dataclass(frozen=True)
class Object:
    """One shape. Lengths are in units of the image side, the angle is in radians, clockwise."""

    shape: str
    colour: str
    texture: str
    centre: tuple[float, float]
    radius: float
    angle: float

    def __post_init__(self) -> None:
        _known("shape", self.shape, SHAPES)
        _known("colour", self.colour, COLOURS)
        _known("texture", self.texture, TEXTURES)


@dataclass(frozen=True)
class Background:
    """What is behind the objects: `colour`, or from `colour` to `second` ("gradient": along `angle`; "spotlight": from
    the middle outwards)."""

    pattern: str
    colour: str
    second: str
    angle: float

    def __post_init__(self) -> None:
        _known("background pattern", self.pattern, PATTERNS)
        _known("background colour", self.colour, GROUNDS)
        _known("background colour", self.second, GROUNDS)


@dataclass(frozen=True)
class Scene:
    """All there is in a picture; later objects lie on top of earlier ones."""

    objects: tuple[Object, ...]
    background: Background


def _known(what: str, value: str, choices: object) -> None:
    if value not in choices:  # type: ignore[operator]
        raise UserError(f'unknown {what} "{value}"{nearest(value, choices)}')  # type: ignore[arg-type]


# --- drawing ---------------------------------------------------------------------------------------------------


def render(scene: Scene, size: int) -> Array:
    """Draw `scene` as uint8 [size, size, 3]."""
    x, y = _grid(size)
    image = _ground(scene.background, x, y)
    for thing in scene.objects:
        _draw(image, thing, x, y, size)
    return np.rint(image).astype(np.uint8)


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Array, Array]:
    """Pixel centres: x [1, size], y [size, 1]."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    return line[None, :], line[:, None]


def _ground(ground: Background, x: Array, y: Array) -> Array:
    """Float image [size, size, 3] of the background."""
    first, second = np.float32(GROUNDS[ground.colour]), np.float32(GROUNDS[ground.second])
    if ground.pattern == "plain":
        return np.tile(first, (len(y), len(y), 1))
    if ground.pattern == "gradient":
        mix = (x - 0.5) * math.cos(ground.angle) + (y - 0.5) * math.sin(ground.angle) + 0.5
    else:
        mix = 2 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    return first + np.clip(mix, 0, 1)[..., None] * (second - first)


def _draw(image: Array, thing: Object, x: Array, y: Array, size: int) -> None:
    """Paint one object over `image`, in place and only where it can reach."""
    reach = thing.radius + 1 / size
    columns, rows = (slice(max(0, int((c - reach) * size)), max(0, math.ceil((c + reach) * size))) for c in thing.centre)
    dx, dy = x[:, columns] - np.float32(thing.centre[0]), y[rows] - np.float32(thing.centre[1])
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)
    u, v = dx * cos + dy * sin, dy * cos - dx * sin  # coordinates that turn with the object
    distance = _distance(thing, u, v) * size  # in pixels
    colour, second = (np.float32(c) for c in COLOURS[thing.colour])
    paint: Array = colour
    if thing.texture != "plain":
        inside = _cover(distance + RIM * size)
        paint = colour + (inside * TEXTURES[thing.texture](u, v, size))[..., None] * (second - colour)
    part = image[rows, columns]
    part += _cover(distance)[..., None] * (paint - part)


def _cover(distance: Array) -> Array:
    """How much of a pixel lies inside an edge at `distance` pixels (negative inside)."""
    return np.clip(0.5 - distance, 0, 1)


def _distance(thing: Object, u: Array, v: Array) -> Array:
    """Signed distance to the outline near it, negative inside."""
    radius = np.hypot(u, v)
    if thing.shape == "circle":
        return radius - np.float32(thing.radius)
    corners, inner, _ = POLYGONS[thing.shape]
    # Fold the plane into half a sector, from the tip at angle 0 to the inner point at angle `half`; there the outline
    # is one straight line between the two, of normal (nx, ny).
    half = math.pi / corners
    angle = np.arctan2(u, -v)  # from the upright direction
    angle = np.abs(angle - 2 * half * np.rint(angle / (2 * half)))
    tip = thing.radius
    ix, iy = inner * tip * math.cos(half), inner * tip * math.sin(half)
    nx, ny = iy, tip - ix
    return ((np.cos(angle) * radius - tip) * nx + np.sin(angle) * radius * ny) / math.hypot(nx, ny)


def _wave(u: Array, period: float) -> Array:
    """Distance from the nearest stripe's edge, positive on stripes (half the period wide, one centred at 0)."""
    turn = u / period
    return (0.25 - np.abs(turn - np.rint(turn))) * period


def _stripes(u: Array, v: Array, size: int) -> Array:
    return _cover(_wave(u, STRIPE) * size)


def _checks(u: Array, v: Array, size: int) -> Array:
    across, down = (np.clip(_wave(w - CHECK / 4, CHECK) * size, -0.5, 0.5) for w in (u, v))
    return 0.5 + 2 * across * down


def _dots(u: Array, v: Array, size: int) -> Array:
    du, dv = (w - DOT * np.rint(w / DOT) for w in (u, v))
    return _cover((np.hypot(du, dv) - DOT_RADIUS * DOT) * size)


TEXTURES: dict[str, Callable[[Array, Array, int], Array]] = {
    "plain": lambda u, v, size: np.zeros_like(u),
    "striped": _stripes,
    "checked": _checks,
    "dotted": _dots,
}

# --- the set ---------------------------------------------------------------------------------------------------


def random_scene(seed: int, index: int) -> Scene:
    """Scene `index` of the set `seed`: one object, wholly inside the picture."""
    draws = iter(torch.rand(12, generator=generator(seed, "shapes", index), dtype=torch.float64).tolist())

    def choose(options: object) -> str:
        names = tuple(options)  # type: ignore[call-overload]
        return names[int(next(draws) * len(names))]

    def between(low: float, high: float) -> float:
        return low + (high - low) * next(draws)

    shape, colour, texture = choose(SHAPES), choose(COLOURS), choose(TEXTURES)
    radius = SHAPE_RADIUS[shape] * between(0.8, 1.1)
    centre = (between(radius, 1 - radius), between(radius, 1 - radius))
    angle = between(-0.3, 0.3)
    pattern, ground = choose(PATTERNS), choose(GROUNDS)
    second = ground if pattern == "plain" else choose(g for g in GROUNDS if g != ground)
    return Scene(
        (Object(shape, colour, texture, centre, radius, angle),),
        Background(pattern, ground, second, between(0, 2 * math.pi)),
    )


def label(scene: Scene) -> int:
    """Class of a scene of one object: its shape and colour."""
    thing = scene.objects[0]
    return SHAPES.index(thing.shape) * len(COLOURS) + tuple(COLOURS).index(thing.colour)


CLASS_NAMES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)


def caption(scene: Scene) -> str:
    """One English phrase for a scene, such as "a red striped circle on a grey background"."""
    things = [_article(_phrase(thing)) for thing in scene.objects]
    listed = things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]
    ground = scene.background
    if ground.pattern == "plain":
        return f"{listed} on {_article(ground.colour)} background"
    return f"{listed} on a background fading from {ground.colour} to {ground.second}"


def _phrase(thing: Object) -> str:
    words = (thing.colour, thing.shape) if thing.texture == "plain" else (thing.colour, thing.texture, thing.shape)
    return " ".join(words)


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


class Shapes:
    """The procedural set: sample i is drawn from `scene(i)`, a function of (seed, i), at `size` x `size` pixels.

    Its classes are the pairs of shape and colour, such as "red circle"; textures and backgrounds vary within a class.
    """

    def __init__(self, size: int, seed: int = 0, count: int = SHAPES_COUNT):
        if size < 1 or count < 1:
            raise UserError(f"Shapes of size {size} and count {count}: give whole numbers of at least 1")
        self.size, self.seed, self.count = size, seed, count

    @property
    def class_names(self) -> tuple[str, ...]:
        return CLASS_NAMES

    @property
    def num_classes(self) -> int:
        return len(CLASS_NAMES)

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"shapes/{index}"

    def scene(self, index: int) -> Scene:
        """The exact description of sample `index`."""
        if not 0 <= index < self.count:
            raise IndexError(f"sample {index} of {self.count}")
        return random_scene(self.seed, index)

    def __getitem__(self, index: int) -> Sample:
        scene = self.scene(index)
        return Sample(Image.fromarray(render(scene, self.size)), label(scene), caption(scene), self.name(index))
