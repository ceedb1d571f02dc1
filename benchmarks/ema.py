"""Time of averaging the weights as a share of a training step, with one and with three averages.

    python benchmarks/ema.py

The step and the update are timed in turn, in one process, by the CPU time they take, which other programs
disturb little; medians are given.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

from pixelwright.data import DataConfig
from pixelwright.training import ModelConfig, OptimConfig, SampleConfig, TrainConfig, build_trainer
from pixelwright.training.ema import EMA


def main() -> None:
    """Print one line per model and number of averages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["dip-ti-8", "pixeldit-ti-8"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(
                TrainConfig(
                    run=f"{folder}/run",
                    model=ModelConfig(name),
                    data=DataConfig(path="shapes", size=32),
                    optim=OptimConfig(lr=1e-4),
                    sample=SampleConfig(count=1),
                    batch_size=arguments.batch_size,
                )
            )
            inputs = next(trainer._inputs())
            for more in ((), (0.999, "power-0.05")):
                trainer.ema = EMA(trainer.model, 0.9999, more)
                steps, updates = [], []
                for repeat in range(arguments.repeats + 2):
                    begun = time.process_time()
                    trainer.train_step(inputs)
                    middle = time.process_time()
                    trainer.ema.update(repeat + 1)
                    ended = time.process_time()
                    if repeat >= 2:
                        steps.append(middle - begun)
                        updates.append(ended - middle)
                step, update = statistics.median(steps), statistics.median(updates)
                print(
                    f"{name}, {1 + len(more)} average(s): {1000 * update:.2f} ms of a step of "
                    f"{1000 * step:.0f} ms: {100 * update / step:.1f} %"
                )


if __name__ == "__main__":
    main()
