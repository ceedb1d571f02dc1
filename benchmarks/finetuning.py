"""A new class from few pictures: adapters, all weights, and training from scratch, each for as many steps.

    python benchmarks/finetuning.py BASE OUT --pictures 30 --steps 300 --seeds 3

BASE is a run or model of classes at a small size. The new class is a cross, drawn here, which "shapes"
does not have; 200 further crosses are the reference. Writes OUT/results.json, and OUT/samples.png with a row
for each way.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

import pixelwright as pw
from pixelwright.cli.main import main
from pixelwright.data.transforms import cover
from pixelwright.diffusion.labels import balanced_labels
from pixelwright.evaluation.features import open_extractor
from pixelwright.evaluation.metrics import kid
from pixelwright.evaluation.neighbours import memorisation
from pixelwright.images import save_grid
from pixelwright.rng import generator

CLASS, HELD_OUT, SAMPLES, SHOWN = "cross", 200, 128, 12
WAYS: dict[str, list[str]] = {
    "LoRA, rank 4": ["--rank", "4"],
    "LoRA, rank 16": ["--rank", "16"],
    "LoRA, rank 16, 96 prior images": ["--rank", "16", "--prior", "96"],
    "all weights": ["--method", "full"],
}


def cross(index: int, side: int) -> Image.Image:
    """A cross of some place, size, colour and ground."""
    u = torch.rand(10, generator=generator(0, "cross", index)).tolist()
    image = Image.new("RGB", (256, 256), tuple(round(90 + 90 * each) for each in u[:3]))
    x, y, reach = 96 + 64 * u[3], 96 + 64 * u[4], 56 + 24 * u[5]
    colour = tuple(round(255 * each) for each in u[6:9])
    for dx, dy in ((reach, 16), (16, reach)):
        ImageDraw.Draw(image).rectangle((x - dx, y - dy, x + dx, y + dy), fill=colour)
    return image.resize((side, side), Image.Resampling.BOX)


def stack(images: list[Image.Image], side: int) -> torch.Tensor:
    """[N,H,W,3] in uint8."""
    rows = [torch.tensor(list(cover(image, side, side).tobytes()), dtype=torch.uint8) for image in images]
    return torch.stack(rows).view(-1, side, side, 3)


def measured(model: Any, base: Any, real: dict[str, torch.Tensor], seed: int) -> tuple[dict[str, float], Any]:
    """What a model learned, forgot and memorised, with pixels as features; and its samples of the class."""
    extract = open_extractor("pixels")

    def features(images: torch.Tensor) -> torch.Tensor:
        return extract(images).features

    settings = pw.SamplerSettings(steps=25, guidance_scale=2.0)
    more: dict[str, Any] = {"batch_size": 64, "size": real["train"].shape[1]}
    label = CLASS if model.config.class_names else 0
    drawn = pw.sample(model, [label] * SAMPLES, settings, seed=100 + seed, **more)
    one, train = features(drawn), features(real["train"])
    numbers = torch.arange(SAMPLES), torch.arange(len(train))
    found = {
        "learned": kid(features(real["held out"]), one, 1, SAMPLES).value,
        "memorised": memorisation(one, numbers[0], train, numbers[1]).share,
    }
    if model.config.num_classes > 1:
        labels = balanced_labels(SAMPLES, base.config.num_classes)
        before = features(pw.sample(base, labels, settings, seed=1, **more))
        after = features(pw.sample(model, labels, settings, seed=200 + seed, **more))
        found["forgotten"] = kid(before, after, 1, SAMPLES).value
    return found, drawn[:SHOWN]


def train(way: str, base: Path, out: Path, steps: int, seed: int) -> tuple[Any, float]:
    """The model that a way of training gives, and its seconds."""
    run, begun = out / f"{way.replace(', ', '-').replace(' ', '-')}-{seed}", time.perf_counter()
    if way == "from scratch":
        words = ["train", "--model.preset", str(base / "model"), "--data.path", str(out / "all")]
        words += [
            "--data.size",
            str(pw.load(base).config.image_size[0]),
            "--optim.lr",
            "2e-3",
            "--seed",
            str(seed),
        ]
        words += ["--steps", str(steps), "--batch-size", "8", "--ema_decay", "0.97", "--sample_every", "0"]
        words += ["--optim.warmup", "3%", "--optim.cooldown", "25%", "--run", str(run), "--data.flip", "true"]
    else:
        words = ["finetune", str(base), str(out / "all" / CLASS), "--class", CLASS, "--steps", str(steps)]
        words += ["--run", str(run), "--seed", str(seed), *WAYS[way]]
    if main(words):
        raise SystemExit(f"{way} failed")
    seconds = time.perf_counter() - begun
    return pw.load(base, adapter=run) if (run / "adapter").exists() else pw.load(run), seconds


def spread(rows: list[dict[str, float]]) -> dict[str, str]:
    """Mean ± standard deviation over the seeds."""
    found = {}
    for name in rows[0]:
        values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        found[name] = f"{values.mean():.4f} ± {values.std() if len(rows) > 1 else math.nan:.4f}"
    return found


def study() -> None:
    """Train and measure all ways."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=30)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    base, out = pw.load(options.base), options.out
    side = base.config.image_size[0]
    folder = out / "all" / CLASS
    folder.mkdir(parents=True, exist_ok=True)
    images = [cross(i, side) for i in range(options.pictures + HELD_OUT)]
    for i, image in enumerate(images[: options.pictures]):
        image.save(folder / f"{i:03}.png")
    parts = images[: options.pictures], images[options.pictures :]
    real = {name: stack(part, side) for name, part in zip(("train", "held out"), parts, strict=True)}
    rows, grid = {}, [real["train"][:SHOWN]]
    for way in (*WAYS, "from scratch"):
        found = []
        for seed in range(options.seeds):
            model, seconds = train(way, options.base, out, options.steps, seed)
            numbers, drawn = measured(model, base, real, seed)
            found.append({**numbers, "seconds": seconds})
        rows[way] = spread(found)
        grid.append(drawn)
        print(way, rows[way], flush=True)
        (out / "results.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    save_grid(torch.cat(grid), out / "samples.png", columns=SHOWN, scale=max(1, 64 // side))


if __name__ == "__main__":
    study()
