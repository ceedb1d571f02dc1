"""Small parts of the training loop: running sums, a clock, stop signals."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; it has saved and can be continued. The command line exits with 130."""


class StopRequested(Exception):
    """Ends the drawing of pictures when the run was asked to stop."""


class Means(NamedTuple):
    """What a `Meter` measured."""

    loss: float | None  # mean over the finite steps since the last reading; None if there was none
    grad_norm: float | None
    logs: dict[str, float]  # means of what the objectives logged, over the finite steps in which they did
    skipped: int  # steps without a finite loss and gradient since the start of the run
    skipped_in_a_row: int  # ... and how many of them are the latest steps


class Meter:
    """Sums over training steps, kept on the device so that no step waits for the one before.

    `sums` (loss, gradient norm, finite steps, skipped steps, skipped in a row) and `logs` (sums and numbers
    of steps by name) are part of a checkpoint: the log of a continued run then holds the same numbers as that
    of an uninterrupted one.
    """

    def __init__(self, device: torch.device, names: Sequence[str] = ()) -> None:
        self.names = names
        self.sums, self.logs = torch.zeros(5, device=device), torch.zeros(2, len(names), device=device)
        self._skipped = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0], device=device)
        self._zero, self._one = torch.zeros((), device=device), torch.ones((), device=device)

    def tensors(self) -> dict[str, Tensor]:
        """What belongs into a checkpoint, by reference."""
        return {"sums": self.sums, **({"logs": self.logs} if self.names else {})}

    def add(self, loss: Tensor, norm: Tensor, finite: Tensor, logs: Mapping[str, Tensor]) -> None:
        """Count one step. All are 0-d tensors on the device; `finite` is a bool, `logs` hold means."""
        good = torch.stack([loss, norm, self._one, self._zero, -self.sums[4]])
        self.sums += torch.where(finite, good, self._skipped)
        if logs:
            values = torch.stack([logs.get(name, self._zero) for name in self.names])
            there = torch.stack([self._one if name in logs else self._zero for name in self.names])
            self.logs += torch.where(finite, torch.stack((values, there)), 0.0)

    def read(self) -> Means:
        """The means since the last reading, and the counts."""
        loss, norm, count, skipped, in_a_row = self.sums.tolist()
        rows = zip(self.names, *self.logs.tolist(), strict=True)
        logs = {name: total / steps for name, total, steps in rows if steps}
        self.sums[:3] = 0
        self.logs.zero_()
        loss, norm = (loss / count, norm / count) if count else (None, None)
        return Means(loss, norm, logs, int(skipped), int(in_a_row))


class Clock:
    """Seconds spent on training: all of them, and those without the pauses for pictures and checkpoints."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._begun = self._begun_net = time.perf_counter()
        self._begun_net -= seconds

    def seconds(self) -> float:
        """Seconds of training until now, pauses left out."""
        return time.perf_counter() - self._begun_net

    def wall(self) -> float:
        """Seconds since the clock was made, pauses included."""
        return time.perf_counter() - self._begun

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is no training."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._begun_net += time.perf_counter() - start


@contextmanager
def stop_signals(ask: Callable[[], None]) -> Iterator[None]:
    """Call `ask` on the first SIGINT or SIGTERM; a second one ends the program at once. Outside the main
    thread Python delivers no signals, and nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    at_once: dict[signal.Signals, Any]
    at_once = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.getsignal(number) for number in at_once}

    def first(number: int, frame: FrameType | None) -> None:
        for each, handler in at_once.items():
            signal.signal(each, handler)
        os.write(2, b"\nstopping and saving; once more to stop at once\n")
        ask()

    for number in at_once:
        signal.signal(number, first)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
