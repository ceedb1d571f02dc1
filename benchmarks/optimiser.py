"""What the optimiser costs: milliseconds of it and of a training step, and for Muon its operations.

    OMP_NUM_THREADS=1 python benchmarks/optimiser.py pixeldit-ti-8 dip-ti-8 --batch-size 32 128
    python benchmarks/optimiser.py pixeldit-xl-16 dip-xl-16 --batch-size 256 --computed

Times are processor times, of each optimiser in turns with the rest of the step. Computed are the operations
of Newton-Schulz as a share of those of a step on so many images (products in the same precision, all
processes sharing the matrices as they share the images).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from pixelwright.data import DataConfig
from pixelwright.models import presets
from pixelwright.models.folder import skeleton
from pixelwright.training import ModelConfig, OptimConfig, TrainConfig, build_trainer
from pixelwright.training.muon import COEFFICIENTS, is_hidden, parts_of
from pixelwright.training.optim import update
from pixelwright.training.summary import flops_by_part

FORWARD_AND_BACKWARD = 3


def milliseconds(function: Callable[[], object]) -> float:
    begun = time.process_time()
    function()
    return 1e3 * (time.process_time() - begun)


def measured(preset: str, size: int, batch: int, name: str, rounds: int) -> tuple[float, float]:
    """Median milliseconds of the optimiser and of a whole step."""
    with tempfile.TemporaryDirectory() as folder:
        data = DataConfig(path="shapes", size=size, shapes_count=256)
        optim = OptimConfig(name=name, lr=1e-3)  # type: ignore[arg-type]
        config = TrainConfig(run=folder, model=ModelConfig(preset), data=data, optim=optim, batch_size=batch)
        trainer = build_trainer(replace(config, loggers=()))
        inputs = next(trainer._inputs())
        found: list[tuple[float, float]] = []
        for _ in range(rounds + 1):
            rest = milliseconds(lambda: trainer.gradients(inputs))
            own = milliseconds(lambda: update(trainer.optimizer, 1e-3, torch.tensor(True)))
            found.append((own, rest + own))
        own, whole = zip(*found[1:], strict=True)
        return statistics.median(own), statistics.median(whole)


def newton_schulz(m: int, n: int) -> int:
    """Operations for a matrix [m, n], two for each product of numbers. Two steps are XXᵀ, five products of
    such matrices, of which a cubic needs one less, and one times X."""
    m, n = min(m, n), max(m, n)
    small = sum(5 if c else 4 for _, _, c in COEFFICIENTS[1::2])
    return len(COEFFICIENTS) // 2 * 4 * m * m * n + small * 2 * m**3


def computed(preset: str, size: int, batch: int) -> float:
    """Operations of Newton-Schulz over those of a training step."""
    model = skeleton(presets.preset(preset))
    own, named = 0, dict(model.named_parameters())
    for name, p in named.items():
        if is_hidden(name, p):
            parts = parts_of(name, named)
            own += parts * newton_schulz(p.shape[0] // parts, p[0].numel())
    step = FORWARD_AND_BACKWARD * batch * sum(flops_by_part(model, (size, size)).values())
    return own / step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--size", type=int, help="of images (default: 32, of the large presets their own)")
    parser.add_argument("--computed", action="store_true", help="nothing is run")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    titles = ["model", "batch"]
    titles += ["Newton-Schulz, share of a step's operations"]
    if not options.computed:
        titles += ["AdamW ms", "Muon ms", "step with Muon ms", "Muon's share", "more than AdamW"]
    print(f"| {' | '.join(titles)} |\n" + "|---" * len(titles) + "|")
    for preset in options.presets:
        own = presets.preset(preset).image_size or (32, 32)
        size = options.size or (32 if "-ti-" in preset or "-n-" in preset else own[0])
        for batch in options.batch_size:
            cells = [preset, str(batch), f"{computed(preset, size, batch):.1%}"]
            if not options.computed:
                (adamw, _), (muon, step) = (
                    measured(preset, size, batch, name, options.rounds) for name in ("adamw", "muon")
                )
                times = [f"{value:.1f}" for value in (adamw, muon, step)]
                cells += [*times, f"{muon / step:.1%}", f"{(muon - adamw) / (step - muon + adamw):.1%}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
