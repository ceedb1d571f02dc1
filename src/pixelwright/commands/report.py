"""`pixelwright report`: the page of a run."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from pixelwright.commands.parsing import new_parser
from pixelwright.errors import UserError
from pixelwright.training.page import write_report

DESCRIPTION = """Write report.html of a run: a verdict, samples over time, curves, events, settings.

A run does so itself whenever it draws samples; this does it at any other time, also of a run that died."""

EXAMPLES = "  pixelwright report runs/mine"


def parser() -> ArgumentParser:
    """The run folder."""
    parser = new_parser("report", DESCRIPTION, EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    return parser


def run(options: Namespace) -> None:
    """Write the page and tell where."""
    try:
        print(write_report(Path(options.run)))
    except ImportError:
        raise UserError('the report needs matplotlib: pip install "pixelwright[train]"') from None
