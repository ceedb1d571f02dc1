"""Our networks against the recordings of the papers' public code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pixelwright as pw
from tests.hub.published import lightning
from tests.recordings import NETWORKS, RELATIVES, difference, recording, weights


@pytest.mark.parametrize("name", [*NETWORKS, *RELATIVES])
def test_the_velocity_is_the_recorded_one(name: str) -> None:
    recorded, _ = recording(name)
    model = pw.hub.from_public(weights(name), **RELATIVES.get(name, {}))
    with torch.no_grad():
        velocity = model(recorded["input.x"], recorded["input.t"], recorded["input.y"])
    assert difference(velocity, recorded["output"]) < 1e-5
    assert (velocity - recorded["output"]).abs().max() < 1e-5 * recorded["output"].std()


@pytest.mark.parametrize("name", [*NETWORKS[:2], *RELATIVES])
def test_the_tokens_that_repa_reads_are_the_recorded_ones(name: str) -> None:
    recorded, _ = recording(name)
    model = pw.hub.from_public(weights(name), **RELATIVES.get(name, {}))
    with torch.no_grad():
        _, tokens = model(recorded["input.x"], recorded["input.t"], recorded["input.y"], taps=(2,))
    key = "block_2_output" if name in RELATIVES else "patch_block_2_output"
    assert difference(tokens[2], recorded[key]) < 1e-5


@pytest.mark.parametrize(
    ("name", "block"), [("pixnerd", "nerf_block_1_output"), ("deco", "res_block_1_output")]
)
def test_inside_a_detailer_it_is_as_recorded(name: str, block: str) -> None:
    recorded, _ = recording(name)
    model = pw.hub.from_public(weights(name))
    found: dict[str, torch.Tensor] = {}

    def keep(key: str) -> Callable[..., None]:
        return lambda module, args, output: found.update({key: output})

    model.detailer.pixel_embedder.register_forward_hook(keep("pixel_embedding"))
    model.detailer.blocks[0].register_forward_hook(keep(block))
    with torch.no_grad():
        model(recorded["input.x"], recorded["input.t"], recorded["input.y"])
    for key in ("pixel_embedding", block):
        assert difference(found[key], recorded[key]) < 1e-5


@pytest.mark.parametrize("name", RELATIVES)
def test_a_relative_goes_through_our_folder_and_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Also as Lightning writes it, of which the averaged weights are read."""
    settings = RELATIVES[name]
    model = pw.hub.from_public(lightning(name)["state_dict"], **settings)
    pw.save(model, tmp_path / "model")
    back = pw.hub.to_public(pw.load(tmp_path / "model"))
    assert back.keys() == weights(name).keys()
    assert all(torch.equal(back[key], value) for key, value in weights(name).items())


@pytest.mark.parametrize("name", [*NETWORKS, *RELATIVES])
def test_in_float64_rounding_all_but_vanishes(name: str) -> None:
    """Only the recording's own float32 rounding is left, so a wrong formula could not hide in a tolerance."""
    recorded, _ = recording(name)
    public = {key: value.double() for key, value in weights(name).items()}
    model = pw.hub.from_public(public, **RELATIVES.get(name, {}))
    with torch.no_grad():
        velocity = model(recorded["input.x"].double(), recorded["input.t"], recorded["input.y"])
    assert velocity.dtype == torch.float64
    assert difference(velocity, recorded["output"].double()) < 5e-6
