"""Times on a noisy machine: everything in turn, in one process, and what a median and quartiles say."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

Wait = Callable[[], None]
"""Returns when the device has done all it was asked for."""


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


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


def waiting(device: torch.device) -> Wait:
    """What makes the clock wait for a device."""
    if device.type == "cuda":
        return torch.cuda.synchronize
    return torch.mps.synchronize if device.type == "mps" else lambda: None


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


class Stopwatch:
    """Times methods of objects in the course of a call."""

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self.total: defaultdict[str, float] = defaultdict(float)
        """Seconds by name of the method, the device's work included."""

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its time added to `total`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._wait()
            begun = time.perf_counter()
            result = function(*args, **kwargs)
            self._wait()
            self.total[name] += time.perf_counter() - begun
            return result

        return call

    @contextmanager
    def watching(self, *methods: tuple[object, str]) -> Iterator[None]:
        """In here, these methods of these objects are timed."""
        with ExitStack() as stack:
            for owner, name in methods:
                stack.enter_context(patch.object(owner, name, self.timed(name, getattr(owner, name))))
            yield
