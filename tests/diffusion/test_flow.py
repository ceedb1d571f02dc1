"""Flow matching: path, times, prediction types, and the recorded training step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelwright import UserError
from pixelwright.diffusion import flow
from pixelwright.diffusion.flow import FlowConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.prediction import principal_patches, to_velocity, velocity_target
from pixelwright.models.presets import preset

MODEL = preset("dit-n-4", num_classes=10)
TIMES = st.floats(0, 1)
SHIFTS = st.floats(0.1, 10)


@given(TIMES, TIMES, SHIFTS)
def test_the_shift_keeps_ends_and_order_and_undoes_itself(a: float, b: float, shift: float) -> None:
    t = torch.tensor([0.0, min(a, b), max(a, b), 1.0], dtype=torch.float64)
    shifted = flow.shift_time(t, shift)
    assert shifted[0] == 0 and shifted[-1] == 1
    assert (shifted.diff() >= 0).all()
    torch.testing.assert_close(flow.shift_time(shifted, 1 / shift), t)


def test_the_path_runs_from_noise_to_data() -> None:
    x, noise = torch.full((3, 3, 2, 2), 5.0), torch.full((3, 3, 2, 2), -1.0)
    path = flow.interpolate(x, noise, torch.tensor([0.0, 0.5, 1.0]))
    assert path[:, 0, 0, 0].tolist() == [-1.0, 2.0, 5.0]


@given(st.floats(0.06, 0.94))
def test_the_three_predictions_mean_the_same_velocity(time: float) -> None:
    g = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 2, 3, 4, 4, generator=g, dtype=torch.float64)
    t = torch.full((2,), time, dtype=torch.float64)
    x_t, v = flow.interpolate(x, noise, t), x - noise
    for prediction, output in (("velocity", v), ("x", x), ("noise", noise)):
        torch.testing.assert_close(to_velocity(output, x_t, t, prediction), v)


@pytest.mark.parametrize("prediction", ["x", "noise"])
def test_predictions_stay_finite_at_both_ends(prediction: str) -> None:
    x = torch.ones(2, 3, 2, 2)
    assert to_velocity(x, 2 * x, torch.tensor([0.0, 1.0]), prediction).isfinite().all()


def test_the_loss_of_a_perfect_model_is_zero_and_of_none_the_targets_square() -> None:
    x, noise = torch.randn(2, 2, 3, 4, 4)
    t = torch.rand(2)
    assert flow.loss(lambda *_: x - noise, x, t, noise, torch.zeros(2)).abs().max() == 0
    none = flow.loss(lambda *_: torch.zeros_like(x), x, t, noise, torch.zeros(2))
    torch.testing.assert_close(none, (x - noise).square().mean(dim=(1, 2, 3)))


@given(st.integers(1, 7))
def test_a_samples_draw_does_not_depend_on_its_batch(start: int) -> None:
    config, images, labels = FlowConfig(time_shift=3.0), torch.zeros(8, 3, 4, 4), torch.arange(8)
    whole = flow.draw(config, images, labels, MODEL, seed=1, step=5)
    part = flow.draw(config, images[start:], labels[start:], MODEL, seed=1, step=5, start=start)
    assert all(torch.equal(a[start:], b) for a, b in zip(whole, part, strict=True))


def test_times_are_logit_normal_and_a_tenth_of_the_labels_is_dropped() -> None:
    labels = torch.zeros(8000, dtype=torch.long)
    t, noise, dropped = flow.draw(FlowConfig(), torch.zeros(8000, 1, 1, 1), labels, MODEL, seed=0, step=0)
    logit = torch.logit(t)
    assert abs(logit.mean()) < 0.05 and abs(logit.std() - 1) < 0.05
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    assert set(dropped.tolist()) == {0, 10}
    assert abs((dropped == 10).float().mean() - 0.1) < 0.015
    shifted, _, _ = flow.draw(
        FlowConfig(time_shift=3.0), torch.zeros(8000, 1, 1, 1), labels, MODEL, seed=0, step=0
    )
    torch.testing.assert_close(shifted, flow.shift_time(t, 3.0))


@pytest.mark.parametrize(
    "wrong",
    [{"time_shift": 0.0}, {"time_std": float("nan")}, {"null_probability": 1.5}, {"time_mean": float("inf")}],
)
def test_impossible_settings_are_named(wrong: dict[str, float]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(UserError, match=f"flow.{name} is {value}"):
        FlowConfig(**wrong)


@pytest.mark.parametrize("prediction", ["velocity", "x", "noise", "reverse-velocity"])
def test_a_perfect_network_has_no_loss_at_any_time(prediction: str) -> None:
    """Near t = 1 (x) and t = 0 (noise) both velocities are divided by the clamped denominator."""
    x, noise = torch.rand(5, 3, 4, 4) * 2 - 1, torch.randn(5, 3, 4, 4)
    t = torch.tensor([0.0, 0.001, 0.5, 0.99, 1.0])
    outputs = {"velocity": x - noise, "x": x, "noise": noise, "reverse-velocity": noise - x}
    x_t = flow.interpolate(x, noise, t)
    velocity = to_velocity(outputs[prediction], x_t, t, prediction)
    target = velocity_target(x, noise, x_t, t, prediction)
    assert flow.velocity_loss(velocity, target).max() < 1e-9


def test_the_asymmetric_prediction_keeps_noise_in_a_subspace_alone() -> None:
    """AsymFlow: a perfect network has no loss; a full subspace is the velocity, an empty one the image."""
    patches = torch.randn(500, 48) @ torch.diag(torch.arange(48.0))
    basis = principal_patches(patches, 5)
    torch.testing.assert_close(basis @ basis.T, torch.eye(5), rtol=0, atol=1e-6)
    spread = (patches @ basis.T).var(0)
    assert bool((spread.diff() < 0).all()) and spread.sum() >= patches.var(0)[-5:].sum()
    x, noise, t = torch.rand(3, 3, 8, 8) * 2 - 1, torch.randn(3, 3, 8, 8), torch.tensor([0.0, 0.5, 0.99])
    x_t = flow.interpolate(x, noise, t)
    for rank in (5, 48):
        model = PixelDenoiser(preset("dit-n-4", 3, prediction="asymmetric", rank=rank, depth=1))
        model.subspace.data = principal_patches(patches, rank)
        output = x - model.project(noise)
        velocity = to_velocity(output, x_t, t, "asymmetric", project=model.project)
        torch.testing.assert_close(velocity, model.velocity_target(x, noise, x_t, t))
        torch.testing.assert_close(velocity[:2], (x - noise)[:2], rtol=0, atol=1e-4)
        torch.testing.assert_close(model.project(model.project(x)), model.project(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        velocity, x - noise, rtol=0, atol=1e-4
    )  # rank 48 is all of a patch, at t = 0.99 too
    model.subspace.data.zero_()
    assert torch.equal(model.velocity_target(x, noise, x_t, t), velocity_target(x, noise, x_t, t, "x"))


@pytest.mark.parametrize(
    "wrong", [{"prediction": "asymmetric"}, {"rank": 3}, {"prediction": "asymmetric", "rank": 49}]
)
def test_a_rank_goes_with_the_asymmetric_prediction(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"rank is"):
        preset("dit-n-4", 3, **wrong)
