"""A speed run: processor time of training until the samples reach an FID (docs/leaderboard.md).

    OMP_NUM_THREADS=1 python benchmarks/speedrun.py configs/cifar10-pixeldit-ti.yaml --target 3 \\
        --features features/cifar10 --reference cifar10.npz --data.path cifar10/train.zip

Every --every steps the averaged weights draw --count samples without guidance, the classes in turn, always
from the same noise. What this takes is not counted, all else of the process is. The run ends with its steps
or as soon as the target is reached; a line of RUN/speedrun.jsonl for each measurement, and at the end a row
for the leaderboard. The same command goes on with a run that was stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoints import batches
from study import ProcessorTime, changes_of, sampling_options

from pixelwright.evaluation.evaluate import Scorer
from pixelwright.evaluation.measure import measure
from pixelwright.training import Interrupted, Trainer, build_trainer, load_config


class Race(ProcessorTime):
    """Measures at intervals, beside the clock, and stops the run at the target."""

    def __init__(self, run: Path, options: argparse.Namespace) -> None:
        super().__init__(run)
        self.every, self.options, self.log = options.every, options, run / "speedrun.jsonl"
        self.scorer = Scorer.open(options.reference, options.features, "cpu")
        self.begun = time.process_time()  # features and reference are no training

    def on_step(self, trainer: Trainer) -> None:
        spent, begun = self.seconds(), time.process_time()
        model = trainer.averaged()
        assert model is not None
        found = measure(batches(model, self.options), self.scorer.reference, self.scorer.extractor)
        line: dict[str, Any] = {"step": trainer.step, "images": trainer.step * trainer.config.batch_size}
        line |= {"processor_seconds": round(spent, 1), "fid": found.values["fid"]}
        line["error"] = found.metrics["fid"].error
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        if line["fid"] <= self.options.target:
            trainer.request_stop()
        self.begun += time.process_time() - begun


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def row(config: str, target: float, lines: list[dict[str, Any]]) -> str:
    """The row of the leaderboard: at the first measurement that reached the target, or at the last."""
    reached = next((line for line in lines if line["fid"] <= target), None)
    line = reached or lines[-1]
    minutes = f"{line['processor_seconds'] / 60:.1f}" if reached else "not reached"
    figures = (
        f"{line['images']:,} | {line['processor_seconds'] / 60:.1f} | {line['fid']:.2f} ± {line['error']:.2f}"
    )
    return f"| {config} | {minutes} | {figures} | {commit()} | {platform.machine()} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--target", type=float, default=3.0)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--features")
    sampling_options(parser)
    options, more = parser.parse_known_args()
    config = load_config(options.config, changes=changes_of(parser, more), imports=True)
    config = replace(config, loggers=(), sample_every=0)
    run = Path(config.run)
    race = Race(run, options)
    with suppress(Interrupted):
        build_trainer(config, callbacks=[race]).run()
    lines = [json.loads(line) for line in race.log.read_text().splitlines()]
    print("| configuration | minutes to the target | images | minutes | FID | commit | machine |")
    print(row(options.config.stem, options.target, lines))
    print(f"command: {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
