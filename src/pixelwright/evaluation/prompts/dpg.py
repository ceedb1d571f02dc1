"""DPG-Bench (arXiv 2403.05135): pictures as 2x2 grids under the names of its prompts, and its scores.

Its judge, a visual question answering model, is run with its own code on the folder of grids.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pixelwright.errors import UserError
from pixelwright.evaluation.prompts.common import Picture, noise_index
from pixelwright.images import load_png, save_grid

IMAGES = 4
"""Per prompt: the judge cuts a grid into 2x2."""


def read_prompts(folder: Path) -> dict[str, str]:
    """The prompts in a folder of KEY.txt files, by key. Raises UserError if there are none."""
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise UserError(f'"{folder}" holds no .txt files: give the folder of the prompts of DPG-Bench')
    prompts = {}
    for file in files:
        try:
            prompts[file.stem] = " ".join(file.read_text(encoding="utf-8").split())
        except UnicodeDecodeError as error:
            raise UserError(f'"{file}" is not text ({error}): give a prompt in UTF-8') from None
        if not prompts[file.stem]:
            raise UserError(f'"{file}" is empty: give a prompt, or remove it')
    return prompts


def pictures(folder: Path, prompts: dict[str, str]) -> list[Picture]:
    """All there are to be; the noise depends on the key, so a part of the prompts gives the same ones."""
    return [
        Picture(text, noise_index(_number(key), k), folder / f"{key}-{k}.png")
        for key, text in prompts.items()
        for k in range(IMAGES)
    ]


def _number(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=5).digest(), "little")


def write_grids(pictures: Sequence[Picture], folder: Path) -> None:
    """FOLDER/KEY.png for each prompt, without gaps: the judge cuts it up at half its side."""
    for start in range(0, len(pictures), IMAGES):
        paths = [picture.path for picture in pictures[start : start + IMAGES]]
        key = paths[0].stem.rpartition("-")[0]
        images = torch.stack([load_png(path) for path in paths])  # [4, H, W, 3]
        save_grid(images, folder / f"{key}.png", columns=2, gap=0)


@dataclass(frozen=True)
class Result:
    """What the result file of the judge says, in percent."""

    score: float
    categories: dict[str, float]
    """Entity, attribute, relation, global, other; empty where the file has none yet."""
    prompts: int


def read_results(path: Path) -> Result:
    """The text file that the judge writes. Raises UserError for another.

    It has a line per grid (its name, the scores of its pictures and their mean) and the summary at its end.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'"{path}" cannot be read ({error}): give the result file of DPG-Bench') from None
    means = [float(m[1]) for line in lines if (m := re.fullmatch(r".+\.png(?:, [\d.]+)+, ([\d.]+)", line))]
    if not means:
        raise UserError(
            f'"{path}" holds no scores of DPG-Bench (lines "KEY.png, 1.0, 0.9, ..."): give another'
        )
    stated = [float(m[1]) for line in lines if (m := re.match(r"DPG-Bench score: ([\d.]+)", line))]
    score = stated[-1] if stated else 100 * sum(means) / len(means)
    return Result(score, _categories(lines), len(means))


def _categories(lines: Iterable[str]) -> dict[str, float]:
    """The block "L1 category scores:"."""
    found: dict[str, float] = {}
    inside = False
    for line in lines:
        if line.endswith("category scores:"):
            inside = line.startswith("L1")
        elif inside and (match := re.fullmatch(r"\t(.+): ([\d.]+)", line)):
            found[match[1]] = float(match[2])
        else:
            inside = False
    return found
