"""Noise, a grid of patches, one picture for all: told of pictures that have them, and of no others."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelwright.data import Shapes
from pixelwright.evaluation.metrics import look, noise_left, variety

NOISE = torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def images() -> Tensor:
    source = Shapes(size=32, count=240)
    return torch.stack([torch.from_numpy(np.array(source[10 * i].image)) for i in range(24)])


def test_shapes_have_nothing_of_the_kind(images: Tensor) -> None:
    found = look(images, 4)
    assert found["noise"] < 0.05 and found["patch_grid"] < 1 and found["variety"] > 0.5


@pytest.mark.parametrize("share", [0.5, 1.0, 4.0])
def test_noise_is_measured(images: Tensor, share: float) -> None:
    x = images.float()
    noisy = (x + torch.randn(x.shape, generator=NOISE) * x.std() * share).clamp(0, 255).byte()
    assert noise_left(noisy) > 0.4
    assert 0.9 < noise_left(torch.randint(0, 256, x.shape, generator=NOISE, dtype=torch.uint8)) < 1.1


def test_seams_are_a_grid(images: Tensor) -> None:
    levels = torch.randint(-60, 60, (24, 4, 4, 3), generator=NOISE)
    patches = levels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    seams = (images.float() * 0.5 + 60 + patches).clamp(0, 255).byte()
    assert look(seams, 8)["patch_grid"] > 1 > look(images, 8)["patch_grid"]


def test_one_picture_for_all(images: Tensor) -> None:
    assert variety(images[:1].repeat(8, 1, 1, 1)) == 0
    assert variety(images) > 0.5


def test_what_cannot_be_told_is_left_out(images: Tensor) -> None:
    assert set(look(images[:1], 4)) == {"noise", "patch_grid"}
    assert set(look(images, 16)) == {"noise", "variety"}
    grey = look(torch.full((4, 8, 8, 3), 128, dtype=torch.uint8), 2)
    assert grey == {"noise": 0.0, "patch_grid": -1.0, "variety": 0.0}
