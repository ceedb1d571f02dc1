"""PixelGen's perceptual losses in a run, with tiny random networks."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pixelwright.cli.main import main
from pixelwright.data import DataConfig
from pixelwright.errors import UserError
from pixelwright.training import ModelConfig, build_trainer, load_config, train
from pixelwright.training.config_file import save_config
from pixelwright.training.loggers import read_log
from pixelwright.training.objectives import Forward, PerceptualConfig
from pixelwright.training.objectives.perceptual import Perceptual
from tests.recordings import recording

from .conftest import Tiny, same_state

pytestmark = pytest.mark.usefixtures("no_extras")
MODEL = ModelConfig("dit-ti-4", hidden_size=16, depth=2, num_heads=2, patch_size=16, prediction="x")


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The recorded networks as torchvision and the package lpips hand them out: a trunk, and its weights."""
    folder = tmp_path_factory.mktemp("vgg")
    tensors = {key[6:]: x for key, x in recording("lpips")[0].items() if key.startswith("lpips.")}
    trunk = {"features." + key[11:]: x for key, x in tensors.items() if key.startswith("net.")}
    torch.save(trunk, folder / "vgg16.pth")
    save_file({key: x for key, x in tensors.items() if key.startswith("lin")}, folder / "vgg.safetensors")
    return str(folder / "vgg16.pth"), str(folder / "vgg.safetensors")


def perceptual(tiny: Tiny, run: str = "run", settings: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A tiny run on images of 32² in patches of 16."""
    data = DataConfig(path="shapes", size=32, shapes_count=24)
    objectives = (PerceptualConfig(**(settings or {})),)
    return tiny(run, **{"data": data, "model": MODEL, "objectives": objectives, "steps": 6, **changes})


def test_a_continued_run_ends_alike(tiny: Tiny, dino: Path, vgg: tuple[str, str], tmp_path: Path) -> None:
    """The factor, which changes at steps 2 and 4, is part of the checkpoint."""
    settings = {"lpips": vgg, "teacher": str(dino), "adapt_from": 2, "adapt_every": 2, "gate": 0.2}
    how = {"settings": settings, "checkpoint_every": 3}
    train(perceptual(tiny, "whole", **how))
    train(perceptual(tiny, "parts", **how, steps=3))
    train(perceptual(tiny, "parts", **how))
    whole, parts = (build_trainer(perceptual(tiny, name, **how)) for name in ("whole", "parts"))
    same_state(whole.state(), parts.state())
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("whole", "parts")]
    for name in ("lpips_loss", "dino_loss", "perceptual_factor"):
        assert [line[name] for line in logs[0]] == [line[name] for line in logs[1]]
    factors = [line["perceptual_factor"] for line in logs[0]]
    assert factors[0] == factors[1] == 1 != factors[2] == factors[3] != factors[4] == factors[5]
    assert float(whole.state()["objectives"]["1.factor"]) == pytest.approx(factors[5])


def forward(trainer: Any, t: Tensor) -> tuple[Perceptual, Forward]:
    """The objective and a forward pass at the times t [4], at a step that changes the factor."""
    inputs = next(trainer._inputs())
    for p in trainer.model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x_t = t.view(-1, 1, 1, 1) * inputs.images + (1 - t.view(-1, 1, 1, 1)) * inputs.noise
    velocity = trainer.model(x_t, t, inputs.condition)
    batch = Forward(inputs.images, t, inputs.noise, inputs.condition, x_t, velocity, {}, 0)
    return trainer.losses.objectives[1], batch


def test_the_gate_leaves_out_noisy_images(tiny: Tiny, dino: Path, vgg: tuple[str, str]) -> None:
    config = perceptual(tiny, settings={"lpips": vgg, "teacher": str(dino), "gate": 0.5})
    trainer = build_trainer(config)
    times = torch.tensor([0.1, 0.5, 0.9, 0.2])
    objective, batch = forward(trainer, times)
    loss, logs = objective(trainer.model, batch)
    ungated = Perceptual(dataclasses.replace(objective.config, gate=0.0), trainer.model)
    _, plain = ungated(trainer.model, batch)
    assert (logs["lpips_loss"][[0, 3]] == 0).all()
    kept = plain["lpips_loss"][[1, 2]].mean()
    torch.testing.assert_close(logs["lpips_loss"].mean(), kept)
    torch.testing.assert_close(logs["dino_loss"], plain["dino_loss"])
    torch.testing.assert_close(loss, 0.1 * logs["lpips_loss"] + 0.01 * logs["dino_loss"])
    closed = Perceptual(dataclasses.replace(objective.config, gate=0.95), trainer.model)
    assert not closed(trainer.model, batch)[0].any()


def test_gradients_reach_the_model_through_both_networks(
    tiny: Tiny, dino: Path, vgg: tuple[str, str]
) -> None:
    for settings in ({"lpips": vgg}, {"teacher": str(dino)}):
        trainer = build_trainer(perceptual(tiny, settings=settings))
        objective, batch = forward(trainer, torch.full((4,), 0.5))
        objective(trainer.model, batch)[0].mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in trainer.model.parameters())
        assert trainer.model.detailer.out.weight.grad.any()
        names = [name for name, _ in trainer.losses.named() if name.startswith("objectives")]
        assert not names  # the networks are not trained


def test_the_factor_changes_once_a_step(tiny: Tiny, vgg: tuple[str, str]) -> None:
    """By the first micro-batch; the buffer, which is in checkpoints, only after the gradients."""
    config = perceptual(tiny, settings={"lpips": vgg, "adapt_from": 0, "adapt_every": 1}, accumulate=2)
    trainer = build_trainer(config)
    objective, batch = forward(trainer, torch.full((4,), 0.5))
    _, logs = objective(trainer.model, batch)
    _, again = objective(trainer.model, batch._replace(t=torch.full((4,), 0.9)))
    assert torch.equal(logs["perceptual_factor"], again["perceptual_factor"])
    assert float(objective.factor) == 1 != float(logs["perceptual_factor"][0])
    objective.update()
    assert torch.equal(objective.factor.expand(4), logs["perceptual_factor"])


def test_settings_from_file_and_command_line(
    tiny: Tiny, dino: Path, vgg: tuple[str, str], tmp_path: Path
) -> None:
    config = perceptual(tiny, settings={"lpips": vgg, "teacher": str(dino)})
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config
    words = ["--objectives.perceptual.gate", "0", "--steps", "1"]
    assert main(["train", "--config", str(tmp_path / "c.yaml"), *words]) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give the files of lpips, the teacher of P-DINO, or both"),
        ({"teacher": "a", "lpips_weight": 1.0}, "perceptual.lpips_weight is 1.0, but its network is not"),
        ({"lpips": ("a",), "dino_weight": 1.0}, "perceptual.dino_weight is 1.0, but its network is not"),
        ({"lpips": ("a",), "adapt_every": 5}, "perceptual.adapt_every is 5, but adapt_from is not"),
        ({"lpips": ("a",), "gate": 2.0}, "perceptual.gate is 2.0"),
        ({"lpips": ("nowhere.pth",)}, "nowhere.pth does not exist"),
        ({"teacher": "no/such/folder"}, "perceptual.teacher no/such/folder cannot be read"),
    ],
)
def test_mistakes_are_named(tiny: Tiny, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build_trainer(perceptual(tiny, settings=settings))
    assert "\n" not in str(error.value)


def test_networks_that_do_not_fit_are_named(tiny: Tiny, dino: Path, vgg: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=r'perceptual.lpips .*vgg16.pth: LPIPS needs "lin0.model.1.weight"'):
        build_trainer(perceptual(tiny, settings={"lpips": vgg[:1]}))
    small = DataConfig(path="shapes", size=24, shapes_count=24)
    model = dataclasses.replace(MODEL, patch_size=4)
    with pytest.raises(UserError, match=r"images are 24x24: with perceptual\.teacher both sides"):
        perceptual(tiny, settings={"teacher": str(dino)}, data=small, model=model)
