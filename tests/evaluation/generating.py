"""A process that draws images, as test_generate.py starts it: generating.py MODEL OUT COUNT BATCH [KILL]

KILL: end this process by SIGKILL while it draws that many batches' successor.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import pixelwright as pw
from pixelwright.diffusion.labels import balanced_labels
from pixelwright.distributed.config import ParallelConfig
from pixelwright.distributed.parallel import connect, together
from pixelwright.evaluation import generate as room


def generation(model: str, count: int, batch: int, **changes: Any) -> room.Generation:
    settings: dict[str, Any] = {
        "model": "tiny",
        "weights": room.checksum(model),
        "num_samples": count,
        "size": (8, 8),
        "labels": "balanced",
        "solver": "ab2",
        "steps": 3,
        "guidance_scale": 2.0,
        "guidance_interval": (0.1, 0.9),
        "time_shift": 1.0,
        "seed": 5,
        "batch_size": batch,
        "precision": "fp32",
    }
    return room.Generation(**{**settings, **changes})


def run(model: str, out: str, count: int, batch: int, kill: int | None = None) -> None:
    drawn, draw = [], room.draw

    def counted(*arguments: Any) -> Any:
        if len(drawn) == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        images = draw(*arguments)
        drawn.append(arguments[3])
        return images

    room.draw = counted
    with together(lambda: connect("cpu", ParallelConfig(timeout=60))) as layout:
        plan = generation(model, count, batch)
        room.generate(pw.load(model), plan, balanced_labels(count, 4), Path(out), layout)
        sys.stdout.write(" ".join(map(str, ("drew", layout.rank, *drawn))) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    model, out, *numbers = sys.argv[1:]
    run(model, out, *map(int, numbers))
