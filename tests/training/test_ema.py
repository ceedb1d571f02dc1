"""Several averages: their formulas, their names, exact resume, export."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import pixelwright as pw
from pixelwright.cli.evaluate import name_of
from pixelwright.cli.main import main
from pixelwright.errors import UserError
from pixelwright.evaluation.generate import checksum
from pixelwright.hub.checkpoint import is_model
from pixelwright.images import load_png
from pixelwright.training import build_trainer, train
from pixelwright.training.ema import EMA, WIDEST, power_exponent, read_rule

from .conftest import Tiny, same_state

pytestmark = pytest.mark.usefixtures("no_extras")
MORE = (0.5, "power-0.1")


@given(st.floats(0.001, WIDEST - 1e-6))
def test_the_exponent_gives_the_width(sigma_rel: float) -> None:
    gamma = power_exponent(sigma_rel)
    # the largest real root of EDM2's polynomial, and the standard deviation of the profile itself
    roots = np.roots([1, 7, 16 - sigma_rel**-2, 12 - sigma_rel**-2])
    assert gamma == pytest.approx(max(root.real for root in roots), rel=1e-6, abs=1e-6)
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    assert (square - mean**2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-4)


@given(st.integers(1, 40), st.floats(0.02, 0.28))
def test_a_power_average_weighs_step_i_with_a_power_of_it(steps: int, sigma_rel: float) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(model.state_dict(), 0.0, [f"power-{sigma_rel!r}"])
    values = np.random.default_rng(0).normal(size=steps)
    for step, value in enumerate(values, start=1):
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update(step)
    betas = [(1 - 1 / i) ** (power_exponent(sigma_rel) + 1) for i in range(1, steps + 1)]
    weights = [(1 - b) * np.prod(betas[i + 1 :]) for i, b in enumerate(betas)]
    assert sum(weights) == pytest.approx(1)  # nothing of the random start is left
    (average,) = ema.others.values()
    assert float(average["weight"]) == pytest.approx(float(np.dot(weights, values)), rel=1e-4, abs=1e-5)
    assert float(ema.weights["weight"]) == pytest.approx(values[-1], rel=1e-6)


@pytest.mark.parametrize("rule", ["power-0", "power-0.29", "power-", "powr-0.1", "often", 1, -0.1, "nan"])
def test_no_rule(rule: float | str) -> None:
    with pytest.raises(UserError, match="is no average"):
        read_rule(rule)


def test_one_average_twice_is_told(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="one is there twice"):
        tiny(ema_more=(0.5, "0.9"))


def test_continued_run_has_the_same_averages(tiny: Tiny) -> None:
    whole = tiny("whole", ema_more=MORE)
    train(whole)
    train(tiny("parts", ema_more=MORE, steps=10))
    train(tiny("parts", ema_more=MORE))
    whole_state, parts = build_trainer(whole).state(), build_trainer(tiny("parts", ema_more=MORE)).state()
    assert {"ema", "ema-0.5", "ema-power-0.1"} <= set(whole_state)
    same_state(whole_state, parts)


def test_further_averages_change_nothing_else(tiny: Tiny) -> None:
    for name, more in (("one", ()), ("three", MORE)):
        train(tiny(name, ema_more=more))
    one, three = build_trainer(tiny("one")).state(), build_trainer(tiny("three", ema_more=MORE)).state()
    same_state(one, {group: three[group] for group in one})


def test_convert_writes_the_average_that_is_named(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(ema_more=MORE)
    run = train(config)
    state = build_trainer(config).state()
    for name, group in (("0.9", "ema"), ("0.5", "ema-0.5"), ("power-0.1", "ema-power-0.1")):
        out = tmp_path / f"out-{name}"
        assert main(["convert", str(run), str(out), "--weights", name]) == 0
        same_state({"w": load_file(out / "model.safetensors")}, {"w": state[group]})
    assert main(["convert", str(run), str(tmp_path / "no"), "--weights", "power-0.2"]) == 2
    assert 'keeps no weights "power-0.2", did you mean "power-0.1"' in capsys.readouterr().err
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    assert main(["convert", str(tmp_path / "empty"), str(tmp_path / "no"), "--weights", "0.5"]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_any_weights_of_any_checkpoint_are_loaded(tiny: Tiny, tmp_path: Path) -> None:
    run = train(tiny(ema_more=MORE, steps=10, keep=2))
    early, late = run / "checkpoints" / "step-0000005", run / "checkpoints" / "step-0000010"
    model = pw.load(run).state_dict()
    for source in (run, late):
        same_state({"w": pw.load(source, "ema").state_dict()}, {"w": model})
    same_state({"w": pw.load(late).state_dict()}, {"w": model})
    state = build_trainer(tiny(ema_more=MORE, steps=10)).state()
    same_state({"w": pw.load(run, "raw").state_dict()}, {"w": state["model"]})
    raw, average = (pw.load(early, name).state_dict() for name in ("raw", None))
    assert any(not torch.equal(raw[name], average[name]) for name in raw)
    early.rename(tmp_path / "alone")
    with pytest.raises(UserError, match="is a checkpoint without its run"):
        pw.load(tmp_path / "alone")
    with pytest.raises(UserError, match="one set of weights"):
        pw.load(run / "model", "raw")


def test_sample_draws_from_a_step_and_from_raw_weights(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny(steps=10, keep=2))
    drawn = {}
    for name, more in (("early", ["--step", "5"]), ("late", []), ("raw", ["--weights", "raw"])):
        out = tmp_path / name
        assert main(["sample", str(run), *more, "--labels", "0", "--out", str(out)]) == 0
        (line,) = (json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines())
        drawn[name] = load_png(out / line["file"])
        assert line.get("weights") == ("raw" if name == "raw" else None)
        assert line["model"] == str(run / "checkpoints" / "step-0000005" if name == "early" else run)
    assert not torch.equal(drawn["early"], drawn["late"]) and not torch.equal(drawn["raw"], drawn["late"])
    assert main(["sample", str(run), "--step", "7", "--labels", "0", "--out", str(tmp_path / "no")]) == 2
    assert "those of" in (told := capsys.readouterr().err) and "are of step 5, 10" in told


def test_a_report_calls_a_checkpoint_by_run_and_step(tiny: Tiny) -> None:
    run = train(tiny(steps=5))
    assert name_of(str(run)) == name_of(str(run / "model")) == "run"
    assert name_of(str(run), "raw") == "run raw"
    assert name_of(str(run / "checkpoints" / "step-0000005"), "raw") == "run raw step-0000005"
    assert is_model(str(run / "checkpoints" / "step-0000005"))
    digests = {checksum(run, weights) for weights in ("raw", "ema")}
    assert len(digests) == 2
