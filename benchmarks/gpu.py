"""Speed of both XL models on one GPU, in one call, as JSON.

    python benchmarks/gpu.py --out gpu.json                  # training and sampling
    python benchmarks/gpu.py --out gpu.json --parts sampling
    python benchmarks/gpu.py --out dry.json --dry-run        # the same code with tiny models, on any machine

Training: whole steps of the trainer (forward, backward, clipping, AdamW, EMA) in bf16, compiled per block, on
images in memory; batch 32, 64, ... to the largest that fits. MFU is the model's arithmetic (three forward
passes a step, recomputation not counted) over the time, against the bf16 matrix product measured in the same
run. Sampling: one image, 100 steps, guidance in its interval as the published figures have it. Medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import pixelwright as pw
from pixelwright.data import Batch, DataConfig
from pixelwright.info import describe
from pixelwright.sampling import sample
from pixelwright.training import ModelConfig, OptimConfig, TrainConfig, Trainer

MODELS = {"dip-xl-16": (2.9, (0.11, 0.97), "euler"), "pixeldit-xl-16": (2.75, (0.1, 0.9), "ab2-fixed")}
DRY = {"dip-n-8": (2.9, (0.11, 0.97), "euler"), "pixeldit-n-8": (2.75, (0.1, 0.9), "ab2-fixed")}
WARM_UP, REPEATS = 4, 8


class Machine:
    """The device and its measured ceiling."""

    def __init__(self, dry: bool) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu" and not dry:
            raise SystemExit("no CUDA device here: --dry-run tries the script with tiny models")
        self.dtype = None if self.device.type == "cpu" else torch.bfloat16
        self.name = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU (dry run)"
        self.ceiling = self._matmul(256 if dry else 8192)

    def seconds(
        self, function: Callable[[], object], warm_up: int = WARM_UP, repeats: int = REPEATS
    ) -> float:
        """Median time of a call."""
        times = []
        for number in range(warm_up + repeats):
            self.wait()
            begun = time.perf_counter()
            function()
            self.wait()
            if number >= warm_up:
                times.append(time.perf_counter() - begun)
        return statistics.median(times)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _matmul(self, n: int) -> float:
        """FLOP/s of an n x n matrix product in bf16 (float32 on a CPU)."""
        a, b = torch.randn(2, n, n, device=self.device, dtype=self.dtype or torch.float32)
        return 2 * n**3 / self.seconds(lambda: a @ b, repeats=20)

    def start_memory(self) -> None:
        """Measure the peak from here on."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float | None:
        """GiB at the peak since `start_memory`."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None


def trainer(name: str, batch: int, side: int, compile: bool) -> Trainer:
    """The trainer of a published recipe without its data and its teacher."""
    return Trainer(
        TrainConfig(
            run=tempfile.mkdtemp(prefix="bench-"),
            model=ModelConfig(name),
            data=DataConfig(path="shapes", size=side),
            optim=OptimConfig(lr=1e-4),
            batch_size=batch,
            compile=compile,
        )
    )


def training(machine: Machine, name: str, dry: bool) -> Iterator[dict[str, Any]]:
    """One row for each batch size that fits; the plain one, not compiled, for the smallest only."""
    side = 32 if dry else 256
    sizes = [4, 8] if dry else [32, 64, 128, 256, 512]
    for compile in (False, True) if not dry else (False,):
        for batch in sizes if compile or dry else sizes[:1]:
            machine.start_memory()
            try:
                yield training_row(machine, name, batch, side, compile)
            except torch.OutOfMemoryError:
                yield {"part": "training", "model": name, "batch": batch, "compiled": compile, "fits": False}
                break
            finally:
                torch.compiler.reset()


def training_row(machine: Machine, name: str, batch: int, side: int, compile: bool) -> dict[str, Any]:
    run = trainer(name, batch, side, compile)
    flops = 3 * batch * describe(run.model.config, (side, side)).flops
    labels = torch.arange(batch) % run.model.config.num_classes
    inputs = run.prepare(Batch(torch.rand(batch, 3, side, side) * 2 - 1, labels, torch.arange(batch)), 0)
    seconds = machine.seconds(lambda: run.train_step(inputs))
    return {
        "part": "training",
        "model": name,
        "batch": batch,
        "compiled": compile,
        "fits": True,
        "images_per_second": batch / seconds,
        "mfu": flops / seconds / machine.ceiling,
        "peak_gib": machine.peak(),
    }


def sampling(machine: Machine, name: str, recipe: tuple[Any, ...], dry: bool) -> Iterator[dict[str, Any]]:
    """Latency of one image and throughput of the largest of some batches; eager."""
    scale, interval, solver = recipe
    side = 32 if dry else 256
    model = pw.create(name, num_classes=10).to(machine.device).eval()
    for batch in (1, 2) if dry else (1, 16, 64):
        machine.start_memory()

        def draw(batch: int = batch) -> object:
            return sample(
                model,
                [i % 10 for i in range(batch)],
                size=(side, side),
                steps=4 if dry else 100,
                solver=solver,
                guidance_scale=scale,
                guidance_interval=interval,
                batch_size=batch,
                autocast=machine.dtype,
            )

        seconds = machine.seconds(draw, warm_up=1, repeats=3)
        yield {
            "part": "sampling",
            "model": name,
            "batch": batch,
            "seconds": seconds,
            "images_per_second": batch / seconds,
            "peak_gib": machine.peak(),
        }


def main() -> int:
    """Measure, writing the JSON after every row, so that a run that is cut off has what it measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--parts", nargs="+", choices=["training", "sampling"], default=["sampling", "training"]
    )
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    machine = Machine(arguments.dry_run)
    result: dict[str, Any] = {
        "device": machine.name,
        "torch": torch.__version__,
        "pixelwright": pw.__version__,
        "bf16_matmul_tflops": machine.ceiling / 1e12,
        "rows": [],
    }
    for name, recipe in (DRY if arguments.dry_run else MODELS).items():
        for part in arguments.parts:
            rows = (
                training(machine, name, arguments.dry_run)
                if part == "training"
                else sampling(machine, name, recipe, arguments.dry_run)
            )
            for row in rows:
                print(json.dumps(row), flush=True)
                result["rows"].append(row)
                arguments.out.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
