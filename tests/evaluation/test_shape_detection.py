"""The judge's eyes: what it reads out of pictures whose scenes are known, and out of spoilt ones."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from pixelwright.data import CaptionedShapes
from pixelwright.data.shapes import COLOURS, GROUNDS, SHAPES, Background, Object, Scene, render
from pixelwright.errors import UserError
from pixelwright.evaluation.prompts.shapesbench import FAR, ShapeDetection, find_shapes, oklab

GREY = Background("plain", "grey", "grey", 0.0)


def one(
    shape: str, colour: str = "red", centre: tuple[float, float] = (0.5, 0.5), radius: float = 0.3
) -> Object:
    return Object(shape, colour, "plain", centre, radius, 0.1)


def kinds(seen: tuple[ShapeDetection, ...]) -> Counter[tuple[str | None, str | None]]:
    return Counter((s.shape, s.colour) for s in seen)


def true_kinds(scene: Scene) -> Counter[tuple[str | None, str | None]]:
    return Counter((o.shape, o.colour) for o in scene.objects)


def test_oklab_of_known_colours() -> None:
    # White, black and the three primaries, from the table of Ottosson's definition of OKLab.
    table = {
        (255, 255, 255): (1.0, 0.0, 0.0),
        (0, 0, 0): (0.0, 0.0, 0.0),
        (255, 0, 0): (0.628, 0.225, 0.126),
        (0, 255, 0): (0.866, -0.234, 0.179),
        (0, 0, 255): (0.452, -0.032, -0.312),
    }
    assert oklab(np.array(list(table))) == pytest.approx(np.array(list(table.values())), abs=1e-3)


def test_colours_with_names_are_far_enough_apart() -> None:
    named = oklab(np.array([first for first, _ in COLOURS.values()]))
    assert min(np.linalg.norm(a - b) for a, b in combinations(named, 2)) > 1.4 * FAR
    assert np.linalg.norm(oklab(np.array(list(GROUNDS.values())))[:, None] - named, axis=-1).min() > 1.2 * FAR


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_colour_and_ground_at_any_tilt(shape: str, ground: str) -> None:
    for number, colour in enumerate(COLOURS):
        thing = Object(shape, colour, "plain", (0.45, 0.53), 0.16, number * 0.4)
        (seen,) = find_shapes(render(Scene((thing,), Background("plain", ground, ground, 0.0)), 32))
        assert (seen.shape, seen.colour) == (shape, colour) and seen.match > 0.85


def test_boxes_are_where_the_objects_are() -> None:
    circle = Object("circle", "blue", "plain", (0.3, 0.6), 0.2, 0.0)
    (seen,) = find_shapes(render(Scene((circle,), GREY), 64))
    assert seen.box == pytest.approx((0.1, 0.4, 0.5, 0.8), abs=1 / 64)


def test_touching_objects_of_two_colours_are_taken_apart() -> None:
    scene = Scene((one("square", "blue", (0.3, 0.5), 0.2), one("circle", "yellow", (0.58, 0.5), 0.16)), GREY)
    assert kinds(find_shapes(render(scene, 64))) == true_kinds(scene)


def test_what_is_no_shape_or_colour_of_ours_has_no_name() -> None:
    image = np.full((64, 64, 3), 150, np.uint8)
    image[20:24, 8:56] = COLOURS["red"][0]
    (bar,) = find_shapes(image)
    assert (bar.shape, bar.colour) == (None, "red") and str(bar) == "red blot"
    image[:] = 150
    image[16:48, 16:48] = (255, 170, 220)
    (pink,) = find_shapes(image)
    assert (pink.shape, pink.colour) == ("square", None) and str(pink) == "odd-coloured square"


def test_nothing_is_seen_where_nothing_is() -> None:
    for ground in GROUNDS.values():
        assert find_shapes(np.full((32, 32, 3), ground, np.uint8)) == ()
    thread = np.full((32, 32, 3), 150, np.uint8)
    thread[10, :20] = COLOURS["red"][0]
    assert find_shapes(thread) == ()


def test_noise_and_blur_are_borne() -> None:
    source, right = CaptionedShapes(32, seed=7), 0
    for index in range(80):
        scene = source.describe(index)[2]
        spread = np.random.default_rng(index).normal(0, 12, (32, 32, 3))
        image = render(scene, 64).reshape(32, 2, 32, 2, 3).mean((1, 3))
        image = (image + np.roll(image, 1, 0) + np.roll(image, 1, 1) + np.roll(image, (1, 1), (0, 1))) / 4
        right += kinds(find_shapes(np.clip(image + spread, 0, 255).astype(np.uint8))) == true_kinds(scene)
    assert right >= 76


@pytest.mark.parametrize("shape", [(32, 48, 3), (32, 32), (32, 32, 4)])
def test_odd_pictures_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="shapes are found in square ones"):
        find_shapes(np.zeros(shape, np.uint8))


def test_area_and_angle_of_a_star_do_not_matter() -> None:
    for step in range(12):
        star = Object("star", "orange", "plain", (0.5, 0.5), 0.17 + 0.02 * step, math.pi / 6 * step)
        (seen,) = find_shapes(render(Scene((star,), GREY), 32))
        assert seen.shape == "star"
