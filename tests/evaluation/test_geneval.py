"""GenEval: the official layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pixelwright.errors import UserError
from pixelwright.evaluation.prompts import official
from pixelwright.evaluation.prompts.common import Box, draw_missing, relations
from pixelwright.images import load_png

ONE = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}
THREE = {
    "tag": "counting",
    "include": [{"class": "dog", "count": 3}],
    "exclude": [{"class": "dog", "count": 4}],
    "prompt": "a photo of three dogs",
}
LEFT = {
    "tag": "position",
    "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
    "prompt": "a photo of a dog left of a cat",
}
BOTH = {
    "tag": "color_attr",
    "include": [{"class": "dog", "count": 1, "color": "red"}, {"class": "cat", "count": 1, "color": "blue"}],
    "prompt": "a photo of a red dog and a blue cat",
}


def test_relations_need_more_than_a_tenth_of_the_extents_and_half_of_the_distance() -> None:
    def words(dx: float, dy: float, side: float = 20) -> set[str]:
        return set(relations(box(50 + dx, 50 + dy, side), box(50, 50, side)))

    def box(x: float, y: float, side: float) -> Box:
        return x - side / 2, y - side / 2, x + side / 2, y + side / 2

    assert words(-30, 0) == {"left of"} and words(30, 0) == {"right of"}
    assert words(0, -30) == {"above"} and words(0, 30) == {"below"}
    assert words(0, 0) == set()
    assert words(7.9, 0) == set() and words(8.1, 0) == {"right of"}  # 4 of it is slack: half must be left
    assert words(40, 40) == {"right of", "below"}  # 36 of 56.6 along either axis
    assert words(40, 20) == {"right of"} and words(3, 30) == {"below"}


# --- layout -----------------------------------------------------------------------


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def grey(prompts: Sequence[str], indices: Sequence[int]) -> torch.Tensor:
    """A model that draws its noise index."""
    return torch.stack([torch.full((8, 8, 3), index % 251, dtype=torch.uint8) for index in indices])


def test_the_official_layout(tmp_path: Path) -> None:
    tasks = official.read_geneval(write(tmp_path / "metadata.jsonl", [ONE, THREE, LEFT, BOTH]))
    pictures = official.geneval_images(tmp_path / "out", tasks, 4)
    official.write_geneval(tmp_path / "out", tasks)
    draw_missing(grey, pictures, batch_size=3)
    official.geneval_grids(pictures)
    files = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert len(files) == 4 * 6
    assert files[6:12] == [
        "00001/grid.png",
        "00001/metadata.jsonl",
        *(f"00001/samples/000{k}.png" for k in range(4)),
    ]
    assert json.loads((tmp_path / "out/00002/metadata.jsonl").read_text()) == LEFT
    assert load_png(tmp_path / "out/00000/grid.png").shape == (12, 4 * 10 + 2, 3)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"tag": "counting", "prompt": "x"}',
        '{"tag": 1, "prompt": "x", "include": []}',
        '{"tag": "a", "prompt": "x", "include": [{"class": "dog"}]}',
        '{"tag": "a", "prompt": "x", "include": [{"class": "dog", "count": 1, "position": ["above", 1]}]}',
    ],
)
def test_lines_that_are_no_tasks_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps(ONE) + "\n" + line)
    with pytest.raises(UserError, match="line 2 is no task of GenEval"):
        official.read_geneval(tmp_path / "metadata.jsonl")
