"""The command line: `pixelwright train`, `sample`, `evaluate`, `report`, `data`, `convert`, `info`, ...

This module knows the verbs and what becomes of their errors; each verb lives in a module of
`pixelwright.cli` with two functions, `parser()` and `run(options)`. That module is imported when it is
called, so that `pixelwright --help` does not wait for torch.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from pixelwright.errors import UserError, nearest

COMMANDS = {
    "train": "train a model as a YAML configuration says, or go on with a run",
    "sample": "draw images from a trained model",
    "evaluate": "FID and its kin of a model or of images, against a reference",
    "reproduce": "a published figure, measured again",
    "reference": "the statistics of a data set that `evaluate` compares with",
    "evaluation": "train the features to evaluate with",
    "prompts": "does a model draw what prompts say: ShapesBench, GenEval, DPG-Bench",
    "report": "the page of a run: is it healthy, what does it draw; or of evaluations, compared",
    "data": "prepare a data set for training, or check one",
    "convert": "weights from one layout to another: published checkpoints in and out",
    "info": "parts, parameters, FLOPs and memory of a preset or a saved model",
}

EXAMPLES = """examples:
  pixelwright info pixeldit-xl-16
  pixelwright train --config configs/cifar10-dip-ti.yaml --run runs/first
  pixelwright sample runs/first --labels 0-9 --out samples --guidance-scale 2
  pixelwright data prepare photos photos-256 --size 256

`pixelwright COMMAND --help` tells the settings of a command.
Exit codes: 0 done, 1 `data check` found damage, 2 something to put right
(one line on stderr says what), 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` defaults to the arguments of the process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        print("pixelwright: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away (`pixelwright info ... | head`); the flush at exit must not fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 2, arguments)
    except ValueError as error:
        return _fail(str(error), 2, arguments)
    except Exception as error:
        reason = f"{type(error).__name__}: {error} (unforeseen; --debug shows where it comes from)"
        return _fail(reason, 1, arguments)


def _dispatch(arguments: list[str]) -> int:
    top = _parser().parse_args(arguments)
    if top.command is None:
        _parser().print_help()
        return 0
    if top.command not in COMMANDS:
        raise UserError(f'unknown command "{top.command}"{nearest(top.command, COMMANDS)}')
    command = import_module(f"pixelwright.cli.{top.command}")
    from pixelwright.cli import parsing

    words = top.arguments
    if hasattr(command, "choose"):  # a command with verbs of its own
        command, words = command.choose(words)
    return int(command.run(parsing.parse(command.parser(), words)) or 0)


def _fail(message: str, code: int, arguments: list[str]) -> int:
    """Say it in one line. `--debug` is looked for in the words: parsing them may be what failed."""
    if "--debug" in arguments:
        traceback.print_exc()
    print(f"pixelwright: error: {' '.join(message.split())}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message} (pixelwright --help tells the commands)")


class _Version(argparse.Action):
    """Print the version; the package is imported only now."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from pixelwright import __version__

        print(f"pixelwright {__version__}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:<10} {line}" for name, line in COMMANDS.items())
    parser = _Parser(
        prog="pixelwright",
        usage="pixelwright [--help] [--version] COMMAND ...",
        description=f"Pixel-space diffusion transformers: DiP and PixelDiT.\n\ncommands:\n{commands}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
