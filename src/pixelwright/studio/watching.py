"""What the page shows of runs: curves, sample grids, events. Nothing but the folder of runs is read."""

import html
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from pixelwright.errors import UserError, nearest
from pixelwright.html import line_chart
from pixelwright.images import load_png
from pixelwright.studio import texts
from pixelwright.studio.models import runs_in
from pixelwright.training.loggers import LOG, read_log, smooth
from pixelwright.training.report import LOGARITHMIC, events_of, grids_of, series_of

CURVES = {
    "loss": "loss",
    "grad_norm": "gradient norm",
    "images_per_second": "images per second",
    "lr": "learning rate",
    "loss_by_time": "loss by time",
}


def folder_of(runs: Path, name: str) -> Path:
    """The folder of a run. Raises UserError: there is none of this name; a path is no name."""
    if name not in (known := runs_in(runs)):
        raise UserError(f'there is no run "{name}" in {runs}{nearest(name, known)}')
    return runs / name


def chart(runs: Path, names: Sequence[str], value: str) -> str:
    """A value of the logs over the steps as HTML; runs lie over one another, losses are smoothed. Of a value
    with parts (loss by time) each part is a line. Raises ImportError: matplotlib is not installed."""
    logs = [folder_of(runs, name) / LOG for name in names]
    changes = tuple(log.stat().st_mtime_ns if log.exists() else 0 for log in logs)
    return _chart(tuple(logs), value, changes)


@lru_cache(maxsize=16)
def _chart(logs: tuple[Path, ...], value: str, changes: tuple[int, ...]) -> str:
    """As `chart`; drawn anew when a log has changed."""
    lines = {}
    for log in logs:
        for part, (steps, values) in series_of(read_log(log), value).items():
            name = log.parent.name if part == value else f"{log.parent.name}, t {part}"
            lines[name] = (steps, smooth(values) if value.startswith("loss") else values)
    if not lines:
        return ""
    address = line_chart(lines, "step", CURVES[value], log=value in LOGARITHMIC)
    return (
        f'<img src="{address}" alt="{CURVES[value]} of {html.escape(", ".join(lines))}" style="width:100%">'
    )


def _state(runs: Path, name: str) -> str:
    """A line on how far a run is, and what happened in it."""
    lines = read_log(folder_of(runs, name) / LOG)
    last = next((line for line in reversed(lines) if "seconds" in line), None)
    if last is None:
        return f"{name}: nothing is logged yet"
    text = f"{name}: step {last['step']:,}, loss {last['loss']:.4f}, {last['images_per_second']:g} images/s"
    return "; ".join([text, *(f"step {step:,}: {what}" for step, what in list(events_of(lines))[-3:])])


def overview(runs: Path, names: Sequence[str]) -> str:
    """A line for each run, in Markdown."""
    if not names:
        return texts.NO_RUNS.format(folder=runs)
    return "\n".join(f"- {html.escape(_state(runs, name))}" for name in names)


def grid(runs: Path, name: str | None, place: float) -> np.ndarray | None:
    """The sample grid of a run, [H,W,3], at a place from its first (0) to its newest (1); None: none yet."""
    grids = [] if name is None else sorted(grids_of(folder_of(runs, name)).items())
    return load_png(grids[round(place * (len(grids) - 1))][1]).numpy() if grids else None
