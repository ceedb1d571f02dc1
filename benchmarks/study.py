"""A study: runs of several settings over several seeds, with one budget for all, as a table and a figure.

    python benchmarks/study.py configs/ablations/*.yaml --base configs/cifar10-pixeldit-ti.yaml \\
        --seeds 0 1 2 --images 192000 --out runs/study \\
        --data.path cifar10/train.zip --held-out cifar10/test.zip

Each file is a row: what it changes in the base. The budget is of images, or of processor seconds, from
which the number of steps follows by a trial of some steps (so that warm-up and cooldown keep their shares).
Measured are the averaged weights: the flow-matching loss on held-out images, always of the same noise and
times, and with --reference FID. A row of a run's further averages (`ema_more`) is called "file, average".

A line of OUT/results.jsonl for each row and seed; those that are there are not run again, and a run that was
stopped goes on. Further options of the form --data.path PATH change the settings of all rows.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from checkpoints import batches
from torch import Tensor

import pixelwright as pw
from pixelwright.data import open_source
from pixelwright.diffusion.flow import interpolate, velocity_loss
from pixelwright.errors import UserError
from pixelwright.evaluation.evaluate import Scorer
from pixelwright.evaluation.features.classifier import read_labelled
from pixelwright.evaluation.measure import measure
from pixelwright.images import from_uint8
from pixelwright.training import Callback, TrainConfig, Trainer, build_trainer, load_config

TRIAL = 10  # steps whose processor time is taken
BATCH = 100  # held-out images at a time
FIGURES = {"loss": "held-out loss", "fid": "FID"}


class ProcessorTime(Callback):
    """Keeps the processor seconds of a run's steps beside its checkpoints, over interruptions."""

    def __init__(self, run: Path) -> None:
        self.file = run / "processor.json"
        self.before = json.loads(self.file.read_text()) if self.file.exists() else 0.0
        self.begun = time.process_time()

    def seconds(self) -> float:
        return self.before + time.process_time() - self.begun

    def on_checkpoint(self, trainer: Trainer, folder: Path) -> None:
        self.file.write_text(json.dumps(self.seconds()))


def held_out(config: TrainConfig, path: str | None, count: int) -> tuple[Tensor, Tensor]:
    """Images [N,3,H,W] in [-1,1] and labels [N] that are no part of the training, evenly through the set."""
    if path is not None:
        data = replace(config.data, path=path)
    elif config.data.path == "shapes":
        data = replace(config.data, shapes_seed=(config.data.shapes_seed or 0) + 1)
    else:
        raise UserError("--held-out is not given: name images that are no part of the training")
    source = open_source(data)
    indices = [i * len(source) // count for i in range(count)]
    found = read_labelled(source, indices, data.size, lambda number: None)
    return from_uint8(found.images), found.labels


@torch.no_grad()
def held_out_loss(model: pw.PixelDenoiser, images: Tensor, labels: Tensor) -> float:
    """Mean of (v̂ − v)², v = x − ε, whatever the model predicts and whichever times it was trained on: one
    time of each quantile of the sigmoid of N(0, 1), paired with images at random."""
    generator, count = torch.Generator().manual_seed(0), len(images)
    noise = torch.randn(images.shape, generator=generator) * model.config.noise_scale
    quantiles = (torch.randperm(count, generator=generator) + 0.5) / count
    times = torch.sigmoid(torch.special.ndtri(quantiles))
    total = 0.0
    for x, e, t, y in zip(*(each.split(BATCH) for each in (images, noise, times, labels)), strict=True):
        total += float(velocity_loss(model(interpolate(x, e, t), t, y), x - e).sum())
    return total / count


def steps_of(config: TrainConfig, options: argparse.Namespace) -> int:
    """The steps that the budget allows."""
    if options.images is not None:
        return max(1, options.images // config.batch_size)
    trainer = build_trainer(replace(config, run=config.run + "-trial"))
    inputs = trainer._inputs()
    for step in range(2 * TRIAL):
        if step == TRIAL:
            begun = time.process_time()
        trainer.train_step(next(inputs))
    return max(1, int(options.cpu_seconds * TRIAL / (time.process_time() - begun)))


def config_of(file: Path, seed: int, options: argparse.Namespace) -> TrainConfig:
    """The settings of a row and seed; the number of steps, once found, stays."""
    config = load_config(*options.base, file, changes=options.changes, imports=True)
    folder = options.out / file.stem
    config = replace(config, seed=seed, run=str(folder / f"seed-{seed}"), loggers=(), sample_every=0)
    budget = folder / "steps.json"
    if not budget.exists():
        folder.mkdir(parents=True, exist_ok=True)
        budget.write_text(json.dumps(steps_of(config, options)))
    return replace(config, steps=json.loads(budget.read_text()))


def measured(
    config: TrainConfig, name: str, seconds: float, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A line for each average of a run that has ended."""
    images, labels = held_out(config, options.held_out, options.held_out_count)
    for average in (None, *map(str, config.ema_more)):
        model = pw.load(config.run if average else f"{config.run}/model", average)
        row: dict[str, Any] = {"name": name if average is None else f"{name}, {average}", "seed": config.seed}
        row |= {"images": config.steps * config.batch_size, "processor_seconds": round(seconds, 1)}
        row["loss"] = held_out_loss(model, images, labels)
        if options.reference is not None:
            scorer = Scorer.open(options.reference, options.features, "cpu")
            row["fid"] = measure(batches(model, options), scorer.reference, scorer.extractor).values["fid"]
        yield row


def table(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float | None, int]]]:
    """Mean, standard error and number of seeds of each figure, by row."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for key in ("images", "processor_seconds", *FIGURES):
            if key in row:
                found[row["name"]][key].append(row[key])

    def estimate(values: list[float]) -> tuple[float, float | None, int]:
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return statistics.fmean(values), error, len(values)

    return {name: {key: estimate(each) for key, each in columns.items()} for name, columns in found.items()}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table, best held-out loss first; ± is one standard error over seeds."""
    lines = ["| row | seeds | images | processor s | held-out loss | FID |", "|---|---|---|---|---|---|"]
    for name, each in sorted(table(rows).items(), key=lambda item: item[1]["loss"][0]):
        cells = []
        for key in FIGURES:
            mean, error, _ = each.get(key, (math.nan, None, 0))
            cells.append(
                "" if math.isnan(mean) else f"{mean:.4g}" + ("" if error is None else f" ± {error:.1g}")
            )
        counts = f"{each['loss'][2]} | {each['images'][0]:,.0f} | {each['processor_seconds'][0]:,.0f}"
        lines.append(f"| {name} | {counts} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Each figure that was measured, with its standard errors: the best held-out loss on top."""
    from matplotlib.figure import Figure

    found = sorted(table(rows).items(), key=lambda item: -item[1]["loss"][0])
    shown = {key: title for key, title in FIGURES.items() if all(key in each for _, each in found)}
    figure = Figure(figsize=(3.5 + 3.5 * len(shown), 1 + 0.3 * len(found)), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (key, title) in zip(panels, shown.items(), strict=True):
        means, errors = zip(*(each[key][:2] for _, each in found), strict=True)
        axes.errorbar(means, range(len(found)), xerr=[error or 0 for error in errors], fmt="o", capsize=3)
        axes.set_xlabel(f"{title} (± one standard error over seeds)")
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_yticks(range(len(found)), [name for name, _ in found])
    figure.savefig(path, dpi=110)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--base", nargs="*", type=Path, default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--images", type=int)
    budget.add_argument("--cpu-seconds", type=float)
    parser.add_argument("--held-out")
    parser.add_argument("--held-out-count", type=int, default=1000)
    parser.add_argument("--reference")
    parser.add_argument("--features")
    sampling_options(parser)
    parser.add_argument("--out", type=Path, required=True)
    options, more = parser.parse_known_args()
    options.changes = changes_of(parser, more)
    return options


def sampling_options(parser: argparse.ArgumentParser) -> None:
    """What is drawn for FID: the options that `checkpoints.batches` reads."""
    parser.add_argument("--count", type=int, default=2000, help="samples of FID")
    parser.add_argument("--seed", type=int, default=0, help="of these samples")
    parser.add_argument("--solver", default="ab2")
    parser.add_argument("--solver-steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=1.0)


def changes_of(parser: argparse.ArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    """--data.path PATH and the like as nested settings."""
    found: dict[str, Any] = {}
    if len(words) % 2 or any(not word.startswith("--") for word in words[::2]):
        parser.error(f"not understood: {' '.join(words)}; settings of the base are --NAME VALUE")
    for key, value in zip(words[::2], words[1::2], strict=True):
        *groups, leaf = key.removeprefix("--").split(".")
        place = found
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = yaml.safe_load(value)
    return found


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(row["name"], row["seed"]) for row in rows}
    for seed in options.seeds:  # a whole table of one seed first
        for file in options.files:
            if (file.stem, seed) in done:
                continue
            config = config_of(file, seed, options)
            spent = ProcessorTime(Path(config.run))
            build_trainer(config, callbacks=[spent]).run()
            new = list(measured(config, file.stem, json.loads(spent.file.read_text()), options))
            with results.open("a") as out:
                out.writelines(json.dumps(row) + "\n" for row in new)
            rows += new
            print(json.dumps(new[0]), flush=True)
    (options.out / "table.md").write_text(markdown(rows) + "\n")
    draw(rows, options.out / "study.png")
    print(markdown(rows))


if __name__ == "__main__":
    main()
