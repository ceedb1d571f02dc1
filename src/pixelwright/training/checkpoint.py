"""Checkpoints for resuming: PyTorch's distributed checkpoints, each in a folder that is whole or not there.

    RUN/checkpoints/step-0001000/  the tensors as torch.distributed.checkpoint writes them
                                   checkpoint.json: step, config, and size and checksum of every other file

A folder is written under another name, flushed to the disk and renamed, so a process may be killed at any
moment. The tensors' index is a pickle (PyTorch's format): resume only runs that you trust. RUN/model/, which
holds none, is safe to share.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.training.files import checksum, sync

INDEX = "checkpoint.json"
State = dict[str, dict[str, Tensor]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk whose files are all there and unchanged."""

    path: Path
    step: int
    config: dict[str, Any]
    """The run's config in its `to_dict` form."""
    seconds: float
    """Time trained until then."""


def checkpoint_folders(run: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first, whole or not."""
    folders = (run / "checkpoints").glob("step-*")
    return sorted(f for f in folders if f.is_dir() and f.name.removeprefix("step-").isdigit())


def save(run: Path, step: int, state: State, config: dict[str, Any], seconds: float, keep: int) -> Path:
    """Write the checkpoint of `step`, then remove all but the newest `keep`.

    Raises UserError if the disk refuses; the checkpoints already there stay as they are.
    """
    from torch.distributed.checkpoint.api import CheckpointException  # late: it takes a second to import
    from torch.distributed.checkpoint.state_dict_saver import save as write

    target = run / "checkpoints" / f"step-{step:07d}"
    part = target.with_name(target.name + ".tmp")
    try:
        for unfinished in target.parent.glob("step-*.tmp"):
            shutil.rmtree(unfinished)
        part.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "assuming to save in a single process": so it is
            write(dict(state), checkpoint_id=part, no_dist=True)
        files = {f.name: [f.stat().st_size, checksum(f)] for f in sorted(part.iterdir())}
        index = {"step": step, "seconds": round(seconds, 3), "config": config, "files": files}
        (part / INDEX).write_text(json.dumps(index, indent=1))
        for path in [*part.iterdir(), part]:
            sync(path)
        shutil.rmtree(target, ignore_errors=True)  # there only if it was damaged
        os.rename(part, target)
        sync(target.parent)
    except (OSError, CheckpointException) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(
            f"{target} could not be written ({_one_line(error)}); earlier checkpoints are untouched"
        ) from error
    for old in checkpoint_folders(run)[:-keep]:
        shutil.rmtree(old)
    return target


def inspect(path: Path) -> Checkpoint:
    """Read a checkpoint's index and check every file against it. Raises UserError saying what is wrong."""
    try:
        index = json.loads((path / INDEX).read_text())
        step, seconds, config, files = index["step"], index["seconds"], index["config"], index["files"]
        for name, (size, code) in files.items():
            if (path / name).stat().st_size != size or checksum(path / name) != code:
                raise UserError(f"{path / name} is damaged")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path / INDEX} is damaged ({_one_line(error)})") from None
    return Checkpoint(path, step, config, seconds)


def newest(run: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run, or None if it has none at all.

    Warns about each damaged one that it passes over; raises UserError if all are damaged.
    """
    damaged = []
    for path in reversed(checkpoint_folders(run)):
        try:
            found = inspect(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        for problem in damaged:
            logger.warning("%s; continuing from %s instead", problem, path)
        return found
    if damaged:
        raise UserError(
            f"no checkpoint of {run} can be read: {'; '.join(damaged)}. Choose another run folder"
        )
    return None


def load(checkpoint: Checkpoint, state: State) -> None:
    """Read a checkpoint into the tensors of `state`, in place. Raises UserError if they do not fit."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load as read

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(dict(state), checkpoint_id=checkpoint.path, no_dist=True)
    except CheckpointException as error:
        reasons = "; ".join(_one_line(failure[0]) for failure in error.failures.values())
        raise UserError(f"{checkpoint.path} does not fit this model: {reasons}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
