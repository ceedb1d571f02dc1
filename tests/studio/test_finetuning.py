"""Fine-tunings that are started from the page, in a process of their own."""

from __future__ import annotations

import signal
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixelwright.errors import UserError
from pixelwright.studio.finetuning import FOLDER, Request
from pixelwright.studio.jobs import Jobs
from pixelwright.studio.models import Models
from pixelwright.training.start import LOCK, holder, lock


@pytest.fixture
def jobs(model: str, tmp_path: Path) -> Jobs:
    runs, out = tmp_path / "runs", tmp_path / "out"
    return Jobs(Models([model], (runs, out / FOLDER), torch.device("cpu")), runs, out)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Three pictures in names that are paths."""
    paths = [tmp_path / f"..%2f{i}.jpg" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((20, 30, 3), 80 * i, np.uint8)).save(path)
    return paths


MISTAKES = {
    "nothing shown": ({"shows": " "}, "what the pictures show"),
    "no pictures": ({"pictures": []}, "0 pictures are given"),
    "model": ({"model": "/etc"}, "does not offer"),
    "no picture": ({"pictures": [Path(__file__)]}, "test_finetuning.py: the picture cannot be read"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_mistakes_are_named(jobs: Jobs, model: str, pictures: list[Path], name: str) -> None:
    values, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        jobs.finetuning.start(Request(**{"model": model, "pictures": pictures, "shows": "cat", **values}))
    assert jobs.finetuning.names() == []
    for other in ("../..", "cat"):
        with pytest.raises(UserError, match="there is no fine-tuning"):
            jobs.finetuning.resume(other)


def test_what_does_not_fit_is_told_in_the_line_of_its_state(
    jobs: Jobs, model: str, pictures: list[Path]
) -> None:
    tuning = jobs.finetuning
    tuning.start(Request(model, pictures, "cat", steps=0))
    with pytest.raises(UserError, match="is being trained"):
        tuning.start(Request(model, pictures, "dog"))
    tuning._last[1].wait(120)  # type: ignore[index]
    assert tuning.state("cat").startswith("cat failed: ")
    assert "--steps" in tuning.state("cat")


def train_on(run: Path, began: Any) -> None:
    held = lock(run)
    began.set()
    time.sleep(60)
    held.close()


def test_one_that_outlived_its_page_is_shown_and_stopped(
    jobs: Jobs, model: str, pictures: list[Path]
) -> None:
    """The page is started anew while it trains: all that is known is the lock of its run."""
    tuning, fork = jobs.finetuning, get_context("fork")
    (run := tuning.folder / "cat").mkdir(parents=True)
    (run / "config.yaml").write_text("run: cat\nsteps: 40\n")
    assert holder(run) is None
    training = fork.Process(target=train_on, args=(run, began := fork.Event()))
    training.start()
    assert began.wait(60)
    held = (run / LOCK).read_text()
    assert tuning.state("cat").startswith("cat: preparing")
    with pytest.raises(UserError, match='"cat" is being trained'):
        tuning.start(Request(model, pictures, "dog"))
    with pytest.raises(UserError, match="is being trained"):
        tuning.resume("cat")
    assert (run / LOCK).read_text() == held
    tuning.stop("cat")
    training.join(60)
    assert training.exitcode == -signal.SIGTERM
    assert holder(run) is None
    assert tuning.state("cat").startswith("cat was stopped")
