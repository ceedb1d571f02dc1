"""GenEval (arXiv 2310.11513): its folder layout, its rules, and its scores read back.

The official scorer needs mmdet and CUDA. Images are therefore written as it reads them, and the file it
writes is read into our report. For a first look without it, its rules are applied here to what a `Detector`
finds (`detection` has one); such scores are not the official ones, and the report says so.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pixelwright.data.layout import is_hidden
from pixelwright.data.shapes import Array
from pixelwright.errors import UserError
from pixelwright.evaluation.prompts.common import Box, PromptImage, Score, noise_index, relations, tally
from pixelwright.files import parse_json, read_lines, read_text, write_text
from pixelwright.images import load_png, save_grid

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # of a detection's confidence
MOST_OBJECTS = 16  # of one class
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
GRID_COLUMNS = 4

Task = dict[str, Any]  # A line of the metadata file: "tag", "prompt", "include" and perhaps "exclude"


@dataclass(frozen=True)
class Detection:
    """One detection."""

    name: str
    score: float
    box: Box  # in pixels
    mask: Array  # bool [H, W]


Detector = Callable[[Image.Image], Sequence[Detection]]
Colours = Callable[[Sequence[Detection]], Sequence[str]]
"""The colour, among COLOURS, of each of several objects of one class."""
ColourOf = Callable[[Image.Image, Sequence[Detection]], Sequence[str]]  # the same, of objects in an image


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


# --- the rules --------------------------------------------------------------------------------------------
def keep(found: Iterable[Detection], tag: str) -> dict[str, list[Detection]]:
    """The detections that count, by class, the most confident first."""
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    kept: dict[str, list[Detection]] = {}
    for thing in sorted(found, key=lambda thing: -thing.score):
        if thing.score > threshold:
            kept.setdefault(thing.name, []).append(thing)
    return {name: things[:MOST_OBJECTS] for name, things in kept.items()}


def assess(task: Task, objects: Mapping[str, Sequence[Detection]], colours: Colours) -> str:
    """What is wrong with an image; "" if it is correct.

    Every clause of "include" must hold, for the most confident objects of its class as many as it asks for;
    no class of "exclude" may occur as often as it says.
    """
    faults: list[str] = []
    groups: list[Sequence[Detection] | None] = []  # of each clause, the objects that meet it
    for clause in task["include"]:
        group = objects.get(clause["class"], [])[: clause["count"]]
        fault = _fault(clause, group, groups, colours)
        faults += [fault] if fault else []
        groups.append(None if fault else group)
    for clause in task.get("exclude", []):
        count = len(objects.get(clause["class"], []))
        if count >= clause["count"]:
            faults.append(f"expected {clause['class']}<{clause['count']}, found {count}")
    return "\n".join(faults)


Groups = Sequence[Sequence[Detection] | None]


def _fault(clause: Mapping[str, Any], group: Sequence[Detection], groups: Groups, colours: Colours) -> str:
    """What is wrong with the objects of one clause: their number, their colour, their place."""
    name, count = clause["class"], clause["count"]
    if len(group) < count:
        return f"expected {name}>={count}, found {len(group)}"
    if "color" in clause:
        named = list(colours(group))
        if named.count(clause["color"]) < count:
            return f"expected {clause['color']} {name}>={count}, found {', '.join(named)}"
    if "position" in clause:
        relation, target = clause["position"]
        others = groups[target]
        if others is None:
            return f"no target for {name} to be {relation}"
        for words in (relations(a.box, b.box) for a in group for b in others):
            if relation not in words:
                return f"expected {name} {relation} target, found {' and '.join(sorted(words)) or 'neither'}"
    return ""


def score_image(path: Path, task: Task, detector: Detector, colour_of: ColourOf) -> dict[str, Any]:
    """A line of the result file, as the official scorer writes it."""
    image = Image.fromarray(load_png(path).numpy())
    objects = keep(detector(image), task["tag"])
    reason = assess(task, objects, lambda group: colour_of(image, group))
    details = json.dumps({name: [[*f.box, f.score] for f in group] for name, group in objects.items()})
    line = {"filename": str(path), "tag": task["tag"], "prompt": task["prompt"], "correct": not reason}
    return {**line, "reason": reason, "metadata": json.dumps(task), "details": details}


def scored(file: Path) -> set[str]:
    """The images that a result file has; a last line that an interruption cut short is removed from it."""
    if not file.exists():
        return set()
    text = read_text(file)
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(file, whole)
    return {line["filename"] for line in _result_lines(file)} if whole else set()


def find_images(folder: Path) -> list[tuple[Path, Task]]:
    """The images in a folder of the official layout, each with its task; UserError if it has none."""
    found = []
    for file in sorted(folder.glob("*/metadata.jsonl")):
        if file.parent.name.isdigit():
            (task,) = read_metadata(file)
            images = sorted((file.parent / "samples").glob("*.png"))
            found += [(path, task) for path in images if not is_hidden(path.name)]
    if not found:
        layout = "00000/samples/0000.png beside 00000/metadata.jsonl"
        raise UserError(f'"{folder}" holds no images such as {layout}')
    return found


# --- scores -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Result:
    """The content of a result file."""

    tasks: dict[str, Score]  # of images, by tag
    images: Score
    prompts: Score  # prompts of which at least one image is correct


def read_results(path: Path) -> Result:
    """The result file (jsonl) of the official scorer or of `score_image`. Raises UserError, naming the line,
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
