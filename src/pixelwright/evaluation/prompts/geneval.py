"""GenEval (arXiv 2310.11513): its folder layout, and its scores read back.

The official scorer needs mmdet and CUDA. Images are therefore written as it reads them, and the file it
writes is read into our report.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from pixelwright.errors import UserError
from pixelwright.evaluation.prompts.common import PromptImage, Score, noise_index, tally
from pixelwright.files import parse_json, read_lines, write_text
from pixelwright.images import load_png, save_grid

GRID_COLUMNS = 4

Task = dict[str, Any]  # A line of the metadata file: "tag", "prompt", "include" and perhaps "exclude"


# --- images in the official layout -------------------------------------------------------------------------
def read_metadata(path: Path) -> list[Task]:
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


def images_of(folder: Path, tasks: Sequence[Task], images: int) -> list[PromptImage]:
    """All images to draw: FOLDER/00000/samples/0000.png and so on."""
    every = [(number, task["prompt"], k) for number, task in enumerate(tasks) for k in range(images)]
    places = {number: folder / f"{number:05}" / "samples" for number in range(len(tasks))}
    return [PromptImage(text, noise_index(n, k), places[n] / f"{k:04}.png") for n, text, k in every]


def write_metadata(folder: Path, tasks: Sequence[Task]) -> None:
    """FOLDER/00000/metadata.jsonl and so on, as the official scorer reads them."""
    for number, task in enumerate(tasks):
        write_text(folder / f"{number:05}" / "metadata.jsonl", json.dumps(task) + "\n")


def write_grids(images: Iterable[PromptImage]) -> None:
    """FOLDER/00000/grid.png and so on: the images of a prompt side by side."""
    for folder, group in groupby(images, lambda image: image.path.parents[1]):
        tiles = torch.stack([load_png(image.path) for image in group])
        save_grid(tiles, folder / "grid.png", columns=GRID_COLUMNS)


# --- scores -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Result:
    """The content of a result file."""

    tasks: dict[str, Score]  # of images, by tag
    images: Score
    prompts: Score  # prompts of which at least one image is correct


def read_results(path: Path) -> Result:
    """The result file (jsonl) of the official scorer. Raises UserError, naming the line,
    for another, for an image that is there twice, and for an outcome that is not true or false."""
    found: list[tuple[str, bool]] = []
    prompts: dict[str, bool] = {}
    for line in _result_lines(path):
        prompt, correct = str(line.get("metadata", line["prompt"])), line["correct"]
        found.append((line["tag"], correct))
        prompts[prompt] = prompts.get(prompt, False) or correct
    images = Score(sum(correct for _, correct in found), len(found))
    return Result(tally(found), images, Score(sum(prompts.values()), len(prompts)))


RESULT = {"tag": str, "prompt": str, "correct": bool}
"""What a line of a result file must hold, beside the "filename" of its image."""


def _result_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a result file, checked."""
    if not any(map(str.strip, lines := read_lines(path))):
        raise UserError(f'"{path}" is empty: give the results.jsonl that the scorer of GenEval wrote')
    found: list[dict[str, Any]] = []
    seen: set[Any] = set()
    for number, part in enumerate(lines, 1):
        place = f'"{path}", line {number}'
        line = parse_json(part, place) if part.strip() else None
        if not isinstance(line, dict):
            what = "no result of GenEval" if part.strip() else "blank"
            raise UserError(f"{place} is {what}: give the results.jsonl of its scorer, as it wrote it")
        for key, kind in RESULT.items():
            if not isinstance(line.get(key), kind):
                wanted = "true or false" if kind is bool else "a text"
                text = f'{place} is no result of GenEval: "{key}" is {line.get(key)!r}, not {wanted}'
                raise UserError(f"{text}; give the results.jsonl of its scorer")
        image = (line.setdefault("filename", number), line["tag"])
        if image in seen:
            raise UserError(f'{place}: the image "{image[0]}" is there twice: keep one of the two')
        seen.add(image)
        found.append(line)
    return found
