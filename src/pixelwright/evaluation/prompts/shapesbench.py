"""ShapesBench: does a model draw what captions of Shapes say? GenEval's six categories, without its networks.

The prompts are a fixed, versioned list over the vocabulary of Captioned Shapes, in part compositions that its
images never show (`held_out`), which count apart. The shapes in an image are found by classical segmentation
and compared with the claim behind the prompt; that needs scipy (extra `eval`).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain, permutations, product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pixelwright.data import captioned
from pixelwright.data.captioned import (
    CATEGORIES,
    COUNT_WORDS,
    MOST,
    RELATIONS,
    Claim,
    Thing,
    caption,
    held_out,
)
from pixelwright.data.shapes import COLOURS, POLYGONS, SHAPES, Array, Dice, coverage
from pixelwright.errors import UserError
from pixelwright.evaluation.prompts import common
from pixelwright.evaluation.prompts.common import Box, PromptImage, Score, noise_index, overall, relations
from pixelwright.html import escape_markdown, markdown_table
from pixelwright.rng import generator

VERSION = 1  # of the list of prompts; scores of different versions must not be compared

ATTRIBUTIONS = 36  # prompts of colour attribution besides the held-out ones, of which there are 12


@dataclass(frozen=True)
class Prompt:
    """A prompt with what an image of it must show."""

    text: str
    claim: Claim
    held_out: bool


@dataclass(frozen=True)
class Assessment:
    """Whether one image shows what its prompt says."""

    correct: bool
    """As in GenEval, other things beside it are no fault; but what is counted must be there so many times."""
    exact: bool  # correct, and nothing else is in the image
    reason: str  # what is wrong; empty if the image is correct


def prompts() -> tuple[Prompt, ...]:
    """The list, in the order of the categories. It depends on VERSION alone. A claim that is in it several
    times is asked for in several phrasings."""
    single, two, counting, colours, position, attribution = CATEGORIES
    pairs = list(permutations(SHAPES, 2))
    counts = range(2, MOST + 1)
    claims = [Claim(single, (Thing(shape),)) for shape in SHAPES for _ in range(3)]
    claims += [Claim(two, (Thing(a), Thing(b))) for a, b in pairs]
    claims += [Claim(counting, (Thing(s, None, n),)) for s in SHAPES for n in counts for _ in range(2)]
    claims += [Claim(colours, (Thing(shape, colour),)) for shape in SHAPES for colour in COLOURS]
    claims += [Claim(position, (Thing(a), Thing(b)), word) for a, b in pairs for word in RELATIONS]
    claims += _attributions(attribution)
    return tuple(Prompt(caption(c, i), c, held_out(c)) for i, c in enumerate(claims))


def _attributions(category: str) -> Iterable[Claim]:
    """Each held-out pair of colour and shape beside each other shape, and as many others as ATTRIBUTIONS."""
    dice = Dice(generator(VERSION, "shapesbench"))
    held = {(shape, colour) for colour, shape in captioned.HELD_OUT_COLOURS}
    for shape, colour in sorted(held):
        for other in SHAPES:
            if other != shape:
                rest = [c for c in COLOURS if c != colour and (other, c) not in held]
                yield Claim(category, (Thing(shape, colour), Thing(other, dice.choose(rest))))
    every = [
        claim
        for a, b in permutations(SHAPES, 2)
        for c, d in permutations(COLOURS, 2)
        if not held_out(claim := Claim(category, (Thing(a, c), Thing(b, d))))
    ]
    for _ in range(ATTRIBUTIONS):
        claim = dice.choose(every)
        every.remove(claim)
        yield claim


# --- which shapes, of which colour, where ---
# The ground is the colour of the border; every pixel is given to the ground or to the nearest colour of
# Shapes in OKLab; what hangs together is an object; its shape is that whose outline, drawn with the object's
# area and centre at all angles, agrees with it best.
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


# --- scoring ---
def assess(claim: Claim, shapes: Sequence[ShapeDetection]) -> Assessment:
    """Whether the shapes found in an image bear the claim out."""
    found = [
        [s for s in shapes if s.shape == thing.shape and thing.colour in (None, s.colour)]
        for thing in claim.things
    ]
    faults = [_miscounted(claim, thing, group) for thing, group in zip(claim.things, found, strict=True)]
    reason = "; ".join(filter(None, faults))
    if not reason and claim.relation is not None:
        reason = _misplaced(claim.relation, *found)
    count = sum(thing.count for thing in claim.things)
    shown = ", ".join(map(str, shapes)) or "nothing"
    return Assessment(not reason, not reason and len(shapes) == count, reason and f"{reason}; seen: {shown}")


def _miscounted(claim: Claim, thing: Thing, group: Sequence[ShapeDetection]) -> str:
    """What is wrong with the number of objects found for a thing; "" if nothing."""
    name = thing.shape if thing.colour is None else f"{thing.colour} {thing.shape}"
    if len(group) < thing.count or (claim.category == "counting" and len(group) > thing.count):
        found = COUNT_WORDS[len(group)] if len(group) <= MOST else str(len(group))
        return f"{found} {name} instead of {COUNT_WORDS[thing.count]}"
    return ""


def _misplaced(relation: str, first: Sequence[ShapeDetection], second: Sequence[ShapeDetection]) -> str:
    """What is wrong with the places of every first and every second object; "" if nothing."""
    for a, b in product(first, second):
        words = relations(a.box, b.box)
        if relation not in words:
            is_ = " and ".join(sorted(words)) or "at the place of"
            return f"the {a.shape} is {is_} the {b.shape}, not {relation} it"
    return ""


def images_of(folder: Path, images: int) -> list[PromptImage]:
    """All images to draw: `images` of every prompt, those of one prompt together."""
    return [
        PromptImage(prompt.text, noise_index(number, image), folder / f"{number:03d}-{image:02d}.png")
        for number, prompt in enumerate(prompts())
        for image in range(images)
    ]


def assess_images(images: Iterable[Array], per_prompt: int) -> list[Assessment]:
    """Of images uint8 [S,S,3] in the order of `images_of`."""
    claims = (prompt.claim for prompt in prompts() for _ in range(per_prompt))
    return [assess(claim, find_shapes(image)) for claim, image in zip(claims, images, strict=True)]


@dataclass(frozen=True)
class Result:
    """Whether each image is correct, and what that sums up to."""

    assessments: Sequence[Assessment]  # in the order of `images_of`
    per_prompt: int

    @property
    def pairs(self) -> list[tuple[Prompt, Assessment]]:
        """Each with its prompt."""
        each = [prompt for prompt in prompts() for _ in range(self.per_prompt)]
        return list(zip(each, self.assessments, strict=True))

    def scores(self, held_out: bool = False, exact: bool = False) -> dict[str, Score]:
        """By category, of the prompts that are held out or of those that are not."""
        return common.tally(
            (prompt.claim.category, found.exact if exact else found.correct)
            for prompt, found in self.pairs
            if prompt.held_out == held_out
        )

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        of = {"benchmark": "ShapesBench", "version": VERSION, "images_per_prompt": self.per_prompt}
        pairs = self.pairs
        images = [{"prompt": p.text, "held_out": p.held_out, **asdict(found)} for p, found in pairs]
        return {
            **of,
            "overall": overall(self.scores()),
            "scores": common.as_json(self.scores()),
            "exact": common.as_json(self.scores(exact=True)),
            "held_out": common.as_json(self.scores(held_out=True)),
            "images": images,
        }

    def markdown(self, title: str) -> str:
        """The scores, for people."""
        scores, exact, held = self.scores(), self.scores(exact=True), self.scores(held_out=True)
        rows = [
            [name, str(scores[name]), str(exact[name]), str(held.get(name, "")), str(scores[name].images)]
            for name in CATEGORIES
        ]
        totals = [f"{overall(each):.3f}" for each in (scores, exact, held)]
        rows.append(["overall", *totals, str(len(self.assessments))])
        return (
            f"# ShapesBench {VERSION}: {escape_markdown(title)}\n\n"
            f"{markdown_table(['category', 'score', 'and nothing else', 'held out', 'images'], rows)}\n"
            "Score: share of images that show what the prompt says, ± its standard error; overall is the\n"
            "mean of the categories. Held out: prompts for compositions that Captioned Shapes never show;\n"
            "they are not in the other columns.\n"
        )


def sheet(result: Result, images: Sequence[Array], columns: int = 6, side: int = 64) -> Image.Image:
    """All images with their prompts; framed green where they are correct, else red."""
    per, every = result.per_prompt, prompts()
    step, line = side + 6, 14
    width, height = max(per * step, 260) + 8, step + line + 4
    rows = math.ceil(len(every) / columns)
    page = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(page)
    for number, prompt in enumerate(every):
        x, y = number // rows * width + 4, number % rows * height  # down the columns
        pen.text((x, y), prompt.text + (" (held out)" if prompt.held_out else ""), fill="black")
        for k in range(number * per, (number + 1) * per):
            left, top = x + (k - number * per) * step, y + line
            frame = "#2a8f4e" if result.assessments[k].correct else "#c0392b"
            pen.rectangle((left, top, left + side + 3, top + side + 3), fill=frame)
            tile = Image.fromarray(images[k]).resize((side, side), Image.Resampling.NEAREST)
            page.paste(tile, (left + 2, top + 2))
    return page
