"""Our networks against the recordings of the papers' public code."""

from __future__ import annotations

import pytest
import torch

import pixelwright as pw
from tests.recordings import NETWORKS, difference, recording, weights


@pytest.mark.parametrize("name", NETWORKS)
def test_the_velocity_is_the_recorded_one(name: str) -> None:
    recorded, _ = recording(name)
    model = pw.hub.from_public(weights(name))
    with torch.no_grad():
        velocity = model(recorded["input.x"], recorded["input.t"], recorded["input.y"])
    assert difference(velocity, recorded["output"]) < 1e-5


@pytest.mark.parametrize("name", NETWORKS[:2])
def test_the_tokens_that_repa_reads_are_the_recorded_ones(name: str) -> None:
    recorded, _ = recording(name)
    model = pw.hub.from_public(weights(name))
    with torch.no_grad():
        _, tokens = model(recorded["input.x"], recorded["input.t"], recorded["input.y"], taps=(2,))
    assert difference(tokens[2], recorded["patch_block_2_output"]) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_in_float64_rounding_all_but_vanishes(name: str) -> None:
    """Only the recording's own float32 rounding is left, so a wrong formula could not hide in a tolerance."""
    recorded, _ = recording(name)
    model = pw.hub.from_public({key: value.double() for key, value in weights(name).items()})
    with torch.no_grad():
        velocity = model(recorded["input.x"].double(), recorded["input.t"], recorded["input.y"])
    assert velocity.dtype == torch.float64
    assert difference(velocity, recorded["output"].double()) < 5e-6
