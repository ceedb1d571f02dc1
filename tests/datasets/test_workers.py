"""Worker processes that die or hang."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixelwright.data import Batch, Batches, DataConfig, Sample
from pixelwright.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of forking


class Fragile:
    """Image i is grey level i. Reading number 5 in a worker does `fault`, as often as `times` says."""

    class_names, num_classes = None, 1

    def __init__(self, folder: Path, fault: str, times: int):
        self.folder, self.fault, self.times, self.home = folder, fault, times, os.getpid()

    def __len__(self) -> int:
        return 12

    def name(self, index: int) -> str:
        return f"image {index}"

    def __getitem__(self, index: int) -> Sample:
        if index == 5 and os.getpid() != self.home and len(list(self.folder.iterdir())) < self.times:
            (self.folder / f"{time.monotonic_ns()}").touch()
            if self.fault == "raise":
                raise RuntimeError("a bug")
            if self.fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return Sample(Image.fromarray(np.full((4, 4, 3), index, np.uint8)), 0, None, self.name(index))


def take(source: Fragile, count: int, **settings: object) -> list[Batch]:
    config = DataConfig(size=4, cache="none", **settings)  # type: ignore[arg-type]
    return list(itertools.islice(Batches(source, config, 4, seed=1), count))


@pytest.mark.parametrize(("fault", "said"), [("die", "was killed by SIGKILL"), ("hang", "no batch for 1 s")])
def test_dead_and_stuck_workers_are_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str, said: str
) -> None:
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        seen = take(Fragile(tmp_path, fault, times=1), 6, workers=2, stall_seconds=1)
    assert said in caplog.text and "starting the workers anew" in caplog.text
    undisturbed = take(Fragile(tmp_path, fault, times=0), 6)
    assert all(
        torch.equal(a, b)
        for x, y in zip(seen, undisturbed, strict=True)
        for a, b in zip(x[:3], y[:3], strict=True)
    )
    shown = Counter(i for batch in seen for i in batch.indices.tolist())
    assert shown == dict.fromkeys(range(12), 2)
    assert time.monotonic() - start < 20


def test_dying_again_and_again_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelwright.data.workers.RESTARTS", 1)
    with pytest.raises(UserError, match=r"step \d+ failed 2 times: worker process \d+ was killed by SIGKILL"):
        take(Fragile(tmp_path, "die", times=99), 3, workers=1)


def test_a_bug_in_a_worker_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        take(Fragile(tmp_path, "raise", times=99), 3, workers=1)


def test_a_death_between_batches_does_not_interrupt_the_step(tmp_path: Path) -> None:
    feed = iter(Batches(Fragile(tmp_path, "die", 0), DataConfig(size=4, workers=1, cache="none"), 4, seed=1))
    first = next(feed)
    import multiprocessing

    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    for _ in range(1000):  # the step; an exception out of a signal handler would come here
        first.images.sum()
    rest = list(itertools.islice(feed, 8))
    assert Counter(i for b in [first, *rest] for i in b.indices.tolist()) == dict.fromkeys(range(12), 3)


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 3), st.integers(0, 2), st.integers(1, 2))
def test_no_sample_is_lost_or_doubled_whatever_the_layout(world: int, workers: int, share: int) -> None:
    source = Fragile(Path("/"), "none", 0)
    steps = -(-24 // (share * world))
    config = DataConfig(size=4, workers=workers, cache="none")
    shown: list[list[int]] = [[] for _ in range(steps)]
    for rank in range(world):
        part = Batches(source, config, share * world, seed=3, rank=rank, world=world)
        for step, batch in enumerate(itertools.islice(part, steps)):
            shown[step] += batch.indices.tolist()
    order = list(itertools.chain(*shown))[:24]
    assert sorted(order[:12]) == sorted(order[12:]) == list(range(12))


SMALL = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=300k tmpfs /dev/shm && exec "$@"', "sh"]
"""Runs a command with a small /dev/shm of its own, where that is allowed."""
PROGRAM = """
import itertools, sys
from PIL import Image
from pixelwright.data import Batches, DataConfig, FolderSource
for i in range(4):
    Image.new("RGB", (256, 256), (i, 0, 0)).save(f"{sys.argv[1]}/{i}.png")
config = DataConfig(path=sys.argv[1], size=256, workers=1, cache="none", stall_seconds=60)
list(itertools.islice(Batches(FolderSource(sys.argv[1]), config, 4, seed=1), 2))
"""


def test_full_shared_memory_is_told_at_once(tmp_path: Path) -> None:
    try:
        subprocess.run([*SMALL, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no mount of its own is allowed here")
    start = time.monotonic()
    done = subprocess.run(
        [*SMALL, sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True
    )
    assert "UserError: step 0: the memory that data.workers share, /dev/shm, is full" in done.stderr
    assert time.monotonic() - start < 45
