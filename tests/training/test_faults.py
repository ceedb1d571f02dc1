"""Runs that meet with faults: spikes of the gradient and the answers to them, data and workers that fail."""

import dataclasses
import itertools
import logging
import os
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelwright.data import Batches, DataConfig, Sample, open_source
from pixelwright.errors import UserError
from pixelwright.training import Interrupted, OptimConfig, TrainConfig, Trainer, build_trainer, train
from pixelwright.training.config import HealthConfig
from pixelwright.training.inputs import Inputs
from tests.datasets.conftest import make_tar, png
from tests.datasets.test_shards import damaged, numbered

from .conftest import Tiny, log_of, same_state

pytestmark = pytest.mark.usefixtures("no_extras")
FACTOR = 1e4
BAD = 17  # the batch that makes the spike, counted from 0: step 18
Settings = Callable[..., TrainConfig]


@pytest.fixture
def spiky(tiny: Tiny) -> Settings:
    """Makes configs of runs that look for spikes."""

    def make(run: str, on_spike: Any, **changes: Any) -> TrainConfig:
        health = HealthConfig(on_spike=on_spike, window=16, threshold=50)
        settings = {"steps": 24, "checkpoint_every": 7, "optim": OptimConfig(lr=1e-3), "health": health}
        return tiny(run, **{**settings, **changes})

    return make


def spike(trainer: Trainer, batches: Collection[int] = (BAD,)) -> Trainer:
    """Make the gradients of some batches, counted from 0, 1e4 times as large."""
    prepare, gradients, current = trainer.prepare, trainer.gradients, [-1]

    def prepared(batch: Any, number: int) -> Inputs:
        current[0] = number
        return prepare(batch, number)

    def spiked(inputs: Inputs) -> Any:
        found = gradients(inputs)
        for p in trainer.parameters if current[0] in batches else ():
            assert p.grad is not None
            p.grad.mul_(FACTOR)
        return found

    trainer.prepare, trainer.gradients = prepared, spiked  # type: ignore[method-assign]
    return trainer


def around(trainer: Trainer, step: int) -> list[dict[str, dict[str, Tensor]]]:
    """Copies of the state before and after `step`, counted from 1, filled in while the trainer runs."""
    copies: list[dict[str, dict[str, Tensor]]] = []
    train_step = trainer.train_step

    def watched(inputs: Inputs) -> None:
        if trainer.step + 1 == step:
            copies.append(copied(trainer))
        train_step(inputs)
        if trainer.step == step:
            copies.append(copied(trainer))

    trainer.train_step = watched  # type: ignore[method-assign]
    return copies


def copied(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    return {group: {k: v.clone() for k, v in tensors.items()} for group, tensors in trainer.state().items()}


def first_moment(state: dict[str, dict[str, Tensor]]) -> Tensor:
    """Adam's running mean of the gradients as one vector."""
    return torch.cat([v.flatten() for k, v in state["optimizer"].items() if k.endswith("exp_avg")])


def test_without_an_answer_a_spike_goes_into_the_optimiser(spiky: Settings) -> None:
    trainer = spike(build_trainer(spiky("run", "off", optim=OptimConfig(lr=1e-3, clip=None))))
    copies = around(trainer, BAD + 1)
    lines = log_of(trainer.run())
    before, after = copies
    gradient = (first_moment(after) - 0.9 * first_moment(before)) / 0.1
    assert float(gradient.norm()) == pytest.approx(lines[BAD]["grad_norm"], rel=1e-3)
    assert lines[BAD]["grad_norm"] > 1000 * lines[BAD - 1]["grad_norm"]
    assert not any("event" in line for line in lines)


def test_clip_scales_the_gradient_to_the_usual_norm(spiky: Settings) -> None:
    trainer = spike(build_trainer(spiky("run", "clip", optim=OptimConfig(lr=1e-3, clip=None))))
    copies = around(trainer, BAD + 1)
    lines = log_of(trainer.run())
    gradient = (first_moment(copies[1]) - 0.9 * first_moment(copies[0])) / 0.1
    usual = sorted(line["grad_norm"] for line in lines[BAD - 16 : BAD])[7]  # the lower median of the window
    assert float(gradient.norm()) == pytest.approx(usual, rel=1e-3)


def test_skip_changes_neither_weights_nor_optimiser(spiky: Settings) -> None:
    trainer = spike(build_trainer(spiky("run", "skip")))
    copies = around(trainer, BAD + 1)
    lines = log_of(trainer.run())
    for group in ("model", "optimizer"):
        same_state({group: copies[0][group]}, {group: copies[1][group]})
    assert [line["skipped"] for line in lines] == [0] * 24  # that counts steps that are not finite


@pytest.mark.parametrize("on_spike", ["clip", "skip"])
def test_spikes_are_told(spiky: Settings, on_spike: str, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = spike(build_trainer(spiky("run", on_spike, log_every=8)), {BAD, BAD + 2})
    lines = log_of(trainer.run())
    assert [line.get("event", {}).get("spikes") for line in lines] == [None, None, 2]
    event = lines[-1]["event"]
    assert event["on_spike"] == on_spike and event["step"] in (BAD + 1, BAD + 3)
    assert event["grad_norm"] > 1000 and event["loss"] < 10 and event["z"] > 50
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("spike at step")]
    assert len(told) == 1 and "the highest of 2" in told[0]


@pytest.mark.parametrize("on_spike", ["clip", "skip"])
def test_no_spike_no_difference(spiky: Settings, on_spike: str) -> None:
    train(spiky("off", "off"))
    train(spiky(on_spike, on_spike))
    states = [build_trainer(spiky(name, name)).state() for name in ("off", on_spike)]
    same_state(*({k: v for k, v in state.items() if k != "health"} for state in states))


def stop_at(trainer: Trainer, step: int, kill: bool) -> None:
    """Stop a run after `step`, with or without saving."""
    train_step = trainer.train_step

    def stopping(inputs: Inputs) -> None:
        train_step(inputs)
        if trainer.step == step:
            if kill:
                raise InterruptedError
            trainer.request_stop()

    trainer.train_step = stopping  # type: ignore[method-assign]
    with pytest.raises(InterruptedError if kill else Interrupted):
        trainer.run()


KEYS = ("step", "loss", "grad_norm", "lr", "skipped", "loss_by_time", "event")


@pytest.mark.parametrize("on_spike", ["clip", "skip"])
@pytest.mark.parametrize(("step", "kill"), [(BAD, False), (BAD + 1, False), (BAD + 2, True)])
def test_stopped_around_a_spike_and_continued(spiky: Settings, on_spike: str, step: int, kill: bool) -> None:
    config = spiky("undisturbed", on_spike, log_every=5)
    spike(build_trainer(config)).run()
    stopped = dataclasses.replace(config, run=str(Path(config.run).with_name("stopped")))
    stop_at(spike(build_trainer(stopped)), step, kill)
    spike(build_trainer(stopped)).run()
    same_state(build_trainer(config).state(), build_trainer(stopped).state())
    first, second = (
        [{key: line.get(key) for key in KEYS} for line in log_of(Path(c.run))] for c in (config, stopped)
    )
    assert first == second
    assert [line["event"] is not None for line in first] == [False, False, False, True, False]


def test_a_new_run_may_look_for_spikes_in_another_way(spiky: Settings) -> None:
    first = spiky("first", "off", steps=7)
    train(first)
    wider = HealthConfig(on_spike="skip", window=20, threshold=50)
    lines = log_of(train(spiky("second", "skip", steps=9, health=wider), resume=first.run))
    assert [line["step"] for line in lines] == [8, 9]


# ---------------------------------------------------------------- data and workers that fail
class Faulty:
    """A run's images; reading number `index` in a worker does `fault`, as often as `times` says."""

    def __init__(self, source: Any, notes: Path, fault: str, index: int, times: int = 1):
        self.source, self.notes, self.fault, self.index, self.times = source, notes, fault, index, times
        self.home = os.getpid()
        notes.mkdir()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        done = len(list(self.notes.iterdir()))
        if index == self.index and os.getpid() != self.home and done < self.times:
            (self.notes / str(done)).touch()
            if self.fault == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        sample: Sample = self.source[index]
        return sample


AT = 6  # the batch whose reading fails, counted from 0; checkpoints are at 5 and 9
STALL = DataConfig(path="shapes", size=8, shapes_count=48, workers=1, cache="none", stall_seconds=2)


def faulty(config: TrainConfig, notes: Path, fault: str, times: int) -> Trainer:
    """A run whose first image of batch AT makes its worker die or stall."""
    source = open_source(config.data)
    batches = Batches(source, dataclasses.replace(config.data, workers=0), 4, config.seed)
    batch = next(itertools.islice(batches, AT, None))
    return build_trainer(config, source=Faulty(source, notes, fault, int(batch.indices[0]), times))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of forking
@pytest.mark.parametrize(
    ("fault", "said"), [("dies", "was killed by SIGKILL"), ("stalls", "no batch for 2 s")]
)
def test_a_worker_that_fails_once_changes_no_bit(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str, said: str
) -> None:
    config = tiny("run", steps=9, data=STALL)
    with caplog.at_level(logging.WARNING):
        faulty(config, tmp_path / "notes", fault, times=1).run()
    assert said in caplog.text and "starting the workers anew" in caplog.text
    undisturbed = tiny("undisturbed", steps=9, data=dataclasses.replace(STALL, workers=0))
    train(undisturbed)
    same_state(build_trainer(config).state(), build_trainer(undisturbed).state())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_that_always_fail_stop_the_run_with_its_checkpoint_good(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixelwright.data.workers.RESTARTS", 1)
    config = tiny("run", steps=9, data=STALL)
    with pytest.raises(UserError, match=r"images of step [56] failed 2 times: worker .* SIGKILL"):
        faulty(config, tmp_path / "notes", "dies", times=99).run()
    here = dataclasses.replace(config, data=dataclasses.replace(STALL, workers=0))
    assert build_trainer(here).step == 5
    train(here)
    undisturbed = dataclasses.replace(here, run=str(tmp_path / "undisturbed"))
    train(undisturbed)
    same_state(build_trainer(here).state(), build_trainer(undisturbed).state())


def test_a_damaged_shard_and_a_damaged_image_are_left_out(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes on, is continued, and ends as one on the shards that are whole."""
    monkeypatch.setenv("PIXELWRIGHT_CACHE", str(tmp_path / "cache"))
    shards, whole = tmp_path / "shards", tmp_path / "whole"
    for folder in (shards, whole):
        numbered(folder / "1.tar", 10, 10)
        make_tar(folder / "2.tar", {"0020.png": png(20)[:40], "0020.cls": b"0"})
    bad = numbered(shards / "0.tar", 0, 10)
    bad.write_bytes(damaged(bad.read_bytes(), "cut short"))
    config, other = (
        tiny(run, steps=8, data=DataConfig(path=str(folder), size=8, cache="none"))
        for run, folder in (("run", shards), ("other", whole))
    )
    with caplog.at_level(logging.WARNING):
        train(dataclasses.replace(config, steps=5))
        assert build_trainer(config).step == 5
        train(config)
    assert f'left out "{bad}"' in caplog.text and "2.tar/0020" in caplog.text
    train(other)
    same_state(build_trainer(config).state(), build_trainer(other).state())
