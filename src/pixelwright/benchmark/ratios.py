"""A regression guard: ratios of earlier days, by class of machine, and what became slower since.

Ratios hold on a noisy machine, and on another of the same class; seconds do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pixelwright.benchmark.measure import Spread
from pixelwright.benchmark.rows import Report
from pixelwright.benchmark.work import PLAIN
from pixelwright.errors import UserError
from pixelwright.files import write_text

SLOWER = 0.9
"""A ratio below this share of the stored one counts as slower."""
Ratios = dict[str, dict[str, float]]
"""machine -> title of a work -> how many times faster ours was than the plain one."""


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
        raise UserError(f"{path} is not a file of ratios; `pixelwright bench --store` writes one") from None


def store_ratios(path: Path, report: Report) -> None:
    """Put the ratios of a report in the place of those of the same machine and work."""
    stored = read_ratios(path)
    mine = stored.setdefault(report.machine.name, {})
    mine |= {row.work.title: round(row.ratio.median, 3) for row in report.rows if row.against == PLAIN}
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


def compare(stored: Ratios, report: Report) -> Iterator[Change]:
    """The rows that this machine has a stored ratio for."""
    mine = stored.get(report.machine.name, {})
    for row in report.rows:
        if row.work.title in mine and row.against == PLAIN:
            yield Change(row.work.title, mine[row.work.title], row.ratio)


def check_machine(stored: Ratios, machine: str, path: Path) -> None:
    """Raise UserError if nothing is stored for a machine of this name."""
    if machine not in stored:
        known = "; ".join(stored) or "none"
        raise UserError(f"{path} holds nothing for {machine} (machines: {known}); --store adds it")
