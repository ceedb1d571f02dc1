"""HTML pages and Markdown tables for people, and the charts in them.

A page is one file without scripts, made by jinja2 from a template in `templates/`, which escapes all values.
Charts are drawn by matplotlib (extra `train`) as SVG and stand in the page as data.
"""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

MOST_POINTS = 1500  # of a line in a chart; more are averaged in groups
GREY = "#808080"  # of text and axes in charts: legible on white and on black


@cache
def templates() -> Environment:
    """The templates of the package; a value that a template needs and does not get is an error. Values are
    escaped in those of HTML."""
    how: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "keep_trailing_newline": True}
    escape = select_autoescape(["html.j2"])
    found = Environment(loader=PackageLoader("pixelwright"), autoescape=escape, **how)
    found.globals["number_text"] = number_text
    return found


def render(template: str, **values: Any) -> str:
    """The page that `templates/TEMPLATE.html.j2` makes of `values`, all of them escaped."""
    return templates().get_template(f"{template}.html.j2").render(values)


def number_text(value: object) -> str:
    """A number for a person: thousands parted, at most four digits that say something; else the text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:{',.0f' if abs(value) >= 10_000 else '.4g'}}"


def data_address(data: bytes, kind: str) -> str:
    """The bytes of a picture ("png", "jpeg", "svg+xml") as an address that holds them."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def image_data(path: Path) -> str:
    """A PNG file as an address that holds it."""
    return data_address(path.read_bytes(), "png")


def escape_markdown(text: object) -> str:
    """A text as Markdown that shows it on one line, whatever signs of Markdown or HTML are in it."""
    plain = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\`*|\[\]~]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", plain)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; numbers as `number_text` has them, everything escaped."""
    lines = [[escape_markdown(number_text(cell)) for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# ---------------------------------------------------------------- charts
Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # name -> (x, y)


def line_chart(
    series: Series,
    x: str,
    y: str,
    *,
    log: bool = False,
    faint: Iterable[str] = (),
    marks: Mapping[str, float] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Lines over a common axis: the address of an SVG picture on no ground, for light and dark pages.

    Args:
        log: logarithmic y; without effect unless all values are positive.
        faint: names of lines drawn in the background.
        marks: horizontal lines by name.
        labels: a small text at each point of a line, all of which are marked then.
    """
    from matplotlib import rc_context  # late: it takes a while, and is an extra
    from matplotlib.figure import Figure

    coloured = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    grounds = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    style: dict[Any, str] = {**dict.fromkeys(coloured, GREY), **dict.fromkeys(grounds, "none")}
    style["svg.hashsalt"] = ""  # equal content makes equal files
    background, dots = set(faint), {} if labels is None else {"marker": "o", "markersize": 4}
    marks, file = marks or {}, io.BytesIO()
    with rc_context(style):
        figure = Figure(figsize=(6.2, 3.1), layout="constrained")
        axis: Any = figure.subplots()
        axis.set(xlabel=x, ylabel=y)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        for name, (xs, ys) in series.items():
            alpha = 0.25 if name in background else 1.0
            axis.plot(*thin(xs, ys), label=name, alpha=alpha, linewidth=1.3, **dots)
            for at, up, text in zip(xs, ys, (labels or {}).get(name, ()), strict=False):
                axis.annotate(text, (at, up), textcoords="offset points", xytext=(4, 4), fontsize=7)
        for name, value in marks.items():
            axis.axhline(value, linestyle=":", color=GREY, label=name)
        if log and all(value > 0 for _, ys in series.values() for value in ys):
            axis.set_yscale("log")
        if len(series) + len(marks) > 1:
            axis.legend(fontsize=7, frameon=False, ncols=2 if len(axis.get_lines()) > 6 else 1)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return data_address(file.getvalue(), "svg+xml")


def thin(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `MOST_POINTS` points: the means of groups of neighbours."""
    size = -(-len(xs) // MOST_POINTS) or 1
    groups = range(0, len(xs), size)
    first, second = ([sum(part := v[i : i + size]) / len(part) for i in groups] for v in (xs, ys))
    return first, second
