"""`pixelwright report`: an HTML report of a run, or of several runs or evaluations."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jsonargparse import Namespace

from pixelwright.cli.parsing import Parser, add_imports
from pixelwright.errors import UserError
from pixelwright.evaluation.report import JSON, comparison, read_report
from pixelwright.files import write_text
from pixelwright.training.report import write_comparison, write_report

DESCRIPTION = """Write report.html of a run: a summary, samples over time, curves, events, settings.

A run does so itself whenever it draws samples.

Of several runs: their curves over one another, their samples side by side, the settings that differ.

Of folders that `pixelwright evaluate` made: a table of all, what they do not share, and curves
over the checkpoints (the numbers at the end of their names)."""

EXAMPLES = """  pixelwright report runs/mine
  pixelwright report runs/one runs/two
  pixelwright report evaluations/dip-1000 evaluations/dip-2000 --out evaluations.html"""


def parser() -> Parser:
    """The folders of runs or of evaluations."""
    parser = Parser("report", DESCRIPTION, EXAMPLES)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a run, several, or evaluations")
    about = "the page of several (default: comparison.html)"
    parser.add_argument("--out", type=str | None, metavar="FILE", help=about)
    parser.add_argument("--overwrite", action="store_true", help="write over a page that is there")
    add_imports(parser.add_argument)
    return parser


def run(options: Namespace) -> None:
    """Write the report and print its path."""
    try:
        print(_write([Path(folder) for folder in options.folders], options.out, options.overwrite))
    except ImportError:
        raise UserError('the report needs matplotlib: pip install "pixelwright[train]"') from None


def _write(folders: Sequence[Path], out: str | None, overwrite: bool) -> Path:
    evaluations = [folder for folder in folders if (folder / JSON).exists()]
    if len(folders) == 1 and not evaluations:
        if out is not None:
            raise UserError(f"--out {out} is for several; the report of a run stands in its folder")
        return write_report(folders[0])
    if evaluations and (others := [folder for folder in folders if folder not in evaluations]):
        raise UserError(f"{evaluations[0]} is an evaluation and {others[0]} is none: give one kind")
    page, names = Path(out or "comparison.html").expanduser(), names_of(folders)
    if page.exists() and not overwrite:
        raise UserError(f"{page} is there already: give another --out, or --overwrite")
    if not evaluations:
        write_comparison(dict(zip(names, folders, strict=True)), page)
        return page
    reports = [read_report(folder) for folder in folders]
    if len({report.name for report in reports}) < len(reports):
        reports = [replace(report, name=name) for report, name in zip(reports, names, strict=True)]
    write_text(page, comparison(reports))
    return page


def names_of(folders: Sequence[Path]) -> list[str]:
    """The ends of paths that tell them apart. Raises UserError: a folder is there twice."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise UserError(f"{max(folders, key=folders.count)} is named twice: name each folder once")
    lengths = range(1, 1 + max(map(len, parts)))
    found = (["/".join(each[-length:]) for each in parts] for length in lengths)
    return next(names for names in found if len(set(names)) == len(names))
