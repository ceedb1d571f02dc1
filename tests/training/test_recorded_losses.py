"""Training steps of the public code of DeCo and PixelGen: every loss, and the gradient of every weight."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelwright import hub
from pixelwright.diffusion import flow
from pixelwright.models.layers import patchify
from pixelwright.models.lpips import LPIPS
from pixelwright.training.objectives import (
    FlowMatching,
    FrequencyConfig,
    FrequencyLoss,
    Losses,
    Objective,
    Perceptual,
    PerceptualConfig,
    Repa,
    RepaConfig,
)
from pixelwright.training.objectives import repa as repa_module
from tests.recordings import recording

from .test_repa import Recorded, gradients_by_public_name


def group(name: str, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in recording(name)[0].items() if k.startswith(prefix)}


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected.reshape(()), rtol=1e-6, atol=0)


def alignment(name: str, model: Any, teacher: Tensor) -> Repa:
    """REPA with the recorded projector and these tokens of the teacher."""
    trainer = recording(name)[1]["trainer"]
    config = RepaConfig(
        teacher="recorded",
        depth=trainer["align_layer"],
        weight=trainer["feat_loss_weight"],
        projector_size=trainer["proj_hidden_dim"],
    )
    repa = Repa(config, model, Recorded(teacher, teacher.shape[-1]))
    repa.projector.load_state_dict(group(name, "proj.0."))
    return repa


def step(name: str, model: Any, objectives: list[Objective], t: Tensor, number: int) -> tuple[Any, Tensor]:
    """The losses, and the total, whose gradient is taken and compared."""
    given = group(name, "input.")
    found = Losses(model, objectives)(given["x"], t, given["noise"], given["y"], number)
    total = found.total.mean()
    total.backward()
    projector: nn.Module = next(each for each in objectives if isinstance(each, Repa)).projector
    ours = {key: p.grad for key, p in projector.named_parameters()}
    pairs = [(ours[key], gradient) for key, gradient in group(name, "grad_proj.0.").items()]
    recorded, gradients = group(name, "grad."), gradients_by_public_name(model)
    assert recorded.keys() == gradients.keys() - {"pos_embed"}
    pairs += [(gradients[key], gradient) for key, gradient in recorded.items()]
    for gradient, expected in pairs:
        assert gradient is not None and (gradient - expected).norm() <= 1e-5 * expected.norm()
    return found, total


def test_decos_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "deco_loss"
    monkeypatch.setattr(repa_module, "teacher_grid", lambda *_: (4, 3))
    given, expected, trainer = group(name, "input."), group(name, "output."), recording(name)[1]["trainer"]
    model = hub.from_public(group(name, "weights.")).train()
    config = FrequencyConfig(
        trainer["freq_loss_weight"], trainer["freq_quality"], trainer["freq_mode"], trainer["freq_gamma"]
    )
    repa = alignment(name, model, given["teacher"])
    t = flow.shift_time(torch.sigmoid(given["logit_t"]), trainer["timeshift"])
    found, total = step(name, model, [FlowMatching(), FrequencyLoss(config), repa], t, 0)
    same(found.loss.mean(), expected["fm_loss"])
    same(found.logs["frequency_loss"].mean(), expected["fm_loss_freq"])
    same(found.logs["repa_loss"].mean(), expected["cos_loss"])
    same(total, expected["loss"])


@pytest.mark.parametrize("name", ["pixelgen_loss", "pixelgen_loss_late"])
def test_pixelgens_training_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With LPIPS, P-DINO and the gate; late, at step 400000, with the factor too."""
    monkeypatch.setattr(repa_module, "teacher_grid", lambda *_: (4, 4))
    given, expected, trainer = group(name, "input."), group(name, "output."), recording(name)[1]["trainer"]
    projection = group(name, "encoder.")["W"]
    encoder = lambda images: torch.tanh(patchify((images + 1) / 2, 16) @ projection.T)  # noqa: E731
    model = hub.from_public(group(name, "weights."), in_context_start=2).train()
    config = PerceptualConfig(
        trainer["percept_ratio"],
        lpips=("recorded",),
        lpips_weight=trainer["lpips_weight"],
        teacher="recorded",
        dino_weight=trainer["dino_weight"],
        gate=trainer["percept_t_threshold"],
        adapt_from=400_000,
    )
    perceptual = Perceptual(config, model, LPIPS(group(name, "lpips.")), encoder)
    repa = alignment(name, model, encoder(given["x"]))
    t = torch.sigmoid(given["normal_t"] * trainer["P_std"] + trainer["P_mean"])
    found, total = step(name, model, [FlowMatching(), repa, perceptual], t, trainer["global_step"])
    same(found.loss.mean(), expected["fm_loss"])
    same(found.logs["repa_loss"].mean(), expected["cos_loss"])
    same(found.logs["lpips_loss"].mean(), expected["lpips_loss"])
    same(found.logs["dino_loss"].mean(), expected["dino_percept_loss"])
    same(found.logs["perceptual_factor"].mean(), expected["percept_weight"])
    same(total, expected["loss"])
