"""ShapesBench: the fixed list, the judge against scenes that are known, and a negative control."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict

import numpy as np
import pytest

from pixelwright.data import CaptionedShapes
from pixelwright.data.captioned import CATEGORIES, Claim, Thing, compose, held_out
from pixelwright.data.shapes import Dice, Object, Scene, render
from pixelwright.evaluation.prompts.shapesbench import (
    VERSION,
    Assessment,
    Result,
    ShapeDetection,
    assess,
    assess_images,
    find_shapes,
    images_of,
    prompts,
    sheet,
)
from pixelwright.rng import generator


def truth(scene: Scene) -> tuple[ShapeDetection, ...]:
    """What a perfect reader would see."""
    return tuple(_seen(thing) for thing in scene.objects)


def _seen(thing: Object) -> ShapeDetection:
    (x, y), r = thing.centre, thing.radius
    return ShapeDetection(thing.shape, thing.colour, (x - r, y - r, x + r, y + r), 1.0)


def seen(shape: str, colour: str = "red", x: float = 0.5, y: float = 0.5) -> ShapeDetection:
    return ShapeDetection(shape, colour, (x - 0.1, y - 0.1, x + 0.1, y + 0.1), 0.95)


def shown(claim: Claim, number: int, size: int = 32) -> np.ndarray:
    """A picture that shows a claim, with colours where it leaves them open."""
    dice = Dice(generator(number, "test"))
    things = tuple(
        Thing(thing.shape, thing.colour or dice.choose(("red", "yellow")), thing.count)
        for thing in claim.things
    )
    return render(compose(Claim(claim.category, things, claim.relation), dice), size)


def test_the_list_of_version_1_never_changes() -> None:
    texts = "\n".join(f"{p.text}|{p.claim}|{p.held_out}" for p in prompts())
    assert (VERSION, len(prompts())) == (1, 168)
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "9b5ee4348c7ad319"


def test_every_category_is_asked_for_and_held_out_ones_apart() -> None:
    asked = Counter((p.claim.category, p.held_out) for p in prompts())
    assert all(asked[category, False] >= 12 for category in CATEGORIES)
    assert {category for category, apart in asked if apart} == {
        "counting",
        "colours",
        "position",
        "colour attribution",
    }
    assert all(p.held_out == held_out(p.claim) for p in prompts())
    assert len({p.text for p in prompts()}) == len(prompts())


def test_prompts_are_worded_as_training_captions_are() -> None:
    words = {w for i in range(400) for w in CaptionedShapes(8).describe(i)[1].split()}
    assert {w for p in prompts() for w in p.text.split()} <= words


# --- the judge -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64])
def test_calibration_at_least_98_percent_in_each_category(size: int) -> None:
    """Real pictures of Captioned Shapes: right means judged correct, and nothing else seen."""
    source, right = CaptionedShapes(size, seed=11), defaultdict(list)
    for index in range(300):
        claim, _, scene = source.describe(index)
        right[claim.category].append(assess(claim, find_shapes(render(scene, size))).exact)
    assert min(len(answers) for answers in right.values()) >= 30
    assert all(np.mean(answers) >= 0.98 for answers in right.values()), right


def test_negative_control_pictures_of_other_prompts_are_judged_wrong() -> None:
    """The judge calls a picture of another prompt correct only where the scene shows that claim too."""
    source, agreed, wrong = CaptionedShapes(32, seed=12), [], 0
    described = [source.describe(index) for index in range(120)]
    eyes = [find_shapes(render(scene, 32)) for _, _, scene in described]
    for shift in (1, 2, 3):
        for (claim, _, _), (_, _, scene), eye in zip(
            described, described[shift:] + described[:shift], eyes[shift:] + eyes[:shift], strict=True
        ):
            really = assess(claim, truth(scene)).correct
            agreed.append(assess(claim, eye).correct == really)
            wrong += not really
    assert wrong > 250 and np.mean(agreed) >= 0.98


def test_the_rules() -> None:
    star, circle = Thing("star"), Thing("circle")
    single, three = Claim("single object", (star,)), Claim("counting", (Thing("star", None, 3),))
    assert assess(single, [seen("star")]) == Assessment(True, True, "")
    assert assess(single, [seen("star"), seen("circle")]) == Assessment(True, False, "")
    assert assess(single, []) == Assessment(False, False, "no star instead of one; seen: nothing")
    assert [assess(three, [seen("star")] * n).correct for n in (2, 3, 4)] == [False, True, False]
    assert (
        "five" not in assess(three, [seen("star")] * 5).reason
        and "5 star" in assess(three, [seen("star")] * 5).reason
    )
    both = Claim("colour attribution", (Thing("star", "red"), Thing("circle", "blue")))
    assert assess(both, [seen("star", "red"), seen("circle", "blue")]).exact
    assert not assess(both, [seen("star", "blue"), seen("circle", "red")]).correct  # the colours exchanged
    left = Claim("position", (star, circle), "left of")
    assert assess(left, [seen("circle", x=0.8), seen("star", x=0.2)]).exact
    assert "star is right of the circle" in assess(left, [seen("circle", x=0.2), seen("star", x=0.8)]).reason
    assert not assess(left, [seen("circle", y=0.8), seen("star", y=0.2)]).correct


# --- a whole run -----------------------------------------------------------------------------------------


def test_a_perfect_model_scores_1_and_one_that_draws_nothing_0() -> None:
    drawn = [shown(prompt.claim, number) for number, prompt in enumerate(prompts())]
    result = Result(assess_images(drawn, 1), 1)
    assert all(score.share == 1 for score in [*result.scores().values(), *result.scores(True).values()])
    empty = [np.full((32, 32, 3), 150, np.uint8)] * len(prompts())
    nothing = Result(assess_images(empty, 1), 1)
    assert nothing.as_json()["overall"] == 0
    rotated = Result(assess_images(drawn[5:] + drawn[:5], 1), 1)
    assert rotated.as_json()["overall"] < 0.45


def test_the_report_adds_up() -> None:
    per = 2
    verdicts = [Assessment(k % 2 == 0, k % 4 == 0, "") for k in range(per * len(prompts()))]
    result = Result(verdicts, per)
    report = json.loads(json.dumps(result.as_json()))
    assert report["overall"] == 0.5 and report["version"] == VERSION
    assert report["scores"]["colours"] == {
        "score": 0.5,
        "error": pytest.approx((0.25 / 40) ** 0.5),
        "correct": 20,
        "images": 40,
    }
    total = sum(s["images"] for part in ("scores", "held_out") for s in report[part].values())
    assert total == len(verdicts) == len(report["images"])
    assert "| colours | 0.500 ± 0.079 |" in result.markdown("a model")


def test_pictures_keep_their_noise_when_more_are_drawn(tmp_path) -> None:
    few, many = ({p.path: (p.prompt, p.index) for p in images_of(tmp_path, n)} for n in (2, 4))
    assert few.items() <= many.items() and len({p for _, p in many.values()}) == len(many) == 4 * len(
        prompts()
    )


def test_the_sheet_frames_right_and_wrong() -> None:
    images = [np.full((32, 32, 3), 150, np.uint8)] * len(prompts())
    result = Result([Assessment(k == 0, False, "") for k in range(len(images))], 1)
    page = np.asarray(sheet(result, images)).reshape(-1, 3)
    green, red = ((page == colour).all(1).sum() for colour in ((42, 143, 78), (192, 57, 43)))
    assert red == green * (len(images) - 1) > 0
