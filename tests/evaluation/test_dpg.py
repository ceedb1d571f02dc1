"""DPG-Bench: grids under the names of the prompts, the noise of a key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pixelwright.errors import UserError
from pixelwright.evaluation.prompts import official
from pixelwright.evaluation.prompts.common import draw_missing
from pixelwright.images import load_png


def prompts(folder: Path, **texts: str) -> Path:
    folder.mkdir()
    for key, text in texts.items():
        (folder / f"{key}.txt").write_text(text)
    return folder


def test_grids_hold_the_pictures_of_a_prompt_in_order(tmp_path: Path) -> None:
    texts = official.read_dpg(prompts(tmp_path / "prompts", b="a dog\n", a="a  cat\non a mat"))
    assert texts == {"a": "a cat on a mat", "b": "a dog"}

    def draw(words: Sequence[str], indices: Sequence[int]) -> torch.Tensor:
        pairs = zip(words, indices, strict=True)
        levels = [index % 1000 * 10 + (100 if word == "a dog" else 0) for word, index in pairs]
        return torch.stack([torch.full((8, 8, 3), level, dtype=torch.uint8) for level in levels])

    pictures = official.dpg_images(tmp_path / "samples", texts)
    draw_missing(draw, pictures, batch_size=3)
    official.dpg_grids(pictures, tmp_path / "grids")
    assert sorted(p.name for p in (tmp_path / "grids").iterdir()) == ["a.png", "b.png"]
    grid = load_png(tmp_path / "grids/b.png")
    assert grid.shape == (16, 16, 3)  # no gaps: the judge cuts at half the side
    assert [grid[0, 0, 0], grid[7, 8, 0], grid[8, 7, 0], grid[8, 8, 0]] == [100, 110, 120, 130]


def test_the_noise_depends_on_the_key_alone(tmp_path: Path) -> None:
    whole = {p.path.name: p.index for p in official.dpg_images(tmp_path, {"a": "x", "b": "y", "c": "z"})}
    part = {p.path.name: p.index for p in official.dpg_images(tmp_path, {"c": "other"})}
    assert part.items() <= whole.items() and len(set(whole.values())) == 12


def test_hidden_files_are_no_prompts(tmp_path: Path) -> None:
    folder = prompts(tmp_path / "prompts", a="a red star")
    (folder / "._a.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    (folder / ".hidden.txt").write_text("a blue star")
    assert official.read_dpg(folder) == {"a": "a red star"}


def test_folders_without_prompts_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.txt files"):
        official.read_dpg(tmp_path)
    with pytest.raises(UserError, match="is empty"):
        official.read_dpg(prompts(tmp_path / "prompts", a=" "))
