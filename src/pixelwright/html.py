"""Pages for people: one HTML file each, with its pictures inside or beside it, and no scripts.

Charts are drawn by matplotlib (extra `train`) as SVG and stand in the page as data.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pixelwright.files import write_text

MOST_POINTS = 1500  # of a line in a chart; more are averaged in groups
CSS = """
:root { color-scheme: light dark }
:root { --line: #8884; --soft: #8881; --ok: #2a8f4e; --look: #b57a00; --bad: #c0392b }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem }
p.note, figcaption { color: #777; font-size: .88rem; margin: .2rem 0 }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line) }
td { vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.row { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0 0 1rem }
.row figure { flex: 1 1 420px; max-width: 100% } .row.small figure { flex: 0 1 240px }
.row figure:has(img.chart):not(:only-child) { flex: 0 1 calc(50% - .5rem); min-width: min(420px, 100%) }
img { max-width: 100%; height: auto; border-radius: 4px } img.chart { width: 100%; background: #fff }
img.pixels { image-rendering: pixelated }
.box { border-left: 4px solid var(--line); background: var(--soft); padding: .5rem 1rem; margin: 1rem 0 }
.ok { border-color: var(--ok) } .look { border-color: var(--look) } .bad { border-color: var(--bad) }
"""


class Page:
    """An HTML page, built from top to bottom. All text is escaped."""

    def __init__(self, title: str, note: str = "") -> None:
        self.title, self._parts = title, [f"<h1>{escape(title)}</h1>"]
        if note:
            self.paragraph(note, "note")

    def heading(self, text: str) -> None:
        """A heading of a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, kind: str = "") -> None:
        """A paragraph; `kind` "note" is small and grey."""
        self._parts.append(f'<p class="{escape(kind)}">{escape(text)}</p>')

    def box(self, kind: str, first: str, items: Iterable[str] = ()) -> None:
        """A box marked "ok", "look" or "bad", with a line and a list."""
        listed = "".join(f"<li>{escape(item)}</li>" for item in items)
        more = f"<ul>{listed}</ul>" if listed else ""
        self._parts.append(f'<div class="box {escape(kind)}"><strong>{escape(first)}</strong>{more}</div>')

    def table(self, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table; numbers stand to the right."""
        head = "".join(f"<th>{escape(name)}</th>" for name in header)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
        self._parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def figures(self, figures: Iterable[tuple[str, str]], small: bool = False, kind: str = "") -> None:
        """(address, caption) pairs in rows; `kind` is "chart" or "pixels" (enlarged without smoothing)."""
        drawn = "".join(
            f'<figure><img class="{escape(kind)}" src="{escape(address)}" alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for address, caption in figures
        )
        self._parts.append(f'<div class="row{" small" if small else ""}">{drawn}</div>')

    def html(self) -> str:
        """The whole page."""
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(self.title)}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{CSS}</style></head>'
            f"<body>{''.join(self._parts)}</body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Replace the file in one step."""
        write_text(path, self.html())


def _cell(value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f'<td class="number">{number_text(value)}</td>' if number else f"<td>{escape(str(value))}</td>"


def number_text(value: float) -> str:
    """A number for a person: thousands parted, at most four digits that say something."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The same table in Markdown."""

    def line(cells: Iterable[Any]) -> str:
        texts = (number_text(c) if isinstance(c, (int, float)) else str(c) for c in cells)
        return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |\n"

    return line(header) + line("---" for _ in header) + "".join(map(line, rows))


def image_data(path: Path) -> str:
    """A PNG file as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


# ---------------------------------------------------------------- charts
Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""name -> (x, y)"""


def line_chart(
    series: Series,
    x: str,
    y: str,
    log: bool = False,
    faint: Iterable[str] = (),
    marks: Mapping[str, float] | None = None,
) -> str:
    """Lines over a common axis, as an address for `Page.figures`.

    Args:
        log: logarithmic y; without effect unless all values are positive.
        faint: names of lines drawn in the background.
        marks: horizontal lines by name.
    """
    figure, axis = _axis(x, y)
    faint = set(faint)
    for name, (xs, ys) in series.items():
        axis.plot(*thin(xs, ys), label=name, alpha=0.25 if name in faint else 1.0, linewidth=1.3)
    for name, value in (marks or {}).items():
        axis.axhline(value, linestyle=":", color="#888", label=name)
    if log and all(value > 0 for _, ys in series.values() for value in ys):
        axis.set_yscale("log")
    return _finish(figure, axis, legend=len(series) + len(marks or {}) > 1)


def scatter_chart(series: Series, x: str, y: str, labels: Mapping[str, Sequence[str]] | None = None) -> str:
    """Points joined in their order, each with a small text if `labels` has one for it."""
    figure, axis = _axis(x, y)
    for name, (xs, ys) in series.items():
        axis.plot(xs, ys, marker="o", markersize=4, linewidth=1, label=name)
        for at, up, text in zip(xs, ys, (labels or {}).get(name, ()), strict=False):
            axis.annotate(text, (at, up), textcoords="offset points", xytext=(4, 4), fontsize=7)
    return _finish(figure, axis, legend=len(series) > 1)


def bar_chart(names: Sequence[str], series: Mapping[str, Sequence[float]], y: str) -> str:
    """Groups of bars, one for each name."""
    figure, axis = _axis("", y)
    width = 0.8 / max(1, len(series))
    for place, (name, values) in enumerate(series.items()):
        at = [i + (place - (len(series) - 1) / 2) * width for i in range(len(names))]
        axis.bar(at, values, width, label=name)
    crowded = len(names) > 6 or sum(map(len, names)) > 60
    axis.set_xticks(
        range(len(names)), names, rotation=30 if crowded else 0, ha="right" if crowded else "center"
    )
    return _finish(figure, axis, legend=len(series) > 1)


def thin(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `MOST_POINTS` points: the means of groups of neighbours."""
    size = -(-len(xs) // MOST_POINTS) or 1
    groups = range(0, len(xs), size)
    means = ([sum(part := v[i : i + size]) / len(part) for i in groups] for v in (xs, ys))
    first, second = means
    return first, second


def _axis(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # late: it takes a while, and is an extra

    figure = Figure(figsize=(6.2, 3.1), layout="constrained")
    axis = figure.subplots()
    axis.set(xlabel=x, ylabel=y)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _finish(figure: Any, axis: Any, legend: bool) -> str:
    if legend:
        axis.legend(fontsize=7, frameon=False, ncols=2 if len(axis.get_lines()) > 6 else 1)
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
