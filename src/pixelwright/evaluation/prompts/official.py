"""GenEval (arXiv 2310.11513) and DPG-Bench (arXiv 2403.05135): images as their own scorers read them.

GenEval's scorer needs mmdet and CUDA; that of DPG-Bench is a visual question answering model.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from pixelwright.data.layout import is_hidden
from pixelwright.errors import UserError
from pixelwright.evaluation.prompts.common import PromptImage, noise_index
from pixelwright.files import read_lines, read_text, write_text
from pixelwright.images import load_png, save_grid

GRID_COLUMNS = 4

Task = dict[str, Any]  # A line of the metadata file: "tag", "prompt", "include" and perhaps "exclude"


def read_geneval(path: Path) -> list[Task]:
    """The tasks in `evaluation_metadata.jsonl`. Raises UserError naming the line that is none."""
    lines = enumerate(read_lines(path), 1)
    tasks = [_task(line, f'"{path}", line {number}') for number, line in lines if line.strip()]
    if not tasks:
        raise UserError(f'"{path}" holds no prompts: give GenEval\'s evaluation_metadata.jsonl')
    return tasks


def _task(line: str, place: str) -> Task:
    try:
        task = json.loads(line)
        clauses = [*task["include"], *task.get("exclude", [])]
        good = all(isinstance(task[key], str) for key in ("tag", "prompt"))
        good &= all(isinstance(c["class"], str) and isinstance(c["count"], int) for c in clauses)
        for number, clause in enumerate(task["include"]):
            relation, target = clause.get("position", ("", 0))
            good &= isinstance(relation, str) and 0 <= target <= max(0, number - 1)
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        form = '{"tag": ..., "prompt": ..., "include": [{"class": ..., "count": ...}, ...]}'
        raise UserError(f"{place} is no task of GenEval: a line reads {form}")
    return dict(task)


def geneval_images(folder: Path, tasks: Sequence[Task], images: int) -> list[PromptImage]:
    """All images to draw: FOLDER/00000/samples/0000.png and so on."""
    every = [(number, task["prompt"], k) for number, task in enumerate(tasks) for k in range(images)]
    places = {number: folder / f"{number:05}" / "samples" for number in range(len(tasks))}
    return [PromptImage(text, noise_index(n, k), places[n] / f"{k:04}.png") for n, text, k in every]


def write_geneval(folder: Path, tasks: Sequence[Task]) -> None:
    """FOLDER/00000/metadata.jsonl and so on, as the official scorer reads them."""
    for number, task in enumerate(tasks):
        write_text(folder / f"{number:05}" / "metadata.jsonl", json.dumps(task) + "\n")


def geneval_grids(images: Iterable[PromptImage]) -> None:
    """FOLDER/00000/grid.png and so on: the images of a prompt side by side."""
    for folder, group in groupby(images, lambda image: image.path.parents[1]):
        tiles = torch.stack([load_png(image.path) for image in group])
        save_grid(tiles, folder / "grid.png", columns=GRID_COLUMNS)


# ---------------------------------------------------------------- DPG-Bench: 2x2 grids by prompt
DPG_IMAGES = 4  # per prompt: the scorer cuts a grid into 2x2


def read_dpg(folder: Path) -> dict[str, str]:
    """The prompts in a folder of KEY.txt files, by key. Raises UserError if there are none."""
    files = sorted(file for file in folder.glob("*.txt") if not is_hidden(file.name))
    prompts = {file.stem: " ".join(read_text(file).split()) for file in files}
    if not prompts:
        raise UserError(f'"{folder}" holds no .txt files: give the folder of the prompts of DPG-Bench')
    for key, prompt in prompts.items():
        if not prompt:
            raise UserError(f'"{folder / key}.txt" is empty: give a prompt, or remove it')
    return prompts


def dpg_images(folder: Path, prompts: dict[str, str]) -> list[PromptImage]:
    """All images to draw; the noise depends on the key, so a part of the prompts gives the same ones."""
    digests = {key: hashlib.blake2b(key.encode(), digest_size=5).digest() for key in prompts}
    return [
        PromptImage(prompt, noise_index(int.from_bytes(digests[key], "little"), k), folder / f"{key}-{k}.png")
        for key, prompt in prompts.items()
        for k in range(DPG_IMAGES)
    ]


def dpg_grids(images: Sequence[PromptImage], folder: Path) -> None:
    """FOLDER/KEY.png for each prompt, without gaps: the scorer cuts it up at half its side."""
    for start in range(0, len(images), DPG_IMAGES):
        paths = [image.path for image in images[start : start + DPG_IMAGES]]
        key = paths[0].stem.rpartition("-")[0]
        tiles = torch.stack([load_png(path) for path in paths])  # [4, H, W, 3]
        save_grid(tiles, folder / f"{key}.png", columns=2, gap=0)
