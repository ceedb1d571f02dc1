"""Captioned Shapes: pictures of one to four shapes, with a caption: what, how many, which colour, where.

A caption states one of six kinds of facts, those that GenEval (arXiv 2310.11513) asks of text-to-image
models. What is behind a picture and its caption is a `Claim`; the same claims, without pictures, are the
prompts of ShapesBench. Some compositions never occur in the set (`held_out`), so that a model can be asked
for what it has not seen.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pixelwright.data import shapes
from pixelwright.data.config import SHAPES_COUNT
from pixelwright.data.shapes import COLOURS, SHAPES, Array, Dice, DrawnSet, Object, Scene
from pixelwright.data.sources import Sample

CATEGORIES = ("single object", "two objects", "counting", "colours", "position", "colour attribution")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # (x, y) of the first
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
COUNT_WORDS = ("no", "one", "two", "three", "four")
MOST = len(COUNT_WORDS) - 1

# Compositions that no picture of the set shows, although each of their parts is frequent in it.
HELD_OUT_COLOURS = {("orange", "circle"), ("purple", "square"), ("green", "triangle"), ("blue", "star")}
HELD_OUT_COUNTS = {(3, "triangle"), (4, "star")}
HELD_OUT_RELATIONS = {("triangle", "above", "square"), ("circle", "left of", "star")}
HELD_OUT_RELATIONS |= {("star", "above", "triangle")}

SCALES = {1: 0.85, 2: 0.46, 3: 0.42, 4: 0.39}  # of SHAPE_RADIUS, by the number of objects
GAP = 0.05  # between the circumscribed circles of two objects
SLANT = 0.35  # of the distance along the axis of a relation, the most across it
TRIES = 64  # places drawn at once


@dataclass(frozen=True)
class Thing:
    """`count` objects of one shape and, where `colour` is known, of one colour."""

    shape: str
    colour: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Claim:
    """What a caption states, or all there is to a picture: the things, and where the first lies relative to
    the second."""

    category: str
    things: tuple[Thing, ...]
    relation: str | None = None


def held_out(claim: Claim) -> bool:
    """Whether the set never shows this."""
    for thing in claim.things:
        if (thing.colour, thing.shape) in HELD_OUT_COLOURS or (thing.count, thing.shape) in HELD_OUT_COUNTS:
            return True
    if claim.relation is None:
        return False
    first, second = (thing.shape for thing in claim.things)
    turned = (second, OPPOSITE[claim.relation], first)
    return not HELD_OUT_RELATIONS.isdisjoint({(first, claim.relation, second), turned})


# --- captions ---
def caption(claim: Claim, phrasing: int = 0) -> str:
    """An English phrase for a claim, such as "a red star to the left of a blue circle". `phrasing` is any
    whole number; different ones give different words for the same claim, in turn."""
    phrasing, beginning = divmod(phrasing, len(BEGINNINGS))
    names = [_name(thing) for thing in claim.things]
    if claim.relation is None:
        return BEGINNINGS[beginning] + " and ".join(names)
    forms = LEFT_RIGHT if claim.relation in ("left of", "right of") else ABOVE_BELOW
    form, side = forms[phrasing % len(forms)], claim.relation.removesuffix(" of")
    return BEGINNINGS[beginning] + form.format(*names, claim.relation, side)


BEGINNINGS = ("", "a photo of ", "a picture of ")
LEFT_RIGHT = ("{0} {2} {1}", "{0} to the {2} {1}", "{1} with {0} on its {3}")
ABOVE_BELOW = ("{0} {2} {1}", "{1} with {0} {2} it")
PHRASINGS = len(BEGINNINGS) * len(LEFT_RIGHT) * len(ABOVE_BELOW)  # so many whole numbers give all there are


def _name(thing: Thing) -> str:
    """ "a red star", "three circles"."""
    phrase = thing.shape if thing.colour is None else f"{thing.colour} {thing.shape}"
    if thing.count > 1:
        return f"{COUNT_WORDS[thing.count]} {phrase}s"
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


# --- pictures ---
def draw_facts(dice: Dice) -> Claim:
    """All there is to a picture of the set: of a category, with a colour for each thing, and for two things a
    relation, whether the caption states them or not."""
    category = dice.choose(CATEGORIES)
    pair = category in ("two objects", "position", "colour attribution")
    while True:
        first = Thing(dice.choose(SHAPES), dice.choose(COLOURS))
        if category == "counting":
            first = dataclasses.replace(first, count=dice.choose(range(2, MOST + 1)))
        second = Thing(dice.choose(s for s in SHAPES if s != first.shape), dice.choose(COLOURS))
        relation = dice.choose(RELATIONS)
        facts = Claim(category, (first, second), relation) if pair else Claim(category, (first,))
        same = category == "colour attribution" and first.colour == second.colour
        if not held_out(facts) and not same:
            return facts


def state(facts: Claim, detailed: bool) -> Claim:
    """The part of the facts that the caption states: what the category asks for and, if `detailed`, the
    colours of what is counted or related."""
    category = facts.category
    named = ("colours", "colour attribution", *(("counting", "position") if detailed else ()))
    plain = tuple(dataclasses.replace(thing, colour=None) for thing in facts.things)
    things = facts.things if category in named else plain
    return Claim(category, things, facts.relation if category == "position" else None)


def compose(facts: Claim, dice: Dice) -> Scene:
    """A scene of plain shapes on a plain ground that shows the facts, wholly inside the picture, none
    overlapping. Every thing must have a colour."""
    kinds = [(thing.shape, thing.colour) for thing in facts.things for _ in range(thing.count)]
    scale = SCALES[len(kinds)]
    radii = [shapes.SHAPE_RADIUS[shape] * scale * dice.between(0.9, 1.1) for shape, _ in kinds]
    angles = [dice.between(-0.25, 0.25) for _ in kinds]
    ground = dice.choose(shapes.GROUNDS)
    centres, shrunk = _place(np.array(radii), facts.relation, dice)
    objects = [
        Object(shape, colour or "", "plain", (float(x), float(y)), radius * shrunk, angle)
        for (shape, colour), radius, angle, (x, y) in zip(kinds, radii, angles, centres, strict=True)
    ]
    return Scene(tuple(objects), shapes.Background("plain", ground, ground, 0.0))


def _place(radii: Array, relation: str | None, dice: Dice) -> tuple[Array, float]:
    """Centres [n, 2] for objects that keep apart and show the relation; and the factor by which their radii
    had to shrink for that (mostly 1)."""
    first, second = np.triu_indices(len(radii), 1)
    shrunk = 1.0
    while True:
        spots = np.array(dice.numbers(TRIES * len(radii) * 2)).reshape(TRIES, len(radii), 2)
        room = 0.5 - shapes.MARGIN - radii[:, None] * shrunk  # [n, 1]
        centres = 0.5 + (2 * spots - 1) * room  # [tries, n, 2]
        offset = centres[:, first] - centres[:, second]  # [tries, pairs, 2]
        apart = np.hypot(offset[..., 0], offset[..., 1]) > (radii[first] + radii[second]) * shrunk + GAP
        good = apart.all(1)  # [tries]
        if relation is not None:
            x, y = RELATIONS[relation]
            along = offset[:, 0] @ np.array([x, y])
            good &= np.abs(offset[:, 0] @ np.array([y, x])) < SLANT * along
        if good.any():
            return centres[good.argmax()], shrunk
        shrunk *= 0.97


class CaptionedShapes(DrawnSet):
    """The procedural set with captions, whose classes are the categories; none shows what is `held_out`."""

    def __init__(self, size: int, seed: int = 0, count: int = SHAPES_COUNT):
        super().__init__("shapes-captions", CATEGORIES, size, seed, count)

    def describe(self, index: int) -> tuple[Claim, str, Scene]:
        """What the caption of sample `index` states, the caption, and the exact scene."""
        dice = Dice(self.generator(index))
        facts = draw_facts(dice)
        claim = state(facts, detailed=dice.choose((False, True)))
        words = caption(claim, dice.choose(range(PHRASINGS)))
        return claim, words, compose(facts, dice)

    def __getitem__(self, index: int) -> Sample:
        claim, words, scene = self.describe(index)
        image = Image.fromarray(shapes.render(scene, self.size))
        return Sample(image, CATEGORIES.index(claim.category), words, self.name(index))
