"""Drawing what is missing: resumed after an interruption, in any batches, and never two kinds mixed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pixelwright.errors import UserError
from pixelwright.evaluation.prompts.common import (
    PromptImage,
    check_count,
    draw_missing,
    missing,
    noise_index,
    record_settings,
)
from pixelwright.images import load_png


def pictures(folder: Path) -> list[PromptImage]:
    return [
        PromptImage(f"prompt {n // 2}", noise_index(n // 2, n % 2), folder / f"{n}.png") for n in range(7)
    ]


def draw(prompts: Sequence[str], indices: Sequence[int]) -> torch.Tensor:
    levels = [int(prompt[-1]) * 50 + index % 1000 for prompt, index in zip(prompts, indices, strict=True)]
    return torch.stack([torch.full((4, 4, 3), level, dtype=torch.uint8) for level in levels])


def levels(folder: Path) -> list[int]:
    return [int(load_png(folder / f"{n}.png")[0, 0, 0]) for n in range(7)]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_interrupted_and_resumed_gives_the_same_pictures(tmp_path: Path, batch_size: int) -> None:
    def stops(prompts: Sequence[str], indices: Sequence[int]) -> torch.Tensor:
        if noise_index(1, 1) in indices:
            raise KeyboardInterrupt
        return draw(prompts, indices)

    wanted = pictures(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        draw_missing(stops, wanted, batch_size)
    rest = missing(wanted)
    assert len(rest) == 7 - 3 // batch_size * batch_size
    counts: list[int] = []
    draw_missing(draw, wanted, 2, counts.append)
    assert sum(counts) == len(rest) and missing(wanted) == []
    assert levels(tmp_path) == [0, 1, 50, 51, 100, 101, 150]
    draw_missing(stops, wanted, 2)  # nothing is left to draw


def test_pictures_of_two_kinds_do_not_mix(tmp_path: Path) -> None:
    out = tmp_path / "out"
    record_settings(out, {"model": "a", "guidance_interval": (0.0, 1.0)})
    record_settings(out, {"model": "a", "guidance_interval": (0.0, 1.0)})
    with pytest.raises(UserError, match="model: 'a' -> 'b'"):
        record_settings(out, {"model": "b", "guidance_interval": (0.0, 1.0)})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds something else"):
        record_settings(tmp_path / "full", {})


@pytest.mark.parametrize("images", [0, 1001])
def test_impossible_numbers_of_images(images: int) -> None:
    with pytest.raises(UserError, match=f"--images is {images}"):
        check_count(images)
