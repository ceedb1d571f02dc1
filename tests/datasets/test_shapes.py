"""The procedural set: the same scene at any size, and labels and captions that say what is drawn."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelwright.data import DataConfig, Shapes
from pixelwright.data.shapes import (
    CLASS_NAMES,
    COLOURS,
    GROUNDS,
    PATTERNS,
    SHAPES,
    TEXTURES,
    Background,
    Object,
    Scene,
    caption,
    label,
    render,
)
from pixelwright.errors import UserError

PLAIN = Background("plain", "grey", "grey", 0.0)


def random_scene(seed: int, index: int, variation: float = 1.0) -> Scene:
    return Shapes(8, seed, 10**7, variation).scene(index)


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    height, width = image.shape[0] // factor, image.shape[1] // factor
    return image.reshape(height, factor, width, factor, 3).mean((1, 3))


def one(
    shape: str = "circle", colour: str = "red", texture: str = "plain", angle: float = 0.0, grain: float = 0.0
) -> Scene:
    return Scene((Object(shape, colour, texture, (0.5, 0.5), 0.3, angle, grain),), PLAIN)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(-5, 5))
def test_sample_is_a_function_of_seed_and_index(index: int, seed: int) -> None:
    first, second = Shapes(16, seed, 10**7), Shapes(16, seed, 10**7)
    second[0]  # what was drawn before does not matter
    a, b = first[index], second[index]
    assert (np.asarray(a.image) == np.asarray(b.image)).all() and a[1:] == b[1:]
    assert (np.asarray(a.image) == render(first.scene(index), 16)).all()


def test_seeds_and_indices_differ() -> None:
    scenes = {random_scene(seed, index) for seed in range(3) for index in range(50)}
    assert len(scenes) == 150


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_label_and_caption_tell_the_scene(index: int) -> None:
    sample, scene = Shapes(8, count=10**7)[index], random_scene(0, index)
    thing = scene.objects[0]
    assert CLASS_NAMES[sample.label] == f"{thing.colour} {thing.shape}"
    assert sample.caption is not None and thing.colour in sample.caption and thing.shape in sample.caption
    assert (thing.texture in sample.caption) == (thing.texture != "plain")
    assert scene.background.colour in sample.caption and scene.background.second in sample.caption


def test_captions_are_english() -> None:
    assert caption(one("circle", "red", "striped")) == "a red striped circle on a grey background"
    assert caption(one("star", "orange")) == "an orange star on a grey background"
    fade = Scene(one("square", "blue", "dotted").objects, Background("gradient", "sage", "brown", 1.0))
    assert caption(fade) == "a blue dotted square on a background fading from sage to brown"


def test_every_class_texture_and_background_occurs_about_equally() -> None:
    scenes = [random_scene(1, i) for i in range(2400)]
    assert np.bincount([label(s) for s in scenes], minlength=len(CLASS_NAMES)).min() > 60
    for names, of in (
        (TEXTURES, [s.objects[0].texture for s in scenes]),
        (PATTERNS, [s.background.pattern for s in scenes]),
        (GROUNDS, [s.background.colour for s in scenes]),
    ):
        assert min(of.count(name) for name in names) > 0.8 * len(scenes) / len(names)


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_resolution_independence(shape: str, texture: str) -> None:
    scene = one(shape, "blue", texture, angle=0.2, grain=math.pi / 4)
    small = render(scene, 32).astype(float)
    difference = np.abs(shrink(render(scene, 128).astype(float), 4) - small)
    assert difference.mean() < 1.0 and np.quantile(difference, 0.99) < 20
    assert small.std() > 20  # there is something to see


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_random_scenes_are_the_same_at_all_sizes(index: int) -> None:
    scene = random_scene(0, index)
    pictures = [shrink(render(scene, size).astype(float), size // 16) for size in (16, 32, 96, 192)]
    for a, b in pairwise(pictures[1:]):
        assert np.abs(a - b).mean() < 1.5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_objects_lie_inside_the_picture(index: int) -> None:
    scene = random_scene(0, index)
    alone = dataclasses.replace(scene, background=PLAIN)
    picture = render(alone, 48).astype(int)
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (border == GROUNDS["grey"]).all()


@pytest.mark.parametrize("colour", COLOURS)
def test_the_middle_of_a_plain_object_has_its_colour(colour: str) -> None:
    for shape in SHAPES:
        assert tuple(render(one(shape, colour), 32)[16, 16]) == COLOURS[colour][0]


def test_textures_show_both_colours_in_fair_shares() -> None:
    first, second = (np.array(c, float) for c in COLOURS["blue"])
    for texture in set(TEXTURES) - {"plain"}:
        middle = render(one("circle", "blue", texture), 256)[88:168, 88:168].reshape(-1, 3)
        share = ((middle - first) @ (second - first) / ((second - first) @ (second - first))).mean()
        assert 0.15 < share < 0.6, texture


def test_areas_are_those_of_geometry() -> None:
    ground = np.array(GROUNDS["grey"], float)
    areas = {"circle": math.pi * 0.09, "square": 2 * 0.09, "triangle": 0.09 * 3 * math.sqrt(3) / 4}
    for shape, area in areas.items():
        covered = (render(one(shape), 64)[..., 0] - ground[0]) / (COLOURS["red"][0][0] - ground[0])
        assert covered.mean() == pytest.approx(area, rel=0.01)


def test_later_objects_lie_on_top_and_may_leave_the_picture() -> None:
    behind, front = one("circle", "red").objects[0], one("square", "blue").objects[0]
    assert tuple(render(Scene((behind, front), PLAIN), 32)[16, 16]) == COLOURS["blue"][0]
    for centre in ((-0.4, 0.5), (1.6, 0.5), (0.5, -2.0), (3.0, 3.0)):
        gone = Scene((dataclasses.replace(front, centre=centre),), PLAIN)
        assert (render(gone, 32) == render(Scene((), PLAIN), 32)).all()
    half = Scene((dataclasses.replace(front, centre=(0.0, 0.5)),), PLAIN)
    assert tuple(render(half, 32)[16, 0]) == COLOURS["blue"][0]


@pytest.mark.parametrize("size", [1, 2, 7, 33])
def test_any_size(size: int) -> None:
    assert render(random_scene(0, 0), size).shape == (size, size, 3)


def test_places_that_are_not_there() -> None:
    with pytest.raises(UserError, match="count 0"):
        Shapes(32, count=0)
    with pytest.raises(IndexError):
        Shapes(32, count=3)[3]


@given(st.integers(0, 1000))
def test_variation_scales_the_wandering_and_nothing_else(index: int) -> None:
    still, free = random_scene(0, index, variation=0.0), random_scene(0, index)
    (calm,), (wild,) = still.objects, free.objects
    assert calm.centre == pytest.approx((0.5, 0.5)) and calm.angle == 0
    assert calm.radius >= wild.radius
    assert (calm.shape, calm.colour, calm.texture, calm.grain) == (
        wild.shape,
        wild.colour,
        wild.texture,
        wild.grain,
    )
    assert still.background == free.background


@pytest.mark.parametrize("variation", [-0.1, 1.5, float("nan"), True])
def test_impossible_variation_is_named(variation: float) -> None:
    with pytest.raises(UserError, match=f"data.shapes_variation is {variation}"):
        DataConfig(shapes_variation=variation)
    with pytest.raises(UserError, match='not "shapes"'):
        DataConfig(path="photos", shapes_variation=0.5)
