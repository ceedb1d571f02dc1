"""JiT's checkpoints: a pickle of a trainer with two averages, settings and an optimiser beside them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import pixelwright as pw
from pixelwright.cli.main import main
from pixelwright.hub.presets import with_notes
from pixelwright.models.presets import preset
from tests.hub.published import prefixed
from tests.recordings import weights

START = {"in_context_start": 2}  # of the recording; no file tells it


def trained(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What JiT's training saves: the average that counts is the first."""
    others = {key: value + 1 for key, value in tensors.items()}
    return {
        "model": prefixed("net.", others),
        "model_ema1": prefixed("net.", tensors),
        "model_ema2": prefixed("net.", others),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]},
        "epoch": 199,
        "args": argparse.Namespace(model="JiT-B/16", lr=None, blr=5e-5, data_path="/imagenet"),
    }


def same(model: Any, name: str = "jit") -> None:
    found, expected = pw.hub.to_public(model), weights(name)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_file_of_its_training_is_read_and_comes_back(tmp_path: Path) -> None:
    torch.save(trained(weights("jit")), tmp_path / "checkpoint-last.pth")
    model = pw.load(tmp_path / "checkpoint-last.pth", **START)
    same(model)
    assert model.config.prediction == "x" and model.config.image_size == (32, 32)
    command = ["convert", str(tmp_path / "checkpoint-last.pth"), str(tmp_path / "out"), "--set"]
    assert main([*command, "in_context_start=2"]) == 0
    same(pw.load(tmp_path / "out"))
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "back.pth"), "--to", "public"]) == 0
    content = torch.load(tmp_path / "back.pth", weights_only=True)
    assert set(content) == {"model", "model_ema1", "model_ema2"}
    for state in content.values():
        assert state.keys() == prefixed("net.", weights("jit")).keys()
        assert all(torch.equal(state[f"net.{key}"], value) for key, value in weights("jit").items())
    same(pw.load(tmp_path / "back.pth", **START))


def test_raw_weights_can_be_had(tmp_path: Path) -> None:
    torch.save(trained({k: v for k, v in weights("jit").items() if k != "pos_embed"}), tmp_path / "x.pth")
    raw = pw.load(tmp_path / "x.pth", weights="raw", **START)
    assert torch.equal(raw.backbone.bottleneck.weight, weights("jit")["x_embedder.proj1.weight"] + 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {key: value.to(dtype) for key, value in weights("jit").items()}
    save_file(prefixed("net.", tensors), tmp_path / "x.safetensors")
    found = pw.hub.to_public(pw.load(tmp_path / "x.safetensors", **START))
    assert all(torch.equal(found[key], value) for key, value in tensors.items())


def changed(**tensors: Tensor | None) -> dict[str, Tensor]:
    """The recorded weights with others, by name; those that are None are missing."""
    found = weights("jit") | {key.replace("__", "."): value for key, value in tensors.items()}
    return {key: value for key, value in found.items() if value is not None}


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        (changed(), {}, "give in_context_start"),
        (changed(), {"in_context_start": 4}, "give a block from 0 to 3"),
        (changed(), {"in_context_strat": 2}, 'did you mean "in_context_start"'),
        (changed(pos_embed=torch.ones(1, 16, 48)), START, "is not the table that jit computes"),
        (changed(blocks__2__attn__qkv__bias=None), START, 'missing "blocks.2.attn.qkv.bias"'),
        (changed(x_embedder__proj1__weight=torch.ones(20, 3, 4, 4)), START, "final_layer.linear.weight"),
        (weights("jit") | weights("pixeldit_c2i"), START, "both PixelDiT and JiT"),
        (
            {k: v for k, v in weights("jit").items() if "embedder" not in k},
            START,
            "those of no known network",
        ),
        ({k: v for k, v in weights("jit").items() if "blocks.3" not in k}, START, None),
    ],
)
def test_what_does_not_fit_is_one_line(
    tensors: dict[str, Tensor], settings: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    torch.save({"model_ema1": prefixed("net.", tensors)}, tmp_path / "x.pth")
    if message is None:  # a network of three blocks is one, too
        assert pw.load(tmp_path / "x.pth", **settings).config.backbone.depth == 3
        return
    with pytest.raises(pw.UserError, match=message) as error:
        pw.load(tmp_path / "x.pth", **settings)
    assert "\n" not in str(error.value)


def test_a_bottleneck_is_optional_as_in_pixelgen(tmp_path: Path) -> None:
    model = pw.create("jit-n-4", bottleneck=None, image_size=(32, 32))
    public = pw.hub.to_public(model)
    assert public["x_embedder.proj1.weight"].shape == (128, 3, 4, 4) and "x_embedder.proj1.bias" in public
    save_file(public, tmp_path / "x.safetensors")
    again = pw.load(tmp_path / "x.safetensors")
    assert again.config.backbone == model.config.backbone  # the preset's sizes tell the first block
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "scale"), [("jit-b-16", 3.0), ("jit-l-32", 2.5), ("jit-h-16", 2.2), ("jit-h-32", 2.3)]
)
def test_the_settings_of_the_published_results(name: str, scale: float) -> None:
    sampler = with_notes(preset(name), "checkpoint-last").sampler
    assert sampler is not None
    assert (sampler.solver, sampler.steps, sampler.guidance_scale) == ("heun", 50, scale)
    assert (sampler.guidance_interval, sampler.guidance_ends) == ((0.1, 1.0), "zero")


def test_the_noise_of_a_file_grows_with_its_image(tmp_path: Path) -> None:
    model = pw.create("jit-n-4", image_size=(512, 512), depth=2, hidden_size=16, num_heads=2)
    save_file(pw.hub.to_public(model), tmp_path / "x.safetensors")
    config = pw.load(tmp_path / "x.safetensors", in_context_start=1).config
    assert (config.image_size, config.noise_scale) == ((512, 512), 2.0)
