"""Measuring one work: both sides in turn, their memory apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

from pixelwright.benchmark.apart import apart
from pixelwright.benchmark.machine import ElementwiseTraffic, waiting
from pixelwright.benchmark.measure import interleave
from pixelwright.benchmark.peak import measure_peak
from pixelwright.benchmark.peer import Peer
from pixelwright.benchmark.rows import Measured, Row
from pixelwright.benchmark.work import OURS, PEER, PLAIN, Side, Work, build
from pixelwright.device import resolve_device
from pixelwright.errors import UserError

PHASE_REPEATS = 5


@dataclass(frozen=True)
class Effort:
    """How much time a work is given.

    Raises:
        UserError: not a number of runs, or no time.
    """

    repeats: int = 20
    """Most rounds that are counted."""
    warm_up: int = 2
    seconds: float = 60.0
    """No new round begins after this time; one there always is."""
    memory: bool = True
    """Whether peak memory is measured too."""

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.warm_up < 1:
            raise UserError(f"repeats is {self.repeats}, warm-up {self.warm_up}; each must be at least 1")
        if not self.seconds > 0:
            raise UserError(f"seconds is {self.seconds}; it must be above 0")


def measure(work: Work, effort: Effort, peer: Peer | None = None) -> Row:
    """Both sides of a work in turn, in this process or `apart`; their memory each in a process of its own.

    Raises:
        UserError: the memory of the device is not enough.
    """
    try:
        return _measure(work, effort, peer)
    except torch.OutOfMemoryError:
        raise UserError(f"{work.title} does not fit into the memory of {work.device}") from None


def _measure(work: Work, effort: Effort, peer: Peer | None) -> Row:
    against = PLAIN if peer is None else PEER
    names = (OURS, against)
    peaks = {name: measure_peak(work, name, peer) if effort.memory else None for name in names}
    with _sides(work, against, peer) as sides:
        return _in_turn(work, effort, sides, peaks)


@contextmanager
def _sides(work: Work, against: str, peer: Peer | None) -> Iterator[dict[str, Side]]:
    if not work.apart:
        ours = build(work, OURS)
        yield {OURS: ours, against: build(work, against, peer, ours.weights)}
        return
    with apart(work, OURS) as ours, apart(work, against, peer) as other:
        yield {OURS: ours, against: other}


def _in_turn(work: Work, effort: Effort, sides: dict[str, Side], peaks: dict[str, int | None]) -> Row:
    against = next(name for name in sides if name != OURS)
    wait = waiting(resolve_device(work.device))
    for _ in range(effort.warm_up):
        for side in sides.values():
            side.warm()
    here = work.kind == "forward" and against == PLAIN and not work.apart
    traffic = _elementwise(sides[against]) if here else None
    times = interleave({name: side.run for name, side in sides.items()}, effort.repeats, effort.seconds, wait)
    found = {
        name: Measured(tuple(times[name]), peaks[name], _phases(side), traffic if name == PLAIN else None)
        for name, side in sides.items()
    }
    return Row(work, work.flops, found[OURS], found[against], against)


def _phases(side: Side) -> dict[str, float] | None:
    if side.phases is None:
        return None
    runs = [side.phases() for _ in range(PHASE_REPEATS)]
    return {name: median(run[name] for run in runs) for name in runs[0]}


def _elementwise(side: Side) -> int:
    with ElementwiseTraffic() as traffic:
        side.warm()
    return traffic.bytes
