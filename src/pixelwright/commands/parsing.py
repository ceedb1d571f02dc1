"""What the commands share: making a parser, reading settings, saying in one line what is wrong with them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import jsonargparse
from jsonargparse import ArgumentParser, Namespace

from pixelwright.errors import UserError, nearest

# The line under a field of a configuration dataclass is its help text.
jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


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
        options = parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(_explain(str(error), parser)) from error
    _check_groups(options, parser)
    return parser.instantiate(options)


def _check_groups(options: Namespace, parser: ArgumentParser) -> None:
    """A group of settings given as one value (`optim: 3`) passes the parser and fails obscurely later."""
    for key in parser.get_defaults().keys():  # noqa: SIM118 (a Namespace, not a dict)
        group, dot, _ = key.rpartition(".")
        if dot and not isinstance(options.get(group), Namespace):
            raise UserError(f"{group} is {options.get(group)!r}; it is a group of settings such as {key}")


def _explain(message: str, parser: ArgumentParser) -> str:
    """The parser's message, with unknown names set beside the nearest known ones."""
    text = " ".join(message.split())
    keys = [str(key) for key in parser.get_defaults().keys()]  # noqa: SIM118
    if found := re.match(r"unrecognized arguments: (.+)", text):
        return _unknown_argument(found[1], keys)
    if found := re.search(r"Group '(.+?)' does not accept option '(.+?)'", text):
        key = f"{found[1]}.{found[2]}"
        return f'unknown key "{key}" in the configuration{nearest(key, keys)}'
    if found := re.search(r"Option '(.+?)' is not accepted", text):
        top = [*keys, *{key.split(".")[0] for key in keys}]
        return f'unknown key "{found[1]}" in the configuration{nearest(found[1], top)}'
    if found := re.match(r'Parser key "(.+?)": Expected an? (.+?)\. Got value: (.*)', text):
        wanted = re.sub(r"<class '(.+?)'>", r"\1", found[2]).replace("typing.", "")
        if choices := re.search(r"Literal\[(.+?)\]", wanted):
            wanted = "one of " + choices[1].replace("'", "")
        return f"{found[1]} is {found[3]}; {wanted} is needed"
    return text.removeprefix("Parser key ")


def _unknown_argument(words: str, keys: list[str]) -> str:
    word = words.split()[0]
    if not word.startswith("-"):
        return f'unexpected argument "{words}"'
    options = [f"--{key}" for key in keys]
    word = word.split("=")[0]
    return f'unknown option "{word}"{nearest(word, options)}'


def image_size(numbers: list[int] | None) -> tuple[int, int] | None:
    """(rows, columns) from `--size N` or `--size ROWS COLUMNS`; None where it was not given."""
    if numbers is None:
        return None
    if len(numbers) > 2:
        raise UserError(f"--size is {' '.join(map(str, numbers))}; give one number, or ROWS COLUMNS")
    return numbers[0], numbers[-1]


def model_folder(path: str) -> Path:
    """The folder of a saved model: `path` itself or, where that is a run, its averaged weights."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{path} is not a folder; give a saved model or the folder of a run")
    inner = folder / "model"
    return inner if not (folder / "config.json").exists() and inner.is_dir() else folder
