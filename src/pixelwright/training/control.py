"""Small parts of the training loop: running sums, a clock, stop signals, work done ahead."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Means(NamedTuple):
    """What a `Meter` measured."""

    loss: float | None
    """Mean over the finite steps since the last reading; None if there was none."""
    grad_norm: float | None
    skipped: int
    """Steps without a finite loss and gradient since the start of the run."""
    skipped_in_a_row: int
    """... and how many of them are the latest steps."""


class Meter:
    """Sums over training steps, kept on the device so that no step waits for the one before.

    `sums` (loss, gradient norm, finite steps, skipped steps, skipped in a row) is part of a checkpoint: the
    log of a continued run then holds the same numbers as that of an uninterrupted one.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(5, device=device)
        self._skipped = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0], device=device)
        self._zero, self._one = torch.zeros((), device=device), torch.ones((), device=device)

    def add(self, loss: Tensor, norm: Tensor, finite: Tensor) -> None:
        """Count one step. All three are 0-d tensors on the device; `finite` is a bool."""
        good = torch.stack([loss, norm, self._one, self._zero, -self.sums[4]])
        self.sums += torch.where(finite, good, self._skipped)

    def read(self) -> Means:
        """The means since the last reading, and the counts."""
        loss, norm, count, skipped, in_a_row = self.sums.tolist()
        self.sums[:3] = 0
        if not count:
            return Means(None, None, int(skipped), int(in_a_row))
        return Means(loss / count, norm / count, int(skipped), int(in_a_row))


class Clock:
    """Seconds spent on training, without the pauses for pictures and checkpoints."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._begun = time.perf_counter() - seconds

    def seconds(self) -> float:
        """Seconds until now."""
        return time.perf_counter() - self._begun

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._begun += time.perf_counter() - start


class Silent:
    """Takes any call and does nothing: the report of the processes that do not report."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@contextmanager
def stop_signals(ask: Callable[[], None]) -> Iterator[None]:
    """Call `ask` on the first SIGINT or SIGTERM; a second one ends the program at once.

    Outside the main thread Python delivers no signals, and nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    at_once: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    before = {number: signal.getsignal(number) for number in at_once}

    def first(number: int, frame: FrameType | None) -> None:
        for each, handler in at_once.items():
            signal.signal(each, handler)
        os.write(2, b"\nstopping after this step and saving; once more to stop at once\n")
        ask()

    for number in at_once:
        signal.signal(number, first)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made in a thread while the one before is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        pending = pool.submit(next, items)
        while True:
            item = pending.result()
            pending = pool.submit(next, items)
            yield item
