"""Kill a small training run at random, again and again, and compare its end with that of an undisturbed one.

    python benchmarks/soak.py --kills 200
    python benchmarks/soak.py --kills 20 --processes 2     # under torchrun, which starts the run again itself

SIGKILL falls after a random delay: into the start, a step, a checkpoint being written. After every kill the
newest checkpoint is read and checked; a run that comes to its end is compared with the undisturbed one
(weights, average, optimiser, log, and the images that each step saw: all to the bit) and another begins.
Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from pixelwright.data import DataConfig
from pixelwright.distributed.checkpoint import checkpoint_folders, inspect, newest
from pixelwright.errors import UserError
from pixelwright.training import (
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
    load_config,
    save_config,
    train,
)
from pixelwright.training.inputs import Preparation
from pixelwright.training.loggers import read_log

MEASURED = ("loss", "grad_norm", "lr", "skipped")  # of a log line: all but times
PATIENCE = 300.0  # seconds without an end after which a run counts as hanging


class Process(NamedTuple):
    """A run under way."""

    alive: Callable[[], bool]
    victims: Callable[[], list[int]]
    """The processes that may be killed now."""
    ended_well: Callable[[], bool]


def config(run: Path, steps: int) -> TrainConfig:
    """8x8 shapes, 16 channels, two blocks; a checkpoint every third step."""
    return TrainConfig(
        run=str(run),
        model=ModelConfig("dit-ti-4", hidden_size=16, depth=2, num_heads=2),
        data=DataConfig(path="shapes", size=8, shapes_count=64, flip=True),
        optim=OptimConfig(lr=1e-3, warmup=5),
        sample=SampleConfig(count=4, steps=2),
        steps=steps,
        batch_size=4,
        ema_decay=0.9,
        device="cpu",
        log_every=1,
        checkpoint_every=3,
        sample_every=0,
    )


# ---------------------------------------------------------------- the run
def work(settings: TrainConfig) -> None:
    """Train, writing down what each step is given."""
    torch.set_num_threads(1)
    rank, prepare = os.environ.get("RANK", "0"), Preparation.__call__
    os.dup2(os.open(beside(settings, "out"), os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    beside(settings, f"pid{rank}").write_text(str(os.getpid()))
    seen = beside(settings, "seen").open("a")

    def noting(self: Preparation, batch: Any, step: int) -> Any:
        seen.write(f"\n{json.dumps([step, rank, batch.indices.tolist()])}\n")
        seen.flush()
        return prepare(self, batch, step)

    Preparation.__call__ = noting  # type: ignore[method-assign]
    train(settings)


def beside(settings: TrainConfig, name: str) -> Path:
    """A file of this script beside the run's folder."""
    return Path(f"{settings.run}.{name}")


def images_seen(settings: TrainConfig) -> dict[tuple[int, str], list[int]]:
    """What each step of each process saw the last time it was done, which is the time that counts."""
    seen = {}
    for line in beside(settings, "seen").read_text().splitlines():
        if line.endswith("]"):  # whole: not cut off by a kill
            step, rank, indices = json.loads(line)
            seen[step, rank] = indices
    return seen


def start_one(settings: TrainConfig, context: Any) -> Process:
    """One process, from a server that has imported everything already."""
    process = context.Process(target=work, args=(settings,))
    process.start()
    return Process(
        process.is_alive, lambda: [process.pid] if process.is_alive() else [], lambda: process.exitcode == 0
    )


def start_many(settings: TrainConfig, processes: int, kills: int) -> Process:
    """Several processes under torchrun, which starts all of them again when one dies."""
    save_config(settings, beside(settings, "yaml"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [
        f"--max-restarts={kills + 1}",
        "--monitor-interval=0.2",
        __file__,
        "--work",
        f"{settings.run}.yaml",
    ]
    output = beside(settings, "out").open("a")
    runner = subprocess.Popen(command, stdout=output, stderr=output)

    def victims() -> list[int]:
        files = (beside(settings, f"pid{rank}") for rank in range(processes))
        pids = [int(file.read_text() or 0) for file in files if file.exists()]
        return [pid for pid in pids if pid and Path(f"/proc/{pid}").exists()]

    return Process(lambda: runner.poll() is None, victims, lambda: runner.returncode == 0)


# ---------------------------------------------------------------- killing and comparing
def checked(settings: TrainConfig) -> int:
    """Read all finished checkpoints in full and return their number. Raises UserError if one is damaged."""
    folders = checkpoint_folders(Path(settings.run))
    for folder in folders:
        try:
            inspect(folder)
        except UserError:
            if folder.exists():  # else the run removed it meanwhile, as its turn had come
                raise
    return len(folders)


def outcome(settings: TrainConfig) -> tuple[Any, ...]:
    """All that must not depend on the kills: files' checksums of the last checkpoint, log, images seen."""
    last = newest(Path(settings.run))
    assert last is not None and last.step == settings.steps
    index = json.loads((last.path / "checkpoint.json").read_text())
    tensors = {name: code for name, code in index["files"].items() if name.endswith(".distcp")}
    log = [[line[key] for key in MEASURED] for line in read_log(Path(settings.run, "log.jsonl"))]
    return tensors, log, images_seen(settings)


def differences(one: tuple[Any, ...], other: tuple[Any, ...]) -> list[str]:
    """What is not equal, in words."""
    names = ("weights, average or optimiser", "log", "images seen")
    return [name for name, a, b in zip(names, one, other, strict=True) if a != b]


def soak(kills: int, processes: int, steps: int, seed: int, folder: Path) -> int:
    """Run until `kills` kills have fallen; returns the number of things that went wrong."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pixelwright.training.trainer", "torch.distributed.checkpoint"])
    dice, wrong, done, runs, checks = random.Random(seed), 0, 0, 0, 0

    def start(settings: TrainConfig) -> Process:
        return start_one(settings, context) if processes == 1 else start_many(settings, processes, kills)

    for name in (
        "first",
        "undisturbed",
    ):  # the first waits for imports, the second tells how long a run takes
        begun = time.monotonic()
        undisturbed = config(folder / name, steps)
        process = start(undisturbed)
        while process.alive():
            time.sleep(0.01)
        duration = time.monotonic() - begun
    expected = outcome(undisturbed)
    bar = tqdm(total=kills, unit="kill")
    while done < kills:
        runs += 1
        settings = config(folder / f"run{runs}", steps)
        process, deadline = start(settings), time.monotonic() + PATIENCE
        while True:
            time.sleep(dice.uniform(0, duration * (0.6 if processes == 1 else 1.2)))
            if done < kills and (victims := process.victims()):
                os.kill(dice.choice(victims), signal.SIGKILL)
                done, deadline = done + 1, time.monotonic() + PATIENCE
                bar.update()
                checks += checked(settings)
            if process.alive() and done < kills:
                continue
            while process.alive() and time.monotonic() < deadline:
                time.sleep(0.02)
            if process.ended_well():
                break
            if time.monotonic() > deadline:
                print(f"run {runs} hangs", file=sys.stderr)
                return wrong + 1
            process = start(settings)
        for difference in differences(expected, outcome(settings)):
            print(f"run {runs}: {difference} differ", file=sys.stderr)
            wrong += 1
    bar.close()
    print(
        f"{done} kills over {runs} runs of {steps} steps, {processes} process(es): "
        f"{checks} checkpoints read back after a kill, {wrong} things wrong"
    )
    return wrong


def main() -> int:
    """Parse the arguments and soak."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60, help="length of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the delays")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(load_config(arguments.work))
        return 0
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        return int(
            soak(arguments.kills, arguments.processes, arguments.steps, arguments.seed, Path(folder)) > 0
        )


if __name__ == "__main__":
    sys.exit(main())
