"""Labels as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelwright.cli.labels import parse_labels
from pixelwright.errors import UserError

NAMES = ("tench, Tinca tinca", "goldfish", "7", "Great White Shark")


def test_numbers_ranges_names_and_all() -> None:
    assert parse_labels(["3", "0-2", "1,1"], 10) == [3, 0, 1, 2, 1, 1]
    assert parse_labels(["all"], 4) == [0, 1, 2, 3]
    assert parse_labels(["goldfish,0", "great white shark"], 4, NAMES) == [1, 0, 3]


def test_a_name_may_hold_a_comma_and_a_name_goes_before_a_number() -> None:
    assert parse_labels(["tench, Tinca tinca"], 4, NAMES) == [0]
    assert parse_labels(["7"], 4, NAMES) == [2]


def test_unknown_names_tell_the_near_ones() -> None:
    with pytest.raises(UserError, match='"goldfihs", did you mean "goldfish"'):
        parse_labels(["goldfihs"], 4, NAMES)
    with pytest.raises(UserError, match="no class names"):
        parse_labels(["goldfish"], 4)


@given(st.lists(st.integers(0, 9), min_size=1))
def test_every_way_of_writing_a_list_gives_that_list(labels: list[int]) -> None:
    words = [str(label) for label in labels]
    assert parse_labels(words, 10) == labels
    assert parse_labels([",".join(words)], 10) == labels
    assert parse_labels([f"{label}-{label}" for label in labels], 10) == labels


@given(st.integers(), st.integers(1, 20))
def test_numbers_outside_the_classes_are_refused(label: int, num_classes: int) -> None:
    if 0 <= label < num_classes:
        assert parse_labels([str(label)], num_classes) == [label]
    else:
        with pytest.raises(UserError, match=str(label)):
            parse_labels([str(label)], num_classes)
