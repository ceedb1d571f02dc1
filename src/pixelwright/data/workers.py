"""Reading in worker processes that may die or get stuck: they are replaced, and no sample is lost."""

import itertools
import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pixelwright.errors import UserError

RESTARTS = 3  # in a row without a batch in between, before it is taken for an error
GRACE = 0.2  # seconds a process may take to be known as dead
POLL = 2.0  # seconds between two looks at whether the workers live
Loaded = TypeVar("Loaded")
logger = logging.getLogger(__name__)


class _Stuck(Exception):
    """The workers died or stalled; the text says which."""


@dataclass
class Feed(Generic[Loaded]):
    """What `reader[request(step)]` gives for `step`, `step + 1`, ..., read ahead by `workers` processes.

    `request` runs in this process and need only be a function of the step and of what this process knows, so
    that new workers can take over at any step. A worker that is killed, or a batch that takes longer than
    `stall_seconds`, costs a restart of the workers and a warning; after RESTARTS in a row it is a UserError.
    """

    reader: Dataset[Loaded]
    request: Callable[[int], Any]
    step: int
    workers: int
    stall_seconds: float

    def __iter__(self) -> Iterator[Loaded]:
        failures = 0
        while True:
            try:
                for loaded in self._run():
                    failures = 0
                    self.step += 1
                    yield loaded
            except _Stuck as problem:
                failures += 1
                if failures > RESTARTS:
                    remedy = "look for a lack of memory or a hanging disk, or raise data.stall_seconds"
                    text = f"reading the images of step {self.step} failed {failures} times: {problem}"
                    raise UserError(f"{text}; {remedy}") from problem
                logger.warning("step %d: %s; starting the workers anew", self.step, problem)

    def _run(self) -> Iterator[Loaded]:
        """One life of the workers."""
        loader = DataLoader(
            self.reader,
            batch_size=None,  # the reader takes a whole request at once
            sampler=map(self.request, itertools.count(self.step)),  # runs in this process
            num_workers=self.workers,
            prefetch_factor=2 if self.workers else None,
            collate_fn=_share,
            worker_init_fn=_ignore_interrupt if self.workers else None,
            timeout=min(POLL, self.stall_seconds) if self.workers else 0,
            generator=torch.Generator(),  # a loader without one draws from the global stream
        )
        if not self.workers:
            yield from loader
            return
        others = set(multiprocessing.active_children())
        iterator = _quietly(lambda: iter(loader))
        crew = [child for child in multiprocessing.active_children() if child not in others]
        try:
            while True:
                yield self._wait(iterator, crew)
        finally:
            for worker in crew:  # a stuck one would not listen to anything gentler
                worker.kill()
            del iterator

    def _wait(self, iterator: Iterator[Loaded], crew: list[Any]) -> Loaded:
        start = time.monotonic()
        while True:
            try:
                return next(iterator)
            except (RuntimeError, OSError, EOFError) as error:
                # RuntimeError is what the loader raises for a dead worker and for its own time-out; the
                # others come from fetching what a worker left behind, perhaps before its death is known.
                if not isinstance(error, RuntimeError):
                    time.sleep(GRACE)
                dead = [worker for worker in crew if not worker.is_alive()]
                full = any(worker.exitcode == -signal.SIGBUS for worker in dead)
                if full or "shared memory" in str(error):
                    text = f"step {self.step}: the memory that data.workers share, /dev/shm, is full"
                    remedy = "use fewer of them, or give it more (--shm-size of Docker)"
                    raise UserError(f"{text}: {remedy}") from error
                if dead:
                    code = dead[0].exitcode or 0
                    cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended ({code})"
                    raise _Stuck(f"worker process {dead[0].pid} {cause}") from error
                if "timed out" not in str(error):
                    raise
                if time.monotonic() - start >= self.stall_seconds:
                    raise _Stuck(f"no batch for {self.stall_seconds} s") from error


def _quietly(start: Callable[[], Any]) -> Any:
    """Start the loader without its handler for dead children, which would raise in the middle of a step."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return start()
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return start()
    finally:
        signal.signal(signal.SIGCHLD, before)


def _share(loaded: Any) -> Any:
    """Move tensors to shared memory, in the worker itself: a lack of it is then an error that is handed on,
    where the loader's own thread would keep it to itself."""
    if get_worker_info() is not None:
        for value in loaded if isinstance(loaded, tuple) else (loaded,):
            if isinstance(value, Tensor):
                value.share_memory_()
    return loaded


def _ignore_interrupt(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which stops its workers
