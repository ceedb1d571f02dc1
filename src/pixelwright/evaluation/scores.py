"""Shares of pictures that are as their prompts say, by task, and how they are written down."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


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
        """Standard error of the share, as if all pictures were independent."""
        return math.sqrt(self.share * (1 - self.share) / self.images)

    def __str__(self) -> str:
        return f"{self.share:.3f} ± {self.error:.3f}"


def tally(results: Iterable[tuple[str, bool]]) -> dict[str, Score]:
    """The score of each task from (task, correct) pairs, in the order in which the tasks first occur."""
    counts: dict[str, list[bool]] = {}
    for task, correct in results:
        counts.setdefault(task, []).append(correct)
    return {task: Score(sum(all_), len(all_)) for task, all_ in counts.items()}


def overall(scores: Mapping[str, Score]) -> float:
    """The mean over tasks, which is how GenEval sums up."""
    return sum(score.share for score in scores.values()) / len(scores)


def as_json(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """For a report that programs read."""
    return {
        task: {"score": s.share, "error": s.error, "correct": s.correct, "images": s.images}
        for task, s in scores.items()
    }
