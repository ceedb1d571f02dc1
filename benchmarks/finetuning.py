"""Thirty pictures and one small model: adapters, all weights, and training from scratch for as many steps.

    python benchmarks/finetuning.py food BASE OUT --features CLASSIFIER --photos imagenet1k-sample
    python benchmarks/finetuning.py pink BASE OUT

food: BASE draws the classes of CIFAR-10 and learns another from photographs of food (a folder with images.zip
and classes.json of ImageNet's classes, one image each). pink: BASE draws captioned Shapes and learns a colour
that these lack, from pink circles, squares and triangles; pink stars are asked for, and never shown. Seeds
are run one after the other, and the same command goes on where it stopped: OUT/results.json has what is done,
shown.png in each run its first samples.
"""

import argparse
import io
import json
import random
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import pixelwright as pw
from pixelwright.cli import finetune
from pixelwright.data.shapes import COLOURS, GROUNDS, SHAPES, Background, Object, Scene, render
from pixelwright.data.transforms import cover
from pixelwright.evaluation.features import open_extractor
from pixelwright.evaluation.metrics import kid
from pixelwright.evaluation.neighbours import memorisation
from pixelwright.evaluation.prompts.shapesbench import AWAY, oklab
from pixelwright.images import save_grid
from pixelwright.training import OptimConfig, train

PICTURES, SAMPLES, SHOWN = 30, 32, 12
SCRATCH = "from scratch"
WAYS: dict[str, list[str]] = {
    "LoRA, rank 4": ["--rank", "4"],
    "LoRA, rank 16": ["--rank", "16"],
    "LoRA, rank 16, detailer too": ["--rank", "16", "--detailer"],
    "LoRA, rank 16, 48 prior images": ["--rank", "16", "--prior", "48"],
    "LoRA, rank 16, detailer too, 48 prior images": ["--rank", "16", "--detailer", "--prior", "48"],
    "all weights": ["--method", "full"],
    SCRATCH: ["--method", "full"],
}
FOOD = [*range(924, 959), *range(960, 970), 987, 988, 989]  # of ImageNet's classes; 30 are trained on
PINK = ("pink", ((255, 105, 190), (255, 225, 240)))
SHOWN_SHAPES, STAR = ("circle", "square", "triangle"), "a pink star"
KEPT = [f"{'an' if colour == 'orange' else 'a'} {colour} {shape}" for colour in COLOURS for shape in SHAPES]


def stack(images: list[Image.Image], side: int) -> Tensor:
    """[N,H,W,3] in uint8."""
    return torch.from_numpy(np.stack([np.asarray(cover(image, side, side)) for image in images]))


class Study:
    """What is taught: files of pictures, those held out, and what is asked for."""

    def __init__(self, base: Path, features: str) -> None:
        self.base, self.extract = pw.load(base).float(), open_extractor(features)
        self.side = (self.base.config.image_size or (32,))[0]
        self.train, self.held_out = Tensor(), Tensor()  # images

    def features(self, images: Tensor) -> Tensor:
        """[N,D]"""
        return self.extract(images).features

    def draw(self, model: Any, asked: list[Any], seed: int) -> Tensor:
        """An image of each label or prompt."""
        settings = pw.SamplerSettings("ab2", 12, 2.0, (0.1, 1.0))
        return pw.sample(model, asked, settings, seed=seed, size=(self.side, self.side), batch_size=32)

    def measured(self, model: Any, asked: list[Any], kept: list[Any], seed: int) -> tuple[Any, Tensor]:
        """What was learned, memorised and forgotten; and the samples of the subject."""
        drawn = self.draw(model, asked, 100 + seed)
        one, real = self.features(drawn), self.features(self.train)
        numbers = torch.arange(SAMPLES), torch.arange(len(real))
        found = {
            "learned": kid(self.features(self.held_out), one, 1, SAMPLES).value,
            "memorised": memorisation(one, numbers[0], real, numbers[1]).share,
        }
        if kept:
            before, after = self.draw(self.base, kept, 1), self.draw(model, kept, 200 + seed)
            found["forgotten"] = kid(self.features(before), self.features(after), 1, len(kept)).value
            found |= self.more(model, after, seed)
        return found, drawn[:SHOWN]

    def more(self, model: Any, kept: Tensor, seed: int) -> dict[str, float]:
        """Further figures; `kept` are images of what the base knew."""
        return {}


class Food(Study):
    """A new class from photographs."""

    def __init__(self, base: Path, features: str, photos: Path, folder: Path) -> None:
        super().__init__(base, features)
        classes = json.loads((photos / "classes.json").read_text())
        wnids = [classes[index]["wnid"] for index in FOOD]
        random.Random(0).shuffle(wnids)
        with zipfile.ZipFile(photos / "images.zip") as file:
            images = [Image.open(io.BytesIO(file.read(f"{wnid}/{wnid}.jpg"))) for wnid in wnids]
        pixels = stack(images, self.side)
        self.train, self.held_out = pixels[:PICTURES], pixels[PICTURES:]
        self.pictures, self.words = folder / "all" / "food", ["--class", "food"]
        self.prior: list[str] = []
        self.pictures.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images[:PICTURES]):
            image.save(self.pictures / f"{number:02}.png")

    def ask(self, model: Any, scratch: bool) -> tuple[list[Any], list[Any]]:
        """Labels of the subject, and of what the base knew."""
        classes = self.base.config.num_classes
        return [0 if scratch else classes] * SAMPLES, [] if scratch else [i % classes for i in range(SAMPLES)]


class Pink(Study):
    """A new word for a colour."""

    def __init__(self, base: Path, features: str, folder: Path) -> None:
        super().__init__(base, features)
        COLOURS[PINK[0]] = PINK[1]
        prompts = [f"a pink {SHOWN_SHAPES[i % 3]}" for i in range(PICTURES + 200)]
        pixels = torch.from_numpy(np.stack([self._picture(i, p) for i, p in enumerate(prompts)]))
        self.train, self.held_out = pixels[:PICTURES], pixels[PICTURES:]
        self.pictures = folder / "all" / "pink"
        self.words, self.prior = ["--no-flip"], ["--prior-prompts", *KEPT]
        self.pictures.mkdir(parents=True, exist_ok=True)
        for number, (image, prompt) in enumerate(zip(self.train, prompts[:PICTURES], strict=True)):
            Image.fromarray(image.numpy()).save(self.pictures / f"{number:02}.png")
            (self.pictures / f"{number:02}.txt").write_text(prompt)

    def _picture(self, number: int, prompt: str) -> Any:
        dice = random.Random(number)
        place = (dice.uniform(0.35, 0.65), dice.uniform(0.35, 0.65))
        thing = (prompt.split()[-1], "pink", "plain", place, dice.uniform(0.22, 0.32), dice.uniform(0, 6.28))
        ground = dice.choice(list(GROUNDS))
        return render(Scene((Object(*thing),), Background("plain", ground, ground, 0.0)), self.side)

    def ask(self, model: Any, scratch: bool) -> tuple[list[Any], list[Any]]:
        """Prompts of the subject, and of what the base knew."""
        return [f"a pink {SHOWN_SHAPES[i % 3]}" for i in range(SAMPLES)], KEPT

    def more(self, model: Any, kept: Tensor, seed: int) -> dict[str, float]:
        """Shares of images in the colour that was asked for."""
        prompts, kept_prompts = self.ask(model, False)
        asked = {
            "pink": (self.draw(model, prompts, 100 + seed), prompts),
            "old colours": (kept, kept_prompts),
        }
        asked["pink stars"] = self.draw(model, [STAR] * 24, 300 + seed), [STAR] * 24
        return {
            name: float(
                np.mean([colour_of(x) in p.split() for x, p in zip(images.numpy(), texts, strict=True)])
            )
            for name, (images, texts) in asked.items()
        }


def colour_of(image: Any) -> str:
    """The name of the colour of what is not ground."""
    edge = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    pixels = oklab(image)
    inside = np.linalg.norm(pixels - oklab(np.median(edge, axis=0)[None]), axis=-1) > AWAY
    if not inside.any():
        return "none"
    mean = pixels[inside].mean(0)
    known = {name: oklab(np.array([rgb], np.float32))[0] for name, (rgb, _) in COLOURS.items()}
    return min(known, key=lambda name: float(np.linalg.norm(known[name] - mean)))


def trained(way: str, study: Any, base: Path, run: Path, steps: int, seed: int) -> tuple[Any, float]:
    """The model that a way of training gives, and its processor seconds."""
    words = [str(base), str(study.pictures), *study.words, *WAYS[way], "--run", str(run)]
    words += study.prior if "--prior" in words else []
    options = finetune.parser().parse([*words, "--steps", str(steps), "--seed", str(seed), "--device", "cpu"])
    config = finetune.config_of(options)
    assert config.subject is not None
    config = replace(config, sample_every=0, loggers=(), subject=replace(config.subject, samples=0))
    config = replace(config, sample=replace(config.sample, count=1))
    if way == SCRATCH:
        optim = OptimConfig(lr=2e-3, warmup="3%", cooldown="25%")
        data = replace(config.data, path=str(study.pictures.parent))
        config = replace(config, init=None, subject=None, optim=optim, data=data)
    begun = time.process_time()
    train(config)
    seconds = time.process_time() - begun
    return (pw.load(base, adapter=run) if (run / "adapter").exists() else pw.load(run)).float(), seconds


def spread(rows: list[dict[str, float]]) -> dict[str, str]:
    """Mean ± standard deviation over the seeds."""
    found = {}
    for name in rows[0]:
        values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        found[name] = f"{values.mean():.4f} ± {values.std(correction=len(rows) > 1):.4f}"
    return found


def main() -> None:
    """Train and measure all ways."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("study", choices=["food", "pink"])
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=Path, default="imagenet1k-sample")
    parser.add_argument("--features", default="pixels")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    common, out = (options.base, options.features), options.out
    study: Any = Food(*common, options.photos, out) if options.study == "food" else Pink(*common, out)
    kept = out / "results.json"
    rows: dict[str, dict[str, dict[str, float]]] = json.loads(kept.read_text()) if kept.exists() else {}
    if options.study == "pink" and "before" not in rows:
        rows["before"] = {"0": study.measured(study.base, *study.ask(study.base, False), 7)[0]}
    for seed in range(options.seeds):
        for way in WAYS:
            if str(seed) in rows.setdefault(way, {}):
                continue
            run = out / f"{way.replace(', ', '-').replace(' ', '-')}-{seed}"
            model, seconds = trained(way, study, options.base, run, options.steps, seed)
            numbers, drawn = study.measured(model, *study.ask(model, way == SCRATCH), seed)
            rows[way][str(seed)] = {**numbers, "seconds": seconds}
            save_grid(drawn, run / "shown.png", columns=SHOWN, scale=max(1, 64 // study.side))
            print(seed, way, rows[way][str(seed)], flush=True)
            kept.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    for way, found in rows.items():
        print(way, spread(list(found.values())))


if __name__ == "__main__":
    main()
