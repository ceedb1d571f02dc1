"""The published text-to-image layout in and out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pixelwright as pw
from pixelwright.hub.convert import convert
from pixelwright.hub.presets import with_notes
from pixelwright.models.config import SamplerPreset, TextNote
from pixelwright.models.presets import preset
from pixelwright.text import encode_for
from tests.encoders import tiny_gemma
from tests.hub.published import LAYOUTS, write
from tests.recordings import difference, recording, weights

NAME = "pixeldit_t2i"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_in_our_time_and_sign(layout: str, tmp_path: Path) -> None:
    model = pw.load(write(layout, NAME, tmp_path))
    backbone = model.config.backbone
    assert (backbone.text_size, backbone.text_length, backbone.num_heads) == (20, 12, 4)
    assert (backbone.sigma_time, backbone.mask_padding) == (True, False)
    recorded, _ = recording(NAME)
    t = 1 - recorded["input.t"].double() / 1000
    with torch.no_grad():
        velocity = model(recorded["input.x"], t, pw.TextCondition(recorded["input.y"]))
    assert difference(-velocity, recorded["output"]) < 1e-5


@pytest.mark.parametrize("name", ["back.safetensors", "back.ckpt"])
def test_there_and_back_is_exact(name: str, tmp_path: Path) -> None:
    convert(write("core", NAME, tmp_path), tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / name, to="public")
    if name.endswith(".ckpt"):
        state = torch.load(tmp_path / name, weights_only=True)["state_dict"]
        found = {key.removeprefix("ema_denoiser."): value for key, value in state.items()}
    else:
        found = load_file(tmp_path / name)
    expected = weights(NAME)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert pw.load(tmp_path / name).config.backbone == pw.load(tmp_path / "folder").config.backbone


@pytest.mark.parametrize("name", ["dip-t2i-ti", "pixeldit-t2i-ti"])
def test_what_the_published_network_is_not_has_no_published_layout(name: str) -> None:
    with pytest.raises(pw.UserError, match="no published layout"):
        pw.hub.to_public(pw.create(name, depth=1, hidden_size=24, num_heads=2))


def test_dip_on_the_published_backbone_has_no_published_layout_either() -> None:
    options = {"depth": 1, "hidden_size": 24, "num_heads": 2, "mask_padding": False, "sigma_time": True}
    model = pw.create("dip-t2i-ti", prediction="reverse-velocity", **options)
    with pytest.raises(pw.UserError, match="no published layout"):
        pw.hub.to_public(model)


@pytest.mark.parametrize(("asked", "shift"), [(None, 4.0), ("pixeldit-t2i-512", 3.0)])
def test_the_published_model_knows_its_sampler_and_its_encoder(asked: str | None, shift: float) -> None:
    config = with_notes(preset("pixeldit-t2i"), "any", asked)
    assert config.text == TextNote("gemma")
    assert config.image_size == (1024, 1024)
    assert config.sampler is not None
    assert (config.sampler.solver, config.sampler.time_shift) == ("dpmpp-2m", shift)
    assert 25 <= config.sampler.steps <= 50 and 2.75 <= config.sampler.guidance_scale <= 3.5
    assert with_notes(preset("dip-t2i-ti"), "any").text is None


def test_a_pipeline_draws_prompts(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from pixelwright.hub.diffusers import PixelDenoiserPipeline

    note = TextNote("gemma", str(tiny_gemma(tmp_path / "gemma")))
    torch.manual_seed(0)
    options = {"hidden_size": 24, "depth": 1, "num_heads": 2, "text_size": 24, "image_size": (8, 8)}
    model = pw.create("dip-t2i-ti", text=note, **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pipe = PixelDenoiserPipeline.from_model(model)
    pipe.set_progress_bar_config(disable=True)
    noise = pw.diffusion.sample.noise_of(range(2), (8, 8), seed=3)
    settings = {"num_inference_steps": 3, "guidance_scale": 2.0, "latents": noise, "output_type": "np"}
    drawn = pipe(prompt=["a red star", "two circle"], negative_prompt="blue", **settings).images
    prompts = ["a red star", "two circle"]
    condition = encode_for(model.config, prompts, "blue")
    expected = pw.sample(model, condition, SamplerPreset("euler", 3), guidance=2.0, seed=3)
    assert abs(drawn * 255 - expected.numpy()).max() < 1
    for negatives in (["blue"], ["blue", "blue"]):
        again = pipe(prompt=prompts, negative_prompt=negatives, **settings).images
        assert abs(again - drawn).max() < 1e-4
    mixed = pipe(prompt=prompts, negative_prompt=["blue", "red"], **settings).images
    assert abs(mixed - drawn)[0].max() < 1e-4 < abs(mixed - drawn)[1].max()
    with pytest.raises(pw.UserError, match="3 negative prompts are given for 2 prompts"):
        pipe(prompt=prompts, negative_prompt=["a", "b", "c"], **settings)
    pair = pipe(prompt="a red star", negative_prompt="blue", num_images_per_prompt=2, **settings).images
    assert abs(pair[0] - drawn[0]).max() < 1e-4 and pair.shape == drawn.shape
    for wrong in ({}, {"prompt": "a", "class_labels": [0]}, {"class_labels": [0]}):
        with pytest.raises(pw.UserError):
            pipe(**wrong)
