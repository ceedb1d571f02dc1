"""Peak memory of one side of a work, in a process of its own: nothing else is in the figure.

    python -m pixelwright.benchmark.peak '{"work": {...}, "side": "ours", "peer": null, "threads": 2}'

On a CPU it is the resident memory at the highest, libraries apart, of a second run: what the allocator keeps,
copies of weights and scratch space of kernels are all in it. On CUDA it is what PyTorch allocated.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from pixelwright.benchmark.peer import Peer
from pixelwright.benchmark.work import Work, build
from pixelwright.errors import UserError

SELF = Path("/proc/self")


def measure_peak(work: Work, side: str, peer: Peer | None = None) -> int | None:
    """Bytes at the peak; None where the system does not tell.

    Raises:
        UserError: the process failed, as it does when memory is not enough.
    """
    spec = {
        "work": asdict(work),
        "side": side,
        "peer": asdict(peer) if peer else None,
        "threads": torch.get_num_threads(),
    }
    command = [sys.executable, "-m", "pixelwright.benchmark.peak", json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"memory of {work.title} ({side}) could not be measured: {last}")
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]


def main() -> None:
    """Print the peak as JSON."""
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    work, peer = Work(**spec["work"]), Peer(**spec["peer"]) if spec["peer"] else None
    print(json.dumps({"peak_bytes": _peak(work, spec["side"], peer)}))


def _peak(work: Work, side: str, peer: Peer | None) -> int | None:
    if work.device.startswith("cuda"):
        build(work, side, peer).warm()
        return torch.cuda.max_memory_allocated()
    if not (SELF / "clear_refs").exists():
        return None
    torch.ones(64, 64) @ torch.ones(64, 64)  # the libraries are awake now
    libraries = _resident("VmRSS")
    ready = build(work, side, peer)
    ready.warm()
    ctypes.CDLL(None).malloc_trim(0)
    (SELF / "clear_refs").write_text("5")  # the highest value starts anew
    ready.warm()
    return _resident("VmHWM") - libraries


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", (SELF / "status").read_text())
    assert found, "Linux tells it"
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
