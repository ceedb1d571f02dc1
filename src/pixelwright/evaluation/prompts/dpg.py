"""DPG-Bench (arXiv 2403.05135): images as 2x2 grids under the names of its prompts.

Its scorer, a visual question answering model, is run with its own code on the folder of grids.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from pixelwright.data.layout import is_hidden
from pixelwright.errors import UserError
from pixelwright.evaluation.prompts.common import PromptImage, noise_index
from pixelwright.files import read_text
from pixelwright.images import load_png, save_grid

IMAGES = 4  # per prompt: the scorer cuts a grid into 2x2


def read_prompts(folder: Path) -> dict[str, str]:
    """The prompts in a folder of KEY.txt files, by key. Raises UserError if there are none."""
    files = sorted(file for file in folder.glob("*.txt") if not is_hidden(file.name))
    prompts = {file.stem: " ".join(read_text(file).split()) for file in files}
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
