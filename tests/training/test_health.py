"""What a run measures of itself is right, and measuring changes nothing; what is a spike."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from pixelwright.distributed import checkpoint as checkpoints
from pixelwright.training import ModelConfig, Trainer, build_trainer, train
from pixelwright.training.config import HealthConfig
from pixelwright.training.health import BUCKETS, Detector, by_time
from pixelwright.training.inputs import Inputs

from .conftest import Tiny, log_of, same_state

pytestmark = pytest.mark.usefixtures("no_extras")
MODELS = {
    "dit": ModelConfig("dit-ti-4", hidden_size=16, depth=2, num_heads=2),
    "dip": ModelConfig("dip-ti-4", hidden_size=16, depth=2, num_heads=2),
    "pixeldit": ModelConfig("pixeldit-ti-4", hidden_size=16, depth=2, num_heads=2, placement="hybrid"),
}
MEASURED = ("loss_by_time", "activation_rms", "update_ratio")


def inputs_of(trainer: Trainer) -> Inputs:
    return trainer.prepare(next(iter(trainer.data(0))), 0)  # type: ignore[operator]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 10, width=32), st.floats(0, 1, width=32)), min_size=1, max_size=20))
def test_every_loss_is_in_the_tenth_of_its_time(pairs: list[tuple[float, float]]) -> None:
    losses, t = torch.tensor(pairs).T
    sums, counts = by_time(losses, t)
    for k in range(BUCKETS):
        inside = [x for x, time in pairs if min(int(torch.tensor(time) * BUCKETS), BUCKETS - 1) == k]
        assert counts[k] == len(inside)
        assert float(sums[k]) == pytest.approx(sum(inside), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("model", list(MODELS))
def test_measuring_changes_no_bit(tiny: Tiny, model: str) -> None:
    states = []
    for every in (0, 1, 3):
        config = tiny(f"every{every}", steps=4, model=MODELS[model], health=HealthConfig(every))
        lines = log_of(train(config))
        state = build_trainer(config).state()
        del state["health"]
        states.append(state)
        assert ["loss_by_time" in line for line in lines] == [every > 0] * 4
        for key in ("activation_rms", "update_ratio"):
            assert [key in line for line in lines] == [
                bool(every) and step % every == 0 for step in range(1, 5)
            ]
    same_state(states[0], states[1])
    same_state(states[0], states[2])


def test_the_mean_over_the_times_is_the_loss(tiny: Tiny) -> None:
    trainer = build_trainer(tiny(batch_size=8))
    inputs = inputs_of(trainer)
    losses, _ = trainer.gradients(inputs)
    trainer.train_step(inputs)
    expected = [losses[(inputs.t >= k / 10) & (inputs.t < (k + 1) / 10)] for k in range(BUCKETS)]
    found = trainer.health.read()["loss_by_time"]
    assert [value is None for value in found] == [len(part) == 0 for part in expected]
    present = [float(part.mean()) for part in expected if len(part)]
    assert [value for value in found if value is not None] == pytest.approx(present, rel=1e-5)
    assert trainer.meter.read().loss == pytest.approx(float(losses.mean()), rel=1e-6)
    assert trainer.health.read()["loss_by_time"] == [None] * BUCKETS


@pytest.mark.parametrize("accumulate", [1, 4])
def test_updates_and_activations_are_those_of_the_step(tiny: Tiny, accumulate: int) -> None:
    config = tiny(model=MODELS["pixeldit"], accumulate=accumulate, health=HealthConfig(1))
    trainer = build_trainer(config)
    inputs = inputs_of(trainer)
    with torch.no_grad():
        for p in trainer.parameters:  # zero layers at the start would leave nothing to measure
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.02)
    seen = {}
    block = trainer.model.backbone.blocks[-1]
    hook = block.register_forward_hook(lambda module, inputs, output: seen.update(tokens=output))
    with torch.no_grad():
        x = inputs.t[:, None, None, None] * inputs.images + (1 - inputs.t[:, None, None, None]) * inputs.noise
        trainer.model(x, inputs.t, inputs.condition)
    hook.remove()
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train_step(inputs)
    line = trainer.health.read()
    assert set(line["activation_rms"]) == {"backbone", "detailer", "middle", "middle_to_tokens"}
    rms = float(seen["tokens"].square().mean().sqrt())
    assert line["activation_rms"]["backbone"] == pytest.approx(rms, rel=1e-5)
    for stage in line["update_ratio"]:
        pairs = [
            (p.detach(), before[name])
            for name, p in trainer.model.named_parameters()
            if name.split(".")[0] == stage
        ]
        change = sum(float((p - q).square().sum()) for p, q in pairs)
        size = sum(float(q.square().sum()) for _, q in pairs)
        assert line["update_ratio"][stage] == pytest.approx((change / size) ** 0.5, rel=1e-4)
    assert set(trainer.health.read()) == {"loss_by_time"}
    assert not block._forward_hooks


def test_a_step_that_is_not_finite_leaves_no_trace_in_the_losses(tiny: Tiny) -> None:
    trainer = build_trainer(tiny())
    good = inputs_of(trainer)
    trainer.train_step(good._replace(images=good.images * float("nan")))
    assert trainer.health.read()["loss_by_time"] == [None] * BUCKETS


def test_measurements_survive_a_stop(tiny: Tiny) -> None:
    """Measured at step 3, saved at 5, killed, logged at 7."""
    settings = {"steps": 7, "log_every": 7, "health": HealthConfig(3)}
    undisturbed = log_of(train(tiny("undisturbed", **settings)))
    trainer = build_trainer(tiny("killed", **settings))
    trainer.save = lambda: (Trainer.save(trainer), trainer.saver.wait(), 1 / 0)  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    continued = log_of(train(tiny("killed", **settings)))
    assert [line["step"] for line in continued] == [7]
    for key in MEASURED:
        assert continued[0][key] == undisturbed[0][key]


def test_checkpoints_without_measurements_are_continued(tiny: Tiny) -> None:
    """As versions before wrote them."""
    config = tiny(steps=5)
    trainer = build_trainer(config)
    state = trainer.state
    trainer.state = lambda: {k: v for k, v in state().items() if k != "health"}  # type: ignore[method-assign]
    trainer.run()
    assert not any(name.startswith("health") for name in names_in(Path(config.run)))
    longer = tiny(steps=8)
    assert [line["step"] for line in log_of(train(longer))] == list(range(1, 9))
    straight = tiny("straight", steps=8)
    train(straight)
    one, other = build_trainer(longer).state(), build_trainer(straight).state()
    same_state({"model": one["model"]}, {"model": other["model"]})


def names_in(run: Path) -> list[str]:
    """Names of the tensors in a run's newest checkpoint."""
    found = checkpoints.newest(run)
    assert found is not None
    names = []
    for file in found.path.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names += tensors.keys()
    return names


# ---------------------------------------------------------------- spikes
def spikes(norms: list[float], losses: list[float], **settings: object) -> list[bool]:
    """Which steps are left out."""
    detector = Detector(HealthConfig(on_spike="skip", **settings), torch.device("cpu"))  # type: ignore[arg-type]
    pairs = zip(torch.tensor(norms), torch.tensor(losses), strict=True)
    return [not bool(detector.check(step, *pair, None)[0]) for step, pair in enumerate(pairs, start=1)]


STEPS = st.lists(
    st.tuples(st.floats(0.125, 9, width=32), st.floats(0.125, 9, width=32)), min_size=14, max_size=40
)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS, window=st.integers(10, 14), threshold=st.floats(0.5, 6))
def test_spikes_are_far_above_the_median_of_the_window(
    steps: list[tuple[float, float]], window: int, threshold: float
) -> None:
    """By numpy, where the window is full (its lower median is the one in the middle)."""
    found = spikes(*map(list, zip(*steps, strict=True)), window=window, threshold=threshold)
    for k in range(window, len(steps)):
        scores = []
        for values in np.array(steps[: k + 1], np.float32).T:
            before = np.sort(values[-1 - window : -1])
            median = before[(window - 1) // 2]
            deviation = np.sort(abs(before - median))[(window - 1) // 2]
            scores.append((values[-1] - median) / max(1.4826 * deviation, 0.01 * median))
        if abs(max(scores) - threshold) > 1e-3:
            assert found[k] == (max(scores) > threshold)


@settings(max_examples=30, deadline=None)
@given(steps=STEPS, scale=st.sampled_from([2.0**-20, 0.25, 2.0**30]))
def test_the_unit_does_not_matter(steps: list[tuple[float, float]], scale: float) -> None:
    norms, losses = map(list, zip(*steps, strict=True))
    expected = spikes(norms, losses, window=10, threshold=3)
    assert spikes([x * scale for x in norms], losses, window=10, threshold=3) == expected
    assert spikes(norms, [x * scale for x in losses], window=10, threshold=3) == expected


def test_no_spikes_before_half_a_window_and_none_among_steady_values() -> None:
    assert not any(spikes([1.0, 1e9] * 10, [1.0] * 20, window=40))
    assert spikes([1.0] * 21 + [1e9], [1.0] * 22, window=40) == [False] * 21 + [True]
    assert not any(spikes([1.0 + 0.09 * (k % 7 == 6) for k in range(60)], [1.0] * 60, window=10))


def test_a_new_level_becomes_the_usual_one() -> None:
    found = spikes([1.0] * 20 + [50.0] * 30, [1.0] * 50, window=20)
    assert found[20:25] == [True] * 5
    assert not any(found[32:])


def test_steps_that_are_not_finite_are_no_spikes_and_leave_the_window_alone() -> None:
    detector = Detector(HealthConfig(on_spike="clip", window=10), torch.device("cpu"))
    for step in range(1, 21):
        detector.check(step, torch.tensor(1.0), torch.tensor(2.0), 5.0)
    before = detector.window.clone()
    for norm, loss in ((math.nan, 1.0), (math.inf, 1.0), (1.0, math.inf), (math.nan, math.nan)):
        taken, _ = detector.check(21, torch.tensor(norm), torch.tensor(loss), 5.0)
        assert not taken
    assert torch.equal(detector.window, before)
    assert detector.read() is None


@pytest.mark.parametrize(("clip", "limits"), [(None, (math.inf, 2.0)), (5.0, (5.0, 2.0)), (0.5, (0.5, 0.5))])
def test_clip_goes_to_the_usual_norm_at_most(clip: float | None, limits: tuple[float, float]) -> None:
    detector = Detector(HealthConfig(on_spike="clip", window=10), torch.device("cpu"))
    for step in range(1, 21):
        taken, limit = detector.check(step, torch.tensor(2.0), torch.tensor(1.0), clip)
        assert taken and float(limit) == limits[0]  # type: ignore[arg-type]
    for norm, loss in ((9.0, 1.0), (2.0, 3.0)):  # the norm, or only the loss
        taken, limit = detector.check(21, torch.tensor(norm), torch.tensor(loss), clip)
        assert taken and float(limit) == limits[1]  # type: ignore[arg-type]
