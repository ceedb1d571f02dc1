"""`pixelwright prompts`: does a text-to-image model draw what prompts say?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from tqdm import tqdm

from pixelwright.cli import sampler
from pixelwright.cli.parsing import MODEL, Command, Parser, image_size
from pixelwright.errors import UserError
from pixelwright.evaluation.generate import checksum
from pixelwright.evaluation.prompts import common, official, shapesbench
from pixelwright.files import replacing, write_text
from pixelwright.images import load_png

DESCRIPTION = "Does a text-to-image model draw what prompts say? Draw the images of a benchmark."

EXAMPLES = """  pixelwright prompts shapes runs/shapes-t2i --out bench/shapes --guidance-scale 3
  pixelwright prompts geneval models/pixeldit-t2i --metadata evaluation_metadata.jsonl --out bench/geneval
  pixelwright prompts dpg models/pixeldit-t2i --prompts dpg_bench/prompts --out bench/dpg

`pixelwright prompts shapes --help` and so on list the settings."""

RESUME = """

The noise of an image depends on the seed, the prompt and the number of the image alone. Interrupted, the
same command goes on where it stopped."""

SHAPES = f"""ShapesBench: prompts in GenEval's six categories for models of Captioned Shapes, scored without a
network. OUT gets the images, results.json, report.md and sheet.png.{RESUME}"""

GENEVAL = f"""Draw the images of GenEval in its own layout (OUT/00000/samples/0000.png), which the official
scorer reads.{RESUME}"""

DPG = f"""Draw the images of DPG-Bench: OUT/grids/KEY.png, four images each, for its own scorer.{RESUME}"""


def parser() -> Parser:
    """That of `pixelwright prompts` alone."""
    return Parser("prompts", DESCRIPTION, EXAMPLES)


def _drawing_parser(name: str, description: str, example: str) -> Parser:
    """A parser with what drawing takes."""
    usage = f"pixelwright prompts {name} MODEL --out DIR [--OPTION VALUE ...]"
    parser = Parser(f"prompts {name}", description, f"  pixelwright prompts {name} {example}", usage)
    add = parser.add_argument
    add("model", metavar="MODEL", help=f"{MODEL}, of captions")
    add("--out", type=str, required=True, metavar="DIR", help="folder for the images and the report")
    add("--size", type=int, nargs="+", metavar="N", help="N or ROWS COLUMNS (default: the model's own)")
    add("--seed", type=int, default=0, help="seed of the noise")
    sampler.add_arguments(parser, batch_size=16)
    return parser


def _draw(options: Namespace, images: Sequence[common.PromptImage]) -> str:
    """Draw what is missing; the title of the report."""
    named = sampler.Named(options, options.model)
    config = named.config
    if not config.takes_text:
        raise UserError(f"{config.name} draws from classes; give a model of captions")
    chosen = sampler.choose(options, config)
    size = image_size(options.size) or config.image_size
    weights = checksum(named.source, options.weights, named.adapter)
    settings = {"weights": weights, "size": size, "seed": options.seed, "precision": named.precision}
    common.record_settings(Path(options.out), {**settings, **chosen.as_dict()})
    print(chosen.text)
    if todo := common.missing(images):
        how: dict[str, Any] = {"size": size, "sampler": chosen.sampler}
        prompts = [image.prompt for image in todo]
        draw = common.draw_with(named.accelerated(), prompts, options.seed, **how)
        with tqdm(total=len(images), initial=len(images) - len(todo), unit="image", disable=None) as bar:
            common.draw_missing(draw, images, options.batch_size, bar.update)
    return f"{config.name}, {chosen.text}"


def _shapes_parser() -> Parser:
    parser = _drawing_parser("shapes", SHAPES, "runs/shapes-t2i --out bench/shapes --guidance-scale 3")
    parser.add_argument("--images", type=int, default=4, help="images of each prompt")
    return parser


def _shapes(options: Namespace) -> None:
    out = Path(options.out)
    common.check_count(options.images)
    planned = shapesbench.images_of(out / "images", options.images)
    title = _draw(options, planned)
    images = [load_png(image.path).numpy() for image in planned]
    bar = tqdm(images, desc="scoring", unit="image", disable=None, delay=1)
    result = shapesbench.Result(shapesbench.assess_images(bar, options.images), options.images)
    with replacing(out / "sheet.png") as part:
        shapesbench.sheet(result, images).save(part, format="PNG")
    write_text(out / "results.json", json.dumps({"model": title, **result.as_json()}, indent=2) + "\n")
    write_text(out / "report.md", text := result.markdown(title))
    print(text)


def _geneval_parser() -> Parser:
    example = "models/pixeldit-t2i --metadata evaluation_metadata.jsonl --out bench/geneval"
    parser = _drawing_parser("geneval", GENEVAL, example)
    about = "GenEval's prompts/evaluation_metadata.jsonl"
    parser.add_argument("--metadata", required=True, metavar="FILE", help=about)
    parser.add_argument("--images", type=int, default=4, help="images of each prompt")
    return parser


def _geneval(options: Namespace) -> None:
    out = Path(options.out)
    common.check_count(options.images)
    tasks = official.read_geneval(Path(options.metadata))
    images = official.geneval_images(out, tasks, options.images)
    _draw(options, images)
    official.write_geneval(out, tasks)
    official.geneval_grids(images)
    print(f"{len(images)} images of {len(tasks)} prompts are in {out}, as GenEval's scorer reads them")


def _dpg_parser() -> Parser:
    parser = _drawing_parser("dpg", DPG, "models/pixeldit-t2i --prompts dpg_bench/prompts --out bench/dpg")
    parser.add_argument("--prompts", required=True, metavar="DIR", help="the folder of its KEY.txt files")
    return parser


def _dpg(options: Namespace) -> None:
    out = Path(options.out)
    prompts = official.read_dpg(Path(options.prompts))
    images = official.dpg_images(out / "samples", prompts)
    _draw(options, images)
    official.dpg_grids(images, out / "grids")
    side = load_png(images[0].path).shape[0]
    print(f"{len(prompts)} grids are in {out / 'grids'}; the scorer takes --pic-num 4 --resolution {side}")


SUBCOMMANDS = {
    "shapes": Command(_shapes_parser, _shapes),
    "geneval": Command(_geneval_parser, _geneval),
    "dpg": Command(_dpg_parser, _dpg),
}
