"""Configs as nested plain values and YAML files, and what a resumed run may change in them."""

from __future__ import annotations

import types
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from pixelwright.errors import UserError, nearest
from pixelwright.training.config import TrainConfig
from pixelwright.training.files import write_text

T = TypeVar("T")


def to_dict(config: object) -> dict[str, Any]:
    """A config as nested plain values (tuples as lists), ready for YAML."""
    return {f.name: _plain(getattr(config, f.name)) for f in fields(config)}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def from_dict(cls: type[T], values: Any, where: str = "") -> T:
    """Build the config dataclass `cls` from nested plain values.

    Raises UserError for unknown or missing keys and for values of the wrong type, naming the dotted key.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where or 'the config'} is {values!r}: a group of settings was expected")
    hints = get_type_hints(cls)
    settings = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in settings:
            raise UserError(f"unknown setting {_join(where, key)}{nearest(str(key), settings)}")
    needed = [n for n, f in settings.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [_join(where, name) for name in needed if name not in values]:
        raise UserError(f"missing setting {', '.join(missing)}")
    return cls(**{key: _value(hints[key], value, _join(where, key)) for key, value in values.items()})


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, or a UserError that names `where`."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        if value is None and len(options) < len(get_args(hint)):
            return None
        return _value(options[0], value, where) if len(options) == 1 else value
    if is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) == len(value):
            return tuple(_value(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if origin is Literal:
        if value not in get_args(hint):
            raise UserError(f"{where} is {value!r}{nearest(str(value), map(str, get_args(hint)))}")
        return value
    if hint is float and not isinstance(value, bool):
        try:  # YAML reads 1e-4, without a point, as text
            return float(value)
        except (TypeError, ValueError):
            pass
    elif hint in (int, bool, str) and type(value) is hint:
        return value
    name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise UserError(f"{where} is {value!r}: {name} expected")


def save_config(config: TrainConfig, path: Path) -> None:
    """Write a config as YAML, atomically."""
    write_text(path, yaml.safe_dump(to_dict(config), sort_keys=False))


def load_config(path: Path) -> TrainConfig:
    """Read a config written by `save_config` or by hand. Raises UserError if unreadable or not valid."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    try:
        return from_dict(TrainConfig, values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


# ---------------------------------------------------------------- what a resumed run may change
# Where the run lives, how long, on what, and what it reports: beyond rounding they do not change what is
# computed.
FREE = {"run", "steps", "accumulate", "device", "compile", "max_skipped"}
FREE |= {"log_every", "checkpoint_every", "keep", "keep_every", "sample_every", "sample", "parallel"}
FREE |= {"evaluation"}
FREE |= {
    "data.workers",
    "data.cache",
    "data.stall_seconds",
    "health.measure_every",
    "health.max_rollbacks",
    "repa.cache",
    "text.cache",
}


def differences(old: dict[str, Any], new: dict[str, Any], only: str = "") -> list[str]:
    """The settings that change the result and differ between two configs in their `to_dict` form, as
    "key: old -> new". `only` limits them to the groups under one key."""

    def flat(values: dict[str, Any], where: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            name = _join(where, key)
            if name not in FREE:
                found.update(flat(value, name) if isinstance(value, dict) else {name: value})
        return found

    before, after = flat(old), flat(new)
    keys = [key for key in after | before if key.startswith(only)]
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in keys
        if before.get(key) != after.get(key)
    ]
