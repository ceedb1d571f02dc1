"""The plain reading of the papers equals our models: values, gradients, training steps and samples."""

from __future__ import annotations

import pytest
import torch
from baseline import BaselineDenoiser, BaselineTraining, baseline_sample, stored_as_here
from torch import Tensor, nn

from pixelwright.diffusion import flow
from pixelwright.diffusion.sample import model_velocity
from pixelwright.diffusion.solvers import solve, timesteps
from pixelwright.models.config import SamplerSettings
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.detailers.pit import PiTConfig
from pixelwright.models.presets import preset

NAMES = ["dip-ti-4", "dip-ti-8", "pixeldit-ti-4", "pixeldit-ti-8-postmod", "dit-ti-4"]
TINY = {"depth": 2, "hidden_size": 24, "num_heads": 2, "num_classes": 5}


def pair(name: str) -> tuple[PixelDenoiser, BaselineDenoiser]:
    """Ours and the plain model with the same random weights, none of them zero."""
    config = preset(name, **TINY)
    ours, plain = PixelDenoiser(config), BaselineDenoiser(config)
    g = torch.Generator().manual_seed(0)
    for p in ours.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=g)
    plain.load_from({name: weight.clone() for name, weight in ours.state_dict().items()})
    return ours, plain


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, t, noise, labels; the images are not square."""
    g = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, batch, 3, 16, 24, generator=g)
    return x, torch.rand(batch, generator=g), noise, torch.arange(batch)


def assert_equal_to_rounding(ours: Tensor, plain: Tensor, tolerance: float = 2e-5) -> None:
    """Differences are a small share of the largest value."""
    assert (ours - plain).abs().max() <= tolerance * plain.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_velocity_and_gradients_equal_ours(name: str) -> None:
    x, t, noise, labels = inputs()
    results = []
    for model in pair(name):
        image = x.clone().requires_grad_()
        velocity = model(image, t, labels)
        (velocity * noise).sum().backward()
        gradients = stored_as_here(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        )
        results.append({"velocity": velocity.detach(), "image": image.grad, **gradients})
    ours, plain = results
    assert ours.keys() == plain.keys()
    for key, value in ours.items():
        assert_equal_to_rounding(value, plain[key])


@pytest.mark.parametrize(
    "name", ["dip-xl-16", "dip-xl-32", "pixeldit-b-16", "pixeldit-l-16-postmod", "dit-s-8"]
)
def test_the_weights_of_every_size_fit(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        ours, plain = (
            stored_as_here(PixelDenoiser(config).state_dict()),
            BaselineDenoiser(config).state_dict(),
        )

    def shapes(weights: dict[str, Tensor]) -> list[tuple[str, torch.Size]]:
        return sorted((key, value.shape) for key, value in weights.items())

    assert shapes(stored_as_here(ours)) == shapes(plain)


def test_a_training_step_is_the_textbook_one() -> None:
    """Loss as in `flow`, and after clipping, AdamW's first step: lr in the direction of the sign."""
    ours, plain = pair("pixeldit-ti-4")
    x, t, noise, labels = inputs()
    loss = flow.loss(ours, x, t, noise, labels).mean()
    loss.backward()
    clip = 0.5 * torch.nn.utils.get_total_norm([p.grad for p in ours.parameters()])
    training = BaselineTraining(plain, lr=0.1, clip=float(clip), decay=0.75)
    assert_equal_to_rounding(training.step(x, t, noise, labels), loss.detach())
    before_all = stored_as_here({name: p.detach() for name, p in ours.named_parameters()})
    gradients = stored_as_here({name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    for name, after in plain.named_parameters():
        before, clipped = before_all[name], gradients[name] / 2
        step = -0.1 * clipped / (clipped.abs() + 1e-8)
        large = clipped.abs() > 1e-5  # where rounding does not decide the sign
        torch.testing.assert_close((after - before)[large], step[large], atol=1e-4, rtol=0)
        average = training.average.get_parameter(name)
        torch.testing.assert_close(average, 0.75 * before + 0.25 * after)


@pytest.mark.parametrize("solver", ["euler", "ab2-fixed"])
def test_samples_equal_ours_though_guidance_is_evaluated_at_every_step(solver: str) -> None:
    ours, plain = pair("dip-ti-4")
    noise, labels = inputs()[2:]
    with torch.no_grad():
        velocity = model_velocity(ours, labels, SamplerSettings(solver, 8, 2.5, (0.2, 0.7)))
        expected = solve(velocity, noise, timesteps(8), solver)
    drawn = baseline_sample(plain, noise, labels, 5, 8, solver, 2.5, (0.2, 0.7))
    assert_equal_to_rounding(expected, drawn, 1e-4)


def test_what_has_no_plain_counterpart_is_refused() -> None:
    for config in (
        preset("dip-t2i-ti"),
        preset("dip-ti-4", placement="hybrid"),
        preset("dip-ti-4", prediction="x"),
    ):
        with pytest.raises(ValueError, match="baseline"):
            BaselineDenoiser(config)
    assert isinstance(preset("pixeldit-ti-4").detailer, PiTConfig)
    with pytest.raises(ValueError, match='"heun"'):
        baseline_sample(nn.Identity(), torch.zeros(1), torch.zeros(1), 0, 1, solver="heun")
