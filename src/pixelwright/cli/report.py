"""`pixelwright report`: an HTML report of a run, or of several evaluations."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from pixelwright.cli.parsing import Parser, add_imports
from pixelwright.errors import UserError
from pixelwright.evaluation.report import JSON, comparison, read_report
from pixelwright.files import write_text
from pixelwright.training.report import write_report

DESCRIPTION = """Write report.html of a run: a summary, samples over time, curves, events, settings.

A run does so itself whenever it draws samples.

Of folders that `pixelwright evaluate` made: a table of all, what they do not share, and curves
over the checkpoints (the numbers at the end of their names)."""

EXAMPLES = """  pixelwright report runs/mine
  pixelwright report evaluations/dip-1000 evaluations/dip-2000 --out comparison.html"""


def parser() -> Parser:
    """The run folder, or those of evaluations."""
    parser = Parser("report", DESCRIPTION, EXAMPLES)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a run, or evaluations")
    about = "of evaluations: the .html file to write"
    parser.add_argument("--out", type=str | None, metavar="FILE", help=about)
    add_imports(parser.add_argument)
    return parser


def run(options: Namespace) -> None:
    """Write the report and print its path."""
    try:
        print(_write([Path(folder) for folder in options.folders], options.out))
    except ImportError:
        raise UserError('the report needs matplotlib: pip install "pixelwright[train]"') from None


def _write(folders: Sequence[Path], out: str | None) -> Path:
    if len(folders) == 1 and not (folders[0] / JSON).exists():
        if out is not None:
            raise UserError(f"--out {out} is for evaluations; the report of a run stands in its folder")
        return write_report(folders[0])
    if out is None:
        raise UserError("several evaluations need --out FILE.html")
    page = Path(out).expanduser()
    write_text(page, comparison([read_report(folder) for folder in folders]))
    return page
