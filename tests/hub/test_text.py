"""The published text-to-image layout in and out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pixelwright as pw
from pixelwright.hub.convert import convert
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
