"""`pixelwright reproduce`: a published figure measured again."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from pixelwright.cli import sampler
from pixelwright.cli.parsing import Parser
from pixelwright.config import NonNegativeInt, PositiveInt
from pixelwright.device import name_precision, resolve_device
from pixelwright.diffusion.labels import balanced_labels
from pixelwright.evaluation.evaluate import opened
from pixelwright.evaluation.generate import Generation
from pixelwright.evaluation.report import HTML
from pixelwright.evaluation.reproduce import HEADER, MET, TARGETS, Target, find_files, find_target, rows
from pixelwright.files import write_text
from pixelwright.html import escape_markdown, markdown_table
from pixelwright.hub.checkpoint import load_config
from pixelwright.models.config import SamplerSettings

DESCRIPTION = f"""Draw the images of a published result with its settings, measure them, and set the figures
beside those of the paper. Interrupted, the same command goes on; under torchrun, all processes draw.

The weights, the reference and the Inception network are looked for in FOLDER; what is missing is named, with
the place to get it from. Exit code 0 if every figure is within its tolerance, 1 if not.

results: {", ".join(TARGETS)}"""

EXAMPLES = """  pixelwright reproduce pixeldit-xl-epoch320
  torchrun --standalone --nproc-per-node gpu --no-python -- pixelwright reproduce pixeldit-xl-epoch320
  pixelwright reproduce dip-xl-epoch600 --weights dip-xl.ckpt --batch-size 128"""


def parser() -> Parser:
    """The result, and where its files are."""
    parser = Parser("reproduce", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("target", metavar="NAME", help="a published result")
    add("--folder", type=str, default="reproduce", help="where the files are, and the images go")
    add("--weights", type=str | None, help="the weights (default: by the published name, in the folder)")
    add("--reference", type=str | None, help="the reference (default: ADM's file, in the folder)")
    add("--features", type=str | None, help="KIND:PLACE (default: the Inception network in the folder)")
    add("--seed", type=NonNegativeInt, default=0, help="of the noise; the published runs name none")
    add("--batch-size", type=PositiveInt, default=64, help="images drawn together")
    sampler.add_machine(add)
    return parser


def run(options: Namespace) -> int:
    """Generate or go on, measure, compare. 0 if the published figures were met, else 1."""
    target, folder = find_target(options.target), Path(options.folder).expanduser()
    given = {name: options[name] for name in ("weights", "reference", "features")}
    files = find_files(target, folder, given)
    generation = plan(target, files["weights"], options)
    labels = balanced_labels(target.num_samples, load_config(files["weights"]).num_classes)
    out = folder / options.target
    measured = (files["reference"], files["features"])
    how = {"compile": options.compile, "attention": options.attention}
    with opened(files["weights"], options.target, labels, options.device, *measured, **how) as evaluation:
        report = evaluation.run(generation, out)
    if report is None:
        return 0
    outcome = rows(target, report.values)
    table = markdown_table(HEADER, outcome)
    write_text(out / "comparison.md", f"# {escape_markdown(options.target)}\n\n{table}")
    print(f"{table}report: {out / HTML}")
    return 0 if all(row[-1] == MET for row in outcome) else 1


def plan(target: Target, weights: str, options: Namespace) -> Generation:
    """The published settings, but for the checksum of the weights."""
    settings: dict[str, Any]
    settings = {field.name: getattr(target.sampler, field.name) for field in fields(SamplerSettings)}
    settings |= {"model": load_config(weights).name, "weights": "", "labels": "balanced"}
    settings |= {"num_samples": target.num_samples, "size": (target.size, target.size)}
    settings |= {"seed": options.seed, "batch_size": options.batch_size}
    precision = name_precision(options.precision, resolve_device(options.device))
    return Generation(precision=precision, **settings)
