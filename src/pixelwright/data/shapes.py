"""Shapes: pictures of textured shapes on muted backgrounds, drawn from a description, at any resolution.

Everything is measured in units of the image side, x to the right and y down, so that `render(scene, size)`
draws the same scene at every size. Edges come from signed distances: of a pixel, the part 1/2 - distance is
covered.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from pixelwright.data.config import SHAPES_COUNT
from pixelwright.data.sources import Sample
from pixelwright.errors import UserError
from pixelwright.rng import generator

Array = np.ndarray
RGB = tuple[int, int, int]
Option = TypeVar("Option")

# A polygon has `corners` tips on its circumscribed circle and, half-way between them, points at `inner` times
# that radius: on the straight edge for a regular polygon, nearer the centre for a star.
# (corners, inner, circumscribed radius at which the shapes look equally large)
POLYGONS: dict[str, tuple[int, float, float]] = {
    "square": (4, math.cos(math.pi / 4), 0.38),
    "triangle": (3, math.cos(math.pi / 3), 0.40),
    "star": (5, 0.5, 0.42),
}
SHAPE_RADIUS = {"circle": 0.32, **{name: radius for name, (_, _, radius) in POLYGONS.items()}}
SHAPES = tuple(SHAPE_RADIUS)

# (the colour, the second colour of its textures)
COLOURS: dict[str, tuple[RGB, RGB]] = {
    "red": ((222, 30, 38), (255, 226, 220)), "orange": ((250, 130, 10), (255, 240, 215)),
    "yellow": ((255, 218, 20), (120, 88, 0)), "green": ((20, 160, 60), (218, 250, 215)),
    "blue": ((30, 80, 225), (214, 232, 255)), "purple": ((135, 40, 185), (240, 218, 255)),
}  # fmt: skip
GROUNDS: dict[str, RGB] = {
    "grey": (150, 150, 150), "charcoal": (62, 64, 68), "beige": (205, 190, 162),
    "brown": (108, 86, 70), "slate": (104, 118, 134), "sage": (142, 156, 134),
}  # fmt: skip
PATTERNS = ("plain", "gradient", "spotlight")

STRIPE, CHECK, DOT = 5 / 32, 7 / 32, 6 / 32  # periods of the textures
DOT_RADIUS = 0.3  # in periods
RIM = 0.025  # width of the untextured edge, which keeps the outline clear
MARGIN = 1 / 32  # around a shape, so that its outline is not cut


@dataclass(frozen=True)
class Object:
    """One shape. Lengths are in units of the image side, angles are in radians, clockwise. `radius` is that
    of the circumscribed circle, `angle` turns the whole object, `grain` its texture alone."""

    shape: str
    colour: str
    texture: str
    centre: tuple[float, float]
    radius: float
    angle: float
    grain: float = 0.0


@dataclass(frozen=True)
class Background:
    """What is behind the objects: one `colour` ("plain") or a fade from `colour` to `second`, along `angle`
    ("gradient") or from the middle outwards ("spotlight")."""

    pattern: str
    colour: str
    second: str
    angle: float


@dataclass(frozen=True)
class Scene:
    """All there is in a picture; later objects lie on top of earlier ones."""

    objects: tuple[Object, ...]
    background: Background


# --- drawing ---
def render(scene: Scene, size: int) -> Array:
    """Draw `scene` as uint8 [size, size, 3]."""
    image = _ground(scene.background, size)  # planes [3, size, size]: whole rows per operation are faster
    for thing in scene.objects:
        _draw(image, thing, size)
    levels = (image + 0.5).astype(np.uint8)  # to the nearest level
    return np.ascontiguousarray(levels.transpose(1, 2, 0))  # [size, size, 3]


@lru_cache(maxsize=4)
def _centres(size: int) -> Array:
    """Pixel centres along a side, [size]."""
    return np.asarray((np.arange(size, dtype=np.float32) + 0.5) / size)


def _ground(ground: Background, size: int) -> Array:
    """Float image [3, size, size] of the background."""
    first, second = _rgb(GROUNDS[ground.colour]), _rgb(GROUNDS[ground.second])
    image = np.empty((3, size, size), np.float32)
    image[:] = first
    if ground.pattern == "plain":
        return image
    line = _centres(size) - 0.5
    if ground.pattern == "gradient":
        mix = line * math.cos(ground.angle) + (line * math.sin(ground.angle) + 0.5)[:, None]
    else:
        square = 2 * line * line
        mix = square + square[:, None]
    image += _clip(mix, 0, 1) * (second - first)
    return image


def _draw(image: Array, thing: Object, size: int) -> None:
    """Paint one object over `image`, in place and only where it can reach."""
    line, reach = _centres(size), thing.radius + 1 / size
    near = [slice(max(0, int((c - reach) * size)), max(0, int((c + reach) * size) + 1)) for c in thing.centre]
    columns, rows = near
    dx, dy = line[columns] - thing.centre[0], (line[rows] - thing.centre[1])[:, None]
    u, v = _turn(dx, dy, thing.angle)
    distance = _distance(thing.shape, thing.radius, u, v) * size  # in pixels
    colour, second = map(_rgb, COLOURS[thing.colour])
    paint = colour
    if thing.texture != "plain":
        share = TEXTURES[thing.texture](*_turn(u, v, thing.grain), size) * _cover(distance + RIM * size)
        paint = colour + share * (second - colour)
    part = image[:, rows, columns]
    part += _cover(distance) * (paint - part)


def coverage(shape: str, radius: float, u: Array, v: Array) -> Array:
    """How much an upright shape covers of pixels at (u, v) from its centre; all in pixels."""
    return _cover(_distance(shape, radius, u, v))


@cache
def _rgb(colour: RGB) -> Array:
    return np.array(colour, np.float32)[:, None, None]  # [3, 1, 1]


def _clip(values: Array, low: float, high: float) -> Array:
    """np.clip without its overhead, which shows on small pictures."""
    return np.asarray(np.minimum(np.maximum(values, low), high))


def _cover(distance: Array) -> Array:
    """How much of a pixel lies inside an edge at `distance` pixels (negative inside)."""
    return _clip(0.5 - distance, 0, 1)


def _turn(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    """Coordinates along axes turned by `angle`."""
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _distance(shape: str, tip: float, u: Array, v: Array) -> Array:
    """Signed distance to the outline near it, negative inside; `tip` is the circumscribed radius."""
    radius = np.sqrt(u * u + v * v)
    if shape == "circle":
        return np.asarray(radius - tip)
    corners, inner, _ = POLYGONS[shape]
    # Fold the plane into half a sector, from the tip at angle 0 to the inner point at angle `half`; there the
    # outline is one straight line between the two, of unit normal (nx, ny).
    half = math.pi / corners
    angle = np.arctan2(u, -v)  # from the upright direction
    if corners % 2 == 0:
        angle += half  # stand on a side, not on a tip
    angle -= 2 * half * np.rint(angle / (2 * half))
    nx, ny = inner * math.sin(half), 1 - inner * math.cos(half)
    length = math.hypot(nx, ny)
    nx, ny = nx / length, ny / length
    return np.asarray((np.cos(angle) * nx + np.abs(np.sin(angle)) * ny) * radius - tip * nx)


def _wave(u: Array, period: float) -> Array:
    """Distance from the nearest edge of stripes half a period wide, positive on them; one is centred at 0."""
    turn = u / period
    return np.asarray((0.25 - np.abs(turn - np.rint(turn))) * period)


def _checks(u: Array, v: Array, size: int) -> Array:
    across, down = (_clip(_wave(w - CHECK / 4, CHECK) * size, -0.5, 0.5) for w in (u, v))
    return 0.5 + 2 * across * down


def _dots(u: Array, v: Array, size: int) -> Array:
    du, dv = (w - DOT * np.rint(w / DOT) for w in (u, v))
    return _cover((np.sqrt(du * du + dv * dv) - DOT_RADIUS * DOT) * size)


TEXTURES: dict[str, Callable[[Array, Array, int], Array]] = {
    "plain": lambda u, v, size: np.zeros_like(u),
    "striped": lambda u, v, size: _cover(_wave(u, STRIPE) * -size),
    "checked": _checks,
    "dotted": _dots,
}


# --- the set ---
class Dice:
    """Choices and numbers, one after the other, from one generator."""

    def __init__(self, generator: torch.Generator):
        self._generator = generator
        self._drawn: Iterator[float] = iter(())

    def number(self) -> float:
        """A number in [0,1)."""
        for drawn in self._drawn:
            return drawn
        self._drawn = iter(self.numbers(32))
        return next(self._drawn)

    def numbers(self, count: int) -> list[float]:
        """Fresh numbers in [0,1)."""
        drawn: list[float] = torch.rand(count, generator=self._generator, dtype=torch.float64).tolist()
        return drawn

    def choose(self, options: Iterable[Option]) -> Option:
        """One of the options, all alike."""
        every = tuple(options)
        return every[int(self.number() * len(every))]

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.number()


def random_scene(dice: Dice, variation: float = 1.0) -> Scene:
    """A scene of one object, wholly inside the picture.

    `variation` in [0,1] scales how far place, size and tilt wander; at 0 every object stands upright in the
    middle. Shape, colour, texture and background are chosen alike.
    """
    choose, between = dice.choose, dice.between
    shape, colour, texture = choose(SHAPES), choose(COLOURS), choose(TEXTURES)
    radius = SHAPE_RADIUS[shape] * between(1.1 - 0.25 * variation, 1.1)
    wander = variation * (0.5 - radius - MARGIN)
    centre = (0.5 + between(-wander, wander), 0.5 + between(-wander, wander))
    angle = variation * between(-0.3, 0.3)
    grain = math.pi / 4 * choose(range(4)) if texture == "striped" else 0.0
    pattern, ground = choose(PATTERNS), choose(GROUNDS)
    second = ground if pattern == "plain" else choose(g for g in GROUNDS if g != ground)
    return Scene(
        (Object(shape, colour, texture, centre, radius, angle, grain),),
        Background(pattern, ground, second, between(0, 2 * math.pi)),
    )


def label(scene: Scene) -> int:
    """Class of a scene of one object: its shape and colour."""
    thing = scene.objects[0]
    return SHAPES.index(thing.shape) * len(COLOURS) + tuple(COLOURS).index(thing.colour)


CLASS_NAMES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)


def caption(scene: Scene) -> str:
    """One English phrase for a scene of one object, such as "a red striped circle on a grey background"."""
    thing, ground = scene.objects[0], scene.background
    texture = thing.texture.replace("plain", "")
    shape = _article(" ".join(filter(None, (thing.colour, texture, thing.shape))))
    if ground.pattern == "plain":
        return f"{shape} on {_article(ground.colour)} background"
    return f"{shape} on a background fading from {ground.colour} to {ground.second}"


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


class DrawnSet:
    """Pictures drawn on the fly: sample i is a function of (seed, i), at `size` x `size` pixels."""

    def __init__(self, kind: str, class_names: tuple[str, ...], size: int, seed: int, count: int):
        if size < 1 or count < 1:
            raise UserError(f"Shapes of size {size} and count {count}: give whole numbers of at least 1")
        self.kind, self.class_names, self.num_classes = kind, class_names, len(class_names)
        self.size, self.seed, self.count = size, seed, count

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{self.kind}/{index}"

    def generator(self, index: int) -> torch.Generator:
        """The random numbers of sample `index`. Raises IndexError if there is no such sample."""
        if not 0 <= index < self.count:
            raise IndexError(f"sample {index} of {self.count}")
        return generator(self.seed, self.kind, index)


class Shapes(DrawnSet):
    """The procedural set: sample i is `scene(i)`. Its classes are the pairs of shape and colour, such as "red
    circle"; textures and backgrounds vary within each."""

    def __init__(self, size: int, seed: int = 0, count: int = SHAPES_COUNT, variation: float = 1.0):
        super().__init__("shapes", CLASS_NAMES, size, seed, count)
        if not 0 <= variation <= 1:
            raise UserError(f"Shapes of variation {variation}: give a number between 0 and 1")
        self.variation = variation

    def scene(self, index: int) -> Scene:
        """The exact description of sample `index`."""
        return random_scene(Dice(self.generator(index)), self.variation)

    def __getitem__(self, index: int) -> Sample:
        scene = self.scene(index)
        image = Image.fromarray(render(scene, self.size))
        return Sample(image, label(scene), caption(scene), self.name(index))
