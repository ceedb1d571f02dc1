"""Spikes that persist: the run goes back to a good checkpoint and past the batches that it had seen."""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from pixelwright.data import Batches, open_source
from pixelwright.distributed.checkpoint import checkpoint_folders, superseded
from pixelwright.errors import UserError
from pixelwright.training import OptimConfig, TrainConfig, Trainer, build_trainer
from pixelwright.training.config import HealthConfig
from pixelwright.training.health import Detector
from pixelwright.training.inputs import Inputs
from pixelwright.training.report import events_of

from .conftest import Tiny, log_of, same_state
from .test_faults import KEYS, spike

pytestmark = pytest.mark.usefixtures("no_extras")
EVERY, PERSIST, STEPS = 4, 3, 30
BAD = range(
    15, 18
)  # batches, counted from 0; noticed at step 18 and acted on at 21: checkpoints are at 8 to 20
Settings = Callable[..., TrainConfig]


@pytest.fixture
def rolling(tiny: Tiny) -> Settings:
    """Makes configs of runs that roll back: with the bad batches from step 21 to step 8."""

    def make(run: str, health: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
        settings = {"window": 12, "threshold": 50, "patience": PERSIST, "rollback_lr": 0.5, **(health or {})}
        settings["on_spike"] = "rollback"
        usual = {"steps": STEPS, "checkpoint_every": EVERY, "keep": 4, "optim": OptimConfig(lr=1e-3)}
        return tiny(run, health=HealthConfig(**settings), **{**usual, **changes})  # type: ignore[arg-type]

    return make


def watched(
    trainer: Trainer, batches: Collection[int] = BAD, values: float | None = None
) -> list[tuple[int, int]]:
    """(step, number of its batch), each counted from 0, filled in while the trainer runs with bad batches."""
    seen: list[tuple[int, int]] = []
    spike(trainer, batches) if values is None else poison(trainer, batches, values)
    prepare, train_step, number = trainer.prepare, trainer.train_step, [-1]

    def prepared(batch: Any, current: int) -> Inputs:
        number[0] = current
        return prepare(batch, current)

    def step(inputs: Inputs) -> None:
        seen.append((trainer.step, number[0]))
        train_step(inputs)

    trainer.prepare, trainer.train_step = prepared, step  # type: ignore[method-assign]
    return seen


def poison(trainer: Trainer, batches: Collection[int], value: float) -> None:
    """Images that are no numbers in some batches."""
    prepare = trainer.prepare

    def poisoned(batch: Any, number: int) -> Inputs:
        inputs = prepare(batch, number)
        return inputs._replace(images=inputs.images * value) if number in batches else inputs

    trainer.prepare = poisoned  # type: ignore[method-assign]


@pytest.mark.parametrize("values", [None, float("nan"), float("inf")])
def test_it_goes_back_and_past_the_batches_it_has_seen(
    rolling: Settings, values: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = build_trainer(rolling("run"))
    seen = watched(trainer, BAD, values)
    lines = log_of(trainer.run())
    assert seen == [(k, k) for k in range(21)] + [(k, k + 13) for k in range(8, STEPS)]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["lr"] for line in lines] == [1e-3] * 8 + [5e-4] * (STEPS - 8)
    assert [line.get("rollbacks") for line in lines] == [None] * 8 + [[[21, 8]]] * (STEPS - 8)
    assert [step for step, text in events_of(lines) if "rolled back" in text] == [9]
    assert lines[-1]["skipped"] == 0 and not any("event" in line for line in lines)
    assert "rolled back to the checkpoint of step 8" in capsys.readouterr().err
    for tensors in trainer.state().values():
        assert all(torch.isfinite(tensor).all() for name, tensor in tensors.items() if name != "window")


def test_after_it_the_run_is_one_that_began_at_the_checkpoint_with_later_batches(rolling: Settings) -> None:
    """Every tensor of the end, by another way: steps 1 to 8, then batches 21, 22, ... at half the rate."""
    trainer = build_trainer(rolling("run"))
    watched(trainer)
    trainer.run()
    other = build_trainer(rolling("other"))
    config = rolling("other")
    batches = iter(Batches(open_source(config.data), config.data, config.batch_size, config.seed))
    numbered = dict(zip(range(21 - 8 + STEPS), batches, strict=False))
    for number in [*range(8), *range(21, 21 + STEPS - 8)]:
        if number == 21:
            other.rollbacks.rows[0] = torch.tensor([21, 8])
        other.train_step(other.prepare(numbered[number], number))
    for group in ("model", "ema", "optimizer"):
        same_state({group: trainer.state()[group]}, {group: other.state()[group]})


@pytest.mark.parametrize(
    ("stop", "kill"), [(17, False), (9, True), (13, False), (19, True), (20, False), (22, True)]
)
def test_stopped_before_or_after_it_and_continued(rolling: Settings, stop: int, kill: bool) -> None:
    """`stop`: the step; from 18 to 21 the rollback is foreseen, and the others but 17 come after it."""
    config = rolling("undisturbed", log_every=5)
    undisturbed = build_trainer(config)
    watched(undisturbed)
    undisturbed.run()
    stopped = dataclasses.replace(config, run=str(Path(config.run).with_name("stopped")))
    trainer = build_trainer(stopped)
    watched(trainer)
    stop_after(trainer, stop, times=1 if stop in (17, 19, 20, 22) else 2, kill=kill)
    again = build_trainer(stopped)
    watched(again)
    again.run()
    same_state(build_trainer(config).state(), build_trainer(stopped).state())
    keys = (*KEYS, "rollbacks")
    first, second = (
        [{k: line.get(k) for k in keys} for line in log_of(Path(c.run))] for c in (config, stopped)
    )
    assert first == second
    names = [[folder.name for folder in checkpoint_folders(Path(c.run))] for c in (config, stopped)]
    assert names[0] == names[1]


def stop_after(trainer: Trainer, step: int, times: int, kill: bool) -> None:
    """Stop a run when it has taken `step` for the `times`-th time."""
    train_step, left = trainer.train_step, [times]

    def counting(inputs: Inputs) -> None:
        train_step(inputs)
        left[0] -= trainer.step == step
        if trainer.step == step and left[0] == 0:
            if kill:
                raise InterruptedError
            trainer.request_stop()

    trainer.train_step = counting  # type: ignore[method-assign]
    with pytest.raises((InterruptedError, KeyboardInterrupt)):
        trainer.run()


def test_twice_and_then_it_stops(rolling: Settings) -> None:
    """Spikes that come again soon after a rollback lead further back, at most so often."""
    config = rolling("run", {"max_rollbacks": 2})
    trainer = build_trainer(config)
    seen = watched(trainer, range(15, 1000))
    with pytest.raises(UserError, match=r"after 2 rollbacks .*step-0000008 is good"):
        trainer.run()
    assert not {number for _, number in seen[:21]} & {number for _, number in seen[21:]}
    assert trainer.rollbacks.rows[:3].tolist() == [[21, 8], [15, 8], [0, 0]]
    assert trainer.rollbacks.lr_factor == 0.25


def test_without_a_checkpoint_the_steps_are_left_out(
    rolling: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = build_trainer(rolling("run", checkpoint_every=100))
    seen = watched(trainer)
    lines = log_of(trainer.run())
    assert seen == [(k, k) for k in range(STEPS)]
    assert sum(line.get("event", {}).get("spikes", 0) for line in lines) == 3
    assert "no checkpoint to go back to" in capsys.readouterr().err


def test_spikes_that_do_not_persist_are_left_out(rolling: Settings) -> None:
    trainer = build_trainer(rolling("run"))
    seen = watched(trainer, (15, 16, 19, 20))
    lines = log_of(trainer.run())
    assert seen == [(k, k) for k in range(STEPS)]
    assert sum("event" in line for line in lines) == 4


def test_in_a_row_is_spikes_and_steps_that_are_not_finite() -> None:
    detector = Detector(HealthConfig(on_spike="rollback", window=10, patience=2), torch.device("cpu"))
    values = [1.0] * 10 + [99.0, float("nan"), 99.0, 1.0, 99.0]
    rows = []
    for step, value in enumerate(values, start=1):
        detector.check(step, torch.tensor(value), torch.tensor(1.0), None)
        rows.append((int(detector.in_a_row), detector.persisting(step)))
    # Looked up after step 12, acted on after step 14: the steps before the spikes are 1 to 10.
    assert rows[10:] == [(1, None), (2, None), (3, None), (0, 10), (1, None)]


def test_interruptions_do_not_displace_the_checkpoints_that_count(tmp_path: Path) -> None:
    folders = [tmp_path / f"step-{step:07d}" for step in (5, 10, 12, 15, 17)]
    names = {step: folder for step, folder in zip((5, 10, 12, 15, 17), folders, strict=True)}
    assert superseded(folders, keep=2, counted_every=5) == [names[5], names[12]]
    assert superseded(folders, keep=2) == [names[5], names[10], names[12]]
    assert superseded(folders, keep=1, keep_every=5) == [names[12]]
