"""DPG-Bench (arXiv 2403.05135): images as 2x2 grids under the names of its prompts, and its scores.

Its scorer, a visual question answering model, is run with its own code on the folder of grids.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pixelwright.errors import UserError
from pixelwright.evaluation.prompts.common import PromptImage, noise_index
from pixelwright.files import read_lines, read_text
from pixelwright.images import load_png, save_grid

IMAGES = 4  # per prompt: the scorer cuts a grid into 2x2


def read_prompts(folder: Path) -> dict[str, str]:
    """The prompts in a folder of KEY.txt files, by key. Raises UserError if there are none."""
    prompts = {file.stem: " ".join(read_text(file).split()) for file in sorted(folder.glob("*.txt"))}
    if not prompts:
        raise UserError(f'"{folder}" holds no .txt files: give the folder of the prompts of DPG-Bench')
    for key, prompt in prompts.items():
        if not prompt:
            raise UserError(f'"{folder / key}.txt" is empty: give a prompt, or remove it')
    return prompts


def images_of(folder: Path, prompts: dict[str, str]) -> list[PromptImage]:
    """All images to draw; the noise depends on the key, so a part of the prompts gives the same ones."""
    digests = {key: hashlib.blake2b(key.encode(), digest_size=5).digest() for key in prompts}
    return [
        PromptImage(prompt, noise_index(int.from_bytes(digests[key], "little"), k), folder / f"{key}-{k}.png")
        for key, prompt in prompts.items()
        for k in range(IMAGES)
    ]


def write_grids(images: Sequence[PromptImage], folder: Path) -> None:
    """FOLDER/KEY.png for each prompt, without gaps: the scorer cuts it up at half its side."""
    for start in range(0, len(images), IMAGES):
        paths = [image.path for image in images[start : start + IMAGES]]
        key = paths[0].stem.rpartition("-")[0]
        tiles = torch.stack([load_png(path) for path in paths])  # [4, H, W, 3]
        save_grid(tiles, folder / f"{key}.png", columns=2, gap=0)


@dataclass(frozen=True)
class Result:
    """The result file of the scorer, in percent."""

    score: float
    categories: dict[str, float]
    """Entity, attribute, relation, global, other; empty where the file has none yet."""
    prompts: int


def read_results(path: Path) -> Result:
    """The text file that the scorer writes. Raises UserError for another. It has a line per grid (its name,
    the scores of its images and their mean) and the summary at its end."""
    lines = read_lines(path)
    means = [float(m[1]) for line in lines if (m := re.fullmatch(r".+\.png(?:, [\d.]+)+, ([\d.]+)", line))]
    if not means:
        raise UserError(f'"{path}" holds no scores of DPG-Bench (lines "KEY.png, 1.0, 0.9"): give another')
    totals = [float(m[1]) for line in lines if (m := re.match(r"DPG-Bench score: ([\d.]+)", line))]
    score = totals[-1] if totals else 100 * sum(means) / len(means)
    found: dict[str, float] = {}
    inside = False  # the block "L1 category scores:"
    for line in lines:
        if line.endswith("category scores:"):
            inside = line.startswith("L1")
        elif inside and (match := re.fullmatch(r"\t(.+): ([\d.]+)", line)):
            found[match[1]] = float(match[2])
        else:
            inside = False
    return Result(score, found, len(means))
