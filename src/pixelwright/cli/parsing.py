"""What the commands share: a parser with two levels of help, whose options take the types of configs."""

import argparse
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from pixelwright.cli.fields import metavar, shown, word_type
from pixelwright.config import RENAMED, convert, registry_of
from pixelwright.errors import UserError, nearest

Add = Callable[..., None]
"""Adds an option to a section: the arguments of `argparse`, with a `type` as in configs."""
ADVANCED = "--help=advanced"
ALIASES = {
    "--lr": ("--optim.lr",),
    "--bs": ("--batch-size",),
    "--model": ("--model.preset",),
    "--data": ("--data.path",),
    "--image-size": ("--data.size", "--size"),
    "--resolution": ("--data.size", "--size"),
    **dict.fromkeys(("--cfg", "--cfg-scale", "--guidance"), ("--guidance-scale", "--sample.guidance-scale")),
    "--num-steps": ("--steps",),
    "--num-inference-steps": ("--steps",),
    "--negative-prompt": ("--negative",),
    "--output": ("--out",),
    "--out-dir": ("--out",),
    "--output-dir": ("--run", "--out"),
}
"""What others call an option: the first of these that a command has."""
MODEL = "a model folder, a run, a checkpoint of one, a published file or hf://OWNER/NAME"
WEIGHTS = "ema or raw; of a run also another average, such as power-0.05 (default: EMA where it is there)"
"""Help of an argument that names a model, and of an option that names its weights."""


class Command(NamedTuple):
    """A command, or a subcommand."""

    parser: "Callable[[], Parser]"
    run: Callable[[Namespace], int | None]


class Parser:
    """The options of one command. Advanced sections are in the help of `--help=advanced` alone."""

    def __init__(self, command: str, description: str, examples: str, usage: str | None = None) -> None:
        self._parser = ArgumentParser(
            prog=f"pixelwright {command}",
            usage=usage,
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            exit_on_error=False,
            allow_abbrev=False,
        )
        self._types: dict[str, tuple[str, Any, bool]] = {}  # by the key of a value: option, type, one of many
        self._names: list[str] = []
        self._hidden: list[Callable[[], None]] = []  # what shows the advanced sections and their options
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add_argument(self, *names: str, **more: Any) -> None:
        """As in `argparse`; `type` may be any type of a config, whose range is checked."""
        self._add(self._parser.add_argument, names, more)

    def section(self, title: str, text: str | None = None, advanced: bool = False) -> Add:
        """A section of the help; what it returns adds an option to it, as `add_argument` does."""
        group = self._parser.add_argument_group(title, None if advanced else text)
        if advanced:
            self._hidden.append(partial(setattr, group, "description", text))

        def add(*names: str, **more: Any) -> None:
            action = self._add(group.add_argument, names, more)
            if advanced:
                self._hidden.append(partial(setattr, action, "help", action.help))
                action.help = argparse.SUPPRESS

        return add

    def _add(self, add: Callable[..., Any], names: tuple[str, ...], more: dict[str, Any]) -> argparse.Action:
        default, hint, text = more.get("default"), more.get("type"), more.get("help", "")
        known = default is None or default is False or default in ("", [], argparse.SUPPRESS)
        if not known and "(default" not in text:
            text = f"{text} (default: {shown(default)})"
        if text != argparse.SUPPRESS:
            more["help"] = text.replace("%", "%%")  # argparse formats it
        if hint is not None:
            more |= {"type": word_type(hint), "metavar": more.get("metavar", metavar(hint))}
        action: argparse.Action = add(*names, **more)
        self._names += names
        if hint is not None and registry_of(hint) is None:  # parts are read once their files are imported
            many = ("nargs" in more and more["nargs"] != "?") or more.get("action") == "append"
            self._types[action.dest] = names[0], hint, many
        return action

    def _known(self, word: str) -> str:
        """The word with the option in it as it is called here: `-` for `_` or the other way, and aliases."""
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name in self._names:
            return word
        alike = {known.replace("_", "-"): known for known in self._names}
        dashed = name.replace("_", "-")
        known = (alike[each] for each in (dashed, *ALIASES.get(dashed, ())) if each in alike)
        return f"{next(known, name)}{equals}{value}"

    def print_help(self) -> None:
        """Print the short help."""
        self._parser.print_help()

    def defaults(self) -> Namespace:
        """What the options are where they are not given."""
        return self._parser.get_defaults()

    def parse(self, words: list[str]) -> Namespace:
        """The options in `words`, converted and checked. Raises UserError naming the option."""
        if ADVANCED in words:
            for show in self._hidden:
                show()
            words = ["--help"]
        try:
            options = self._parser.parse_args([self._known(word) for word in words])
        except argparse.ArgumentError as error:
            text = _explain(str(error), self._names)
            more = f" ({self._parser.prog} --help has examples)" if "are required: " in text else ""
            raise UserError(f"{text}{more}") from None
        for key, (name, hint, many) in self._types.items():
            value = options.get(key)
            # Settings of parts may be changes of those in files: they are checked when both are joined.
            if value is not None and not (isinstance(value, Mapping) and registry_of(hint)):
                items = [convert(item, hint, name) for item in (value if many else [value])]
                options[key] = items if many else items[0]
        return options


def _explain(message: str, names: Collection[str]) -> str:
    """The parser's message in one line, with unknown options set beside the nearest known ones."""
    text = " ".join(message.split())
    if found := re.match(r"unrecognized arguments: (\S+)", text):
        word = found[1].split("=")[0]
        for old, new in RENAMED.items():
            if f"{word}.".startswith(f"--{old}."):
                return f'unknown option "{word}": {old} is called {new} now'
        if not word.startswith("-"):
            return f'unexpected argument "{word}"'
        if word == "--epochs":
            return 'unknown option "--epochs": give --steps, which is epochs x images / batch size'
        return f'unknown option "{word}"{nearest(word, names)}'
    return re.sub(r'Parser key "(.+?)":', r"--\1:", text)


def choose(
    command: str, commands: Mapping[str, Command], parser: Callable[[], Parser], words: list[str]
) -> tuple[Command, list[str]]:
    """The subcommand that `words` begin with, and the other words; without one, the command's help. Raises
    UserError: there is no such subcommand."""
    if not words or words[0].startswith("-"):
        return Command(parser, lambda _: parser().print_help()), words
    if words[0] not in commands:
        raise UserError(f'unknown command "{command} {words[0]}"{nearest(words[0], commands)}')
    return commands[words[0]], words[1:]


# ---------------------------------------------------------------- options of several commands
def add_imports(add: Add) -> None:
    """`--imports`, for every command that reads a model."""
    text = "Python files or modules of your own that register detailers, objectives, ..."
    add("--imports", nargs="+", type=str, default=argparse.SUPPRESS, metavar="FILE", help=text)


def add_adapter(add: Add, name: str = "--adapter") -> None:
    """An option that names LoRA adapters; see `adapters_of`."""
    text = "LoRA adapters, or the runs that made them, each perhaps with =WEIGHT"
    add(name, nargs="+", type=str, default=[], metavar="PATH", help=text)


def adapters_of(words: list[str]) -> dict[str, float] | None:
    """The adapters in `PATH` or `PATH=WEIGHT`, with their weights. Raises UserError: one is there twice."""
    found: dict[str, float] = {}
    for word in words:
        path, weight = re.fullmatch(r"(.+?)(?:=([-+0-9.e]+))?", word).groups()  # type: ignore[union-attr]
        if path in found:
            raise UserError(f"adapter {path} is given twice: give it once, with a weight")
        found[path] = 1.0 if weight is None else convert(weight, float, f"the weight of adapter {path}")
    return found or None


def add_device(add: Add) -> None:
    """`--device`."""
    add("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 or mps")


def image_size(numbers: list[int] | list[str] | None) -> tuple[int, int] | None:
    """(rows, columns) from `--size N`, `--size ROWS COLUMNS` or `--size WIDTHxHEIGHT`; None where it was not
    given. Raises UserError: anything else."""
    if numbers is None:
        return None
    words = [str(number) for number in numbers]
    if len(words) == 1 and (found := re.fullmatch(r"(\d+)x(\d+)", words[0])):
        return int(found[2]), int(found[1])
    if len(words) > 2 or not all(re.fullmatch(r"\d+", word) for word in words):
        raise UserError(f"--size is {' '.join(words)}; give N, ROWS COLUMNS or WIDTHxHEIGHT")
    return int(words[0]), int(words[-1])
