"""Checkpoints for resuming: PyTorch's distributed checkpoints, each in a folder that is whole or not there.

    RUN/checkpoints/step-0001000/  a safetensors file of each process, for torch.distributed.checkpoint
                                   checkpoint.json: step, config, and size and checksum of every other file

A folder is written under another name, flushed to the disk and renamed, so a process may be killed at any
moment. Each process writes its own part of the tensors, and of what several hold one alone; the names do not
depend on how many there were, so that any number can read them. Nothing in a checkpoint is a pickle, so one
from elsewhere is safe to read.
"""

import json
import logging
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from pixelwright.distributed.parallel import Layout, local
from pixelwright.errors import UserError
from pixelwright.files import sync, write_safetensors

INDEX = "checkpoint.json"
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


class Part(NamedTuple):
    """What one process writes of a tensor."""

    name: str
    values: Tensor
    offsets: list[int]  # where it begins in the whole tensor


def share(state: State, layout: Layout) -> Iterator[Part]:
    """The parts that this process writes, by reference: of what several processes hold, the one writes it
    that has the fewest bytes so far."""
    loads: dict[int, list[int]] = {}
    for group, tensors in state.items():
        for name, tensor in tensors.items():
            copies, place, offsets = layout.world, layout.rank, [0] * tensor.ndim
            if (chunks := getattr(tensor, "__create_chunk_list__", None)) is not None:  # sharded
                mesh = cast("Any", tensor).device_mesh  # (shard) or (replicate, shard)
                copies, place = (mesh.size(0), mesh.get_local_rank(0)) if mesh.ndim == 2 else (1, 0)
                offsets = list(chunks()[0].offsets)
            load = loads.setdefault(copies, [0] * copies)
            lightest = load.index(min(load))
            load[lightest] += tensor.nbytes
            values = local(tensor)
            if lightest == place and (values.numel() or not tensor.numel()):
                yield Part(f"{group}.{name}", values, offsets)


class Saver:
    """Writes the checkpoints of a run in a thread while training goes on, one at a time. All processes of the
    run must call its methods alike."""

    def __init__(
        self, run: Path, layout: Layout, keep: int, keep_every: int = 0, counted_every: int = 1
    ) -> None:
        """What is kept: see `superseded`."""
        self.run, self.layout = run, layout
        self._superseded = partial(superseded, keep=keep, keep_every=keep_every, counted_every=counted_every)
        self._apart = layout.apart()
        self._stream = torch.cuda.Stream(layout.device) if layout.device.type == "cuda" else None
        self._buffers: dict[str, Tensor] = {}  # kept, since pinning memory takes its time
        self._pending: Future[Path] | None = None

    def start(
        self,
        step: int,
        state: State,
        config: dict[str, Any],
        seconds: float,
        before: Callable[[Path], None] = lambda part: None,
    ) -> None:
        """Copy `state` and begin to write it as the checkpoint of `step`, once the one before is written.
        Call `hold` before the state changes.

        `before` is called on rank 0, in the thread, before the checkpoint appears, with the folder that
        holds all tensors already.

        Raises UserError: the disk refuses this one or refused the one before; what was there already stays.
        """
        self.wait()
        target = folder_of(self.run, step)
        part = target.with_name(target.name + ".tmp")
        index = {"step": step, "seconds": round(seconds, 3), "config": config}
        self.layout.first(lambda: _guarded(target, lambda: _make_folder(part)))
        parts = self._stage(state)

        def publish(files: dict[str, list[int]]) -> Path:
            before(part)
            _publish(part, target, index | {"files": files})
            for old in self._superseded(checkpoint_folders(self.run)):
                _remove(old)
            return target

        def finish() -> Path:
            if self._stream is not None:
                self._stream.synchronize()
            file = part / f"shard-{self.layout.rank + 1:05}-model-00001-of-00001.safetensors"
            try:
                files = self._apart.each(lambda: _guarded(target, lambda: _write(file, parts)))
                return self._apart.first(lambda: _guarded(target, lambda: publish(dict(files))))
            except UserError:  # in all processes or in none
                shutil.rmtree(part, ignore_errors=True)
                raise

        pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = pool.submit(finish)
        pool.shutdown(wait=False)

    def _stage(self, state: State) -> list[Part]:
        """Begin to copy this process's share to the CPU, beside what the device computes next."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.layout.device))
        parts = []
        with torch.cuda.stream(self._stream):
            for part in share(state, self.layout):
                if (buffer := self._buffers.get(part.name)) is None:
                    pinned = self._stream is not None
                    buffer = torch.empty_like(part.values, device="cpu", pin_memory=pinned)
                    self._buffers[part.name] = buffer
                parts.append(part._replace(values=buffer.copy_(part.values, non_blocking=True)))
        return parts

    def hold(self) -> None:
        """Let the device finish copying before it does what it is given next. No process waits for it."""
        if self._stream is not None:
            torch.cuda.current_stream(self.layout.device).wait_stream(self._stream)

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
        self.settle()
        if self._pending is not None and (error := self._pending.exception()) is not None:
            logger.warning("%s", _one_line(error))


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


def _write(file: Path, parts: Sequence[Part]) -> tuple[str, list[int]]:
    """Write a file as torch.distributed.checkpoint reads it; its name, and its size and checksum."""
    values = {part.name: part.values for part in parts}
    places = json.dumps({part.name: {"saved_offsets": part.offsets} for part in parts})
    notes = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": places}
    write_safetensors(file, values, values.__getitem__, notes)
    return file.name, [file.stat().st_size, checksum(file)]


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
    (part / INDEX).write_text(json.dumps(index, indent=1))
    sync(part / INDEX)
    sync(part)
    shutil.rmtree(target, ignore_errors=True)  # there only if it was damaged
    os.rename(part, target)
    sync(target.parent)


def _guarded(target: Path, function: Callable[[], T]) -> T:
    """Call `function`; what the disk refuses becomes a UserError."""
    try:
        return function()
    except OSError as error:
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


def load(folder: Path, state: State, optional: Collection[str] = ()) -> None:
    """Read a checkpoint's folder into the tensors of `state`, in place. Raises UserError if they do not fit.

    Groups in `optional` stay as they are where they do not fit: older versions and runs with other settings
    saved others.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load as read

    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} was written by an earlier version; start anew from RUN/model (--init)")
    reader = HuggingFaceStorageReader(str(folder))
    saved = reader.read_metadata().state_dict_metadata
    sizes = {name: getattr(entry, "size", None) for name, entry in saved.items()}

    def fits(group: str, tensors: dict[str, Tensor]) -> bool:
        return all(sizes.get(f"{group}.{name}") == tensor.shape for name, tensor in tensors.items())

    read_into = {group: each for group, each in state.items() if group not in optional or fits(group, each)}
    # Each process reads for itself. (This may be a thread: filters are of the whole process.)
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    try:
        read(dict(read_into), storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        raise UserError(f"{folder} does not fit this model: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    """The reason of an error; of one that processes share, what each of them says."""
    failures = [each for each, _ in getattr(error, "failures", {}).values()]
    return "; ".join(dict.fromkeys(map(_one_line, failures))) or " ".join(str(error).split())[:300]
