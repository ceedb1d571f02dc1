"""Images in and out."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixelwright.images import columns_of, from_uint8, load_png, save_grid, save_png, to_uint8


def test_all_256_levels_survive_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)


def test_values_are_rounded_clipped_and_nan_is_black() -> None:
    x = torch.tensor([-2.0, -1.0, -1 + 1.4 / 127.5, 2.0, float("nan")]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_uint8(x)[0, 0, :, 0].tolist() == [0, 0, 1, 255, 0]


def test_a_grid_places_every_image(tmp_path: Path) -> None:
    images = torch.arange(5, dtype=torch.uint8).mul(40).reshape(5, 1, 1, 1).expand(5, 4, 4, 3)
    save_grid(images, tmp_path / "new" / "grid.png", columns=3, scale=2, gap=1)
    with Image.open(tmp_path / "new" / "grid.png") as grid:
        assert grid.size == (3 * 9 + 1, 2 * 9 + 1)
        assert [grid.getpixel((1 + i % 3 * 9, 1 + i // 3 * 9))[0] for i in range(5)] == [0, 40, 80, 120, 160]
    save_png(images[1], tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as one:
        assert one.size == (4, 4) and one.getpixel((0, 0)) == (40, 40, 40)
    assert not list(tmp_path.rglob("*.tmp"))


@given(st.integers(1, 200), st.integers(0, 40))
def test_a_grid_of_labels_in_turn_is_no_column(count: int, around: int) -> None:
    columns = columns_of(count, around)
    if columns is not None:
        assert columns % around == 0 and -(-count // columns) <= 1.5 * columns
    assert columns_of(32, 2) == 6 and columns_of(32, 10) == 10 and columns_of(200, 10) is None


def test_a_caption_is_cut_to_the_width_of_its_picture(tmp_path: Path) -> None:
    images = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    save_grid(images, tmp_path / "a.png", scale=4, captions=["café of a very long name", "", "x", "猫"])
    save_grid(images, tmp_path / "b.png", scale=4, captions=["", "", "", " "])
    written, empty = (load_png(tmp_path / name).int() for name in ("a.png", "b.png"))
    assert written.shape == empty.shape
    changed = (written != empty).any(-1).nonzero()
    assert changed[:, 1].max() < written.shape[1] - 2 and len(changed) > 20
