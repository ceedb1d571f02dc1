"""Bucketed batches train, continue exactly, and what they trained draws at every shape."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pixelwright as pw
from pixelwright.data import DataConfig
from pixelwright.errors import UserError
from pixelwright.models.config import SamplerSettings
from pixelwright.text import TextConfig
from pixelwright.training import ModelConfig, build_trainer, train
from pixelwright.training.inputs import Inputs

from .conftest import Tiny, same_state

pytestmark = pytest.mark.usefixtures("no_extras")
SHAPES = {(16, 16), (8, 32), (32, 8)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve captioned pictures of three shapes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        size = ((32, 32), (70, 20), (20, 70))[i % 3]
        noise = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a red star" if i % 2 else "two circle")
    return folder


@pytest.mark.parametrize("preset", ["dip-t2i-ti", "pixeldit-t2i-ti"])
def test_three_shapes_train_and_draw(preset: str, tiny: Tiny, bert: Path, photos: Path) -> None:
    config = tiny(
        model=ModelConfig(preset, hidden_size=16, depth=1, num_heads=2),
        text=TextConfig("minilm", path=str(bert)),
        data=DataConfig(path=str(photos), size=16, aspects=True, aspect_step=8, min_side=16),
        steps=12,
    )
    whole = build_trainer(dataclasses.replace(config, run=config.run + "-whole"))
    seen, step = set(), whole.train_step

    def watch(inputs: Inputs) -> None:
        seen.add(tuple(inputs.images.shape[2:]))
        step(inputs)

    whole.train_step = watch  # type: ignore[method-assign]
    whole.run()
    assert seen == SHAPES
    train(dataclasses.replace(config, steps=5))
    train(config)
    same_state(build_trainer(config).state(), whole.state())
    model = pw.load(config.run)
    for size in SHAPES:
        drawn = pw.sample(model, ["a red star"], SamplerSettings(steps=2, guidance_scale=2.0), size=size)
        assert drawn.shape == (1, *size, 3)
        assert torch.equal(
            drawn, pw.sample(model, ["a red star"], SamplerSettings(steps=2, guidance_scale=2.0), size=size)
        )


def test_buckets_that_do_not_cut_into_patches(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="does not divide into patches of 4"):
        tiny(data=DataConfig(path="somewhere", size=16, aspects=True, aspect_step=2))
