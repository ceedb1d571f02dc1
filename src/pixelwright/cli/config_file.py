"""`--config FILE`: the file and its keys are checked before the parser reads it, to name file and key."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from pixelwright.errors import UserError, nearest


def check_files(arguments: list[str], keys: Collection[str]) -> None:
    """Check every file that `--config` names in `arguments`; `keys` are those it may hold, with dots.

    Raises:
        UserError: no such file, no YAML, no settings in it, or an unknown key.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", action="append", default=[])
    for file in finder.parse_known_args(arguments)[0].config:
        check(read_yaml(Path(file)), keys, file)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's readers silently drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(
                    f'the key "{key}" is given twice in the group that starts on line {line}'
                )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises UserError naming the file, and the line where there is one."""
    if not path.is_file():
        raise UserError(f'configuration "{path}" {"is not a file" if path.exists() else "does not exist"}')
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        text = str(error).replace(' in "<unicode string>",', "")
        raise UserError(f"{path} is not valid YAML: {text}") from error


def check(settings: Any, keys: Collection[str], place: str, group: str = "") -> None:
    """Raise UserError unless `settings` is a mapping of known keys, in every group."""
    inside = [key.removeprefix(group) for key in keys if key.startswith(group)]
    if not isinstance(settings, dict) or not settings:
        what = f'{place}: "{group[:-1]}" is' if group else f"{place} holds"
        raise UserError(f"{what} {str(settings)[:40]}; settings are needed, such as {group}{inside[0]}")
    for key, value in settings.items():
        if any(known.startswith(f"{key}.") for known in inside):
            check(value, keys, place, f"{group}{key}.")
        elif key not in inside:
            raise UserError(f'{place}: unknown key "{group}{key}"{nearest(f"{group}{key}", _names(keys))}')


def _names(keys: Collection[str]) -> set[str]:
    """The keys and their groups."""
    return {*keys, *(key.partition(".")[0] for key in keys)}
