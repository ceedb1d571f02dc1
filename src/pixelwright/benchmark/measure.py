"""Times on a noisy machine: everything in turn, in one process, and what a median and quartiles say."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Wait = Callable[[], None]
"""Returns when the device has done all it was asked for."""


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    """A quarter of the values lie below."""
    high: float
    """A quarter of the values lie above."""


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """The spread of the quotients of values measured one after the other.

    Of pairs, not of medians: what slows the machine down for a while slows both halves of a pair.
    """
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def interleave(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    seconds: float = math.inf,
    wait: Wait = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Call the functions in turn, A B A B, and return the seconds of each call by name.

    Args:
        repeats: most rounds.
        seconds: no new round begins after so long; the first one always does.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    start = clock()
    for number in range(repeats):
        if number and clock() - start > seconds:
            break
        for name, function in functions.items():
            wait()
            begun = clock()
            function()
            wait()
            times[name].append(clock() - begun)
    return times
