"""Labels as people write them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pixelwright as pw
from pixelwright.cli.labels import labels_for, parse_labels
from pixelwright.diffusion.labels import as_labels
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


# --- The same meaning on the command line and in Python -----------------------------------------------------
ODD = ("cat", "CAT", "crane", "crane", "10", "2", "caf\u00e9", "Stra\u00dfe")


def both(word: str, names: tuple[str, ...] = ODD) -> list[int]:
    """What a word means to `--labels` and to `pw.sample`, which must agree."""
    config = pw.create("dit-n-4", len(names), depth=1, hidden_size=8, num_heads=1, class_names=names).config
    found: list[object] = []
    for read in (lambda: parse_labels([word], len(names), names), lambda: as_labels([word], config).tolist()):
        try:
            found.append(read())
        except UserError as error:
            assert "\n" not in str(error)
            found.append(str(error))
    assert found[0] == found[1]
    if isinstance(found[0], str):
        raise UserError(found[0])
    return found[0]


@pytest.mark.parametrize(
    ("word", "label"),
    [
        ("cat", 0),
        ("CAT", 1),
        ("10", 4),
        ("3", 3),
        (" STRASSE", 7),
        (unicodedata.normalize("NFD", "Caf\u00e9"), 6),
    ],
)
def test_a_word_means_one_class(word: str, label: int) -> None:
    assert both(word) == [label]


def test_names_of_another_form_are_found() -> None:
    names = tuple(unicodedata.normalize("NFD", name) for name in ("caf\u00e9", "th\u00e9"))
    assert both("th\u00e9", names) == [1]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("Cat", r'"Cat" could be class 0 \("cat"\) or 1 \("CAT"\): give the number'),
        ("crane", r'"crane" could be class 2 \("crane"\) or 3 \("crane"\)'),
        ("2", r'"2" could be class 5 \("2"\) or 2 \("crane"\): give the number .*5-5'),
        ("8", "label 8 is out of range; the model has classes 0 to 7"),
        ("cafe", 'unknown class "cafe", did you mean "caf\u00e9"'),
    ],
)
def test_what_could_mean_several_classes_is_refused(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        both(word)


def test_numbers_are_never_names(tmp_path: Path) -> None:
    """The way out of every doubt: a range on the command line, a number in Python."""
    assert parse_labels(["2-2,5-5"], 8, ODD) == [2, 5]
    config = pw.create("dit-n-4", 8, depth=1, hidden_size=8, num_heads=1, class_names=ODD).config
    assert as_labels([2, 5], config).tolist() == [2, 5]


@pytest.mark.parametrize("word", ["all", "0-1", "balanced", "random"])
def test_a_class_that_is_named_like_a_keyword(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=f'"{word}" means .*, and class 1 is called so'):
        labels_for([word], 4, 2, ("a", word))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("0")
    with pytest.raises(UserError, match='"a" means the labels in that file, and class 0 is called so'):
        labels_for(["a"], 1, 2, ("a", word))
