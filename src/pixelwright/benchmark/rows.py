"""What was measured of each work, as data: JSON and back."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pixelwright.benchmark.machine import Machine
from pixelwright.benchmark.measure import Spread, ratio, spread
from pixelwright.benchmark.work import Work
from pixelwright.errors import UserError
from pixelwright.files import write_text

FORMAT = 1


@dataclass(frozen=True)
class Measured:
    """One side of a work."""

    seconds: tuple[float, ...]
    """Of every run, in order."""
    peak_bytes: int | None = None
    phases: dict[str, float] | None = None
    """training: seconds of forward, backward, optimiser, EMA; medians."""
    elementwise_bytes: int | None = None
    """forward, plain: bytes that all but products, convolutions and attention read and write."""

    @property
    def time(self) -> Spread:
        return spread(self.seconds)

    def share(self, *phases: str) -> float | None:
        """The part of a training step that these phases take."""
        if self.phases is None:
            return None
        return sum(self.phases[phase] for phase in phases) / sum(self.phases.values())


@dataclass(frozen=True)
class Row:
    """A work and its two sides."""

    work: Work
    flops: int
    ours: Measured
    other: Measured
    against: str
    """plain, or peer."""

    @property
    def ratio(self) -> Spread:
        """How many times faster ours is."""
        return ratio(self.other.seconds, self.ours.seconds)


@dataclass(frozen=True)
class Report:
    """All rows of one machine."""

    machine: Machine
    version: str
    load: float | None
    """Of the machine when the measuring began; above 1 or 2, others were at work too."""
    rows: tuple[Row, ...] = ()

    def ceiling(self, work: Work) -> float:
        """FLOP/s of the fastest matrix product in the precision of a work."""
        return self.machine.matmul.get(work.precision, self.machine.matmul["fp32"])

    def write(self, path: Path) -> None:
        """Replace the JSON file."""
        write_text(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")


def read_report(path: Path) -> Report:
    """The report of a JSON file.

    Raises:
        UserError: not such a file.
    """
    try:
        data = json.loads(path.read_text())
        if data.pop("format") != FORMAT:
            raise ValueError
        rows = tuple(_row(row) for row in data.pop("rows"))
        return Report(machine=Machine(**data.pop("machine")), rows=rows, **data)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a report of pixelwright bench (format {FORMAT})") from None


def _row(data: dict[str, Any]) -> Row:
    sides = {
        side: Measured(**{**data[side], "seconds": tuple(data[side]["seconds"])})
        for side in ("ours", "other")
    }
    return Row(Work(**data["work"]), data["flops"], against=data["against"], **sides)


def load_average() -> float | None:
    """Processes at work on this machine."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
