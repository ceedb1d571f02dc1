"""One run, whatever the number of processes: the same samples, the same losses and weights to rounding.

Two gloo processes are started once for all runs of this file that need them (`pair`), since starting takes
longer than training. Every wait has an end.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from pixelwright.data import DataConfig
from pixelwright.training import (
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
    Trainer,
    parallel,
    save_config,
    train,
)
from pixelwright.training import checkpoint as checkpoints
from pixelwright.training.checkpoint import checkpoint_folders
from pixelwright.training.config import ParallelConfig

from .conftest import log_of
from .processes import record

STEPS, HALF = 8, 4
FSDP = ParallelConfig(mode="fsdp", timeout=60)
DDP = ParallelConfig(mode="ddp", timeout=60)
MODELS = {
    "dit": ModelConfig("dit-ti-4", hidden_size=16, depth=2, num_heads=2),
    "dip": ModelConfig("dip-ti-4", hidden_size=16, depth=2, num_heads=2),
    "pixeldit": ModelConfig("pixeldit-ti-4", hidden_size=16, depth=2, num_heads=2, placement="hybrid"),
}


def make(folder: Path, run: str, model: str = "dit", **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "model": MODELS[model],
        "data": DataConfig(path="shapes", size=8, shapes_count=24, flip=True),
        # Adam divides by the gradient's size; a larger eps keeps it from enlarging the rounding of tiny ones.
        "optim": OptimConfig(lr=1e-3, warmup=2, eps=1e-4),
        "sample": SampleConfig(count=4, steps=2),
        "steps": STEPS,
        "batch_size": 8,
        "ema_decay": 0.9,
        "device": "cpu",
        "log_every": 1,
        "checkpoint_every": HALF,
        "sample_every": HALF,
    }
    return TrainConfig(run=str(folder / run), **{**settings, **changes})


def torchrun(processes: int, *arguments: object, restarts: int = 0, timeout: int = 150) -> Any:
    """Run processes.py in so many processes; fails the test if it takes too long."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    source = Path(parallel.__file__).parents[2]
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")},
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(source),
        "PYTHONWARNINGS": "default",
    }
    script = Path(__file__).with_name("processes.py")
    words = [*command, str(script), *map(str, arguments)]
    # A session of its own: at a time-out nothing is left behind.
    with subprocess.Popen(
        words,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)


class Pair(NamedTuple):
    """What two processes did."""

    folder: Path
    job: Any
    seen: list[list[str]]
    """The samples of each step, of the run in one process."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Runs in one process, here, and then runs in two."""
    folder = tmp_path_factory.mktemp("pair")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for extra in ("matplotlib.figure", "torch.utils.tensorboard"):
            patch.setitem(sys.modules, extra, None)
        alone = Trainer(make(folder, "alone", accumulate=2))
        seen = record(alone)
        alone.run()
        for model in ("dip", "pixeldit"):
            train(make(folder, f"{model}-alone", model, steps=3))
    torch.set_num_threads(threads)
    half = checkpoint_folders(folder / "alone")[0]
    runs = {
        "ddp": (make(folder, "ddp", parallel=DDP), None),
        "fsdp": (make(folder, "fsdp", parallel=FSDP), None),
        "ddp-accumulate": (make(folder, "ddp-accumulate", accumulate=2), None),
        "fsdp-accumulate": (make(folder, "fsdp-accumulate", accumulate=2, parallel=FSDP), None),
        "fsdp-from-alone": (make(folder, "fsdp-from-alone", parallel=FSDP), half),
        "dip": (make(folder, "dip", "dip", steps=3, parallel=FSDP), None),
        "pixeldit": (
            make(
                folder,
                "pixeldit",
                "pixeldit",
                steps=3,
                parallel=dataclasses.replace(FSDP, checkpointing=True),
            ),
            None,
        ),
        "failing": (make(folder, "failing"), None),
    }
    listed = []
    for name, (config, resume) in runs.items():
        save_config(config, folder / f"{name}.yaml")
        fail_at = 6 if name == "failing" else None
        listed.append([name, str(folder / f"{name}.yaml"), resume and str(resume), fail_at])
    (folder / "runs.json").write_text(json.dumps(listed))
    return Pair(folder, torchrun(2, folder / "runs.json"), seen)


def report(pair: Pair, name: str) -> list[dict[str, Any]]:
    """What the two ranks wrote of a run."""
    try:
        return [json.loads((pair.folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    except FileNotFoundError:
        pytest.fail(f"{name} did not end:\n{pair.job.stderr[-4000:]}")


def same_losses(one: Path, other: Path) -> None:
    """Equal but for the order of float32 sums, which Adam's division carries from step to step."""
    for key in ("loss", "grad_norm"):
        first, second = ([line[key] for line in log_of(folder)] for folder in (one, other))
        assert len(first) == len(second) > 0
        assert second == pytest.approx(first, rel=1e-5)


def state_of(folder: Path, name: str) -> dict[str, dict[str, torch.Tensor]]:
    """The last checkpoint of a run, read by one process."""
    config = make(folder, "probe")
    trainer = Trainer(config, folder / name / "checkpoints" / f"step-{HALF:07d}")
    found = checkpoints.inspect(checkpoint_folders(folder / name)[-1])
    checkpoints.load(found, trainer.state())
    return trainer.state()


@pytest.mark.parametrize("name", ["ddp", "fsdp", "ddp-accumulate", "fsdp-accumulate"])
def test_two_processes_see_the_samples_of_one(pair: Pair, name: str) -> None:
    first, second = report(pair, name)
    assert len(pair.seen) == STEPS
    assert [a + b for a, b in zip(first["seen"], second["seen"], strict=True)] == pair.seen
    assert len({digest for step in pair.seen for digest in step}) == STEPS * 8


@pytest.mark.parametrize("name", ["ddp", "fsdp", "ddp-accumulate", "fsdp-accumulate"])
def test_two_processes_give_the_losses_and_weights_of_one(pair: Pair, name: str) -> None:
    report(pair, name)
    same_losses(pair.folder / "alone", pair.folder / name)
    expected, found = state_of(pair.folder, "alone"), state_of(pair.folder, name)
    assert expected.keys() == found.keys()
    for group, tensors in expected.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(found[group][key], tensor, rtol=1e-4, atol=2e-7, msg=f"{group}: {key}")
