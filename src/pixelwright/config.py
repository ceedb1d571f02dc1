"""The one reader of configs: frozen dataclasses from YAML, JSON, the command line or Python, checked alike.

A config class inherits from `Config` and states ranges in its annotations, such as `PositiveInt` or
`Annotated[int, whole(10)]`; what concerns several fields is checked in its `__post_init__`. The text under a
field is its help. A part that users add (see `registry`) is a field of type `Annotated[Any, registry]`, and
`{type: NAME, ...}` in files.
"""

import dataclasses
import math
import os
import types
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse.typing import extend_base_type, restricted_number_type, restricted_string_type

from pixelwright.errors import UserError, nearest
from pixelwright.registry import Registry

T = TypeVar("T")

LARGEST = 1 << 24  # bytes of a file of settings
RENAMED = {
    "repa": "objectives, a list with {type: repa, ...}",
    "recipe": "sampler",
    "health.answer": "health.on_spike",
    "health.persist": "health.patience",
}
"""Old name of a key -> its name now."""


# ---------------------------------------------------------------- ranges
def whole(least: int, most: int = 2**63 - 1) -> Any:
    """The type of a whole number in [least, most], for `Annotated[int, ...]`."""
    words = f"a whole number of at least {least}" + (f" and at most {most}" if most < 2**63 - 1 else "")
    return restricted_number_type(None, int, [(">=", least), ("<=", most)], docstring=words)


def real(
    *, above: float = -math.inf, least: float = -math.inf, below: float = math.inf, most: float = math.inf
) -> Any:
    """The type of a finite number within these bounds, for `Annotated[float, ...]`."""
    limits = [(">", above, "above"), (">=", least, "of at least"), ("<", below, "below")]
    limits += [("<=", most, "of at most")]
    bounds = " and ".join(f"{word} {limit:g}" for _, limit, word in limits if math.isfinite(limit))
    signs = [(sign, limit) for sign, limit, _ in limits]
    return restricted_number_type(
        None, float, signs, docstring=f"a number {bounds}" if bounds else "a finite number"
    )


PositiveInt = Annotated[int, whole(1)]
NonNegativeInt = Annotated[int, whole(0)]
PositiveFloat = Annotated[float, real(above=0)]
NonNegativeFloat = Annotated[float, real(least=0)]
FiniteFloat = Annotated[float, real()]
UnitInterval = Annotated[float, real(least=0, most=1)]
Decay = Annotated[float, real(least=0, below=1)]
Share = Annotated[float, real(above=0, most=1)]
Text = Annotated[str, restricted_string_type("Text", r"\s*\S", docstring="a text that is not empty")]


def _check_line(_: type, text: str) -> None:
    if not text.isprintable() or len(text) > 1000:
        raise ValueError("it may hold control characters, or be endless")


Line = Annotated[str, extend_base_type("Line", str, _check_line, "one line of plain text")]
"""What is shown on terminals, and may come from a file that someone was given."""


_PERCENT = r"(100|\d{1,2}(\.\d+)?)%\Z"
Percent = Annotated[
    str, restricted_string_type("Percent", _PERCENT, docstring="a share of the run, such as 3%")
]
StepsOrShare = NonNegativeInt | Percent
"""A number of steps, or a share of the run's; see `steps_of`."""


def steps_of(value: int | str, steps: int) -> int:
    """A `StepsOrShare` as steps of a run of `steps`."""
    return round(float(value.removesuffix("%")) / 100 * steps) if isinstance(value, str) else value


# ---------------------------------------------------------------- values
class Config:
    """Base of config dataclasses: every field is converted and checked by its annotation.

    `class OptimConfig(Config, where="optim")` gives the group's name in error messages, which is that of the
    class otherwise. A `__post_init__` of its own calls this one first.

    Raises UserError: a value that does not fit, naming the field.
    """

    where: ClassVar[str | None] = None

    def __init_subclass__(cls, where: str | None = None, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.where = where if where is not None else cls.where

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            object.__setattr__(self, name, convert(getattr(self, name), hint, self.key(name)))

    def key(self, name: str) -> str:
        """What error messages call a field."""
        return join(type(self).__name__ if self.where is None else self.where, name)

    def unused(self, *names: str, why: str) -> None:
        """Raise UserError if one of these fields, which nothing reads, has another value than its default."""
        for name in names:
            if (value := getattr(self, name)) != getattr(type(self), name):
                raise UserError(f"{self.key(name)} is {short(value)}, {why}")


def _hints(cls: Any) -> dict[str, Any]:
    """The annotations of the fields of a dataclass, resolved."""
    found = get_type_hints(cls, include_extras=True)
    return {field.name: found[field.name] for field in dataclasses.fields(cls) if field.init}


hints: Callable[[Any], dict[str, Any]] = lru_cache(maxsize=256)(_hints)


def join(where: str, name: object) -> str:
    """The dotted key of a field."""
    return f"{where}.{name}" if where else str(name)


def read(cls: type[T], values: Any, place: str = "") -> T:
    """The config `cls` from nested plain values, as YAML, JSON and the command line give them.

    Raises UserError: a key that is unknown or missing, or a value that does not fit; `place`, such as the
    file, is named first.
    """
    try:
        return _group(cls, values, "")
    except UserError as error:
        raise UserError(f"{place}: {error}" if place else str(error)) from None


def _group(cls: type[T], values: Any, key: str) -> T:
    check_keys(cls, values, key)
    if missing := _missing(cls, values, key):
        raise UserError(f"missing: {', '.join(missing)}")
    kinds = hints(cls)
    groups: dict[str, Any] = {field.name: {} for field in _required(cls) if field.name not in values}
    settings = {**groups, **values}
    return cls(**{name: convert(value, kinds[name], join(key, name)) for name, value in settings.items()})


def _required(cls: Any) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]


def _missing(cls: type, values: Mapping[str, Any], key: str) -> list[str]:
    """The required keys that are not there; a group that is not there has its defaults, where it has them."""
    found = []
    for field in _required(cls):
        group, there = group_of(hints(cls)[field.name]), values.get(field.name, {})
        if group is not None and isinstance(there, Mapping):
            found += _missing(group, there, join(key, field.name))
        elif field.name not in values:
            found.append(join(key, field.name))
    return found


def check_keys(cls: type, values: Any, key: str = "") -> None:
    """Raise UserError unless `values` is a mapping with keys of `cls`, in every group of it."""
    known = hints(cls)
    if not isinstance(values, Mapping):
        such = f", such as {join(key, next(iter(known)))}" if known else ""
        raise UserError(f"{key or 'the config'} is {short(values)}: give a group of settings{such}")
    for name, value in values.items():
        if name not in known:
            raise UserError(unknown(join(key, name), [join(key, other) for other in known]))
        inner = group_of(known[name])
        if inner is not None and value is not None and not dataclasses.is_dataclass(value):
            check_keys(inner, value, join(key, name))


def unknown(key: str, known: list[str]) -> str:
    """The error message about an unknown key."""
    if key in RENAMED:
        return f'unknown key "{key}": it is called {RENAMED[key]} now'
    return f'unknown key "{key}"{nearest(key, known)}'


def group_of(hint: Any) -> type | None:
    """The config dataclass of a field that is one, or may be one; else None."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    found = [option for option in options if dataclasses.is_dataclass(option)]
    return found[0] if len(found) == 1 and isinstance(found[0], type) else None


def short(value: Any) -> str:
    """A value for an error message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def convert(value: Any, hint: Any, key: str) -> Any:
    """`value` as the type `hint`: lists as tuples, whole numbers as floats, mappings as configs. Raises
    UserError: it does not fit, naming `key`."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        return _annotated(value, args[0], args[1], key)
    if origin in (Union, types.UnionType):
        return _first_of(value, args, key)
    if origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
        raise UserError(f"{key} is {short(value)}{nearest(str(value), map(str, args))}")
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _group(hint, value, key)  # type: ignore[arg-type]
    if origin in (tuple, list):
        return origin(_items(value, args if origin is tuple else (*args, ...), key))
    if origin in (dict, Mapping):
        if isinstance(value, Mapping):
            return {str(name): convert(item, args[1], join(key, name)) for name, item in value.items()}
        raise UserError(f"{key} is {short(value)}: give names with a value each")
    return _scalar(value, hint, key, "")


def _first_of(value: Any, options: tuple[Any, ...], key: str) -> Any:
    """The value as the first of these types that it fits."""
    if value is None and types.NoneType in options:
        return None
    options = tuple(option for option in options if option is not types.NoneType)
    for option in options:
        try:
            return convert(value, option, key)
        except UserError:
            if len(options) == 1:
                raise
    raise UserError(f"{key} is {short(value)}: give {' or '.join(map(expected, options))}")


def _annotated(value: Any, base: Any, note: Any, key: str) -> Any:
    if isinstance(note, Registry):
        return part(value, note, key)
    if not isinstance(note, type):
        return convert(value, base, key)
    found = _scalar(value, base, key, note.__doc__ or "")
    try:
        note(found)
    except (ValueError, OverflowError):
        raise UserError(f"{key} is {short(value)}: give {note.__doc__}") from None
    return found


def _scalar(value: Any, kind: Any, key: str, words: str) -> Any:
    if kind is float and not isinstance(value, bool) and isinstance(value, (int, float, str)):
        try:  # YAML reads 1e-4, without a point, as text
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    elif kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"{key} is {short(value)}: give {words or expected(kind)}")


def _items(value: Any, kinds: tuple[Any, ...], key: str) -> list[Any]:
    """The items of a list, each as its type; `kinds` as in `tuple[...]`."""
    if isinstance(value, str) and "," in value:  # 64,128 on the command line
        value = [yaml.safe_load(item) for item in value.split(",")]
    if isinstance(value, Mapping) and registry_of(kinds[0]):
        value = _merge_list([], value)
    many = kinds[-1] is Ellipsis
    if not isinstance(value, (list, tuple)) or (not many and len(value) != len(kinds)):
        count = "a list" if many else f"a list of {len(kinds)}"
        raise UserError(f"{key} is {short(value)}: give {count}, each {expected(kinds[0])}")
    each = (kinds[0],) * len(value) if many else kinds
    return [convert(item, kind, key) for item, kind in zip(value, each, strict=True)]


def expected(hint: Any) -> str:
    """What a type takes, in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"a {args[1].kind}" if isinstance(args[1], Registry) else args[1].__doc__
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple:
        return "a list"
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def part(value: Any, registry: Registry[Any], key: str) -> Any:
    """The config of a registered part: as it is, or from its name or `{"type": name, ...}`."""
    if dataclasses.is_dataclass(value):
        registry.name_of(value)
        return value
    settings = {"type": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or "type" not in settings:
        known = ", ".join(registry)
        raise UserError(f"{key} is {short(value)}: give {{type: NAME, ...}}; {registry.kind}s are {known}")
    kind = registry.config_type(settings["type"], key)
    return _group(kind, {name: item for name, item in settings.items() if name != "type"}, key)


def registry_of(hint: Any) -> Registry[Any] | None:
    """The registry of the parts in a field of this type; None where there are none."""
    found = (item if isinstance(item, Registry) else registry_of(item) for item in get_args(hint))
    return next((item for item in found if item is not None), None)


# ---------------------------------------------------------------- the way back, and files
def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested plain values, ready for YAML and JSON; `read` gives it back."""
    return {name: _plain(getattr(config, name), hint) for name, hint in hints(type(config)).items()}


def _plain(value: Any, hint: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item, hint) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item, hint) for name, item in value.items()}
    if not dataclasses.is_dataclass(value):
        return value
    registry = registry_of(hint)
    return ({} if registry is None else {"type": registry.name_of(value)}) | to_dict(value)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's readers silently drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                where = f"the group that starts on line {node.start_mark.line + 1}"
                raise yaml.YAMLError(f'the key "{key}" is given twice in {where}')
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file. Raises UserError: it cannot be read, naming the file, and the line where
    there is one."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise UserError(f"{path} is longer than {LARGEST} bytes: give a YAML file of settings")
        return yaml.load(data.decode("utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a YAML file of settings") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        text = " ".join(str(error).replace(' in "<unicode string>",', "").split())
        raise UserError(f"{path} is not valid YAML: {text}") from None


def merge(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings of several sources, of which later ones go before earlier ones.

    A part whose type changes is replaced as a whole. A list of parts is changed by a mapping from types to
    settings: `{repa: {depth: 4}}` changes the part of that type, or adds it.
    """
    merged: dict[str, Any] = {}
    for name, value in (item for source in sources for item in source.items()):
        old, merged[name] = merged.get(name), value
        if isinstance(value, Mapping):
            if isinstance(old, list):
                merged[name] = _merge_list(old, value)
            elif isinstance(old, Mapping) and value.get("type") in (None, old.get("type")):
                merged[name] = merge(old, value)
    return merged


def _merge_list(parts: list[Any], changes: Mapping[str, Any]) -> list[Any]:
    kinds = [item.get("type") if isinstance(item, Mapping) else item for item in parts]
    found = []
    for item, kind in zip(parts, kinds, strict=True):
        change = changes.get(kind) if isinstance(kind, str) else None
        settings = item if isinstance(item, Mapping) else {"type": item}
        found.append(item if change is None else merge(settings, change))
    return found + [{"type": kind, **(new or {})} for kind, new in changes.items() if kind not in kinds]
