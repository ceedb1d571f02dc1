"""Train a tiny DiP and a tiny PixelDiT on Shapes, side by side, and draw both beside real images.

    python examples/demo.py                  # a few minutes on two CPU cores; Ctrl-C saves, again continues

Writes runs/demo/{dip,pixeldit}/ (weights, logs, sample grids on the way), runs/demo/comparison.png, and first
runs/demo/cifar10.png, of a model that comes with the package.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

import pixelwright as pw
from pixelwright.data import Shapes, open_source
from pixelwright.hub.shipped import shipped
from pixelwright.images import save_grid
from pixelwright.training import load_config

ROOT = Path(__file__).parent.parent
RUNS = Path("runs/demo")
MODELS = {"dip": "DiP", "pixeldit": "PixelDiT"}


def config_file(name: str) -> Path:
    return ROOT / "configs" / f"demo-{name}.yaml"


def start(name: str) -> subprocess.Popen[bytes]:
    """`pixelwright train` in a process of its own, on its share of the cores."""
    command = [sys.executable, "-m", "pixelwright", "train", "--config", str(config_file(name))]
    command += ["--run", str(RUNS / name)]
    threads = str(max(1, (os.cpu_count() or 1) // len(MODELS)))
    with (RUNS / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": threads}
        )


def last_line(name: str) -> dict[str, float]:
    """What the run last logged; zeros before that."""
    path = RUNS / name / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else {"step": 0, "loss": float("nan")}


def train_both() -> None:
    """Run both trainings at once under one progress bar each; exits with their code if one fails."""
    RUNS.mkdir(parents=True, exist_ok=True)
    bars = {
        name: tqdm(
            total=load_config(config_file(name)).steps,
            desc=f"{title:9}",
            unit="step",
            position=i,
            disable=None,
        )
        for i, (name, title) in enumerate(MODELS.items())
    }
    processes = {name: start(name) for name in MODELS}
    try:
        draw_shipped(RUNS / "cifar10.png")
        while any(process.poll() is None for process in processes.values()):
            show_progress(bars)
            time.sleep(1)
    except KeyboardInterrupt:  # the trainings heard it too; they save
        for process in processes.values():
            process.wait()
        raise
    finally:
        show_progress(bars)
        for bar in bars.values():
            bar.close()
    for name, process in processes.items():
        if process.returncode:
            log = RUNS / f"{name}.log"
            print(f"training {name} failed, see {log}:\n{log.read_text()[-600:]}", file=sys.stderr)
            raise SystemExit(process.returncode)


def draw_shipped(path: Path) -> None:
    """Three images of each class by a model that comes with the package."""
    if "cifar10" in shipped() and not path.exists():
        model = pw.load("pixelwright/cifar10")
        save_grid(pw.sample(model, [*range(10)] * 3, batch_size=30), path, columns=10, scale=3)
        print(f"meanwhile: what a small model draws after five minutes of a GPU: {path}", flush=True)


shown = [0.0]  # when a line of progress was printed


def show_progress(bars: dict[str, tqdm]) -> None:
    done: dict[str, int] = {}
    for name, bar in bars.items():
        line = last_line(name)
        bar.set_postfix(loss=f"{line['loss']:.3f}", refresh=False)
        bar.update(int(line["step"]) - bar.n)
        bar.refresh()
        if bar.disable:  # no terminal: a line every half a minute
            done[name] = int(line["step"])
    if done and time.monotonic() - shown[-1] >= 30:
        shown.append(time.monotonic())
        print(", ".join(f"{MODELS[name]} at step {step}" for name, step in done.items()), flush=True)


def panel(images: torch.Tensor, columns: int) -> torch.Tensor:
    """[N,H,W,3] -> one picture of N/columns rows, a white line between images."""
    n, h, w, _ = images.shape
    framed = torch.full((n, h + 1, w + 1, 3), 255, dtype=torch.uint8)
    framed[:, :h, :w] = images
    rows = framed.reshape(n // columns, columns, h + 1, w + 1, 3).transpose(1, 2)  # [rows, H, columns, W, 3]
    return rows.reshape(n // columns * (h + 1), columns * (w + 1), 3)


def real_images(shapes: Shapes) -> torch.Tensor:
    """The first image of every class, uint8 [classes,H,W,3]."""
    found: dict[int, torch.Tensor] = {}
    for i in range(len(shapes)):
        if len(found) == shapes.num_classes:
            break
        sample = shapes[i]
        if sample.label not in found:
            pixels = torch.frombuffer(bytearray(sample.image.tobytes()), dtype=torch.uint8)
            found[sample.label] = pixels.reshape(shapes.size, shapes.size, 3)
    return torch.stack([found[label] for label in sorted(found)])


def compare(path: Path) -> None:
    """Draw one image of every class with both models, from the same noise, beside real ones."""
    config = load_config(config_file("dip"))
    shapes = open_source(config.data)
    assert isinstance(shapes, Shapes)
    pictures = {"real": real_images(shapes)}
    for name, title in MODELS.items():
        model = pw.load(RUNS / name / "model")
        sampler = pw.SamplerSettings(steps=40, guidance_scale=config.sample.guidance_scale)
        pictures[title] = pw.sample(model, range(shapes.num_classes), sampler, seed=1)
    panels = torch.stack([panel(images, columns=6) for images in pictures.values()])
    save_grid(panels, path, columns=len(pictures), scale=3, titles=list(pictures), gap=6)


def main() -> int:
    began = time.monotonic()
    print(
        "training a tiny DiP and a tiny PixelDiT side by side: some minutes on two cores; Ctrl-C saves",
        flush=True,
    )
    try:
        train_both()
    except KeyboardInterrupt:
        print(f"\nstopped and saved in {RUNS}; the same command continues")
        return 130
    path = RUNS / "comparison.png"
    compare(path)
    print(
        f"\n{(time.monotonic() - began) / 60:.1f} minutes. Real images, DiP and PixelDiT side by side: {path}"
    )
    command = os.path.relpath(Path(sys.executable).parent / "pixelwright")
    print(f'More: {command} sample {RUNS}/pixeldit --labels "blue star*8" --out samples')
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
