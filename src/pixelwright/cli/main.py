"""The command line: `pixelwright train`, `sample`, `evaluate`, `report`, `data`, `convert`, `info`, ...

This module knows the commands and what becomes of their errors. Each command is a module of `pixelwright.cli`
with the functions `parser()` and `run(options)`, and perhaps `SUBCOMMANDS`. It is imported when it is called,
so that `pixelwright --help` does not wait for torch.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from pixelwright.errors import UserError, nearest
from pixelwright.registry import import_parts

COMMANDS = {
    "train": "train a model, or continue a run",
    "finetune": "teach a model a subject or style from a few pictures",
    "sample": "draw images from a trained model",
    "edit": "edit pictures with a model: change them, inpaint, outpaint",
    "restore": "enlarge, sharpen, colour or complete pictures with a model",
    "evaluate": "FID and other metrics of a model or of images",
    "reference": "reference statistics of a data set, for evaluate",
    "evaluation": "train the features to evaluate with",
    "prompts": "text-to-image benchmarks: ShapesBench, GenEval, DPG-Bench",
    "report": "HTML report of a run, or of several evaluations",
    "studio": "a web page to draw, compare and watch runs",
    "data": "prepare or check a data set",
    "convert": "convert weights, published checkpoints in and out",
    "info": "parameters, FLOPs and memory of a model or a run",
}

EXAMPLES = """examples:
  pixelwright info pixeldit-xl-16
  pixelwright train --config configs/cifar10-dip-ti.yaml --run runs/first
  pixelwright sample runs/first --labels 0-9 --out samples --guidance-scale 2
  pixelwright data prepare photos photos-256 --size 256

`pixelwright COMMAND --help` shows the options of a command.
Exit codes: 0 done, 1 a failed check or a bug (with its traceback), 2 something to put right (one line on
stderr says what), 3 a model draws NaN or infinite pixels, 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` defaults to the arguments of the process. Any
    exception but `UserError` is a bug, or a failure of the machine, and leaves with its traceback."""
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
    except UserError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"pixelwright: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code


def _dispatch(arguments: list[str]) -> int:
    top = _parser().parse_args(arguments)
    if top.command is None:
        _parser().print_help()
        return 0
    if top.command not in COMMANDS:
        raise UserError(f'unknown command "{top.command}"{nearest(top.command, COMMANDS)}')
    module = import_module(f"pixelwright.cli.{top.command}")
    from pixelwright.cli.parsing import Command, choose

    if hasattr(module, "SUBCOMMANDS"):
        command, words = choose(top.command, module.SUBCOMMANDS, module.parser, top.arguments)
    else:
        command, words = Command(module.parser, module.run), top.arguments
    options = command.parser().parse(words)
    import_parts(options.get("imports") or ())
    return int(command.run(options) or 0)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message} (pixelwright --help lists the commands)")


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
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
