"""A data set cut to size once: read, cropped by the rule of ADM and written as shards or a zip, in parallel.

The work is divided by the numbers of the images: part k holds images k * shard_size and on, whoever writes
it, so that neither the number of workers nor an interruption changes a byte of the outcome. All of it happens
in a folder beside the outcome, which appears under its own name in one step when it is whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from pixelwright.data.config import DataConfig
from pixelwright.data.open import UNFINISHED, open_source
from pixelwright.data.sources import LABEL_FILE, Sample, Source
from pixelwright.data.transforms import UnreadableImage, centre_crop
from pixelwright.errors import UserError
from pixelwright.remote import CHECKSUMS

Format = Literal["shards", "zip"]
REPORT = "report.json"
NOTES = ".notes"  # sub-folder of the work: which job it is, which parts are done
DATE = (1980, 1, 1, 0, 0, 0)  # of every member of a zip, so that equal content makes equal files


@dataclass(frozen=True)
class Job:
    """What is to be made of which images. Raises UserError on values that cannot be."""

    source: str
    """A data.path."""
    size: int
    """Side of the images in pixels."""
    format: Format
    shard_size: int
    """Images of the source to a shard; for a zip, to one piece of work."""
    quality: int | None
    """Of JPEG files, 1 to 100; None writes PNG."""

    def __post_init__(self) -> None:
        for name, value in (("size", self.size), ("shard-size", self.shard_size)):
            if value < 1:
                raise UserError(f"--{name} is {value}: give a whole number of at least 1")
        if self.format not in get_args(Format):
            raise UserError(f'--format is "{self.format}": give "shards" or "zip"')
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UserError(f"--jpeg-quality is {self.quality}: give 1 to 100, or leave it out for PNG")

    def encode(self, image: Image.Image) -> bytes:
        """The file of an image of any size, cropped and resized."""
        buffer = io.BytesIO()
        cropped = centre_crop(image, self.size)
        if self.quality is None:
            cropped.save(buffer, "PNG")
        else:
            cropped.save(buffer, "JPEG", quality=self.quality, subsampling=0)  # 4:4:4: colours survive
        return buffer.getvalue()

    @property
    def suffix(self) -> str:
        return "png" if self.quality is None else "jpg"


@dataclass(frozen=True)
class Report:
    """What came of a job."""

    images: int
    classes: int
    files: int
    skipped: dict[str, str]
    """Name and reason of each image that could not be used."""
    captions_dropped: int
    """Captions of the source that the format cannot hold."""
    resumed: int
    """Parts that an earlier, interrupted run had finished."""


def prepare(job: Job, out: Path, workers: int = 1) -> Report:
    """Do the job and put the outcome at `out`: a folder of shards, or a zip.

    An interrupted job goes on where it stopped when it is started again with the same settings.

    Raises UserError if `out` exists, if the settings are not those of the unfinished work, if another process
    is at it, or if no image can be used.
    """
    if workers < 1:
        raise UserError(f"--workers is {workers}: give a whole number of at least 1")
    if out.exists():
        raise UserError(f'"{out}" exists already: give another name or remove it')
    if (out.suffix.lower() == ".zip") != (job.format == "zip"):
        raise UserError(f'"{out}" and --format {job.format} do not agree: a zip ends in .zip, shards do not')
    source = open_source(DataConfig(path=job.source, size=job.size))
    folder = out.with_name(out.name + UNFINISHED)
    (folder / NOTES).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / NOTES / "lock", timeout=0):
            _claim(folder, job, source)
            return _run(job, source, out, folder, workers)
    except Timeout:
        raise UserError(f'"{out}" is being prepared by another process: wait for it or stop it') from None


def _claim(folder: Path, job: Job, source: Source) -> None:
    """Write down whose work the folder holds, or make sure that it is the same job's."""
    ends = [source.name(0), source.name(len(source) - 1)]
    wanted = {**asdict(job), "images": len(source), "ends": ends}
    file = folder / NOTES / "job.json"
    if not file.exists():
        _write(file, json.dumps(wanted).encode())
        return
    found = json.loads(file.read_text())
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f'"{folder}" holds unfinished work with {key} {found.get(key)!r}, not {value!r}: '
                "finish it with the same settings or remove it"
            )


def _run(job: Job, source: Source, out: Path, folder: Path, workers: int) -> Report:
    _clear(folder)
    parts = -(-len(source) // job.shard_size)
    done = [k for k in range(parts) if _finished(folder, k)]
    left = [k for k in range(parts) if k not in set(done)]
    _make_parts(job, source, folder, left, workers)
    notes = [json.loads(_note(folder, k).read_text()) for k in range(parts)]
    skipped = {name: reason for note in notes for name, reason in note["skipped"].items()}
    images = sum(note["images"] for note in notes)
    if not images:
        shutil.rmtree(folder)
        name, reason = next(iter(skipped.items()))
        raise UserError(f'none of the {len(source)} images of "{job.source}" can be used: "{name}": {reason}')
    captions = sum(note["captions"] for note in notes)
    report = {
        "images": images,
        "class_names": list(source.class_names or ()) or None,
        "per_class": _add_counts(notes),
        "settings": {**asdict(job)},
        "skipped": skipped,
    }
    _write(folder / REPORT, json.dumps(report, indent=1).encode())
    if job.format == "zip":
        _join(job, source, folder, notes, out)
    else:
        _publish(folder, notes, out)
    dropped = captions if job.format == "zip" else 0
    files = 1 if job.format == "zip" else parts
    return Report(images, source.num_classes, files, skipped, dropped, len(done))


def _add_counts(notes: list[dict[str, Any]]) -> dict[str, int]:
    total: dict[int, int] = {}
    for note in notes:
        for label, count in note["per_class"].items():
            total[int(label)] = total.get(int(label), 0) + count
    return {str(label): total[label] for label in sorted(total)}


# ---------------------------------------------------------------- parts, in worker processes


def _tar(folder: Path, part: int) -> Path:
    return folder / f"shard-{part:05}.tar"


def _note(folder: Path, part: int) -> Path:
    """What is known of a finished part; written after it, so that it vouches for it."""
    return folder / NOTES / f"{part:05}.json"


def _finished(folder: Path, part: int) -> bool:
    if not _note(folder, part).exists() or not _tar(folder, part).exists():
        return False
    return bool(json.loads(_note(folder, part).read_text())["bytes"] == _tar(folder, part).stat().st_size)


def _make_parts(job: Job, source: Source, folder: Path, parts: list[int], workers: int) -> None:
    total = len(source)
    sizes = {k: min((k + 1) * job.shard_size, total) - k * job.shard_size for k in parts}
    todo = sum(sizes.values())
    with tqdm(total=total, initial=total - todo, unit="image", desc="preparing", disable=None) as bar:
        if workers == 1:
            for part in parts:
                _make_part(job, source, folder, part, bar.update)
            return
        counter, others = multiprocessing.Value("q", 0), set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(
            workers, initializer=_start_worker, initargs=(job, source, folder, counter)
        )
        try:
            waiting: set[Future[None]] = {pool.submit(_worker_part, part) for part in parts}
            while waiting:
                finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                bar.update(counter.value - (bar.n - (total - todo)))
                for future in finished:
                    future.result()
        except KeyboardInterrupt:  # now, rather than at the end of the shards that are being written
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
            raise
        except BrokenProcessPool as error:
            raise UserError(
                f"a worker process died, perhaps for want of memory: what is done is kept in {folder}; "
                "run the command again, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            _clear(folder)


def _clear(folder: Path) -> None:
    """Remove what was being written when the work stopped."""
    for stray in folder.glob("*.part"):
        stray.unlink()


_work: tuple[Job, Source, Path, Any]  # of a worker process


def _start_worker(job: Job, source: Source, folder: Path, counter: Any) -> None:
    global _work
    _work = job, source, folder, counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()


def _leave_with(parent: int) -> None:
    """End this process when its parent is gone; a killed parent cannot tell it to."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _worker_part(part: int) -> None:
    job, source, folder, counter = _work

    def count(images: int) -> None:
        with counter.get_lock():
            counter.value += images

    _make_part(job, source, folder, part, count)


def _make_part(job: Job, source: Source, folder: Path, part: int, count: Any) -> None:
    """Write one shard and its note, each under its name only when whole."""
    file, unfinished = _tar(folder, part), folder / f"shard-{part:05}.tar.part"
    note: dict[str, Any] = {"images": 0, "captions": 0, "per_class": {}, "skipped": {}}
    try:
        with tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as archive:
            for index in range(part * job.shard_size, min((part + 1) * job.shard_size, len(source))):
                try:
                    sample = source[index]
                    members = _members(job, source, index, sample)
                except UnreadableImage as error:
                    note["skipped"][source.name(index)] = str(error)
                else:
                    for name, data in members:
                        _add(archive, name, data)
                    note["images"] += 1
                    note["captions"] += sample.caption is not None
                    note["per_class"][sample.label] = note["per_class"].get(sample.label, 0) + 1
                count(1)
        note["bytes"] = unfinished.stat().st_size
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
            note["sha256"] = hashlib.file_digest(written, "sha256").hexdigest()
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
    _write(_note(folder, part), json.dumps(note).encode())


def _members(job: Job, source: Source, index: int, sample: Sample) -> Iterator[tuple[str, bytes]]:
    """The files of one sample, as WebDataset names them."""
    key = f"{index:08}"
    meta: dict[str, Any] = {"label": sample.label, "name": sample.name}
    if source.class_names:
        meta["class"] = source.class_names[sample.label]
    if sample.captions is not None and len(sample.captions.texts) > 1:
        meta |= {"captions": sample.captions.texts, "weights": sample.captions.weights}
    yield f"{key}.{job.suffix}", job.encode(sample.image)
    yield f"{key}.cls", str(sample.label).encode()
    yield f"{key}.json", json.dumps(meta).encode()
    if sample.caption is not None and "captions" not in meta:
        yield f"{key}.txt", sample.caption.encode()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no date, no owner: equal content makes equal files
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


# ---------------------------------------------------------------- the outcome


def _publish(folder: Path, notes: list[dict[str, Any]], out: Path) -> None:
    """Shards: the folder of the work itself, cleared of notes, becomes the outcome."""
    sums = "".join(f"{note['sha256']}  {_tar(folder, k).name}\n" for k, note in enumerate(notes))
    _write(folder / CHECKSUMS, sums.encode())
    os.replace(folder, out)
    shutil.rmtree(out / NOTES)


def _join(job: Job, source: Source, folder: Path, notes: list[dict[str, Any]], out: Path) -> None:
    """Zip: copy the images out of the parts, then the labels, then give it its name."""
    whole = folder / "whole.zip.part"
    labels: list[tuple[str, int]] = []
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for part in range(len(notes)):
            with tarfile.open(_tar(folder, part)) as shard:
                files = {member.name: member for member in shard}
                for name in files:
                    key, _, suffix = name.partition(".")
                    if suffix != job.suffix:
                        continue
                    label = int(_content(shard, files[f"{key}.cls"]))
                    labels.append((f"{label:05}/{name}", label))
                    archive.writestr(zipfile.ZipInfo(labels[-1][0], DATE), _content(shard, files[name]))
        table = {"labels": labels, "class_names": list(source.class_names or ()) or None}
        archive.writestr(zipfile.ZipInfo(LABEL_FILE, DATE), json.dumps(table))
        archive.writestr(zipfile.ZipInfo(REPORT, DATE), (folder / REPORT).read_bytes())
    with whole.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(whole, out)
    shutil.rmtree(folder)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # a regular file
    return file.read()


def _write(path: Path, data: bytes) -> None:
    """Replace a small file in one step."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)
