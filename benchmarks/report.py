"""What was measured, as JSON and as a Markdown page, and the ratios of earlier days that it is compared with.

Ratios hold on a noisy machine, and on another of the same class; seconds do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from machine import Machine
from timing import Spread, ratio, spread
from work import BASELINE, Work

from pixelwright import __version__
from pixelwright.errors import UserError
from pixelwright.files import write_text
from pixelwright.html import markdown_table
from pixelwright.training.summary import human

SLOWER = 0.9
"""A ratio below this share of the stored one counts as slower."""
Ratios = dict[str, dict[str, float]]
"""machine -> title of a work -> how many times faster ours was than the baseline."""


@dataclass(frozen=True)
class Measured:
    """One side of a work."""

    seconds: tuple[float, ...]
    """Of every run, in order."""
    peak_bytes: int | None = None
    phases: dict[str, float] | None = None
    """training: seconds of forward, backward, optimiser, EMA; medians."""

    @property
    def time(self) -> Spread:
        return spread(self.seconds)

    @property
    def peak(self) -> str:
        """Peak memory in words."""
        return "" if self.peak_bytes is None else human(self.peak_bytes, "B", 1024)

    def share(self, *phases: str) -> float:
        """The part of a training step that these phases take."""
        assert self.phases is not None
        return sum(self.phases[phase] for phase in phases) / sum(self.phases.values())


@dataclass(frozen=True)
class Row:
    """A work and its two sides."""

    work: Work
    flops: int
    ours: Measured
    other: Measured
    against: str
    """baseline, or peer."""

    @property
    def ratio(self) -> Spread:
        """How many times faster ours is."""
        return ratio(self.other.seconds, self.ours.seconds)

    def __str__(self) -> str:
        times = f"{self.ours.time.median:.3g} s, {self.against} {self.other.time.median:.3g} s"
        text = f"{self.work.title}: {times}: {self.ratio} times faster in {len(self.ours.seconds)} pairs"
        if self.ours.peak and self.other.peak:
            text += f"; peak {self.ours.peak}, {self.against} {self.other.peak}"
        if self.ours.phases:
            text += f"; optimiser + EMA {self.ours.share('optimiser', 'ema'):.1%}"
        return text


@dataclass(frozen=True)
class Report:
    """All rows of one machine."""

    machine: Machine
    load: float | None
    """Of the machine when the measuring began; above 1 or 2, others were at work too."""
    rows: tuple[Row, ...] = ()
    version: str = __version__

    def write(self, folder: Path) -> None:
        """Replace bench.json and bench.md."""
        write_text(folder / "bench.json", json.dumps(asdict(self), indent=1) + "\n")
        write_text(folder / "bench.md", "\n".join(self.page()))

    def page(self) -> Iterator[str]:
        """The parts of the page, one after the other."""
        against = self.rows[0].against if self.rows else BASELINE
        yield f"# Benchmark\n\n{self.machine}. pixelwright {self.version}. Load at the start: {self.load}.\n"
        yield (
            "Medians, with the quartiles in brackets, of runs in turn (A B A B) in one process; ratios are "
            "of pairs. Processes apart: still in turn, each side in a process of its own, ours with the "
            "settings of `pixelwright train`. Peak memory: each side in a process of its own. Ceiling: the "
            "arithmetic that cannot be done without, at the speed of the fastest matrix product.\n"
        )
        sides = ("ours", against)
        header = ["work", *(f"{side}, s" for side in sides), "times faster", "runs"]
        header += [f"{side}, of the ceiling" for side in sides] + [f"peak {side}" for side in sides]
        yield markdown_table(header, map(self._row, self.rows))
        if any(row.ours.phases for row in self.rows):
            yield "## Shares of a training step\n"
            header = ["work", "side", "forward", "backward", "optimiser", "EMA", "optimiser + EMA"]
            yield markdown_table(header, (line for row in self.rows for line in _phases(row)))

    def _row(self, row: Row) -> list[str]:
        sides = (row.ours, row.other)
        floor = row.flops / self.machine.ceiling(row.work.precision)
        shares = [f"{floor / side.time.median:.0%}" for side in sides]
        times = [str(side.time) for side in sides]
        runs = str(len(row.ours.seconds))
        return [row.work.title, *times, str(row.ratio), runs, *shares, *(side.peak for side in sides)]


def _phases(row: Row) -> Iterator[list[str]]:
    for name, side in (("ours", row.ours), (row.against, row.other)):
        if side.phases:
            shares = [f"{side.share(phase):.1%}" for phase in side.phases]
            yield [row.work.title, name, *shares, f"{side.share('optimiser', 'ema'):.1%}"]


# --- ratios of earlier days --------------------------------------------------------------------------------
def read_ratios(path: Path) -> Ratios:
    """The stored ratios; none where there is no file.

    Raises:
        UserError: not a file of ratios.
    """
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text())
        return {machine: {k: float(v) for k, v in rows.items()} for machine, rows in data.items()}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is not a file of ratios; `benchmarks/bench.py --store` writes one") from None


def store_ratios(path: Path, report: Report) -> None:
    """Put the ratios of a report in the place of those of the same machine and work."""
    stored = read_ratios(path)
    mine = stored.setdefault(report.machine.name, {})
    mine |= {row.work.title: round(row.ratio.median, 3) for row in report.rows}
    write_text(path, json.dumps(stored, indent=1, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Change:
    """A ratio beside the stored one."""

    title: str
    before: float
    now: Spread

    @property
    def slower(self) -> bool:
        """Whether it fell by more than a tenth, in the upper quartile too: noise alone seldom does that."""
        return self.now.high < self.before and self.now.median < SLOWER * self.before

    def __str__(self) -> str:
        end = "SLOWER" if self.slower else "as before"
        return f"{self.title}: {self.now.median:.2f} times the baseline, was {self.before:.2f}: {end}"


def compare(stored: Ratios, report: Report) -> list[Change]:
    """The rows that this machine has a stored ratio for."""
    mine = stored.get(report.machine.name, {})
    return [
        Change(row.work.title, mine[row.work.title], row.ratio)
        for row in report.rows
        if row.work.title in mine
    ]
