"""Which guidance is best: the same images, of the same noise, with one setting of the sampler after another.

Every point is an evaluation in a folder of its own; one that is there already is not made again.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pixelwright.errors import UserError, nearest
from pixelwright.evaluation.generate import Generation
from pixelwright.evaluation.measure import Report
from pixelwright.evaluation.report import comparison_rows, incomparable
from pixelwright.files import write_text
from pixelwright.html import escape_markdown, line_chart, markdown_table, render

MOST_POINTS = 1000
SWEPT = ("guidance_scale", "guidance_interval", "time_shift", "steps", "solver")
"""What can be varied."""
FORMS = "give LOW:HIGH:STEP, or values with commas between (an interval as LOW:HIGH, or all)"


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """`guidance_scale=1:4:0.25`, both ends included, or `guidance_interval=all,0.1:0.9`: name and values.
    Raises UserError: an unknown name, or values that cannot be read."""
    name, _, values = text.partition("=")
    if name not in SWEPT:
        raise UserError(f'--sweep "{text}": unknown setting "{name}"{nearest(name, SWEPT)}')
    words = [word for word in values.split(",") if word]
    if not words:
        raise UserError(f'--sweep "{text}" names no value; {FORMS}')
    try:
        if len(words) == 1 and words[0].count(":") == 2:
            low, high, step = map(float, words[0].split(":"))
            if not (math.isfinite(low + high + step) and step > 0 and low <= high):
                raise ValueError
            count = math.floor((high - low) / step + 1e-9) + 1
            words = [f"{round(low + i * step, 10):g}" for i in range(min(count, MOST_POINTS + 1))]
        found = [_value(name, word) for word in words]
    except ValueError:
        raise UserError(f'--sweep "{text}" cannot be read; {FORMS}') from None
    if len(found) > MOST_POINTS:
        raise UserError(f"--sweep {text} names too many values; at most {MOST_POINTS} are made")
    return name, found


def _value(name: str, word: str) -> Any:
    if name == "guidance_interval":
        low, high = (0, 0) if word == "all" else map(float, word.split(":"))
        return None if word == "all" else (low, high)
    return word if name == "solver" else int(word) if name == "steps" else float(word)


def plan(base: Generation, axes: Sequence[tuple[str, Sequence[Any]]]) -> dict[str, Generation]:
    """Every combination of the values, by a name that serves as a folder.

    Without guidance its interval says nothing, so that points that differ in it alone are one.

    Raises UserError: a setting named twice, or a combination that cannot be.
    """
    names = [name for name, _ in axes]
    if len(set(names)) < len(names):
        raise UserError(f"--sweep names {max(names, key=names.count)} twice: give all its values at once")
    points: dict[str, Generation] = {}
    for values in itertools.product(*(values for _, values in axes)):
        point = replace(base, **dict(zip(names, values, strict=True)))
        if point.guidance_scale == 1:
            point = replace(point, guidance_interval=None)
        points[",".join(f"{name}={_text(getattr(point, name))}" for name in names)] = point
    return points


def _text(value: Any) -> str:
    if value is None:
        return "all"
    if isinstance(value, tuple):
        return "-".join(f"{part:g}" for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- what came of it
COLUMNS = ("fid", "inception_score", "precision", "recall", "density", "coverage")


def best(reports: Sequence[Report]) -> Report:
    """The report of the smallest Fréchet distance."""
    return min(reports, key=lambda report: report.values["fid"])


def write_sweep(title: str, reports: Sequence[Report], folder: Path) -> None:
    """sweep.md, a table of all points, and sweep.html (with matplotlib, of the extra `train`)."""
    names = [name for name in COLUMNS if name in reports[0].values]
    header = ("point", *map(reports[0].title, names), "images")
    rows = comparison_rows(reports, names)
    write_text(folder / "sweep.md", f"# {escape_markdown(title)}\n\n{markdown_table(header, rows)}")
    winner, distance = best(reports), reports[0].title("fid")
    note = f"Smallest {distance}: {winner.values['fid']:.4g} at {winner.name}; {len(reports)} points."
    shown = {"title": title, "note": note, "charts": list(_charts(reports, names))}
    page = render("sweep", **shown, differences=incomparable(reports), header=header, rows=rows)
    write_text(folder / "sweep.html", page)


def _charts(reports: Sequence[Report], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(chart, caption): FID against the other metrics, and over the first setting that varies. A line has the
    points that differ in that setting alone, each with its value."""
    lines: dict[str, list[tuple[str, Report]]] = {}
    for report in reports:
        first, _, rest = report.name.partition(",")
        lines.setdefault(rest, []).append((first.partition("=")[2], report))
    labels = {line: [text for text, _ in points] for line, points in lines.items()}
    fid = {line: [report.values["fid"] for _, report in points] for line, points in lines.items()}
    distance, setting = reports[0].title("fid"), reports[0].name.partition("=")[0].replace("_", " ")
    for name in names[1:]:
        title = reports[0].title(name)
        other = {line: [report.values[name] for _, report in points] for line, points in lines.items()}
        series = {line: (other[line], fid[line]) for line in lines}
        chart = line_chart(series, title, distance, labels=labels)
        yield chart, f"{distance} against {title}; at the points: {setting}"
    over = {line: (_numbers(labels[line]), fid[line]) for line in lines}
    yield line_chart(over, setting, distance), f"{distance} over {setting}"


def _numbers(texts: Sequence[str]) -> list[float]:
    """The values of a setting; their places where they are no numbers."""
    try:
        return [float(text) for text in texts]
    except ValueError:
        return [float(place) for place in range(len(texts))]
