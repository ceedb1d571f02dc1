"""Checkpoints for resuming: PyTorch's distributed checkpoints, each in a folder that is whole or not there.

    RUN/checkpoints/step-0001000/  the tensors as torch.distributed.checkpoint writes them, in safetensors
                                   checkpoint.json: step, config, and size and checksum of every other file

A folder is written under another name, flushed to the disk and renamed, so a process may be killed at any
moment. Each process writes its own part of the tensors; their names do not depend on how many there were, so
that any number can read them. Nothing in a checkpoint is a pickle, so one from elsewhere is safe to read.
"""

import json
import logging
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Collection, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor

from pixelwright.distributed.parallel import Layout
from pixelwright.errors import UserError
from pixelwright.files import sync

INDEX = "checkpoint.json"
# About how much of the tensors of all processes goes into one file, which is held in memory twice.
FILE_BYTES = 1 << 29
T = TypeVar("T")
State = dict[str, dict[str, Tensor]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk whose files are all there and unchanged."""

    path: Path
    step: int
    config: dict[str, Any]  # the run's config in its `to_dict` form
    seconds: float  # time trained until then


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / "checkpoints" / f"step-{step:07d}"


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(folder.name.removeprefix("step-"))


def checkpoint_folders(run: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first, whole or not."""
    folders = (run / "checkpoints").glob("step-*")
    return sorted(f for f in folders if f.is_dir() and f.name.removeprefix("step-").isdigit())


class Saver:
    """Writes the checkpoints of a run in a thread while training goes on, one at a time. All processes of the
    run must call its methods alike."""

    def __init__(
        self, run: Path, layout: Layout, keep: int, keep_every: int = 0, counted_every: int = 1
    ) -> None:
        """What is kept: see `superseded`."""
        self.run, self.layout = run, layout
        self._superseded = partial(superseded, keep=keep, keep_every=keep_every, counted_every=counted_every)
        self._group = layout.new_group()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def start(
        self,
        step: int,
        state: State,
        config: dict[str, Any],
        seconds: float,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy `state` and begin to write it as the checkpoint of `step`, once the one before is written.

        `before` is called on rank 0, in the thread, before the checkpoint appears.

        Raises UserError: the disk refuses this one or refused the one before; what was there already stays.
        """
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import async_save  # late: it takes a while

        self.wait()
        target = folder_of(self.run, step)
        part = target.with_name(target.name + ".tmp")
        index = {"step": step, "seconds": round(seconds, 3), "config": config}
        self.layout.first(lambda: _guarded(target, part, lambda: _make_folder(part)))
        # It warns of a run in one process that it takes it for one. Filters hold in its thread as well.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        writer = HuggingFaceStorageWriter(str(part), _file_numbers(state), save_distributed=True)
        group: dict[str, Any] = {"process_group": self._group, "no_dist": self._group is None}
        # A future it is with the stager that there is by default.
        written = cast("Future[object]", async_save(dict(state), storage_writer=writer, **group))

        def publish() -> Path:
            before()
            _publish(part, target, index)
            for old in self._superseded(checkpoint_folders(self.run)):
                _remove(old)
            return target

        def finish() -> Path:
            _guarded(target, part, written.result)  # it fails in all processes or in none
            return self.layout.first(lambda: _guarded(target, part, publish), self._group)

        self._pending = self._pool.submit(finish)

    @property
    def failed(self) -> bool:
        """Whether the checkpoint in the making is known to have failed; `wait` then says why."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def wait(self) -> Path | None:
        """Wait until the last checkpoint is written and return its folder, None if there is none since the
        last call. Raises UserError if it could not be written."""
        pending, self._pending = self._pending, None
        return None if pending is None else pending.result()

    def settle(self) -> None:
        """Let the checkpoint in the making come to its end; `failed` then says how."""
        if self._pending is not None:
            futures.wait([self._pending])

    def close(self) -> None:
        """Let the checkpoint in the making come to its end; what went wrong is logged."""
        try:
            self.wait()
        except Exception as error:
            logger.warning("%s", _one_line(error))
        self._pool.shutdown()


def superseded(folders: Sequence[Path], keep: int, keep_every: int = 0, counted_every: int = 1) -> list[Path]:
    """Of checkpoints, oldest first, those to remove: not the newest, nor multiples of `keep_every`, nor the
    newest `keep` among the multiples of `counted_every`."""
    counted = [folder for folder in folders if step_of(folder) % counted_every == 0]
    kept = {folders[-1], *counted[-keep:]}
    kept |= {folder for folder in folders if keep_every > 0 and step_of(folder) % keep_every == 0}
    return [folder for folder in folders if folder not in kept]


def remove_after(run: Path, step: int) -> None:
    """Remove the checkpoints of later steps, the newest first."""
    for folder in reversed(checkpoint_folders(run)):
        if step_of(folder) > step:
            _remove(folder)


def _file_numbers(state: State) -> dict[str, int]:
    """Tensor -> the number of its file, from 1, the same in all processes."""
    numbers, size = {}, 0
    for group, tensors in state.items():
        for name, tensor in tensors.items():
            numbers[f"{group}.{name}"] = 1 + size // FILE_BYTES
            size += tensor.numel() * tensor.element_size()
    return numbers


def _make_folder(part: Path) -> None:
    """Remove what interrupted processes left, and make the folder."""
    for unfinished in part.parent.glob("step-*.tmp"):
        shutil.rmtree(unfinished)
    part.mkdir(parents=True)


def _remove(old: Path) -> None:
    """Rename a checkpoint, then remove it: what a kill leaves half removed is not taken for one."""
    unfinished = old.with_name(old.name + ".tmp")
    os.rename(old, unfinished)
    shutil.rmtree(unfinished)


def _publish(part: Path, target: Path, index: dict[str, Any]) -> None:
    """Write the index beside the tensors and let the checkpoint appear."""
    files = {f.name: [f.stat().st_size, checksum(f)] for f in sorted(part.iterdir())}
    (part / INDEX).write_text(json.dumps({**index, "files": files}, indent=1))
    for path in [*part.iterdir(), part]:
        sync(path)
    shutil.rmtree(target, ignore_errors=True)  # there only if it was damaged
    os.rename(part, target)
    sync(target.parent)


def _guarded(target: Path, part: Path, function: Callable[[], T]) -> T:
    """Call `function`; what the disk refuses becomes a UserError, and the unfinished checkpoint goes."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        return function()
    except (UserError, OSError, CheckpointException) as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, UserError):
            raise
        text = f"{target} could not be written ({_one_line(error)})"
        raise UserError(f"{text}; earlier checkpoints are untouched") from error


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


def newest(run: Path, among: Sequence[Path] | None = None) -> Checkpoint | None:
    """The newest whole checkpoint of a run, or of its folders `among`, oldest first; None if there are none.
    Warns about each damaged one that it passes over; raises UserError if all are damaged."""
    damaged = []
    for path in reversed(checkpoint_folders(run) if among is None else among):
        try:
            found = inspect(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        for problem in damaged:
            logger.warning("%s; continuing from %s instead", problem, path)
        return found
    if damaged:
        reasons = "; ".join(damaged)
        raise UserError(f"no checkpoint of {run} can be read: {reasons}. Choose another run folder")
    return None


def load(checkpoint: Checkpoint, state: State, optional: Collection[str] = ()) -> None:
    """Read a checkpoint into the tensors of `state`, in place. Raises UserError if they do not fit.

    Groups in `optional` stay as they are where they do not fit: older versions and runs with other settings
    saved others.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load as read

    if not any(checkpoint.path.glob("*.safetensors")):
        earlier = f"{checkpoint.path} was written by an earlier version"
        raise UserError(f"{earlier}; start anew from RUN/model (--init)")
    reader = HuggingFaceStorageReader(str(checkpoint.path))
    saved = reader.read_metadata().state_dict_metadata
    sizes = {name: getattr(entry, "size", None) for name, entry in saved.items()}

    def fits(group: str) -> bool:
        return all(sizes.get(f"{group}.{name}") == tensor.shape for name, tensor in state[group].items())

    read_into = {group: tensors for group, tensors in state.items() if group not in optional or fits(group)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(dict(read_into), storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        reasons = "; ".join(_one_line(failure[0]) for failure in error.failures.values())
        raise UserError(f"{checkpoint.path} does not fit this model: {reasons}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
