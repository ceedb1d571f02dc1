"""The fields of config dataclasses as options of the command line; their help is the text under them."""

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml

from pixelwright.config import group_of, hints, join, merge, registry_of

METAVARS = {int: "N", float: "X", str: "TEXT", bool: "{true,false}", Path: "PATH"}


class Setting(NamedTuple):
    """A field that is no group."""

    key: str  # with dots for the groups it is in
    hint: Any
    help: str


def settings(cls: type, key: str = "", optional: str = "") -> Iterator[Setting]:
    """The fields of a config dataclass and of its groups; `optional` names a group that may be left out."""
    texts = field_help(cls)
    for field in dataclasses.fields(cls):
        hint = hints(cls)[field.name]
        inner = group_of(hint)
        if inner is not None:
            may_miss = join(key, field.name) if field.default is None else optional
            yield from settings(inner, join(key, field.name), may_miss)
        else:
            yield Setting(join(key, field.name), hint, f"{texts[field.name]}{_default(field, optional)}")


def _default(field: dataclasses.Field[Any], optional: str) -> str:
    if field.default is field.default_factory is dataclasses.MISSING:
        return f" (required{f' with {optional}' if optional else ''})"
    known = field.default not in (dataclasses.MISSING, None, "", ())
    return f" (default: {shown(field.default)})" if known else ""


def field_help(cls: type) -> dict[str, str]:
    """The text under each field of a dataclass, those that it inherits included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(tree, ast.ClassDef)
            found |= dict(_texts(tree.body))
    return found


def _texts(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for statement, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            constant = after.value if isinstance(after, ast.Expr) else None
            text = constant.value if isinstance(constant, ast.Constant) else ""
            yield statement.target.id, " ".join(str(text).split())


def shown(value: Any) -> str:
    """A default as one would write it in YAML."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(shown(item) for item in value)}]"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.lower() if isinstance(value, bool) else text


def word_type(hint: Any) -> Any:
    """What `jsonargparse` makes of the word after an option: the plain type, else the text as it is, which
    `config.convert` refuses or takes."""
    origin, args = get_origin(hint), get_args(hint)
    if registry_of(hint) is not None or dataclasses.is_dataclass(hint) or origin in (dict, Mapping):
        return dict[str, Any] | list[Any] | str
    if origin is Annotated:
        return word_type(args[0])
    if origin in (Union, types.UnionType):
        return reduce(or_, (option if option is types.NoneType else word_type(option) for option in args))
    if origin in (tuple, list):
        return list[Any] | str
    return hint | str if hint in (int, float, bool) else str


def nested(options: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """The options of the fields of a config dataclass, as nested settings."""
    found: dict[str, Any] = {}
    for name, hint in hints(cls).items():
        if name in options:
            value, inner = options[name], group_of(hint)
            if isinstance(value, Mapping):
                value = nested(value, inner) if inner is not None else _part(value)
            found[name] = value
    return found


def _part(value: Any) -> Any:
    """Settings of parts, such as `--objectives.repa.depth 3`: words as YAML, dotted keys as nested ones."""
    if isinstance(value, str):
        return yaml.safe_load(value)
    found: dict[str, Any] = {}
    for key, item in value.items() if isinstance(value, Mapping) else ():
        *groups, last = key.split(".")
        inner = {last: _part(item)}
        found = merge(found, reduce(lambda settings, group: {group: settings}, reversed(groups), inner))
    return found if isinstance(value, Mapping) else value


def metavar(hint: Any) -> str | None:
    """What the help puts after the name of an option."""
    origin, args = get_origin(hint), get_args(hint)
    if registry_of(hint) is not None:
        return "{type: NAME, ...}"
    if origin in (Annotated, Union, types.UnionType):
        return metavar(args[0])
    if origin is Literal:
        return "{" + ",".join(map(str, args)) + "}"
    return "LIST" if origin in (tuple, list) else METAVARS.get(hint)
