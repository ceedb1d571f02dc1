"""Models of other families train, draw, are saved, read and continued as those of the two papers are."""

from pathlib import Path
from typing import Any

import pytest
import torch

import pixelwright as pw
from pixelwright.cli.main import main
from pixelwright.training import ModelConfig, train
from pixelwright.training.build import build_trainer

from .conftest import Tiny, log_of, same_state

pytestmark = pytest.mark.usefixtures("no_extras")
SIZES: dict[str, Any] = {"hidden_size": 16, "depth": 4, "num_heads": 2, "noise_scale": 2.0}
JIT = ModelConfig("jit-n-4", **SIZES, backbone={"dropout": 0.2, "attention_dropout": 0.1})


def test_jit_trains_draws_and_goes_on(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(model=JIT, steps=6)
    train(config)
    assert all(0 < line["loss"] < 30 and not line["skipped"] for line in log_of(Path(config.run)))
    model = pw.load(config.run)
    assert model.config.noise_scale == 2 and model.config.backbone.dropout == 0.2
    images = pw.sample(model, [0, 1], guidance=1.5)
    assert torch.equal(images[1:], pw.sample(model, [1], guidance=1.5, start_index=1))
    assert main(["info", "jit-n-4"]) == 0
    assert "JiT" in capsys.readouterr().out


@pytest.mark.parametrize("more", [{}, {"accumulate": 2}])
def test_dropout_continues_bit_for_bit(tiny: Tiny, more: dict[str, Any]) -> None:
    """Its masks depend on seed and step, and not on how often the run was stopped."""
    undisturbed, stopped = (tiny(name, model=JIT, steps=10, **more) for name in ("undisturbed", "stopped"))
    train(undisturbed)
    trainer = build_trainer(stopped)
    trainer.callbacks = ()
    trainer.config = tiny("stopped", model=JIT, steps=5, **more)
    trainer.run()
    torch.rand(3)  # other numbers drawn in between change nothing
    train(stopped)
    same_state(build_trainer(undisturbed).state(), build_trainer(stopped).state())


def test_recomputed_activations_have_the_same_dropout(tiny: Tiny) -> None:
    states = []
    for name, recompute in (("kept", False), ("recomputed", True)):
        config = tiny(name, model=JIT, steps=2, parallel={"checkpointing": recompute})
        train(config)
        states.append(build_trainer(config).state())
    same_state(*states)


def test_pixeldit2_trains_draws_and_goes_on(tiny: Tiny, dinov3: str) -> None:
    """Patches of 4 pixels, for which its encoder sees the image enlarged."""
    more = {"encoder": dinov3, "encoder_size": 24, "grounding_heads": 2, "in_context_start": 1}
    model = ModelConfig("pixeldit2-b-16", hidden_size=16, depth=4, num_heads=2, patch_size=4, backbone=more)
    undisturbed, stopped = (tiny(name, model=model, steps=4) for name in ("undisturbed", "stopped"))
    train(undisturbed)
    train(tiny("stopped", model=model, steps=2))
    train(stopped)
    same_state(build_trainer(undisturbed).state(), build_trainer(stopped).state())
    drawn = pw.load(undisturbed.run)
    assert not any("encoder" in name for name in drawn.state_dict())
    images = pw.sample(drawn, [0, 1], guidance=1.5, precision="fp32")
    fast = pw.accelerate(drawn, "fp32")
    assert (images.int() - pw.sample(fast, [0, 1], guidance=1.5).int()).abs().max() <= 1


def test_what_a_model_does_not_have_is_not_dropped(tiny: Tiny) -> None:
    with pytest.raises(pw.UserError, match="has no grounding"):
        tiny(flow={"ungrounded_probability": 0.1})


def test_asymflow_trains_in_the_subspace_of_its_images(tiny: Tiny) -> None:
    model = ModelConfig("jit-n-4", **SIZES, prediction="asymmetric", rank=6)
    undisturbed, stopped = (tiny(name, model=model, steps=4) for name in ("undisturbed", "stopped"))
    train(undisturbed)
    train(tiny("stopped", model=model, steps=2))
    train(stopped)
    same_state(build_trainer(undisturbed).state(), build_trainer(stopped).state())
    drawn = pw.load(undisturbed.run)
    basis = drawn.subspace
    assert basis is not None and basis.shape == (6, 48)
    torch.testing.assert_close(basis @ basis.T, torch.eye(6), rtol=0, atol=1e-5)
    assert torch.equal(basis, build_trainer(tiny("other", model=model)).model.subspace)
    images = pw.sample(drawn, [0, 1], precision="fp32")
    assert (images.int() - pw.sample(pw.accelerate(drawn, "fp32"), [0, 1]).int()).abs().max() <= 1
