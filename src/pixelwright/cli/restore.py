"""`pixelwright restore`: pictures enlarged, sharpened, coloured or completed by a model."""

from pathlib import Path
from typing import Literal

import torch
from jsonargparse import Namespace
from torch import Tensor

import pixelwright as pw
from pixelwright.cli import pictures, sampler
from pixelwright.cli.parsing import Parser, add_device, add_imports
from pixelwright.config import FiniteFloat, NonNegativeFloat, PositiveFloat, PositiveInt
from pixelwright.diffusion.sample import as_condition
from pixelwright.editing import RESTORATION
from pixelwright.editing.tasks import TASKS, Task, TaskSettings
from pixelwright.errors import UserError, nearest
from pixelwright.images import from_uint8, to_uint8


def _named(task: Task) -> str:
    return f" ({', '.join(f'--{name}' for name in task.uses)})" if task.uses else ""


DESCRIPTION = f"""Restore pictures with a model, which fills in what a measurement has lost:
{chr(10).join(f"  {name:<11} {task.help}{_named(task)}" for name, task in TASKS.items())}

Results are PNG files with the alpha channel and colour profile of the input, where they fit; a sheet beside
each shows input and result. Called again, it goes on with the pictures that have no result yet."""

EXAMPLES = """  pixelwright restore small.png --model M --task sr4 --out large.png
  pixelwright restore scans --model M --task colourise --method pigdm --out coloured
  pixelwright restore photo.png --model M --task fill --mask scratches.png --target dog --out whole.png
  pixelwright restore photo.png --model M --task deblur --sigma 1.5 --simulate --out shown.png"""

LOST = ("sigma", "length", "angle", "levels", "share", "seed")


def parser() -> Parser:
    """Pictures, task, method."""
    usage = "pixelwright restore IMAGE ... --model MODEL --task TASK --out PATH [--OPTION VALUE ...]"
    parser = Parser("restore", DESCRIPTION, EXAMPLES, usage)
    pictures.add_arguments(parser)
    add = parser.section("what to restore")
    add("--task", type=str, required=True, help=", ".join(TASKS))
    add("--simulate", action="store_true", help="the pictures are whole: lose it first, then restore")
    add("--mask", type=str | None, metavar="FILE", help="fill: a picture, white = missing")
    add("--sigma", type=PositiveFloat, default=1.5, help="deblur: standard deviation in pixels")
    add("--length", type=PositiveInt, default=9, help="motion: pixels")
    add("--angle", type=FiniteFloat, default=0.0, help="motion: degrees from the horizontal, anticlockwise")
    add("--levels", type=PositiveInt, default=8, help="dequantise: levels of each channel")
    add(
        "--share",
        type=PositiveFloat,
        default=0.5,
        help="random: share of the pixels that are lost, by --seed",
    )
    help_text = "class or prompt of the pictures (default: none)"
    add("--target", type=str | None, metavar="LABEL", help=help_text)
    add = parser.section("how")
    add("--method", type=str, default="ddnm", help=", ".join(RESTORATION))
    add("--steps", type=PositiveInt, default=50, help="steps")
    help_text = (
        "standard deviation of the noise in the picture, in units of [-1,1] (default: that of rounding "
    )
    help_text += "to 8 bits for blurs, else 0)"
    add("--noise", type=NonNegativeFloat | None, metavar="X", help=help_text)
    add("--scale", type=PositiveFloat | None, metavar="X", help="strength of the correction")
    add("--eta", type=NonNegativeFloat | None, metavar="X", help="new noise in each step, 0 to 1")
    add("--guidance-scale", type=FiniteFloat, default=1.0, help="classifier-free guidance; 1 is without")
    add("--time-shift", type=PositiveFloat, default=1.0, help="above 1 spends more steps near the noise")
    add = parser.section("which weights, and what they run on", advanced=True)
    sampler.add_weights(add)
    add("--batch-size", type=PositiveInt, default=8, help="pictures restored together")
    add_device(add)
    add("--precision", type=Literal["auto", "bf16", "fp32"], default="auto", help="auto, bf16 or fp32")
    add_imports(add)
    return parser


def _mask(options: Namespace) -> Tensor | None:
    if options.mask is None and options.task == "fill":
        raise UserError("--task fill needs --mask: a picture that is white where pixels are missing")
    return None if options.mask is None else pictures.read_picture(Path(options.mask)).pixels[..., 0] >= 128


def run(options: Namespace) -> None:
    """Restore the pictures and write results and sheets."""
    if options.task not in TASKS:
        raise UserError(f'unknown task "{options.task}"{nearest(options.task, TASKS)}')
    task = TASKS[options.task]
    lost = TaskSettings(**{name: options[name] for name in LOST}, mask=_mask(options))
    named = sampler.Named(options, options.model)
    model = named.load()
    labels = None if options.target is None else as_condition(options.target, model)
    names = ("method", "steps", "scale", "eta", "guidance_scale", "time_shift", "seed")
    given = {name: options[name] for name in names if options[name] is not None}
    given["noise"] = task.noise if options.noise is None else options.noise

    def change(read: list[pictures.Picture], jobs: list[pictures.Job]) -> pictures.Results:
        images = torch.stack([picture.pixels for picture in read])
        operator, x = task.operator(lost, (images.shape[1], images.shape[2])), from_uint8(images)
        y = operator.A(x) if options.simulate or not task.measured else x
        more = {"precision": options.precision, "start_index": [job.number for job in jobs]}
        results = pw.restore(model, y, operator, labels=labels, **given, **more)
        shown = [[("measured", each)] for each in to_uint8(y.expand(-1, 3, -1, -1))]
        if options.simulate or not task.measured:
            shown = [[("input", image), *column] for image, column in zip(images, shown, strict=True)]
        return list(zip(results, shown, strict=True))

    own = (*LOST, "mask", "task", "simulate", "target", "weights", "adapter")
    noted = {"model": named.source, **{name: options[name] for name in own}, **given}
    pictures.process(options, noted, options.batch_size, change)
