"""Several runs on one page: curves over one another, samples side by side, settings that differ."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pixelwright.files import write_text
from pixelwright.html import image_data, line_chart, render
from pixelwright.training.config import LoopConfig
from pixelwright.training.diagnosis import diagnose
from pixelwright.training.loggers import smooth
from pixelwright.training.report import (
    LOGARITHMIC,
    METRICS,
    TITLES,
    changed,
    grids_of,
    headline,
    read_run,
    series_of,
)

CURVES = ("loss", "evaluation", "grad_norm", "lr", "images_per_second", "samples")
HEADER = ("run", "state", "step", "images", "time of training", "images/s", "loss, smoothed")


class _Run(NamedTuple):
    folder: Path
    config: LoopConfig
    lines: list[dict[str, Any]]


def write_comparison(folders: Mapping[str, Path], page: Path) -> None:
    """Write one page, with everything inside, of run folders by what each is to be called.

    Raises:
        UserError: no run folder, or a config.yaml that cannot be read.
        ImportError: matplotlib is not installed.
    """
    runs = {name: _Run(folder, *read_run(folder)) for name, folder in folders.items()}
    note, samples = _samples(runs)
    text = render(
        "runs",
        title="Runs compared",
        note=", ".join(runs),
        header=HEADER,
        rows=[_row(name, run) for name, run in runs.items()],
        samples_note=note,
        samples=samples,
        charts=list(_charts(runs)),
        settings=(("setting", *runs), _settings(runs)),
    )
    write_text(page, text)


def _row(name: str, run: _Run) -> tuple[Any, ...]:
    """A row of `HEADER`."""
    state = headline(diagnose(run.lines, run.config.optim.clip), run.lines)
    lines = [line for line in run.lines if "seconds" in line]
    if not lines:
        return (name, state, 0, 0, "", "", "")
    images, seconds = lines[-1]["step"] * run.config.batch_size, lines[-1]["seconds"]
    losses = [line["loss"] for line in lines if line["loss"] is not None]
    time, rate = str(timedelta(seconds=round(seconds))), images / max(seconds, 1e-9)
    return (name, state, lines[-1]["step"], images, time, rate, smooth(losses)[-1] if losses else "")


def _samples(runs: Mapping[str, _Run]) -> tuple[str, list[tuple[str, str]]]:
    """A note, and (picture, caption) of each run: of the newest step that all have drawn, else the newest."""
    grids = {name: found for name, run in runs.items() if (found := grids_of(run.folder))}
    common = set.intersection(*map(set, grids.values())) if grids else set()
    steps = {name: max(common or found) for name, found in grids.items()}
    note = "Averaged weights" + ("" if common else "; there is no step at which all runs drew samples")
    shown = [(image_data(grids[name][step]), f"{name}, step {step:,}") for name, step in steps.items()]
    return f"{note}.", shown


def _charts(runs: Mapping[str, _Run]) -> Iterator[tuple[str, str]]:
    """(chart, caption): a line for each run, over images where the batches differ in size."""
    alike = len({run.config.batch_size for run in runs.values()}) == 1
    for name in CURVES:
        parts: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {}
        for label, run in runs.items():
            scale = 1 if alike else run.config.batch_size
            for part, (steps, values) in series_of(run.lines, name).items():
                shown = smooth(values) if name == "loss" else values
                parts.setdefault(part, {})[label] = ([step * scale for step in steps], shown)
        for part, series in parts.items():
            title = TITLES.get(part) or METRICS.get(part, part.replace("_", " "))
            title = {"loss": "loss, smoothed", "samples": f"samples: {title}"}.get(name, title)
            chart = line_chart(series, "step" if alike else "images", title, log=name in LOGARITHMIC)
            yield chart, title


def _settings(runs: Mapping[str, _Run]) -> list[tuple[str, ...]]:
    """A row for each setting that is not the same in all runs."""
    found = [dict(changed(run.config)) for run in runs.values()]
    names = dict.fromkeys(key for each in found for key in each if key != "run")
    rows = ((name, *(each.get(name, "default") for each in found)) for name in names)
    return [row for row in rows if len(set(row[1:])) > 1]
