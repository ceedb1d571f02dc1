"""ShapesBench over the checkpoints of runs, and before training: who learns to follow prompts, and when.

    python benchmarks/shapesbench_curve.py runs/t2i-shapes-dip runs/t2i-shapes-pixeldit \\
        --steps 0 1000 2000 3000 4000 --images 2 --out curve.jsonl --plot curve.png

The averaged weights of each checkpoint (at step 0 fresh ones) draw the same noise and prompts. A line of JSON
for each is added to the file, and those that are there are not computed again; table and plot are made last.
Checkpoints are PyTorch's and hold a pickle: give runs that you trust.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import averaged
from tqdm import tqdm

import pixelwright as pw
from pixelwright.data.captioned import CATEGORIES
from pixelwright.evaluation.prompts import shapesbench
from pixelwright.evaluation.prompts.common import draw_with
from pixelwright.html import markdown_table
from pixelwright.models.folder import read_config

BATCH = 32


def model_at(run: Path, step: int) -> pw.PixelDenoiser:
    """The averaged weights of a checkpoint; before training fresh ones."""
    if step:
        return averaged(run, step)
    torch.manual_seed(0)
    return pw.PixelDenoiser(read_config(run / "model"))


def scores(model: pw.PixelDenoiser, options: argparse.Namespace, title: str) -> shapesbench.Result:
    """Draw and judge all prompts in memory."""
    pictures = shapesbench.images_of(Path(), options.images)
    settings: dict[str, Any] = {"steps": options.solver_steps, "guidance_scale": options.guidance_scale}
    draw = draw_with(model, [picture.prompt for picture in pictures], options.seed, **settings)
    images: list[np.ndarray] = []
    with tqdm(total=len(pictures), unit="image", desc=title) as bar:
        for start in range(0, len(pictures), BATCH):
            batch = pictures[start : start + BATCH]
            images += list(draw([p.prompt for p in batch], [p.index for p in batch]).numpy())
            bar.update(len(batch))
    return shapesbench.Result(shapesbench.assess_images(images, options.images), options.images)


def plot(entries: list[dict[str, Any]], path: Path) -> None:
    """Overall scores over steps, a line for each run; held-out prompts dashed."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for run in dict.fromkeys(entry["run"] for entry in entries):
        own = [entry for entry in entries if entry["run"] == run]
        steps = [entry["step"] for entry in own]
        (line,) = axes.plot(steps, [entry["overall"] for entry in own], marker="o", label=run)
        held = [np.mean([s["score"] for s in entry["held_out"].values()]) for entry in own]
        axes.plot(steps, held, "--", color=line.get_color(), label=f"{run}, held out")
    axes.set(xlabel="step", ylabel="ShapesBench", ylim=(0, 1))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def table(entries: list[dict[str, Any]]) -> str:
    """A row for each run and step."""
    rows = []
    for entry in entries:
        held = np.mean([score["score"] for score in entry["held_out"].values()])
        each = [f"{entry['scores'][name]['score']:.2f}" for name in CATEGORIES]
        rows.append([entry["run"], str(entry["step"]), *each, f"{entry['overall']:.3f}", f"{held:.3f}"])
    return markdown_table(["run", "step", *CATEGORIES, "overall", "held out"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--steps", nargs="+", type=int, required=True)
    parser.add_argument("--images", type=int, default=2, help="of each prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--solver-steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    entries = [json.loads(line) for line in lines]
    keys = ("run", "step", "images", "seed", "solver_steps", "guidance_scale")
    known = {tuple(entry[key] for key in keys) for entry in entries}
    for step in options.steps:
        for run in options.runs:
            values = (run.name, step, *(getattr(options, key) for key in keys[2:]))
            if values in known or (step and not (run / "checkpoints" / f"step-{step:07}").is_dir()):
                continue
            result = scores(model_at(run, step), options, f"{run.name} {step}")
            found = {key: result.as_json()[key] for key in ("overall", "scores", "held_out", "exact")}
            entry = {**dict(zip(keys, values, strict=True)), **found}
            with options.out.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            entries.append(entry)
    entries.sort(key=lambda entry: (entry["run"], entry["step"]))
    print(table(entries))
    if options.plot:
        plot(entries, options.plot)


if __name__ == "__main__":
    main()
