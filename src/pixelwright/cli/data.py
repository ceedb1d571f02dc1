"""`pixelwright data prepare` and `pixelwright data check`: data sets cut to size, and looked through."""

import sys
from pathlib import Path

from jsonargparse import Namespace
from tqdm import tqdm

from pixelwright.cli.parsing import Command, Parser
from pixelwright.config import PositiveInt
from pixelwright.data.check import check, contact_sheet, describe
from pixelwright.data.config import DataConfig
from pixelwright.data.open import find_source
from pixelwright.data.prepare import REPORT, Job, Quality, prepare
from pixelwright.errors import UserError
from pixelwright.images import save_grid

DESCRIPTION = "Prepare a data set for training, or check one."

EXAMPLES = """  pixelwright data prepare imagenet/train imagenet-256 --size 256 --workers 16
  pixelwright data prepare photos.zip photos-64.zip --size 64
  pixelwright data check imagenet-256 --sheet sheet.png

`pixelwright data prepare --help` and `pixelwright data check --help` show the options."""

PREPARE = """Crop (by the rule of ADM) and resize all images to squares and write them as shards or as a zip.

SRC is what data.path can be: a folder, a zip, shards, parquet files, an address. OUT appears when it is
whole; until then the work is in OUT.prepare, and the same command goes on where it was interrupted. The
outcome does not depend on the number of workers."""

CHECK = """Read every image of a data set: name what is broken, count classes, sizes and aspect ratios, and
with --sheet draw a contact sheet.

Exit code 0 if all is whole, 1 if something is broken, 2 if the data set cannot be opened."""

SHOWN = 20  # skipped images that are named on the screen
IMAGES, SIDE = 64, 96  # of a contact sheet


def parser() -> Parser:
    """That of `pixelwright data` alone."""
    return Parser("data", DESCRIPTION, EXAMPLES)


def _prepare_parser() -> Parser:
    parser = Parser("data prepare", PREPARE, "  pixelwright data prepare photos photos-256 --size 256")
    add = parser.add_argument
    add("source", metavar="SRC", help="the images: what data.path can be")
    add("out", metavar="OUT", help="a new folder for shards, or a new .zip")
    add("--size", type=PositiveInt, required=True, help="side of the images in pixels")
    add("--workers", type=PositiveInt, default=1, help="processes that read, crop and write")
    add("--shard-size", type=PositiveInt, default=1000, help="images per shard")
    add("--jpeg-quality", type=Quality | None, help="write JPEG of this quality instead of PNG")
    return parser


def _check_parser() -> Parser:
    parser = Parser("data check", CHECK, "  pixelwright data check photos --sheet sheet.png")
    add = parser.add_argument
    add("path", metavar="PATH", help="the images: what data.path can be")
    add("--workers", type=PositiveInt, default=1, help="processes that read")
    add("--sheet", type=str | None, metavar="FILE", help="draw a contact sheet into this PNG file")
    add("--images", type=PositiveInt, default=IMAGES, help="images on the sheet")
    add("--side", type=PositiveInt, default=SIDE, help="their side in pixels")
    return parser


def _prepare(options: Namespace) -> int:
    out = Path(options.out).expanduser()
    job = Job(options.source, options.size, options.shard_size, options.jpeg_quality)
    report = prepare(job, out, options.workers)
    files = "a zip" if out.suffix.lower() == ".zip" else f"{report.files} shards"
    print(f"{out}: {report.images} images of {report.classes} classes in {files}")
    if report.resumed:
        print(f"{report.resumed} parts were there from an earlier run")
    if report.skipped:
        print(f"skipped {len(report.skipped)}, all named in its {REPORT}:")
        print(*(f"  {name}: {reason}" for name, reason in list(report.skipped.items())[:SHOWN]), sep="\n")
    return 0


def _check(options: Namespace) -> int:
    if options.sheet is None and (options.images, options.side) != (IMAGES, SIDE):
        raise UserError("--images and --side are those of a contact sheet: give --sheet FILE too")
    source = find_source(DataConfig(path=options.path, size=options.side))
    with tqdm(total=len(source), unit="image", desc="checking", disable=None) as bar:
        found = check(source, options.workers, bar.update)
    print(describe(found, source))
    if options.sheet is not None and len(found.broken) < found.images:
        sheet = Path(options.sheet).expanduser()
        save_grid(contact_sheet(source, options.images, options.side), sheet)
        print(f"contact sheet: {sheet}", file=sys.stderr)
    return 0 if found.whole else 1


SUBCOMMANDS = {"prepare": Command(_prepare_parser, _prepare), "check": Command(_check_parser, _check)}
