"""Many images of a model, written to disk batch by batch, by any number of processes, with resume.

The images are divided into batches by their index: batch k holds images k · batch_size and on, whoever draws
it. Noise and label of an image depend on its index alone and a batch has its fixed shape, so that neither the
number of processes nor an interruption changes a byte. All happens in a folder beside the outcome, which
appears under its own name in one step when it is whole.
"""

import hashlib
import io
import json
import math
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pixelwright.acceleration import prepare
from pixelwright.config import PositiveInt
from pixelwright.data.sources import LABEL_FILE
from pixelwright.diffusion.sample import Denoiser, sample
from pixelwright.diffusion.solvers import Step, StepCallback, check_solver
from pixelwright.distributed.parallel import Layout
from pixelwright.errors import UserError
from pixelwright.evaluation.images import IMAGES, LABELS
from pixelwright.files import raw_bytes, read_json, replacing, sha256, write_text
from pixelwright.hub.adapters import Adapters, read_adapters
from pixelwright.hub.checkpoint import open_checkpoint
from pixelwright.models.config import SamplerSettings
from pixelwright.models.denoiser import PixelDenoiser

UNFINISHED = ".generate"  # at the end of the name of the folder that the work is in
SETTINGS = "settings.json"
WRITTEN = ".written"  # an empty file for each batch that is written
DATE = (1980, 1, 1, 0, 0, 0)  # of every member of a zip, so that equal content makes equal files
ENCODERS, ENCODED = 4, 256  # threads that encode PNG files, images they have at a time
PLAIN_SECONDS = 30.0  # between two signs of life where there is no terminal


@dataclass(frozen=True, kw_only=True)
class Generation(SamplerSettings, where=""):
    """Which images: everything that their bytes depend on, save the machine that computes them."""

    model: str
    """What the model calls itself."""
    weights: str
    """SHA-256 of the file of weights; of several files, joined by commas."""
    num_samples: PositiveInt
    size: tuple[int, int]
    """(height, width) in pixels."""
    labels: str
    """How they were asked for; "balanced" gives every class its turn."""
    seed: int
    batch_size: PositiveInt
    """Images drawn together. Noise does not depend on it, the rounding of sums does."""
    precision: Literal["fp32", "bf16", "int8"]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_solver(self.solver)

    @property
    def batches(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def indices(self, batch: int) -> range:
        """The images of a batch."""
        return range(batch * self.batch_size, min((batch + 1) * self.batch_size, self.num_samples))


def checksum(
    source: str | os.PathLike[str], weights: str | None = None, adapter: Adapters | None = None
) -> str:
    """SHA-256 of the weights of anything that `pixelwright.load` reads; `weights` are those of that name, and
    of each adapter its own follows, with its weight."""
    found = ",".join(sha256(file) for file in open_checkpoint(source, weights).files)
    found = found if weights is None else f"{found} ({weights})"
    more = () if adapter is None else read_adapters(adapter)
    return " + ".join([found, *(f"{weight!r} x {each.digest}" for each, weight in more)])


# ---------------------------------------------------------------- drawing
def draw(
    model: Denoiser,
    generation: Generation,
    labels: Tensor,
    batch: int,
    callback: StepCallback | None = None,
    attention: str = "auto",
) -> Tensor:
    """The images of one batch, uint8 [b,H,W,3]. `labels` [num_samples] are those of all images."""
    start, stop = (indices := generation.indices(batch)).start, indices.stop
    how: dict[str, Any] = {"size": generation.size, "seed": generation.seed, "callback": callback}
    how |= {"precision": generation.precision, "attention": attention}
    return sample(model, labels[start:stop], generation, start_index=start, **how)


def generate(
    model: PixelDenoiser,
    generation: Generation,
    labels: Tensor,
    out: Path,
    layout: Layout,
    compile: bool = False,
    attention: str = "auto",
) -> Path:
    """Write the images of `labels` int64 [num_samples] to `out`, the settings to `out` + ".json"; `out` is a
    folder of PNG files, a .zip of them, or an .npz as ADM's: uint8 [N,H,W,3] `arr_0`, labels `arr_1`.

    All processes of `layout` call it alike. Interrupted work is continued, and finished work left alone: a
    kill loses at most the batch that each process was at. Raises UserError: `out` or the unfinished work
    beside it was made with other settings, or the disk is full.
    """
    work, made_by = Work(out, generation.num_samples, generation.size), settings_of(generation, labels)
    if layout.first(lambda: _claim(work, made_by)):
        return out
    fast = prepare(model, generation.precision, compile, attention)
    done = layout.first(work.written)
    left = [k for k in range(generation.batches) if k not in done]
    sizes = {k: len(generation.indices(k)) for k in range(generation.batches)}
    with progress_bar("generating", generation.num_samples, sum(sizes[k] for k in done), layout.main) as bar:

        def show(step: Step) -> None:
            bar.set_postfix_str(f"step {step.index + 1}/{step.steps}", refresh=False)

        for k in left[layout.rank :: layout.world]:
            work.write(generation.indices(k).start, draw(fast, generation, labels, k, show))
            work.note(k)
            if layout.main:
                bar.update(sum(sizes[k] for k in work.written()) - bar.n)
    layout.highest(0)  # wait for the others
    layout.first(lambda: _finish(work, labels, made_by))
    return out


def settings_file(out: Path) -> Path:
    """Where the settings of the images `out` are written."""
    return out.with_name(out.name + ".json")


def settings_of(generation: Generation, labels: Tensor) -> dict[str, Any]:
    """What is written down of images, as JSON has it; equal settings make equal images."""
    labelled = hashlib.sha256(labels.contiguous().numpy().tobytes()).hexdigest()
    return {**json.loads(json.dumps(asdict(generation))), "labels_sha256": labelled}


def check_settings(file: Path, settings: Mapping[str, Any], place: Path) -> None:
    """Raise UserError unless the images at `place` were made with these settings, as `file` says."""
    found = read_json(file) if file.is_file() else None
    if not isinstance(found, dict):
        raise UserError(f"{place} exists and has no settings beside it: give another --out, or remove it")
    given = json.loads(json.dumps(settings))  # as it was read: tuples are lists
    pairs = [(key, found.get(key), given.get(key)) for key in {**given, **found}]
    if changed := "; ".join(f"{key}: {old!r} -> {new!r}" for key, old, new in pairs if old != new):
        remedy = "give the old settings to go on with it, or another --out"
        raise UserError(f"{place} holds images made with other settings ({changed}): {remedy}")


def _claim(work: "Work", made_by: dict[str, Any]) -> bool:
    """Whether the images are there, made with these settings; if not, see that the work folder is for it."""
    if work.out.exists():
        check_settings(settings_file(work.out), made_by, work.out)
        shutil.rmtree(work.folder, ignore_errors=True)  # of a process killed between its last two steps
        return True
    file = work.folder / SETTINGS
    if file.exists():
        check_settings(file, made_by, work.folder)
        return False
    above = next(folder for folder in work.out.absolute().parents if folder.exists())
    need, free = 2 * work.bytes, shutil.disk_usage(above).free
    if need > free:
        sizes = f"{need / 2**30:.1f} GiB on the disk, which has {free / 2**30:.1f} GiB free"
        raise UserError(f"{work.out} needs up to {sizes}")
    work.begin()
    write_text(file, json.dumps(made_by, indent=1))
    return False


def _finish(work: "Work", labels: Tensor, made_by: dict[str, Any]) -> None:
    write_text(settings_file(work.out), json.dumps(made_by, indent=1))
    work.finish(labels)
    shutil.rmtree(work.folder)


# ---------------------------------------------------------------- on the disk
class Work:
    """Unfinished images beside `out`: a file of the size of all, into which each batch is written. Any number
    of processes may `write`; one calls `begin` and `finish`. No more than a batch is in memory."""

    def __init__(self, out: Path, count: int, size: tuple[int, int]) -> None:
        self.out, self.shape = out, (count, *size, 3)
        self.folder = out.with_name(out.name + UNFINISHED)
        self.array = self.folder / f"{IMAGES}.npy"
        self.bytes = math.prod(self.shape)

    def begin(self) -> None:
        """Make the work folder ready for `write`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(self.array, "w+", np.uint8, self.shape)

    def write(self, start: int, images: Tensor) -> None:
        """Keep images start … start+b-1, uint8 [b,H,W,3]; they are safe from a kill when it returns."""
        # Not through a memory map: on a network file system those of several machines overwrite whole pages.
        with self.array.open("r+b") as file:
            header = self.array.stat().st_size - self.bytes
            file.seek(header + start * math.prod(self.shape[1:]))
            file.write(raw_bytes(images))
            file.flush()
            os.fsync(file.fileno())

    def note(self, batch: int) -> None:
        """Note that a batch is written."""
        (self.folder / f"{batch}{WRITTEN}").touch()

    def written(self) -> set[int]:
        """The batches that any process has written, now or in an earlier run."""
        return {int(file.stem) for file in self.folder.glob(f"*{WRITTEN}")}

    def finish(self, labels: Tensor) -> None:
        """Make `out` of all images, in one step: .npz, .zip, or else a folder. `labels` int64 [N]."""
        kind, names = self.out.suffix.lower(), [f"{i:06d}.png" for i in range(len(labels))]
        table = {"labels": list(zip(names, labels.tolist(), strict=True))}  # as EDM2 writes it
        if kind not in (".npz", ".zip"):
            folder = self.folder / "images"
            folder.mkdir(exist_ok=True)
            for name, data in zip(names, self._pngs(), strict=True):
                (folder / name).write_bytes(data)
            write_text(folder / LABEL_FILE, json.dumps(table))
            os.replace(folder, self.out)
            return
        with replacing(self.out) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            if kind == ".zip":
                for name, data in zip(names, self._pngs(), strict=True):
                    archive.writestr(zipfile.ZipInfo(name, DATE), data)
                archive.writestr(zipfile.ZipInfo(LABEL_FILE, DATE), json.dumps(table))
                return
            member = zipfile.ZipInfo(f"{IMAGES}.npy", DATE)
            with archive.open(member, "w", force_zip64=True) as target, self.array.open("rb") as source:
                shutil.copyfileobj(source, target, 1 << 22)
            with archive.open(zipfile.ZipInfo(f"{LABELS}.npy", DATE), "w") as target:
                np.lib.format.write_array(target, labels.numpy())

    def _pngs(self) -> Iterator[bytes]:
        """The PNG file of every image, in order."""
        images = np.load(self.array, mmap_mode="r")
        with ThreadPoolExecutor(ENCODERS) as pool:
            for start in range(0, len(images), ENCODED):
                yield from pool.map(_png, images[start : start + ENCODED])


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


# ---------------------------------------------------------------- progress
def progress_bar(what: str, total: int, done: int = 0, shown: bool = True) -> "tqdm[Any]":
    """A bar that counts images; where there is no terminal, a line every half minute."""
    interval = 0.1 if sys.stderr.isatty() else PLAIN_SECONDS
    pace: dict[str, Any] = {"mininterval": interval, "maxinterval": max(interval, 10.0)}
    return tqdm(None, what, total, initial=done, unit="image", dynamic_ncols=True, disable=not shown, **pace)
