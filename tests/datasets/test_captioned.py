"""Captioned Shapes: captions say what the pictures show, and what is held out is never shown."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelwright.data import CaptionedShapes, DataConfig, open_source
from pixelwright.data.captioned import (
    CATEGORIES,
    COUNT_WORDS,
    HELD_OUT_COLOURS,
    HELD_OUT_COUNTS,
    HELD_OUT_RELATIONS,
    OPPOSITE,
    PHRASINGS,
    RELATIONS,
    Claim,
    Thing,
    caption,
    held_out,
)
from pixelwright.data.shapes import COLOURS, GROUNDS, MARGIN, SHAPES, Scene, render
from pixelwright.errors import UserError

SET = CaptionedShapes(32, count=10**7)
SOME = [SET.describe(i) for i in range(1500)]


def shown_relations(scene: Scene) -> set[tuple[str, str, str]]:
    """By the angle between the centres alone: the nearest of the four directions."""
    first, second = scene.objects
    dx, dy = (a - b for a, b in zip(first.centre, second.centre, strict=True))
    word = ("left of" if dx < 0 else "right of") if abs(dx) > abs(dy) else "above" if dy < 0 else "below"
    return {(first.shape, word, second.shape), (second.shape, OPPOSITE[word], first.shape)}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(-5, 5))
def test_sample_is_a_function_of_seed_and_index(index: int, seed: int) -> None:
    first, second = CaptionedShapes(16, seed, 10**7), CaptionedShapes(16, seed, 10**7)
    second[0]  # what was drawn before does not matter
    a, b = first[index], second[index]
    assert (np.asarray(a.image) == np.asarray(b.image)).all() and a[1:] == b[1:]
    assert (np.asarray(a.image) == render(first.describe(index)[2], 16)).all()


def test_seeds_and_indices_differ() -> None:
    scenes = {CaptionedShapes(8, seed).describe(index)[2] for seed in range(3) for index in range(50)}
    assert len(scenes) == 150


def test_what_is_stated_is_shown() -> None:
    for claim, words, scene in SOME:
        shapes = Counter(thing.shape for thing in scene.objects)
        assert shapes == {thing.shape: thing.count for thing in claim.things}
        for thing in claim.things:
            colours = {o.colour for o in scene.objects if o.shape == thing.shape}
            assert thing.colour is None or colours == {thing.colour}
            assert thing.shape in words and (thing.colour or "") in words
            assert thing.count == 1 or f"{COUNT_WORDS[thing.count]} " in words
        if claim.relation is not None:
            first, second = (thing.shape for thing in claim.things)
            assert (first, claim.relation, second) in shown_relations(scene)


def test_what_is_held_out_is_never_shown() -> None:
    for _, _, scene in SOME:
        shapes = Counter(thing.shape for thing in scene.objects)
        assert HELD_OUT_COLOURS.isdisjoint((thing.colour, thing.shape) for thing in scene.objects)
        assert HELD_OUT_COUNTS.isdisjoint((count, shape) for shape, count in shapes.items())
        if len(shapes) == 2:
            assert HELD_OUT_RELATIONS.isdisjoint(shown_relations(scene))


def test_the_parts_of_what_is_held_out_are_frequent() -> None:
    things = [(thing.colour, thing.shape) for _, _, scene in SOME for thing in scene.objects]
    assert len(set(things)) == len(COLOURS) * len(SHAPES) - len(HELD_OUT_COLOURS)
    assert min(Counter(colour for colour, _ in things).values()) > 200
    assert min(Counter(shape for _, shape in things).values()) > 200
    relations = Counter(claim.relation for claim, _, _ in SOME if claim.relation)
    assert set(relations) == set(RELATIONS) and min(relations.values()) > 30
    counts = Counter(claim.things[0].count for claim, _, _ in SOME if claim.category == "counting")
    assert set(counts) == {2, 3, 4} and min(counts.values()) > 40
    assert min(Counter(claim.category for claim, _, _ in SOME).values()) > 200


def test_a_relation_is_held_out_in_both_wordings() -> None:
    for first, relation, second in HELD_OUT_RELATIONS:
        one, other = Thing(first), Thing(second)
        assert held_out(Claim("position", (one, other), relation))
        assert held_out(Claim("position", (other, one), OPPOSITE[relation]))
        assert not held_out(Claim("position", (one, other), OPPOSITE[relation]))


def test_objects_are_apart_inside_and_readable() -> None:
    for _, _, scene in SOME:
        for thing in scene.objects:
            assert all(thing.radius + MARGIN <= c <= 1 - thing.radius - MARGIN for c in thing.centre)
            assert thing.radius * 32 >= 3.2  # at 32 pixels: at least six pixels across
        for a, b in combinations(scene.objects, 2):
            assert math.dist(a.centre, b.centre) > a.radius + b.radius + 1.5 / 32


def test_captions_are_english() -> None:
    star, orange = Thing("star"), Thing("circle", "orange")
    assert caption(Claim("single object", (star,))) == "a star"
    assert caption(Claim("colours", (orange,)), 1) == "a photo of an orange circle"
    assert caption(Claim("counting", (Thing("square", None, 3),)), 2) == "a picture of three squares"
    assert caption(Claim("colour attribution", (star, orange))) == "a star and an orange circle"
    position = Claim("position", (star, orange), "right of")
    assert [caption(position, i) for i in (0, 3, 6)] == [
        "a star right of an orange circle",
        "a star to the right of an orange circle",
        "an orange circle with a star on its right",
    ]
    assert caption(Claim("position", (star, orange), "below"), 3) == "an orange circle with a star below it"


def test_every_phrasing_differs_and_occurs() -> None:
    claim = Claim("position", (Thing("star"), Thing("circle")), "left of")
    every = {caption(claim, i) for i in range(PHRASINGS)}
    assert len(every) == 9
    assert every == {caption(claim, i) for i in range(-50, 50)}
    stars = {words for claim, words, _ in SOME if claim == Claim("single object", (Thing("star"),))}
    assert stars == {"a star", "a photo of a star", "a picture of a star"}


def test_open_source_gives_captions_and_categories() -> None:
    source = open_source(DataConfig(path="shapes-captions", size=24, shapes_count=7, shapes_seed=3))
    assert isinstance(source, CaptionedShapes) and (source.size, source.seed, len(source)) == (24, 3, 7)
    assert source.class_names == CATEGORIES and source.num_classes == 6
    sample, (claim, words, scene) = source[5], source.describe(5)
    assert (sample.caption, sample.label) == (words, CATEGORIES.index(claim.category))
    assert sample.image.size == (24, 24) and scene.background.colour in GROUNDS
    with pytest.raises(IndexError):
        source[7]


def test_mirroring_and_wandering_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.flip is true.*left from right"):
        DataConfig(path="shapes-captions", flip=True)
    with pytest.raises(UserError, match=r'shapes_variation is 0\.5 but data\.path is "shapes-captions"'):
        DataConfig(path="shapes-captions", shapes_variation=0.5)
    with pytest.raises(UserError, match="count 0"):
        CaptionedShapes(32, count=0)
