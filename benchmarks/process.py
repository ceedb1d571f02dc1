"""One side of a work in a process of its own: it runs when it is told to, or measures its peak memory.

    python benchmarks/process.py '{"work": {...}, "side": "ours", "peer": null, "threads": 2}'

Our side has the settings of the process that `pixelwright train` has (see `keep_memory`), which would change
the other side too if the two shared a process. Still one runs at a time, in turn.

Peak memory on a CPU: resident is that of the process at the highest, libraries apart, of a second run, with
what the system's allocator keeps and the scratch space of kernels. Allocated is that of tensors alone, as on
CUDA, where nothing else can be told.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from work import OURS, Side, Work, build

from pixelwright.device import keep_memory
from pixelwright.errors import UserError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def process(work: Work, side: str, peer: str | None = None) -> Iterator[Callable[[str], Any]]:
    """One side of a work in its own process: what has it do a command of `Commands` and returns the result.

    Raises:
        UserError: the process failed, as it does when memory is not enough.
    """
    spec = {"work": asdict(work), "side": side, "peer": peer, "threads": torch.get_num_threads()}
    command = [sys.executable, __file__, json.dumps(spec)]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True) as child,
    ):

        def ask(name: str) -> Any:
            assert child.stdin is not None and child.stdout is not None
            with suppress(BrokenPipeError):  # it ended, and nothing comes back
                child.stdin.write(name + "\n")
                child.stdin.flush()
            if line := child.stdout.readline():
                return json.loads(line)
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{work.title} ({side}) failed: {last}")

        try:
            yield ask
        finally:
            child.kill()


@contextmanager
def apart(work: Work, side: str, peer: str | None = None) -> Iterator[Side]:
    """One side of a work, run in a process of its own."""
    with process(work, side, peer) as ask:
        phases = (lambda: ask("phases")) if work.kind == "training" else None
        yield Side(lambda: ask("run"), lambda: ask("warm"), phases)


def measure_peak(work: Work, side: str, peer: str | None = None, resident: bool = True) -> int | None:
    """Bytes at the peak, resident or allocated; None where the system does not tell."""
    with process(work, side, peer) as ask:
        return ask("resident" if resident and not work.device.startswith("cuda") else "allocated")


class Commands:
    """What a process is told to do with its side."""

    def __init__(self, work: Work, side: str, peer: str | None, threads: int) -> None:
        torch.set_num_threads(threads)
        self._work, self._side, self._peer = work, side, peer
        if work.apart and side == OURS:
            keep_memory()

    @cached_property
    def _ready(self) -> Side:
        return build(self._work, self._side, self._peer)

    def run(self) -> None:
        self._ready.run()

    def warm(self) -> None:
        self._ready.warm()

    def phases(self) -> dict[str, float]:
        assert self._ready.phases is not None
        return self._ready.phases()

    def resident(self) -> int | None:
        if not CLEAR.exists():
            return None
        torch.ones(64, 64) @ torch.ones(64, 64)  # the libraries are awake now
        libraries = _status("VmRSS")
        self.warm()
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")  # the highest value starts anew
        self.warm()
        return _status("VmHWM") - libraries

    def allocated(self) -> int:
        """From the making of the model to the end of a second run."""
        if self._work.device.startswith("cuda"):
            self.warm()
            self.warm()
            return torch.cuda.max_memory_allocated()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self.warm()
            self.warm()
        assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
        events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
        return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert found, "Linux tells it"
    return 1024 * int(found[1])


def main() -> None:
    """Do one command a line, until there are no more."""
    spec = json.loads(sys.argv[1])
    commands = Commands(Work(**spec["work"]), spec["side"], spec["peer"], spec["threads"])
    for line in sys.stdin:
        print(json.dumps(getattr(commands, line.strip())()), flush=True)


if __name__ == "__main__":
    main()
