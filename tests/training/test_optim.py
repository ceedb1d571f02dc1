"""Optimisers and schedules."""

import copy
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelwright.cli import train as command
from pixelwright.errors import UserError
from pixelwright.training import OptimConfig, build_trainer, train
from pixelwright.training.optim import build_optimizer, learning_rate, peak_note, update

from .conftest import Tiny, same_state

pytestmark = pytest.mark.usefixtures("no_extras")
CAME = OptimConfig(name="came", lr=1e-3, weight_decay=0.01)


def test_cosine_goes_from_lr_to_lr_end() -> None:
    config = OptimConfig(lr=2.0, schedule="cosine", lr_end=0.5, warmup=10)
    rates = [learning_rate(config, step, 110) for step in range(110)]
    assert rates[:3] == pytest.approx([0.2, 0.4, 0.6])
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.25)  # half way
    assert rates[109] == pytest.approx(0.5 + 1.5 * (1 + math.cos(math.pi * 99 / 100)) / 2)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_step_down_drops_at_its_step() -> None:
    config = OptimConfig(lr=1e-4, schedule="step-down", drop_at=5, lr_end=1e-5)
    assert [learning_rate(config, step, 9) for step in range(9)] == [1e-4] * 5 + [1e-5] * 4
    share = dataclasses.replace(config, drop_at="75%")
    assert [learning_rate(share, step, 8) for step in range(8)] == [1e-4] * 6 + [1e-5] * 2
    assert peak_note(share, 8) is None
    note = peak_note(config, 5)
    assert note is not None and "never drops: optim.drop_at is 5, the run has 5 steps" in note


@given(st.integers(1, 50), st.integers(0, 50), st.integers(100, 3000))
def test_shares_are_those_steps_of_any_run(warmup: int, cooldown: int, steps: int) -> None:
    shares = OptimConfig(lr=1.0, warmup=f"{warmup}%", cooldown=f"{cooldown}%")
    counts = OptimConfig(lr=1.0, warmup=round(warmup / 100 * steps), cooldown=round(cooldown / 100 * steps))
    for step in (0, steps // 3, steps - 1):
        assert learning_rate(shares, step, steps) == learning_rate(counts, step, steps)


def test_a_schedule_without_room_tells_its_peak() -> None:
    config = OptimConfig(lr=2e-3, warmup=200, cooldown=1500)
    peak = max(learning_rate(config, step, 200) for step in range(200))
    assert peak < 2e-3 / 20
    note = peak_note(config, 200)
    assert note is not None and f"peaks at {peak:.2g} instead of 0.002" in note
    assert peak_note(config, 6000) is None
    assert peak_note(dataclasses.replace(config, warmup="3%", cooldown="25%"), 200) is None


@pytest.mark.parametrize("share", ["101%", "-1%", "3", "x%", "nan%", "%"])
def test_a_share_is_a_percentage(share: str) -> None:
    with pytest.raises(UserError, match=r"optim\.warmup is .*a share of the run, such as 3%"):
        OptimConfig(lr=1.0, warmup=share)


@given(
    st.sampled_from(["constant", "cosine", "step-down"]),
    st.integers(0, 30),
    st.integers(1, 60),
    st.integers(0, 59),
)
def test_the_rate_stays_between_nothing_and_lr(schedule: Any, warmup: int, steps: int, step: int) -> None:
    more = {"lr_end": 1e-5, "drop_at": 7} if schedule == "step-down" else {}
    config = OptimConfig(lr=1e-3, warmup=warmup, schedule=schedule, **more)
    assert 0 < learning_rate(config, min(step, steps - 1), steps) <= 1e-3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schedule": "cosine", "cooldown": 5}, "optim.cooldown is 5, which the schedule cosine has no use"),
        ({"lr_end": 1e-6}, "give --optim.schedule cosine or step-down"),
        ({"drop_at": 5}, "give --optim.schedule step-down"),
        ({"schedule": "step-down", "drop_at": 5}, "give optim.drop_at and optim.lr_end"),
        ({"schedule": "cosine", "lr_end": 1.0}, "optim.lr_end is 1.0: give at most optim.lr"),
        ({"schedule": "cosin"}, 'did you mean "cosine"'),
        ({"name": "adam"}, 'did you mean "adamw"'),
        ({"name": "came", "betas": (0.9, 0.99)}, "give 3 numbers for came"),
        ({"name": "came", "eps": 1e-8}, "which came has no use for"),
    ],
)
def test_settings_that_do_nothing_are_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        OptimConfig(**changes)
    assert told in str(error.value)


@pytest.mark.parametrize("place", ["options", "file"])
@pytest.mark.parametrize("name", ["adamw", "muon", "came"])
def test_the_command_takes_the_defaults_of_the_chosen_optimiser(
    tmp_path: Path, name: Any, place: str
) -> None:
    words = ["--run", "run", "--model.preset", "dit-ti-4", "--optim.name", name]
    if place == "file":
        (tmp_path / "run.yaml").write_text(
            f"run: run\nmodel: {{preset: dit-ti-4}}\noptim: {{name: {name}}}\n"
        )
        words = ["--config", str(tmp_path / "run.yaml")]
    config = command.config_of(command.parser().parse(words))
    assert config.optim == OptimConfig(name=name)
    betas = str([0.5] * len(config.optim.betas or ()))
    given = command.config_of(command.parser().parse([*words, "--optim.betas", betas]))
    assert given.optim == OptimConfig(name=name, betas=(0.5,) * len(config.optim.betas or ()))


def gradients(shape: tuple[int, ...], steps: int) -> torch.Tensor:
    return torch.randn(steps, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 3, 2, 2)])
def test_came_is_the_packages_own(shape: tuple[int, ...]) -> None:
    from came_pytorch import CAME as Own

    start = gradients(shape, 1)[0]
    p, q = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours, own = build_optimizer([("p", p)], CAME), Own([q], lr=1e-3, weight_decay=0.01)
    for step, gradient in enumerate(gradients(shape, 6)):
        p.grad, q.grad = gradient.clone(), gradient.clone()
        update(ours, 1e-3, torch.tensor(step != 3))  # the fourth is not finite, say
        if step != 3:
            own.step()
    assert not torch.equal(p, start)
    assert torch.equal(p, q)


@pytest.mark.parametrize(
    "config", [CAME, OptimConfig(name="muon", lr=1e-3), OptimConfig(lr=1e-3)], ids=lambda config: config.name
)
def test_continued_run_ends_alike(tiny: Tiny, config: OptimConfig) -> None:
    train(tiny("whole", optim=config))
    train(tiny("parts", optim=config, steps=10))
    train(tiny("parts", optim=config))
    whole, parts = (build_trainer(tiny(name, optim=config)).state() for name in ("whole", "parts"))
    assert any("exp_avg_res_row" in key for key in whole["optimizer"]) == (config.name == "came")
    same_state(whole, parts)


def test_came_without_its_package(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "came_pytorch", None)
    with pytest.raises(UserError, match=r"pixelwright\[came\]"):
        build_trainer(tiny(optim=CAME))


def test_a_step_that_is_not_finite_leaves_came_as_it_was(tiny: Tiny) -> None:
    trainer = build_trainer(tiny(optim=CAME))
    batch = next(trainer._inputs())
    trainer.train_step(batch)
    before = copy.deepcopy(trainer.state())
    trainer.train_step(batch._replace(images=batch.images * float("nan")))
    after = trainer.state()
    for group in ("model", "optimizer"):
        same_state({group: before[group]}, {group: after[group]})
