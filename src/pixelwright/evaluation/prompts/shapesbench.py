"""ShapesBench: does a model draw what captions of Shapes say? GenEval's six categories, without its networks.

The prompts are a fixed, versioned list over the vocabulary of Captioned Shapes, in part compositions that its
images never show (`held_out`), which count apart. The shapes in an image are found without a network
(`shape_detection`) and compared with the claim behind the prompt.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any

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
from pixelwright.data.shapes import COLOURS, SHAPES, Array, Dice
from pixelwright.evaluation.prompts import common
from pixelwright.evaluation.prompts.common import PromptImage, Score, noise_index, overall, relations
from pixelwright.evaluation.prompts.shape_detection import ShapeDetection, find_shapes
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
