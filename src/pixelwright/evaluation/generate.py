"""Many images of a model, written to disk batch by batch, by any number of processes, with resume.

The images are divided into batches by their index: batch k holds images k · batch_size and on, whoever draws
it. Noise and label of an image depend on its index alone and a batch has its fixed shape, so that neither the
number of processes nor an interruption changes a byte. All happens in a folder beside the outcome, which
appears under its own name in one step when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from tqdm import tqdm

from pixelwright.acceleration.fast import PRECISIONS, FastDenoiser
from pixelwright.diffusion import sample as sampling
from pixelwright.errors import UserError
from pixelwright.evaluation.stores import Store, store_for
from pixelwright.files import sha256, write_text
from pixelwright.hub.checkpoint import open_checkpoint
from pixelwright.models.denoiser import PixelDenoiser

if TYPE_CHECKING:  # the training room draws with this one
    from pixelwright.distributed.parallel import Layout

UNFINISHED = ".generate"
"""At the end of the name of the folder that the work is in."""
RECIPE = "recipe.json"
UNSAID: dict[str, Any] = {"reuse": 1}
"""Settings that older recipes lack, as they were."""
PLAIN_SECONDS = 30.0  # between two signs of life where there is no terminal


@dataclass(frozen=True)
class Generation:
    """Which images: everything that their bytes depend on, save the machine that computes them."""

    model: str
    """What the model calls itself."""
    weights: str
    """SHA-256 of the file of weights; of several files, joined by commas."""
    num_samples: int
    size: tuple[int, int]
    """(height, width) in pixels."""
    labels: str
    """How they were asked for; "balanced" gives every class its turn."""
    solver: str
    steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    time_shift: float
    seed: int
    batch_size: int
    """Images drawn together. Noise does not depend on it, the rounding of sums does."""
    precision: Literal["fp32", "bf16", "int8"]
    reuse: int = 1
    """Above 1 approximate; see `sampling.Reused`."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        sampling.check(
            self.solver,
            self.steps,
            self.guidance_scale,
            self.guidance_interval,
            self.time_shift,
            self.reuse,
        )

    @property
    def batches(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def indices(self, batch: int) -> range:
        """The images of a batch."""
        return range(batch * self.batch_size, min((batch + 1) * self.batch_size, self.num_samples))


def checksum(source: str | os.PathLike[str]) -> str:
    """SHA-256 of the weights of anything that `pixelwright.load` reads."""
    return ",".join(sha256(file) for file in open_checkpoint(source).files)


# ---------------------------------------------------------------- drawing
def draw(
    model: PixelDenoiser,
    generation: Generation,
    labels: Tensor,
    batch: int,
    callback: sampling.Callback | None = None,
) -> Tensor:
    """The images of one batch, uint8 [b,H,W,3]. `labels` [num_samples] are those of all images."""
    indices = generation.indices(batch)
    return sampling.sample(
        model,
        labels[indices.start : indices.stop],
        size=generation.size,
        seed=generation.seed,
        start_index=indices.start,
        steps=generation.steps,
        solver=generation.solver,
        guidance_scale=generation.guidance_scale,
        guidance_interval=generation.guidance_interval,
        time_shift=generation.time_shift,
        callback=callback,
        autocast=PRECISIONS[generation.precision],
        reuse=generation.reuse,
    )


def generate(model: PixelDenoiser, generation: Generation, labels: Tensor, out: Path, layout: Layout) -> Path:
    """Write the images to `out` and the recipe to `out` + ".json"; return `out`.

    All processes of `layout` call it alike. Interrupted work is continued, and finished work left alone: a
    kill loses at most the batch that each process was at.

    Args:
        labels: int64 [num_samples].
        out: a folder of PNG files, a .zip of them, or an .npz as ADM's: uint8 [N,H,W,3] under `arr_0`, labels
            under `arr_1`.

    Raises:
        UserError: `out` or the unfinished work beside it was made with another recipe, or the disk is full.
    """
    store = store_for(out, work_folder(out), generation.num_samples, generation.size)
    wanted = recipe(generation, labels)
    if layout.first(lambda: _claim(out, store, wanted)):
        return out
    if (dtype := PRECISIONS[generation.precision]) is not None:
        model = FastDenoiser(model, dtype)  # once for all batches
    progress = _Progress(store.work, layout.rank)
    done = layout.first(progress.gather)
    left = [k for k in range(generation.batches) if k not in done]
    sizes = {k: len(generation.indices(k)) for k in range(generation.batches)}
    with progress_bar("generating", generation.num_samples, sum(sizes[k] for k in done), layout.main) as bar:
        for k in left[layout.rank :: layout.world]:
            store.write(generation.indices(k).start, draw(model, generation, labels, k, _show_step(bar)))
            progress.add(k)
            if layout.main:
                bar.update(sum(sizes[k] for k in progress.read()) - bar.n)
    layout.any(False)  # wait for the others
    layout.first(lambda: _finish(out, store, labels, wanted))
    return out


def work_folder(out: Path) -> Path:
    """Where the images of `out` are until they are all there."""
    return out.with_name(out.name + UNFINISHED)


def recipe_file(out: Path) -> Path:
    """Where the recipe of the images `out` is written."""
    return out.with_name(out.name + ".json")


def read_recipe(out: Path) -> dict[str, Any] | None:
    """The recipe beside finished images, None where there is none that can be read."""
    try:
        found = json.loads(recipe_file(out).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def recipe(generation: Generation, labels: Tensor) -> dict[str, Any]:
    """What is written down of images, as JSON has it; equal recipes make equal images."""
    labelled = hashlib.sha256(labels.contiguous().numpy().tobytes()).hexdigest()
    return {**json.loads(json.dumps(asdict(generation))), "labels_sha256": labelled}


def _claim(out: Path, store: Store, wanted: dict[str, Any]) -> bool:
    """Whether `out` is there already, of this recipe; if not, make sure that the work folder is for it."""
    if out.exists():
        _compare(read_recipe(out), wanted, out)
        shutil.rmtree(store.work, ignore_errors=True)  # of a process killed between its last two steps
        return True
    file = store.work / RECIPE
    if file.exists():
        _compare(json.loads(file.read_text(encoding="utf-8")), wanted, store.work)
        return False
    need, free = store.bytes_needed, shutil.disk_usage(_existing(out.parent)).free
    if need > free:
        raise UserError(
            f"{out} needs up to {need / 2**30:.1f} GiB on the disk, which has {free / 2**30:.1f} GiB free"
        )
    store.begin()
    write_text(file, json.dumps(wanted, indent=1))
    return False


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.absolute().parent)


def _compare(found: dict[str, Any] | None, wanted: dict[str, Any], place: Path) -> None:
    if found is None:
        raise UserError(f"{place} exists and has no recipe beside it: give another --out, or remove it")
    found = {**UNSAID, **found}
    changed = [
        f"{key}: {found.get(key)!r} -> {value!r}" for key, value in wanted.items() if found.get(key) != value
    ]
    if changed:
        raise UserError(
            f"{place} holds images of another recipe ({'; '.join(changed)}): "
            "give the old settings to go on with it, or another --out"
        )


def _finish(out: Path, store: Store, labels: Tensor, wanted: dict[str, Any]) -> None:
    write_text(recipe_file(out), json.dumps(wanted, indent=1))
    store.finish(out, labels)
    shutil.rmtree(store.work)


# ---------------------------------------------------------------- progress
class _Progress:
    """The batches that are written, a line each, in a file for each process."""

    def __init__(self, work: Path, rank: int) -> None:
        self._work, self._own = work, work / f"done-{rank:05}.txt"

    def read(self) -> set[int]:
        """The batches that any process has written, now or in an earlier run."""
        files = self._work.glob("done*.txt")
        return {int(line) for file in files for line in file.read_text().split("\n")[:-1]}

    def gather(self) -> set[int]:
        """The same, written down in one file, so that no process goes on after a line that a kill tore."""
        done = self.read()
        write_text(self._work / "done.txt", "".join(f"{batch}\n" for batch in sorted(done)))
        for file in self._work.glob("done-*.txt"):
            file.unlink()
        return done

    def add(self, batch: int) -> None:
        """A batch is written."""
        with self._own.open("a") as file:
            file.write(f"{batch}\n")


def progress_bar(what: str, total: int, done: int = 0, shown: bool = True) -> tqdm[Any]:
    """A bar that counts images; where there is no terminal, a line every half minute."""
    interval = 0.1 if sys.stderr.isatty() else PLAIN_SECONDS
    return tqdm(
        total=total,
        initial=done,
        unit="image",
        desc=what,
        mininterval=interval,
        maxinterval=max(interval, 10.0),
        dynamic_ncols=True,
        disable=not shown,
    )


def _show_step(bar: tqdm[Any]) -> sampling.Callback:
    def show(step: sampling.Step) -> None:
        bar.set_postfix_str(f"step {step.index + 1}/{step.steps}", refresh=False)

    return show
