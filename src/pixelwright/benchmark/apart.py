"""One side of a work in a process of its own, which runs when it is told to.

    python -m pixelwright.benchmark.apart '{"work": {...}, "side": "ours", "peer": null, "threads": 2}'

Our side has the settings of the process that `pixelwright train` has (see `keep_memory`), which would change
the other side too if the two shared a process. Still one runs at a time, in turn.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import torch

from pixelwright.benchmark.peer import Peer
from pixelwright.benchmark.work import OURS, Side, Work, build
from pixelwright.device import keep_memory
from pixelwright.errors import UserError


@contextmanager
def apart(work: Work, side: str, peer: Peer | None = None) -> Iterator[Side]:
    """One side of a work; its process ends with the context.

    Raises:
        UserError: the process failed, as it does when memory is not enough.
    """
    command = [sys.executable, "-m", "pixelwright.benchmark.apart", json.dumps(spec(work, side, peer))]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process,
    ):

        def ask(what: str) -> Any:
            assert process.stdin is not None and process.stdout is not None
            with suppress(BrokenPipeError):  # it ended, and there is no answer
                process.stdin.write(what + "\n")
                process.stdin.flush()
            if answer := process.stdout.readline():
                return json.loads(answer)
            errors.seek(0)
            raise UserError(f"{work.title} ({side}) failed: {last_line(errors.read())}")

        phases = (lambda: ask("phases")) if work.kind == "training" else None
        try:
            yield Side(lambda: ask("run"), lambda: ask("warm"), phases)
        finally:
            process.kill()


def spec(work: Work, side: str, peer: Peer | None) -> dict[str, Any]:
    """What another process needs to build a side."""
    threads = torch.get_num_threads()
    return {"work": asdict(work), "side": side, "peer": peer and asdict(peer), "threads": threads}


def last_line(errors: str) -> str:
    """What a process said last."""
    return (errors.strip().splitlines() or ["it said nothing"])[-1]


def prepare(spec: dict[str, Any]) -> tuple[Work, str, Peer | None]:
    """Set up this process as a `spec` wants it."""
    torch.set_num_threads(spec["threads"])
    work, side = Work(**spec["work"]), spec["side"]
    if work.apart and side == OURS:
        keep_memory()
    return work, side, Peer(**spec["peer"]) if spec["peer"] else None


def main() -> None:
    """Answer one command a line, until there are no more."""
    ready = build(*prepare(json.loads(sys.argv[1])))
    commands = {"run": ready.run, "warm": ready.warm, "phases": ready.phases}
    for line in sys.stdin:
        command = commands[line.strip()]
        assert command is not None
        result = command()
        print(json.dumps(result if isinstance(result, dict) else None), flush=True)


if __name__ == "__main__":
    main()
