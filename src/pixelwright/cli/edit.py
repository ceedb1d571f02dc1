"""`pixelwright edit`: pictures changed by a model towards a class or a prompt."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from PIL import Image
from torch import Tensor

import pixelwright as pw
from pixelwright.cli import pictures, sampler
from pixelwright.cli.parsing import Parser
from pixelwright.config import NonNegativeInt, PositiveInt, UnitInterval
from pixelwright.diffusion.sample import as_condition
from pixelwright.editing.edits import METHODS, flowedit_preset
from pixelwright.editing.inputs import as_masks
from pixelwright.errors import UserError

DESCRIPTION = """Edit pictures with a model: sdedit noises a picture and draws it again, inpaint draws inside
of a mask, outpaint around a picture, flowedit moves it from one class or prompt to another. Results are PNG
files with the alpha channel and colour profile of the input; a sheet beside each shows input, mask and
result.

Called again, it goes on with the pictures that have no result yet. --help=advanced shows all options."""

EXAMPLES = """  pixelwright edit photos --model M --target dog --strength 0.5 --out dogs
  pixelwright edit a.png --model M --method flowedit --source "red car" --target "blue car" --out b.png
  pixelwright edit photo.png --model M --method inpaint --mask hole.png --target "a bench" --out bench.png
  pixelwright edit photo.png --model M --method outpaint --margins 64 0 64 0 --target "a beach" --out wide"""

OWN = tuple(name for names in METHODS.values() for name in names if name != "mask_image")


def parser() -> Parser:
    """Pictures, method, target, and the settings of the sampler."""
    usage = "pixelwright edit IMAGE ... --model MODEL --target LABEL --out PATH [--OPTION VALUE ...]"
    parser = Parser("edit", DESCRIPTION, EXAMPLES, usage)
    pictures.add_arguments(parser)
    add = parser.section("what to change")
    add("--method", type=str, default="sdedit", help=", ".join(METHODS))
    add("--target", type=str | None, metavar="LABEL", help="class or prompt of the result (default: none)")
    add("--source", type=str | None, metavar="LABEL", help="flowedit: class or prompt of the input")
    add("--negative", type=str | None, metavar="TEXT", help="prompt that guidance leads away from")
    help_text = "sdedit, inpaint, outpaint: 0 (the input) to 1 (all new) (default: 0.6 for sdedit, else 1)"
    add("--strength", type=UnitInterval | None, metavar="X", help=help_text)
    help_text = "inpaint: a picture, white = repaint; for a folder, a folder of the same names"
    add("--mask", type=str | None, metavar="PATH", help=help_text)
    help_text = "inpaint: edit only the mask and so many pixels around it, at the size of the model"
    add("--padding-mask-crop", type=NonNegativeInt | None, metavar="N", help=help_text)
    help_text = "outpaint: pixels to add left, top, right and bottom"
    add("--margins", type=NonNegativeInt, nargs=4, metavar=("L", "T", "R", "B"), help=help_text)
    help_text = "inpaint, outpaint: times that each part of the steps is drawn (RePaint) (default: 1)"
    add("--resampling", type=PositiveInt | None, metavar="N", help=help_text)
    add("--source-guidance-scale", type=float | None, metavar="X", help="flowedit: guidance of the source")
    help_text = "flowedit: steps from the end on (default: 33 of 50 for prompts, 45 of 50 for classes)"
    add("--n-max", type=PositiveInt | None, metavar="N", help=help_text)
    add("--n-min", type=NonNegativeInt | None, metavar="N", help="flowedit: last steps by the target alone")
    add("--n-avg", type=PositiveInt | None, metavar="N", help="flowedit: noises in each step")
    sampler.add_arguments(parser, batch_size=8)
    return parser


def run(options: Namespace) -> None:
    """Edit the pictures and write results and sheets."""
    named = sampler.Named(options, options.model)
    config = named.config
    if options.method == "flowedit" and options.sampler is None:
        config = dataclasses.replace(config, sampler=flowedit_preset(config))
    chosen = sampler.choose(options, config)
    print(chosen.text)
    model = named.accelerated()
    target = None if options.target is None else as_condition(options.target, model, options.negative)
    given: dict[str, Any] = {name: options[name] for name in OWN if options[name] is not None}
    given |= {"method": options.method, "seed": options.seed, "sampler": chosen.sampler}
    keys = ("weights", "target", "mask", "negative", "adapter")
    noted = {"model": named.source, **{name: options[name] for name in keys}}
    if "source" in given:
        given["source"] = as_condition(given["source"], model)
        noted["source"] = options.source

    def change(read: list[pictures.Picture], jobs: list[pictures.Job]) -> pictures.Results:
        images = torch.stack([picture.pixels for picture in read])
        masks = None if options.mask is None else _masks(Path(options.mask), jobs, images)
        numbers = [job.number for job in jobs]
        results = pw.edit(model, images, target, mask_image=masks, start_index=numbers, **given)
        columns: list[pictures.Columns] = [[("input", image)] for image in images]
        if masks is not None:
            for column, mask in zip(columns, masks, strict=True):
                column.append(("mask", (mask[..., None].expand(-1, -1, 3) * 255).to(torch.uint8)))
        return list(zip(results, columns, strict=True))

    plain = {key: value for key, value in given.items() if key not in ("source", "sampler")}
    pictures.process(options, {**noted, **plain, **chosen.as_dict()}, options.batch_size, change)


def _masks(place: Path, jobs: list[pictures.Job], images: Tensor) -> Tensor:
    """The mask of each picture, bool [B,H,W]. Raises UserError: there is none, or it does not fit."""
    masks = []
    for job, image in zip(jobs, images, strict=True):
        path = place / job.source.name if place.is_dir() else place
        if not path.is_file():
            raise UserError(f"--mask {path} is not there; give a picture, or a folder with one of each name")
        pixels = pictures.read_picture(path).pixels
        masks.append(as_masks(Image.fromarray(pixels.numpy()), image[None])[0])
    return torch.stack(masks)
