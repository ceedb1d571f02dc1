"""What approximate sampling costs and gains: int8 products beside fewer steps.

    python benchmarks/approximate.py quality runs/pixeldit runs/dip --step 6000 --features features/cifar10 \\
        --reference cifar10.npz --out approximate.jsonl --pictures pictures
    python benchmarks/approximate.py speed pixeldit-b-16 dip-b-16 --batch-size 2

`quality`: the averaged weights of a checkpoint draw the same noise and labels exactly and in each approximate
way, fewer steps being one of them. FID and KID, and the mean distance of pixels, of 255, from the exact
images and from those of 200 steps of ab2, for the first --near images. A line of JSON each is added to the
file, and those that are there are not computed again. Checkpoints are PyTorch's and hold a pickle: give runs
that you trust.
`speed`: sampling, all ways in turn in one process, compiled; ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from checkpoints import averaged
from timing import interleave, ratio, spread
from torch import Tensor
from tqdm import tqdm

import pixelwright as pw
from pixelwright.acceleration import AcceleratedDenoiser, accelerate
from pixelwright.device import keep_memory
from pixelwright.evaluation.features import open_extractor
from pixelwright.evaluation.images import ImageBatch
from pixelwright.evaluation.measure import measure
from pixelwright.evaluation.references import read_reference
from pixelwright.images import save_grid
from pixelwright.models.config import SamplerSettings


class Way(NamedTuple):
    """How images are drawn."""

    title: str
    precision: str = "bf16"
    fewer: int = 1
    """Divides the steps of the solver."""


WAYS = [
    Way("exact"),
    Way("int8", "int8"),
    Way("half the steps", fewer=2),
    Way("a third of the steps", fewer=3),
]


def prepare(model: pw.PixelDenoiser, compile: bool) -> dict[Way, AcceleratedDenoiser]:
    """The model for each way."""
    return {way: accelerate(model, way.precision, compile) for way in WAYS}


def draw(
    models: dict[Way, AcceleratedDenoiser], way: Way, options: argparse.Namespace, numbers: Tensor
) -> Tensor:
    """Images of these numbers, uint8 [B,H,W,3]."""
    model = models[way]
    steps = options.solver_steps // way.fewer
    sampler = SamplerSettings(options.solver, steps, options.guidance_scale, (0.1, 1.0))
    return pw.sample(model, numbers % model.config.num_classes, sampler, start_index=numbers.tolist())


# --- quality -----------------------------------------------------------------------------------------------
def quality(options: argparse.Namespace) -> None:
    """Evaluate what is not there yet, and print all of it."""
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    known = {tuple(json.loads(line)[key] for key in ("run", "way", "solver", "steps")) for line in lines}
    for run in options.subjects:
        models = prepare(averaged(Path(run), options.step), options.what == "speed")
        first = torch.arange(options.near)
        fine = argparse.Namespace(**{**vars(options), "solver": "ab2", "solver_steps": 200})
        ends = draw(models, WAYS[0], fine, first).float()
        exact = draw(models, WAYS[0], options, first).float()
        for way in WAYS[: options.ways]:
            named = (Path(run).name, way.title, options.solver, options.solver_steps)
            if named in known:
                continue
            found = draw(models, way, options, first)
            entry: dict[str, Any] = dict(zip(("run", "way", "solver", "steps"), named, strict=True))
            for name, other in (("from exact", exact), ("from 200 steps", ends)):
                entry[name] = float((found.float() - other).abs().mean())
            entry |= metrics(models, way, options) if options.features else {}
            if options.pictures:
                options.pictures.mkdir(parents=True, exist_ok=True)
                place = options.pictures / f"{named[0]}-{way.title.replace(' ', '-')}.png"
                save_grid(found[:20], place, columns=10, scale=2)
            with options.out.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            print(json.dumps(entry), flush=True)


def metrics(models: dict[Way, AcceleratedDenoiser], way: Way, options: argparse.Namespace) -> dict[str, Any]:
    """FID and KID with their errors."""

    def batches() -> Iterator[ImageBatch]:
        for numbers in torch.arange(options.count).split(options.near):
            labels = numbers % models[way.precision].config.num_classes
            yield ImageBatch(draw(models, way, options, numbers), numbers, labels)

    extractor, reference = open_extractor(options.features), read_reference(options.reference)
    with tqdm(total=options.count, unit="image", desc=way.title, disable=None) as bar:
        found = measure(batches(), reference, extractor, progress=bar.update).metrics
    return {name: [found[name].value, found[name].error] for name in ("fid", "kid")}


# --- speed -------------------------------------------------------------------------------------------------
def speed(options: argparse.Namespace) -> None:
    """Print a table for each model, with weights that are random and not zero."""
    print("| model | way | seconds | times as fast as exact (quartiles) |\n|---|---|---|---|")
    for name in options.subjects:
        model = pw.create(name, num_classes=1000, **({"depth": options.depth} if options.depth else {}))
        with torch.no_grad():
            for weight in model.parameters():
                if not weight.any():
                    weight.normal_(std=0.02)
        models, numbers = prepare(model, True), torch.arange(options.batch_size)
        work = {way.title: partial(draw, models, way, options, numbers) for way in WAYS}
        for function in work.values():
            function()
        times = interleave(work, options.rounds, options.seconds)
        for title, seconds in times.items():
            gain = ratio(times[WAYS[0].title], seconds)
            print(
                f"| {name}, batch {options.batch_size} | {title} | {spread(seconds).median:.3g} | "
                f"{gain.median:.2f} ({gain.low:.2f} to {gain.high:.2f} in {len(seconds)}) |",
                flush=True,
            )


def main() -> None:
    """`quality` or `speed`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("quality", "speed"))
    parser.add_argument("subjects", nargs="+", help="quality: runs; speed: presets")
    parser.add_argument("--solver", default="ab2")
    parser.add_argument("--solver-steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--step", type=int, help="quality: of the checkpoint")
    parser.add_argument("--features", help="quality: without, pixels alone are compared")
    parser.add_argument("--reference")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument(
        "--near", type=int, default=100, help="images compared pixel by pixel; drawn together"
    )
    parser.add_argument("--ways", type=int, help="only so many")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--depth", type=int, help="speed: only so many blocks")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    keep_memory()
    {"quality": quality, "speed": speed}[options.what](options)


if __name__ == "__main__":
    main()
