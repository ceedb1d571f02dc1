"""`pixelwright studio`: the web page."""

from pathlib import Path

from jsonargparse import Namespace

from pixelwright.cli.parsing import MODEL, Parser, add_device, add_imports
from pixelwright.config import PositiveInt
from pixelwright.device import keep_memory, resolve_device
from pixelwright.errors import UserError
from pixelwright.studio.finetuning import FOLDER
from pixelwright.studio.jobs import Jobs
from pixelwright.studio.models import Models

DESCRIPTION = """Open a page to draw, edit, fine-tune and watch runs, on this machine alone (127.0.0.1).

Pictures are written to the folder of --out, each with the settings that draw it again."""

EXAMPLES = """  pixelwright studio --model runs/first
  pixelwright studio --runs runs --port 7860"""


def parser() -> Parser:
    """Models, runs, folder, and how the page is served."""
    parser = Parser("studio", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("--model", type=str, nargs="+", default=[], metavar="MODEL", help=f"{MODEL}; several may be given")
    add("--runs", type=str, default="runs", metavar="DIR", help="folder of runs, to draw with and to watch")
    add("--out", type=str, default="studio", metavar="DIR", help="folder for pictures and fine-tunings")
    add("--port", type=PositiveInt | None, metavar="N", help="port of the page (default: the first free one)")
    add("--share", action="store_true", help="also a public address, through Gradio's servers")
    add = parser.section("machine", advanced=True)
    add_device(add)
    add("--precision", type=str, default="auto", metavar="NAME", help="auto, bf16, fp32 or int8")
    add_imports(add)
    return parser


def run(options: Namespace) -> None:
    """Serve the page until Ctrl-C."""
    try:
        from pixelwright.studio.page import launch
    except ImportError:
        raise UserError('the studio needs Gradio: pip install "pixelwright[studio]"') from None
    keep_memory()
    device = resolve_device(options.device)
    runs, out = Path(options.runs), Path(options.out)
    models = Models(options.model, (runs, out / FOLDER), device, options.precision)
    for source in options.model:  # a mistake is said here, not on the page
        models.config(source)
    launch(Jobs(models, runs, out), options.port, options.share)
