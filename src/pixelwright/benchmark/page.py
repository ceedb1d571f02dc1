"""The figures as a Markdown page with its charts beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

from pixelwright.benchmark.measure import Spread
from pixelwright.benchmark.rows import Measured, Report, Row
from pixelwright.benchmark.suites import goal
from pixelwright.benchmark.work import PLAIN
from pixelwright.files import replacing, write_text
from pixelwright.html import bar_chart, markdown_table
from pixelwright.training.summary import human

TIMES, ROOFLINE = "ratios.svg", "ceiling.svg"


def write_page(report: Report, folder: Path, title: str = "Benchmark") -> Path:
    """Write bench.md and its charts into a folder. Returns the page.

    Raises:
        ImportError: matplotlib, of the extra `train`, is not here.
    """
    if report.rows:
        names = [_short(row) for row in report.rows]
        against = report.rows[0].against
        ratios = {"ratio": [row.ratio.median for row in report.rows]}
        _save(bar_chart(names, ratios, f"times faster than {against}"), folder / TIMES)
        shares = {
            side: [100 * _share_of_ceiling(report, row, measured) for row, measured in pairs]
            for side, pairs in _by_side(report).items()
        }
        _save(bar_chart(names, shares, "% of the matmul ceiling"), folder / ROOFLINE)
    path = folder / "bench.md"
    write_text(path, f"# {title}\n\n" + "\n".join(sections(report)))
    return path


def sections(report: Report) -> Iterator[str]:
    """The parts of the page, one after the other."""
    machine = report.machine
    ceilings = ", ".join(f"{name} {flops / 1e12:.2f} TFLOP/s" for name, flops in machine.matmul.items())
    yield (
        f"{machine.name}; torch {machine.torch}, pixelwright {report.version}. Fastest matrix product: "
        f"{ceilings}; fastest copy: {machine.copy / 1e9:.1f} GB/s (read and written). "
        f"Load at the start: {report.load}.\n"
    )
    yield (
        "Medians, with the quartiles in brackets, of runs in turn (A B A B) in one process; ratios are of "
        "pairs. Processes apart: still in turn, each side in a process of its own, ours with the settings of "
        "`pixelwright train`. Peak memory: each side in a process of its own.\n"
    )
    against = report.rows[0].against if report.rows else "plain"
    header = ["work", "ours, s", f"{against}, s", "times faster", "goal", "runs", "peak ours"]
    header.append(f"peak {against}")
    yield markdown_table(header, (_row(row) for row in report.rows))
    if report.rows:
        yield f"![times faster]({TIMES})\n"
    yield "## Roofline\n"
    yield (
        "Floor: the arithmetic that cannot be done without, at the speed of the fastest matrix product. "
        "Elementwise: the bytes that all other operations of the plain forward pass move, at the speed of "
        "the fastest copy.\n"
    )
    header = ["work", "FLOPs", "floor, s", f"elementwise of {against}, s", "ours", f"{against}"]
    yield markdown_table(header, (_roofline(report, row) for row in report.rows))
    if report.rows:
        yield f"![share of the ceiling]({ROOFLINE})\n"
    steps = [row for row in report.rows if row.ours.phases]
    if steps:
        yield "## Shares of a training step\n"
        header = ["work", "side", "forward", "backward", "optimiser", "EMA", "optimiser + EMA"]
        yield markdown_table(header, (line for row in steps for line in _phases(row)))


def _row(row: Row) -> list[str]:
    peaks = [_memory(side) for side in (row.ours, row.other)]
    times = [_text(side.time) for side in (row.ours, row.other)]
    wanted = goal(row.work) if row.against == PLAIN else None
    verdict = "" if wanted is None else f"{wanted:g}: {'reached' if row.ratio.median >= wanted else 'missed'}"
    return [row.work.title, *times, _text(row.ratio), verdict, str(len(row.ours.seconds)), *peaks]


def _roofline(report: Report, row: Row) -> list[str]:
    traffic = row.other.elementwise_bytes
    return [
        row.work.title,
        human(row.flops, ""),
        f"{row.flops / report.ceiling(row.work):.3g}",
        "" if traffic is None else f"{traffic / report.machine.copy:.3g}",
        *(_achieved(report, row, side) for side in (row.ours, row.other)),
    ]


def _achieved(report: Report, row: Row, side: Measured) -> str:
    share = _share_of_ceiling(report, row, side)
    return f"{human(row.flops / side.time.median, 'FLOP/s')}, {share:.0%} of the ceiling"


def _phases(row: Row) -> Iterator[list[str]]:
    for name, side in (("ours", row.ours), (row.against, row.other)):
        shares = [f"{side.share(phase):.1%}" for phase in side.phases or ()]
        yield [row.work.title, name, *shares, f"{side.share('optimiser', 'ema'):.1%}"]


def _share_of_ceiling(report: Report, row: Row, side: Measured) -> float:
    return row.flops / side.time.median / report.ceiling(row.work)


def _by_side(report: Report) -> dict[str, list[tuple[Row, Measured]]]:
    against = report.rows[0].against
    return {"ours": [(r, r.ours) for r in report.rows], against: [(r, r.other) for r in report.rows]}


def _text(values: Spread) -> str:
    return f"{values.median:.3g} ({values.low:.3g} to {values.high:.3g})"


def _memory(side: Measured) -> str:
    return "" if side.peak_bytes is None else human(side.peak_bytes, "B", 1024)


def _short(row: Row) -> str:
    return f"{row.work.kind} {row.work.model}" + (", apart" if row.work.apart else "")


def _save(address: str, path: Path) -> None:
    """Write the SVG that a data address holds."""
    with replacing(path) as part:
        part.write_bytes(base64.b64decode(address.partition(",")[2]))
