"""Metrics of the kept checkpoints of runs: which model learns what, and when.

    python benchmarks/checkpoints.py runs/dit runs/dip --features features/cifar10 --reference cifar10.npz \\
        --steps 2000 4000 6000 --out curves.jsonl

The averaged weights of each checkpoint draw the same noise and labels; the classes take turns. A line of JSON
for each is added to the file, and those that are there are not computed again. The table is printed last.
Checkpoints are PyTorch's and hold a pickle: give runs that you trust.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import pixelwright as pw
from pixelwright.distributed.checkpoint import inspect, load
from pixelwright.evaluation.features import open_extractor
from pixelwright.evaluation.images import ImageBatch
from pixelwright.evaluation.measure import METRICS, measure
from pixelwright.evaluation.references import read_reference
from pixelwright.models.config import SamplerSettings
from pixelwright.models.folder import read_config, skeleton, with_weights

BATCH = 250


def averaged(run: Path, step: int) -> pw.PixelDenoiser:
    """The model of a checkpoint, with the averaged weights."""
    config = read_config(run / "model")
    names = skeleton(config).state_dict()
    weights = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in names.items()}
    load(inspect(run / "checkpoints" / f"step-{step:07}").path, {"ema": weights})
    return with_weights(config, weights, str(run))


def batches(model: pw.PixelDenoiser, options: argparse.Namespace) -> Iterator[ImageBatch]:
    """The samples; image i depends on the seed and on i alone."""
    classes = model.config.num_classes
    for numbers in torch.arange(options.count).split(BATCH):
        images = pw.sample(
            model,
            numbers % classes,
            SamplerSettings(options.solver, options.solver_steps, options.guidance_scale, (0.1, 1.0)),
            seed=options.seed,
            start_index=int(numbers[0]),
            precision="auto",
        )
        yield ImageBatch(images, numbers, numbers % classes)


def row(entry: dict[str, Any]) -> str:
    """A line of the table."""
    cells = []
    for name in METRICS:
        found = entry["metrics"][name]
        digits = "{:.3f}" if name in ("precision", "recall") else "{:.3g}"
        cells.append(f"{digits.format(found['value'])} ± {found['error']:.1g}")
    guidance = f"{entry['guidance_scale']:g}"
    return f"| {entry['run']} | {entry['step']} | {guidance} | {entry['count']} | {' | '.join(cells)} |"


def main() -> None:
    """Evaluate what is not there yet, then print all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--features", required=True)
    parser.add_argument("--steps", nargs="+", type=int, required=True)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--solver", default="ab2")
    parser.add_argument("--solver-steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    extractor, reference = open_extractor(options.features), read_reference(options.reference)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    entries = [json.loads(line) for line in lines]
    keys = ("run", "step", "count", "guidance_scale", "seed", "solver", "solver_steps")
    known = {tuple(entry[key] for key in keys) for entry in entries}
    for step in options.steps:
        for run in options.runs:
            values = (run.name, step, options.count, options.guidance_scale, options.seed)
            values = (*values, options.solver, options.solver_steps)
            if values in known or not (run / "checkpoints" / f"step-{step:07}").is_dir():
                continue
            model = averaged(run, step)
            begun = time.perf_counter()
            with tqdm(total=options.count, unit="image", desc=f"{run.name} {step}") as bar:
                found = measure(batches(model, options), reference, extractor, progress=bar.update)
            entry = {
                **dict(zip(keys, values, strict=True)),
                "seconds": round(time.perf_counter() - begun),
                **asdict(found),
            }
            with options.out.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            entries.append(entry)
            print(row(entry), flush=True)
    titles = ["run", "step", "guidance", "images", *METRICS.values()]
    print(f"\n| {' | '.join(titles)} |\n" + "|---" * len(titles) + "|")
    print("\n".join(row(entry) for entry in sorted(entries, key=lambda e: (e["step"], e["run"]))))


if __name__ == "__main__":
    main()
