"""Peak memory of one side of a work, in a process of its own: nothing else is in the figure.

    python -m pixelwright.benchmark.peak \\
        '{"work": {...}, "side": "ours", "peer": null, "threads": 2, "resident": true}'

On a CPU, resident memory is that of the process at the highest, libraries apart, of a second run: what the
allocator of the system keeps and scratch space of kernels are in it. Allocated memory is that of tensors
alone, as on CUDA, where nothing else is told.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from pixelwright.benchmark.apart import last_line, prepare, spec
from pixelwright.benchmark.peer import Peer
from pixelwright.benchmark.work import Work, build
from pixelwright.errors import UserError

SELF = Path("/proc/self")


def measure_peak(work: Work, side: str, peer: Peer | None = None, resident: bool = True) -> int | None:
    """Bytes at the peak, resident or allocated; None where the system does not tell.

    Raises:
        UserError: the process failed, as it does when memory is not enough.
    """
    task = json.dumps({**spec(work, side, peer), "resident": resident})
    command = [sys.executable, "-m", "pixelwright.benchmark.peak", task]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"memory of {work.title} ({side}) could not be measured: {last_line(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]


def main() -> None:
    """Print the peak as JSON."""
    task = json.loads(sys.argv[1])
    work, side, peer = prepare(task)
    measured = _resident if task["resident"] and not work.device.startswith("cuda") else _allocated
    print(json.dumps({"peak_bytes": measured(work, side, peer)}))


def _allocated(work: Work, side: str, peer: Peer | None) -> int:
    """Of all tensors, from the making of the model to the end of a second run."""

    def runs() -> None:
        ready = build(work, side, peer)
        for _ in range(2):
            ready.warm()

    if work.device.startswith("cuda"):
        runs()
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        runs()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def _resident(work: Work, side: str, peer: Peer | None) -> int | None:
    if not (SELF / "clear_refs").exists():
        return None
    torch.ones(64, 64) @ torch.ones(64, 64)  # the libraries are awake now
    libraries = _status("VmRSS")
    ready = build(work, side, peer)
    ready.warm()
    ctypes.CDLL(None).malloc_trim(0)
    (SELF / "clear_refs").write_text("5")  # the highest value starts anew
    ready.warm()
    return _status("VmHWM") - libraries


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", (SELF / "status").read_text())
    assert found, "Linux tells it"
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
