"""The one reader of configs: what it takes, and what it says of the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from pixelwright.config import (
    Config,
    Decay,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    Text,
    UnitInterval,
    merge,
    read,
    read_yaml,
    real,
    to_dict,
    whole,
)
from pixelwright.errors import UserError
from pixelwright.registry import Registry

shapes: Registry[Any] = Registry("shape")


@dataclass(frozen=True)
class Square:
    side: int = 3
    corners: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Circle(Config):
    radius: PositiveFloat


shapes.register("square", Square)(lambda config: config)
shapes.register("circle", Circle)(lambda config: config)


@dataclass(frozen=True)
class Inner(Config, where="inner"):
    rate: PositiveFloat = 0.5
    share: Share = 1.0


@dataclass(frozen=True)
class Outer(Config, where=""):
    name: Text
    count: PositiveInt = 1
    seed: NonNegativeInt = 0
    decay: Decay = 0.0
    part: UnitInterval = 0.0
    window: Annotated[int, whole(10, 20)] = 10
    angle: Annotated[float, real()] = 0.0
    flag: bool = False
    mode: Literal["one", "two"] = "one"
    pair: tuple[float, float] | None = None
    rules: tuple[float | str, ...] = ()
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    shape: Annotated[Any, shapes] = None
    shapes: tuple[Annotated[Any, shapes], ...] = ()
    table: Mapping[str, PositiveInt] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.shape is None:
            object.__setattr__(self, "shape", Square())
        super().__post_init__()


GOOD: dict[str, Any] = {
    "name": "x",
    "pair": [0, 1],
    "rules": [0.9, "power-1"],
    "inner": {"rate": "1e-4"},
    "maybe": {},
    "shape": {"type": "circle", "radius": 2},
    "shapes": [{"type": "square"}, "square"],
    "table": {"a": 1},
}


def test_plain_values_become_what_the_annotations_say() -> None:
    config = read(Outer, GOOD)
    assert config == Outer(
        name="x",
        pair=(0.0, 1.0),
        rules=(0.9, "power-1"),
        inner=Inner(rate=1e-4),
        maybe=Inner(),
        shape=Circle(2.0),
        shapes=(Square(), Square()),
        table={"a": 1},
    )
    assert isinstance(config.pair[0], float)  # type: ignore[index]
    assert read(Outer, to_dict(config)) == config
    assert to_dict(config)["shape"] == {"type": "circle", "radius": 2.0}
    assert to_dict(config)["shapes"][0] == {"type": "square", "side": 3, "corners": [1, 2]}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"name": " "}, "name is ' ': give a text that is not empty"),
    ({"name": 3}, "name is 3: give a text"),
    ({"count": 0}, "count is 0: give a whole number of at least 1"),
    ({"count": True}, "count is True"),
    ({"count": 2.0}, "count is 2.0: give a whole number"),
    ({"count": "2"}, "count is '2'"),
    ({"count": None}, "count is None"),
    ({"count": 10**30}, "count is 1000"),
    ({"seed": -1}, "seed is -1: give a whole number of at least 0"),
    ({"decay": 1}, "decay is 1: give a number of at least 0 and below 1"),
    ({"part": 1.01}, "part is 1.01"),
    ({"window": 21}, "window is 21: give a whole number of at least 10 and at most 20"),
    ({"angle": math.inf}, "angle is inf: give a finite number"),
    ({"angle": math.nan}, "angle is nan: give a finite number"),
    ({"flag": 1}, "flag is 1: give true or false"),
    ({"mode": "onne"}, "mode is 'onne', did you mean \"one\""),
    ({"pair": [1]}, "pair is [1]: give a list of 2, each a finite number"),
    ({"pair": 3}, "pair is 3"),
    ({"rules": [[1]]}, "rules is [1]: give a finite number or a text"),
    ({"inner": 3}, "inner is 3: give a group of settings, such as inner.rate"),
    ({"inner": {"rate": 0}}, "inner.rate is 0: give a number above 0"),
    ({"maybe": {"rate": -1}}, "maybe.rate is -1"),
    ({"inner": {"rat": 1}}, 'unknown key "inner.rat", did you mean "inner.rate"'),
    ({"countz": 1}, 'unknown key "countz", did you mean "count"'),
    ({"repa": {}}, 'unknown key "repa": it is called objectives'),
    ({"shape": {"type": "squar"}}, 'shape.type is "squar", did you mean "square"'),
    ({"shape": {"type": "square", "sid": 1}}, 'unknown key "shape.sid", did you mean "shape.side"'),
    ({"shape": {"type": "circle"}}, "missing: shape.radius"),
    ({"shape": {"type": "circle", "radius": 0}}, "shape.radius is 0"),
    ({"shape": {"type": "square", "side": "3"}}, "shape.side is '3'"),
    ({"shape": {"side": 1}}, "give {type: NAME, ...}; shapes are square, circle"),
    ({"shape": 3}, "shape is 3"),
    ({"shapes": [{"type": "squar"}]}, 'shapes.type is "squar"'),
    ({"table": {"a": 0}}, "table.a is 0"),
    ({"table": 3}, "table is 3"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=lambda value: str(value)[:40])
def test_what_does_not_fit_is_named_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        read(Outer, {"name": "x", **values}, "file.yaml")
    assert str(error.value).startswith("file.yaml: ") and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("values", "message"), [case for case in BAD if "unknown key" not in case[1]])
def test_python_refuses_the_same(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Outer(**{"name": "x", **values})
    assert message in str(error.value)


def test_missing_keys_and_other_shapes() -> None:
    with pytest.raises(UserError, match="missing: name"):
        read(Outer, {})
    for values in (None, [1], 3, "text"):
        with pytest.raises(UserError, match=r"the config is .*: give a group of settings, such as name"):
            read(Outer, values)


def test_paths_are_texts() -> None:
    assert Outer(name=Path("a/b")).name == "a/b"  # type: ignore[arg-type]


def test_the_class_names_a_group_that_has_no_name() -> None:
    with pytest.raises(UserError, match=r"Circle\.radius is -1"):
        Circle(-1)


def test_words_of_the_command_line_with_commas() -> None:
    assert read(Outer, {"name": "x", "shape": {"type": "square", "corners": "64,128"}}).shape.corners == (
        64,
        128,
    )


def test_later_sources_change_earlier_ones() -> None:
    first = {"name": "x", "inner": {"rate": 1, "share": 0.5}, "shape": {"type": "square", "side": 4}}
    changed = merge(first, {"inner": {"rate": 2}, "shape": {"corners": [7]}})
    assert read(Outer, changed) == Outer("x", inner=Inner(2, 0.5), shape=Square(4, (7,)))
    assert first["inner"] == {"rate": 1, "share": 0.5}
    other = merge(first, {"shape": {"type": "circle", "radius": 1}})
    assert read(Outer, other).shape == Circle(1)


def test_a_list_of_parts_is_changed_by_type() -> None:
    first = {"name": "x", "shapes": [{"type": "square", "side": 4}, "square"]}
    changed = merge(first, {"shapes": {"circle": {"radius": 1}}})
    assert read(Outer, changed).shapes == (Square(4), Square(), Circle(1))
    changed = merge(changed, {"shapes": {"circle": {"radius": 2}}})
    assert read(Outer, changed).shapes == (Square(4), Square(), Circle(2))
    assert read(Outer, {"name": "x", "shapes": {"square": {"side": 5}}}).shapes == (Square(5),)
    assert read(Outer, merge(first, {"shapes": []})).shapes == ()


def test_yaml_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for content, message in (("a: [", "not valid YAML"), ("a: 1\na: 2\n", 'the key "a" is given twice')):
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            read_yaml(file)
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(UserError, match=f"{path} cannot be read"):
            read_yaml(path)
