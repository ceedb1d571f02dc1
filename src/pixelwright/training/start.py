"""Where a run begins: at step 0, at its own newest checkpoint, or at that of another run."""

import os
import socket
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import IO

from torch import Tensor

from pixelwright.config import to_dict
from pixelwright.distributed import checkpoint as checkpoints
from pixelwright.distributed import parallel
from pixelwright.distributed.checkpoint import Checkpoint
from pixelwright.errors import UserError
from pixelwright.hub.checkpoint import load as load_model
from pixelwright.models.config import DenoiserConfig, TextNote
from pixelwright.models.config import to_dict as model_dict
from pixelwright.models.transfer import for_classes
from pixelwright.training.config import LoopConfig
from pixelwright.training.config_file import differences, read_settings

CLASSES = "class_names"  # in the settings that a checkpoint holds: those of its data
LOCK = "lock.txt"  # in a run folder: which job has it
ORIGIN = "resumed-from.txt"  # in a run folder: what --resume named when the run began
NUM_CLASSES = "backbone.num_classes"
MOST_NAMED = 3  # differing settings in an error message
NOTES = {"name", "image_size", "class_names", "sampler", "provenance", "text"}  # no say in a model's weights


def join(config: LoopConfig) -> parallel.Layout:
    """The layout of this process in a run."""
    return parallel.join(config.device, config.parallel, config.batch_size, config.accumulate)


def lock(run: Path) -> IO[str]:
    """The lock of a run folder, of a job's main process; it ends when the file is closed or the job dies.
    Raises UserError: another job has it, naming its host and process."""
    file = (run / LOCK).open("a+", encoding="utf-8")
    try:
        import fcntl  # not on Windows, where there is no lock

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: loader workers do not inherit it
    except (BlockingIOError, PermissionError):
        file.seek(0)
        other = file.read().strip()
        file.close()
        raise UserError(f"{run} is in use by another job ({other}): wait, or give another --run") from None
    except (ImportError, OSError):
        pass  # a file system without locks
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def holder(run: Path) -> int | None:
    """The other process on this machine that has the lock of a run, if there is one."""
    try:
        import fcntl

        _, process, _, host = (run / LOCK).read_text(encoding="utf-8").split()
        if host != socket.gethostname() or int(process) == os.getpid():
            return None
        os.kill(int(process), 0)  # one that is gone: no trial, which would be in the way of one that begins
        with (run / LOCK).open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(process)
    except (ImportError, OSError, ValueError):
        pass
    return None


def find_start(
    config: LoopConfig, resume: str | os.PathLike[str] | None, class_names: Sequence[str] | None = None
) -> Checkpoint | None:
    """The checkpoint that a run begins with, or None to begin with random weights. Writes nothing.
    `class_names` are those of the data.

    Raises UserError: the run folder is something else, was made with other settings or holds only damaged
    checkpoints; `resume` is not there, has no whole checkpoint, holds another model or is not where the run
    stands; or the checkpoint is of other classes.
    """
    run = Path(config.run)
    _check_folder(run, config)
    own = checkpoints.newest(run)
    if own is not None:
        same_classes(own.config.get(CLASSES), class_names, run)
    if resume is None:
        return own
    given = _given(Path(resume))
    if own is not None:
        # Begun with this very --resume, the same command goes on where the run stands.
        origin = (run / ORIGIN).read_text() if (run / ORIGIN).is_file() else None
        if given.path.resolve() == own.path.resolve() or origin == str(Path(resume).resolve()):
            return own
        raise UserError(
            f"{run} already stands at {own.path.name}, not at {given.path}: leave out --resume to continue "
            "it, or give another folder with --run"
        )
    if changed := differences(given.config, to_dict(config), only="model."):
        raise UserError(f"{given.path} holds another model ({_named(changed)})")
    same_classes(given.config.get(CLASSES), class_names, given.path)
    if given.step >= config.steps:
        raise UserError(f"{given.path} is at step {given.step}, steps is {config.steps}: give more --steps")
    return given


def same_classes(known: Sequence[str] | None, found: Sequence[str] | None, place: object) -> None:
    """Raise UserError if the classes of the data are not those, in this order, that a model was trained on.
    Where either has no names, nothing can be told."""
    if not known or not found:
        return
    for label, pair in enumerate(zip_longest(known, found)):
        old, new = (name and unicodedata.normalize("NFC", name) for name in pair)
        if old != new:
            is_now = f'"{new}" in the data' if new else "not in the data"
            text = f"class {label} is {is_now} and " + (f'"{old}" in {place}' if old else f"not in {place}")
            raise UserError(f"{text}: name the classes as they were, or begin a new run without its weights")


def initial_weights(init: str, config: DenoiserConfig) -> tuple[dict[str, Tensor], str | None]:
    """The weights that a new run starts from, for a model of this config, and what is to be said of them:
    those of anything `pw.load` reads, with the rows of its classes as `for_classes` finds them.

    The size of the image is no part of a model's weights: those of 256² start a run at 512².

    Raises UserError: nothing that can be read, another model, or one of another text encoder.
    """
    try:
        model = load_model(init)
    except UserError as error:
        raise UserError(f"init: {error}") from None
    _same_encoder(model.config.text, config.text, init)
    found, needed = (
        {key: value for key, value in model_dict(each).items() if key not in NOTES}
        for each in (model.config, config)
    )
    changed = [each for each in differences(found, needed) if not each.startswith(f"{NUM_CLASSES}: ")]
    if changed:
        raise UserError(f"init: {init} holds another model ({_named(changed)})")
    return for_classes(model, config)


def _same_encoder(old: TextNote | None, new: TextNote | None, init: str) -> None:
    """Raise UserError if a model of captions was trained with the features of another encoder."""
    for name in ("encoder", "checksum"):
        was, now = (getattr(note, name, None) for note in (old, new))
        if was and now and was != now:
            raise UserError(
                f"init: {init} was trained with features of another text encoder ({name}: {was} -> {now}), "
                "which mean nothing to these weights: give the encoder it had"
            )


def _named(changed: list[str]) -> str:
    more = f" and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
    first = sorted(changed, key=lambda each: ".type: " not in each)  # kinds of parts before their sizes
    return f"{'; '.join(first[:MOST_NAMED])}{more}"


def _check_folder(run: Path, config: LoopConfig) -> None:
    """Raise UserError unless `run` is new, empty, or a run of the same settings."""
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file: give another folder with --run")
    stored = run / "config.yaml"
    if not stored.exists():
        if run.is_dir() and any(path.suffix != ".tmp" and path.name != LOCK for path in run.iterdir()):
            what = "is not empty and not a run (no config.yaml)"
            raise UserError(f"{run} {what}: give another folder with --run")
        return
    if changed := differences(to_dict(read_settings(stored)), to_dict(config)):
        raise UserError(
            f"{run} was started with other settings ({_named(changed)}): "
            "give the old ones to continue it, or another folder with --run"
        )


def _given(path: Path) -> Checkpoint:
    """The checkpoint that --resume names: itself or the newest of a run folder."""
    if (path / checkpoints.INDEX).exists():
        return checkpoints.inspect(path)
    if (found := checkpoints.newest(path)) is None:
        what = "holds no checkpoint" if path.exists() else "does not exist"
        raise UserError(f"--resume {path} {what}: give a run folder or one of its checkpoints")
    return found
