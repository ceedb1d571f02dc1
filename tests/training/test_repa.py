"""The alignment loss: against the recorded training step of the public code, and its shapes."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open

from pixelwright import hub
from pixelwright.diffusion import flow
from pixelwright.errors import UserError
from pixelwright.training.objectives import FlowMatching, Losses
from pixelwright.training.objectives import repa as repa_module
from pixelwright.training.objectives.repa import Projector, Repa, RepaConfig, alignment_loss, match_grid

RECORDING = Path(__file__).parents[1] / "data" / "train_step.safetensors"


class Recorded(NamedTuple):
    """A teacher that gives the same tokens [B, 16, 24] for any images."""

    tokens: torch.Tensor
    size: int = 24

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.tokens


def test_training_step_of_the_public_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repa_module, "teacher_grid", lambda *_: (4, 4))
    with safe_open(RECORDING, "pt") as file:
        told = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    trainer = json.loads(told["trainer"])

    def group(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    given, expected = group("input."), group("output.")
    model = hub.from_public(group("weights.")).train()
    config = RepaConfig(
        teacher="recorded",
        depth=trainer["align_layer"],
        weight=trainer["feat_loss_weight"],
        projector_size=40,
    )
    repa = Repa(config, model, Recorded(given["teacher"]))
    repa.projector.load_state_dict({k.removeprefix("0."): v for k, v in group("proj.").items()})

    t = flow.shift_time(torch.sigmoid(given["logit_t"]), trainer["timeshift"])
    found = Losses(model, [FlowMatching(), repa])(given["x"], t, given["noise"], given["y"], 0)
    loss = found.total.mean()
    loss.backward()

    torch.testing.assert_close(found.loss.mean(), expected["fm_loss"][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found.logs["repa_loss"].mean(), expected["cos_loss"][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(loss, expected["loss"][0], rtol=1e-5, atol=0)

    gradients = gradients_by_public_name(model)
    recorded = group("grad.")
    assert recorded
    for name, gradient in recorded.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-5 * scale)


def gradients_by_public_name(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradients under the public code's names: read as if they were the weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    return hub.to_public(model)  # type: ignore[arg-type]


def test_perfect_agreement_and_opposition() -> None:
    tokens = torch.randn(2, 6, 5)
    torch.testing.assert_close(alignment_loss(tokens, 3 * tokens, (2, 3)), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(alignment_loss(tokens, -tokens, (2, 3)), 2 * torch.ones(2))


@pytest.mark.parametrize("teacher_grid", [(4, 6), (2, 3), (1, 1), (8, 12), (5, 7)])
def test_grids_of_other_sizes_keep_smooth_fields(teacher_grid: tuple[int, int]) -> None:
    rows = torch.linspace(-1, 1, 4)[:, None].expand(4, 6)
    matched = match_grid(rows.reshape(1, 24, 1), (4, 6), teacher_grid)
    assert matched.shape == (1, teacher_grid[0] * teacher_grid[1], 1)
    field = matched.reshape(teacher_grid)
    torch.testing.assert_close(field.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(field, field[:, :1].expand(teacher_grid))  # no change along the columns
    assert (field[:, 0].diff() >= 0).all()


def test_pooling_is_the_mean_of_the_cells() -> None:
    tokens = torch.arange(16.0).reshape(1, 16, 1)
    assert match_grid(tokens, (4, 4), (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_no_gradient_into_the_teacher() -> None:
    teacher = torch.randn(1, 4, 3, requires_grad=True)
    tokens = torch.randn(1, 4, 5, requires_grad=True)
    alignment_loss(Projector(5, 3)(tokens), teacher, (2, 2)).sum().backward()
    assert teacher.grad is None
    assert tokens.grad is not None


@pytest.mark.parametrize(("model_tokens", "teacher_tokens"), [(5, 4), (4, 5)])
def test_token_counts_that_are_no_grid(model_tokens: int, teacher_tokens: int) -> None:
    with pytest.raises(UserError, match="5 tokens"):
        alignment_loss(torch.randn(1, model_tokens, 3), torch.randn(1, teacher_tokens, 3), (2, 2))
