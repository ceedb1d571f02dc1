"""What the commands share: making a parser, reading settings, saying in one line what is wrong with them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jsonargparse
from jsonargparse import ArgumentParser, Namespace

from pixelwright.cli.config_file import check_files
from pixelwright.errors import UserError, nearest

# The line under a field of a configuration dataclass is its help text.
jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

COMMAND_LINE_ONLY = ("config", "debug", "resume")
"""Settings that a configuration file may not hold."""


class Verb(NamedTuple):
    """What a command module offers."""

    parser: Callable[[], ArgumentParser]
    run: Callable[[Namespace], int | None]


def choose_verb(
    command: str, verbs: Mapping[str, Verb], parser: Callable[[], ArgumentParser], words: list[str]
) -> tuple[Verb, list[str]]:
    """The verb of a command that `words` begin with, and the other words; without one, the command's help.

    Raises UserError on an unknown verb.
    """
    if not words or words[0].startswith("-"):
        return Verb(parser, lambda _: _help(parser())), words
    if words[0] not in verbs:
        raise UserError(f'unknown command "{command} {words[0]}"{nearest(words[0], verbs)}')
    return verbs[words[0]], words[1:]


def _help(parser: ArgumentParser) -> int:
    parser.print_help()
    return 0


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
    """Defaults and types after each setting; description and examples as they were written."""


def new_parser(command: str, description: str, examples: str) -> ArgumentParser:
    """A parser for `pixelwright COMMAND` whose errors are exceptions."""
    parser = ArgumentParser(
        prog=f"pixelwright {command}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def parse(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    """The settings in `arguments`, dataclasses built and checked. Raises UserError naming the setting."""
    try:
        if "model.preset" in keys(parser):  # the settings of a run, which files may hold
            check_files(arguments, [key for key in keys(parser) if key not in COMMAND_LINE_ONLY])
        options = parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(_explain(str(error), keys(parser))) from error
    for key in keys(parser):  # `--optim 3` passes the parser and would fail obscurely later
        group, dot, _ = key.rpartition(".")
        if dot and not isinstance(options.get(group), Namespace):
            raise UserError(f"{group} is {options.get(group)!r}; it is a group of settings such as {key}")
    return parser.instantiate(options)


def keys(parser: ArgumentParser) -> list[str]:
    """The names of all settings of a parser, with dots for those in groups."""
    return [str(key) for key in parser.get_defaults().keys()]  # noqa: SIM118 (a Namespace, not a dict)


def _explain(message: str, keys: list[str]) -> str:
    """The parser's message in one line, with unknown names set beside the nearest known ones."""
    text = re.sub(r"<class '(.+?)'>", r"\1", " ".join(message.split())).replace("typing.", "")
    if found := re.match(r"unrecognized arguments: (\S+)", text):
        return _unknown_argument(found[1], keys)
    if found := re.search(r"Group '(.+?)' does not accept option '(.+?)'", text):
        key = f"{found[1]}.{found[2]}"
        return f'unknown key "{key}"{nearest(key, keys)}'
    if found := re.match(
        r'(.*)Parser key "(.+?)": .*?Expected an? (.+?)(?:\.| -) .*?(?:Got|Given) value: (.*)', text
    ):
        place, key, wanted, value = found.groups()
        if choices := re.search(r"Literal\[(.+?)\]", text):
            wanted = "one of " + choices[1].replace("'", "")
        return f"{place}{key} is {value}; {wanted} is needed"
    return re.sub(r'Parser key "(.+?)"', r"\1", text)


def _unknown_argument(word: str, keys: list[str]) -> str:
    if not word.startswith("-"):
        return f'unexpected argument "{word}"'
    word = word.split("=")[0]
    return f'unknown option "{word}"{nearest(word, [f"--{key}" for key in keys])}'


def image_size(numbers: list[int] | list[str] | None) -> tuple[int, int] | None:
    """(rows, columns) from `--size N`, `--size ROWS COLUMNS` or `--size WIDTHxHEIGHT`; None where it was not
    given."""
    if numbers is None:
        return None
    if found := re.fullmatch(r"(\d+)x(\d+)", str(numbers[0])) if len(numbers) == 1 else None:
        return int(found[2]), int(found[1])
    if not all(re.fullmatch(r"\d+", str(number)) for number in numbers):
        raise UserError(f"--size is {' '.join(map(str, numbers))}; give N, ROWS COLUMNS or WIDTHxHEIGHT")
    if len(numbers) > 2:
        raise UserError(f"--size is {' '.join(map(str, numbers))}; give one number, or ROWS COLUMNS")
    return int(numbers[0]), int(numbers[-1])
