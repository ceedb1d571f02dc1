"""Which guidance is best: the same images, of the same noise, with one setting of the sampler after another.

Every point is an evaluation in a folder of its own; one that is there already is not made again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pixelwright.errors import UserError, nearest
from pixelwright.evaluation.generate import Generation
from pixelwright.evaluation.report import Report, comparison_rows, incomparable
from pixelwright.html import escape_markdown, line_chart, markdown_table, render

MOST_POINTS = 1000
FORMS = "give LOW:HIGH:STEP, or values with commas between (times of an interval as LOW:HIGH)"
EVERYWHERE = (0.0, 1.0)


def _interval(text: str) -> tuple[float, float]:
    low, high = text.split(":")
    return float(low), float(high)


SWEPT: Mapping[str, Callable[[str], Any]] = {
    "guidance_scale": float,
    "guidance_interval": _interval,
    "time_shift": float,
    "steps": int,
    "solver": str,
}
"""What can be varied, and how a value is read."""


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """`guidance_scale=1:4:0.25`, both ends included, or `guidance_interval=0:1,0.1:0.9`: name and values.

    Raises:
        UserError: an unknown name, or values that cannot be read.
    """
    name, equals, values = text.partition("=")
    if name not in SWEPT:
        raise UserError(f'--sweep "{text}": unknown setting "{name}"{nearest(name, SWEPT)}')
    try:
        found = list(_values(name, values))
    except UserError:
        raise
    except ValueError:
        raise UserError(f'--sweep "{text}" cannot be read; {FORMS}') from None
    if not equals or not found:
        raise UserError(f'--sweep "{text}" names no value; {FORMS}')
    return name, found


def _values(name: str, text: str) -> Iterable[Any]:
    read = SWEPT[name]
    if text.count(":") == 2 and "," not in text and read in (float, int):
        low, high, step = (float(part) for part in text.split(":"))
        if not (math.isfinite(low + high + step) and step > 0 and low <= high):
            raise ValueError
        count = math.floor((high - low) / step + 1e-9) + 1
        if count > MOST_POINTS:
            raise UserError(f"--sweep {name}={text} names {count} values; at most {MOST_POINTS} are made")
        return [read(f"{round(low + i * step, 10):g}") for i in range(count)]
    return [read(part) for part in text.split(",") if part]


def plan(base: Generation, axes: Sequence[tuple[str, Sequence[Any]]]) -> dict[str, Generation]:
    """Every combination of the values, by a name that serves as a folder.

    Without guidance its interval says nothing, so that points that differ in it alone are one.

    Raises:
        UserError: a setting named twice, or a combination that cannot be.
    """
    names = [name for name, _ in axes]
    if len(set(names)) < len(names):
        raise UserError(f"--sweep names {max(names, key=names.count)} twice: give all its values at once")
    points: dict[str, Generation] = {}
    for values in itertools.product(*(values for _, values in axes)):
        point = replace(base, **dict(zip(names, values, strict=True)))
        if point.guidance_scale == 1:
            point = replace(point, guidance_interval=EVERYWHERE)
        points[point_name(point, names)] = point
    return points


def point_name(point: Generation, names: Iterable[str]) -> str:
    """ "guidance_scale=1.5,guidance_interval=0.1-0.9"."""
    return ",".join(f"{name}={_text(getattr(point, name))}" for name in names)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(f"{part:g}" for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- what came of it
METRICS = ("fid", "inception_score", "precision", "recall")


def best(reports: Sequence[Report]) -> Report:
    """The report of the smallest Fréchet distance."""
    return min(reports, key=lambda report: report.values["fid"])


def page(title: str, reports: Sequence[Report]) -> str:
    """FID against Inception Score and recall, and over each setting; all points in a table."""
    winner, names = best(reports), [name for name in METRICS if name in reports[0].values]
    distance, along = reports[0].title("fid"), _along(reports)
    against = [
        (_trade(reports, name), f"{distance} against {reports[0].title(name)}; at the points: {along}")
        for name in names[1:]
    ]
    return render(
        "sweep",
        title=title,
        note=f"Smallest {distance}: {winner.values['fid']:.4g} at {winner.name}; {len(reports)} points.",
        differences=incomparable(reports),
        charts=[*against, (_over_first(reports), f"{distance} over {along}")],
        header=("", *map(reports[0].title, names), "images"),
        rows=comparison_rows(reports, names),
    )


def markdown(title: str, reports: Sequence[Report]) -> str:
    """The same table in Markdown."""
    names = [name for name in METRICS if name in reports[0].values]
    header = ("point", *map(reports[0].title, names), "images")
    return f"# {escape_markdown(title)}\n\n{markdown_table(header, comparison_rows(reports, names))}"


def _along(reports: Sequence[Report]) -> str:
    """The setting that varies along a line: the first in the names."""
    return reports[0].name.partition("=")[0].replace("_", " ")


def _lines(reports: Sequence[Report]) -> dict[str, list[tuple[str, Report]]]:
    """Points by the settings but the first, whose value each point has as a text."""
    lines: dict[str, list[tuple[str, Report]]] = {}
    for report in reports:
        first, _, rest = report.name.partition(",")
        lines.setdefault(rest, []).append((first.partition("=")[2], report))
    return lines


def _trade(reports: Sequence[Report], other: str) -> str:
    lines = _lines(reports).items()
    series = {
        line: ([r.values[other] for _, r in points], [r.values["fid"] for _, r in points])
        for line, points in lines
    }
    labels = {line: [text for text, _ in points] for line, points in lines}
    return line_chart(series, reports[0].title(other), reports[0].title("fid"), labels=labels)


def _over_first(reports: Sequence[Report]) -> str:
    series = {}
    for line, points in _lines(reports).items():
        numbers = [_number(text) for text, _ in points]
        xs = (
            [float(place) for place in range(len(points))]
            if None in numbers
            else [n for n in numbers if n is not None]
        )
        series[line] = (xs, [report.values["fid"] for _, report in points])
    return line_chart(series, _along(reports), reports[0].title("fid"))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
