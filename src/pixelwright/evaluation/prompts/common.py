"""What the benchmarks share: the images of their prompts, where objects lie, and scores."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelwright.diffusion.sample import Denoiser, sample
from pixelwright.errors import UserError
from pixelwright.evaluation.generate import SETTINGS, check_settings
from pixelwright.files import write_text
from pixelwright.images import save_png
from pixelwright.text import encode_for

MOST_IMAGES = 1000  # of one prompt

Draw = Callable[[Sequence[str], Sequence[int]], Tensor]
"""(prompts, noise indices) -> uint8 [B,H,W,3]; an image depends on its prompt and index alone."""


# ---------------------------------------------------------------- drawing
@dataclass(frozen=True)
class PromptImage:
    """An image to be drawn."""

    prompt: str
    index: int  # of its noise
    path: Path


def noise_index(prompt: int, image: int) -> int:
    """The index of the noise of image `image` of prompt `prompt`, whatever else is drawn."""
    return prompt * MOST_IMAGES + image


def check_count(images: int) -> None:
    """Raise UserError unless so many images of a prompt can be drawn."""
    if not 1 <= images <= MOST_IMAGES:
        raise UserError(f"--images is {images}; give 1 to {MOST_IMAGES} images per prompt")


def draw_with(model: Denoiser, prompts: Iterable[str], seed: int, **settings: Any) -> Draw:
    """A model as what draws `prompts` (and no others); `settings` are those of `pixelwright.sample`. All
    prompts are encoded at once, after which the memory of the encoder is free."""
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    condition = encode_for(model.config, list(rows), device=model.device).to("cpu")

    def draw(prompts: Sequence[str], indices: Sequence[int]) -> Tensor:
        part = condition[torch.tensor([rows[prompt] for prompt in prompts])]
        return sample(model, part, seed=seed, start_index=indices, **settings)

    return draw


def missing(images: Sequence[PromptImage]) -> list[PromptImage]:
    """Those whose file is not there; a file is there only when it is whole."""
    return [image for image in images if not image.path.exists()]


def draw_missing(
    draw: Draw,
    images: Sequence[PromptImage],
    batch_size: int,
    progress: Callable[[int], object] = lambda images: None,
) -> None:
    """Draw the missing images, `batch_size` at a time; `progress` is called with how many more are written.
    Interrupted at any time, the same call goes on where it stopped, and gives the same images."""
    left = missing(images)
    for start in range(0, len(left), batch_size):
        batch = left[start : start + batch_size]
        drawn = draw([image.prompt for image in batch], [image.index for image in batch])
        for image, pixels in zip(batch, drawn, strict=True):
            save_png(pixels, image.path)
        progress(len(batch))


def record_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Note in `folder` what its images are drawn with. Raises UserError if it holds images of another kind:
    those of two models or settings must not mix."""
    file = folder / SETTINGS
    if file.exists():
        return check_settings(file, settings, folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder} holds something else already; give another folder")
    write_text(file, json.dumps(settings, indent=2) + "\n")


# ---------------------------------------------------------------- where objects lie
Box = tuple[float, float, float, float]  # left, top, right, bottom; x to the right, y down
SLACK = 0.1  # of the two boxes' widths (or heights) together, the distance that does not count


def relations(first: Box, second: Box) -> frozenset[str]:
    """The words among "left of", "right of", "above" and "below" that hold for the first box (GenEval).

    Distances between the centres are shortened by SLACK; a word holds if what is left along its axis is more
    than half of the whole distance. So near a diagonal two may hold, and for boxes at one place none.
    """
    offsets = [(first[axis] + first[axis + 2] - second[axis] - second[axis + 2]) / 2 for axis in (0, 1)]
    distance = math.hypot(*offsets)
    found = set()
    for axis, (before, after) in enumerate((("left of", "right of"), ("above", "below"))):
        extent = first[axis + 2] - first[axis] + second[axis + 2] - second[axis]
        if abs(offsets[axis]) - SLACK * extent > distance / 2:
            found.add(before if offsets[axis] < 0 else after)
    return frozenset(found)


# ---------------------------------------------------------------- scores
@dataclass(frozen=True)
class Score:
    """So many of so many."""

    correct: int
    images: int

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.correct / self.images

    @property
    def error(self) -> float:
        """Standard error of the share, as if all images were independent."""
        return math.sqrt(self.share * (1 - self.share) / self.images)

    def __str__(self) -> str:
        return f"{self.share:.3f} ± {self.error:.3f}"


def tally(results: Iterable[tuple[str, bool]]) -> dict[str, Score]:
    """The score of each task from (task, correct) pairs, in the order in which the tasks first occur."""
    counts: dict[str, list[bool]] = {}
    for task, correct in results:
        counts.setdefault(task, []).append(correct)
    return {task: Score(sum(flags), len(flags)) for task, flags in counts.items()}


def overall(scores: Mapping[str, Score]) -> float:
    """The mean over tasks, which is how GenEval sums up."""
    return sum(score.share for score in scores.values()) / len(scores)


def as_json(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """For a report that programs read."""
    return {
        task: {"score": s.share, "error": s.error, "correct": s.correct, "images": s.images}
        for task, s in scores.items()
    }
