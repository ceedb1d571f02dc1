"""What the page shows of runs: curves, sample grids, events. Nothing but the folder of runs is read."""

import html
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from pixelwright.errors import UserError, nearest
from pixelwright.html import escape_markdown, line_chart
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


def progress(run: Path) -> tuple[int, str]:
    """The last step that a run has logged, and a line on how far it is and what happened in it."""
    lines = read_log(run / LOG)
    last = next((line for line in reversed(lines) if "seconds" in line), None)
    if last is None:
        return 0, texts.NOT_LOGGED
    loss = "not finite" if last["loss"] is None else f"{last['loss']:.4f}"
    text = f"step {last['step']:,}, loss {loss}, {last['images_per_second']:g} images/s"
    events = (f"step {step:,}: {what}" for step, what in list(events_of(lines))[-3:])
    return last["step"], "; ".join([text, *events])


def overview(runs: Path, names: Sequence[str]) -> str:
    """A line for each run, in Markdown."""
    if not names:
        return texts.NO_RUNS.format(folder=runs)
    states = {name: progress(folder_of(runs, name))[1] for name in names}
    return "\n".join(f"- {escape_markdown(f'{name}: {state}')}" for name, state in states.items())


def grids(runs: Path, names: Sequence[str], place: float = 1.0) -> list[tuple[Path, str]]:
    """A sample grid of each run that has one, with its caption, at a place from the run's first grid (0) to
    its newest (1)."""
    found = {name: list(grids_of(folder_of(runs, name)).items()) for name in names}
    chosen = {name: each[round(place * (len(each) - 1))] for name, each in found.items() if each}
    return [(path, f"{name}, step {step:,}") for name, (step, path) in chosen.items()]
