"""A data set cut to size once: read, cropped by the rule of ADM and written as shards or a zip, in parallel.

The work is divided by the numbers of the images: part k holds images k * shard_size and on, whoever writes
it, so that neither the number of workers nor an interruption changes a byte of the outcome. All of it happens
in a folder beside the outcome, which appears under its own name in one step when it is whole.
"""

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
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from pixelwright.config import Config, PositiveInt, whole
from pixelwright.data.captions import METADATA
from pixelwright.data.config import DataConfig
from pixelwright.data.open import UNFINISHED, open_source
from pixelwright.data.sources import LABEL_FILE, Sample, Source
from pixelwright.data.transforms import UnreadableImage, centre_crop
from pixelwright.errors import UserError
from pixelwright.files import read_json, remove_abandoned, replacing, sha256, write_text
from pixelwright.remote import CHECKSUMS

REPORT = "report.json"
NOTES = ".notes"  # sub-folder of the work: which job it is, which parts are done
DATE = (1980, 1, 1, 0, 0, 0)  # of every member of a zip, so that equal content makes equal files
Quality = Annotated[int, whole(1, 100)]


@dataclass(frozen=True)
class Job(Config, where="prepare"):
    """What is to be made of which images."""

    source: str  # a data.path
    size: PositiveInt  # side of the images in pixels
    shard_size: PositiveInt = 1000  # images of the source to a shard; for a zip, to one piece of work
    quality: Quality | None = None  # of JPEG files; None writes PNG

    def encode(self, image: Image.Image) -> bytes:
        """The file of an image of any size, cropped and resized."""
        buffer = io.BytesIO()
        settings = (
            {"quality": self.quality, "subsampling": 0} if self.quality else {}
        )  # 4:4:4: colours survive
        centre_crop(image, self.size).save(buffer, "JPEG" if self.quality else "PNG", **settings)
        return buffer.getvalue()

    @property
    def suffix(self) -> str:
        return "jpg" if self.quality else "png"


@dataclass(frozen=True)
class Report:
    """What came of a job."""

    images: int
    classes: int
    files: int
    skipped: dict[str, str]  # name and reason of each image that could not be used
    resumed: int  # parts that an earlier, interrupted run had finished


def prepare(job: Job, out: Path, workers: int = 1) -> Report:
    """Do the job and put the outcome at `out`: a zip if it ends in .zip, else a folder of shards.

    An interrupted job goes on where it stopped when it is started again with the same settings.

    Raises UserError if `out` exists, if the settings are not those of the unfinished work, if another process
    is at it, if the disk is full, or if no image can be used.
    """
    if out.exists():
        raise UserError(f'"{out}" exists already: give another name or remove it')
    source = open_source(DataConfig(path=job.source, size=job.size))
    work = _Work(job, source, out.with_name(out.name + UNFINISHED))
    (work.folder / NOTES).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work.folder / NOTES / "lock", timeout=0):
            work.claim()
            return work.run(out, workers)
    except Timeout:
        raise UserError(f'"{out}" is being prepared by another process: wait for it or stop it') from None


@dataclass
class _Work:
    """A job under way: its folder holds the finished parts, each a tar with a note of what is in it."""

    job: Job
    source: Source
    folder: Path

    def claim(self) -> None:
        """Write down whose work the folder holds, or make sure that it is the same job's."""
        ends = [self.source.name(0), self.source.name(len(self.source) - 1)]
        settings = {**asdict(self.job), "images": len(self.source), "ends": ends}
        file = self.folder / NOTES / "job.json"
        if not file.exists():
            write_text(file, json.dumps(settings))
        found = read_json(file)
        for key, value in settings.items():
            if (old := found.get(key)) != value:
                text = f'"{self.folder}" holds unfinished work with {key} {old!r}, not {value!r}'
                raise UserError(f"{text}: finish it with the same settings or remove it")

    def run(self, out: Path, workers: int) -> Report:
        remove_abandoned(self.folder, age=0)  # of work that was killed; nobody else is at it
        parts = range(-(-len(self.source) // self.job.shard_size))
        done = [part for part in parts if self.finished(part)]
        self.make_parts([part for part in parts if part not in set(done)], workers)
        notes = [read_json(self.note(part)) for part in parts]
        skipped = {name: reason for note in notes for name, reason in note["skipped"].items()}
        images = sum(note["images"] for note in notes)
        if not images:
            shutil.rmtree(self.folder)
            name, reason = next(iter(skipped.items()))
            many = f'none of the {len(self.source)} images of "{self.job.source}"'
            raise UserError(f'{many} can be used: "{name}": {reason}')
        counts = sum((Counter(note["per_class"]) for note in notes), Counter[str]())
        per_class = {label: counts[label] for label in sorted(counts, key=int)}
        report = {"images": images, "class_names": self.source.class_names, "per_class": per_class}
        report |= {"settings": asdict(self.job), "skipped": skipped}
        write_text(self.folder / REPORT, json.dumps(report, indent=1))
        if as_zip := out.suffix.lower() == ".zip":
            self.join(len(parts), out)
        else:  # the folder of the work itself, cleared of notes, becomes the outcome
            sums = "".join(f"{note['sha256']}  {self.tar(k).name}\n" for k, note in enumerate(notes))
            write_text(self.folder / CHECKSUMS, sums)
            os.replace(self.folder, out)
            shutil.rmtree(out / NOTES)
        return Report(images, self.source.num_classes, 1 if as_zip else len(parts), skipped, len(done))

    def tar(self, part: int) -> Path:
        return self.folder / f"shard-{part:05}.tar"

    def note(self, part: int) -> Path:
        """What is known of a finished part; written after it, so that it vouches for it."""
        return self.folder / NOTES / f"{part:05}.json"

    def finished(self, part: int) -> bool:
        note, tar = self.note(part), self.tar(part)
        return note.exists() and tar.exists() and bool(read_json(note)["bytes"] == tar.stat().st_size)

    def range(self, part: int) -> range:
        """The images of a part."""
        size = self.job.shard_size
        return range(part * size, min((part + 1) * size, len(self.source)))

    # --- parts, in worker processes ---

    def make_parts(self, parts: list[int], workers: int) -> None:
        total, todo = len(self.source), sum(len(self.range(part)) for part in parts)
        with tqdm(total=total, initial=total - todo, unit="image", desc="preparing", disable=None) as bar:
            if workers == 1:
                for part in parts:
                    self.make_part(part, bar.update)
                return
            others = set(multiprocessing.active_children())
            pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(self,))
            try:
                for future in as_completed([pool.submit(_worker_part, part) for part in parts]):
                    bar.update(future.result())
            except KeyboardInterrupt:  # now, rather than at the end of the shards that are being written
                for worker in set(multiprocessing.active_children()) - others:
                    worker.kill()
                raise
            except BrokenProcessPool as error:
                text = "a worker process died, perhaps for want of memory: what is done is kept in"
                raise UserError(f"{text} {self.folder}; run again, with fewer --workers") from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                remove_abandoned(self.folder, age=0)

    def make_part(self, part: int, count: Callable[[int], object] = lambda images: None) -> None:
        """Write one shard and its note; `count` is called for each image."""
        note: dict[str, Any] = {"images": 0, "per_class": Counter(), "skipped": {}}
        with replacing(self.tar(part)) as unfinished:
            with tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as archive:
                for index in self.range(part):
                    try:
                        sample = self.source[index]
                        members = list(self.members(index, sample))
                    except UnreadableImage as error:
                        note["skipped"][self.source.name(index)] = str(error)
                    else:
                        for name, data in members:
                            member = tarfile.TarInfo(name)  # no date, no owner: equal content, equal files
                            member.size = len(data)
                            archive.addfile(member, io.BytesIO(data))
                        note["images"] += 1
                        note["per_class"][sample.label] += 1
                    count(1)
            note |= {"bytes": unfinished.stat().st_size, "sha256": sha256(unfinished)}
        write_text(self.note(part), json.dumps(note))

    def members(self, index: int, sample: Sample) -> Iterator[tuple[str, bytes]]:
        """The files of one sample, as WebDataset names them."""
        key = f"{index:08}"
        meta: dict[str, Any] = {"label": sample.label, "name": sample.name}
        if self.source.class_names:
            meta["class"] = self.source.class_names[sample.label]
        if sample.captions is not None and len(sample.captions.texts) > 1:
            meta |= {"captions": sample.captions.texts, "weights": sample.captions.weights}
        yield f"{key}.{self.job.suffix}", self.job.encode(sample.image)
        yield f"{key}.cls", str(sample.label).encode()
        yield f"{key}.json", json.dumps(meta).encode()
        if sample.caption is not None and "captions" not in meta:
            yield f"{key}.txt", sample.caption.encode()

    def join(self, parts: int, out: Path) -> None:
        """Copy the images out of the parts into a zip, then labels and captions."""
        labels: list[tuple[str, int]] = []
        captions: list[str] = []
        with replacing(out) as whole, zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
            for part in range(parts):
                with tarfile.open(self.tar(part)) as shard:
                    files = {member.name: member for member in shard}
                    for name in files:
                        key, _, suffix = name.partition(".")
                        if suffix != self.job.suffix:
                            continue
                        label = int(_content(shard, files[f"{key}.cls"]))
                        labels.append((f"{label:05}/{name}", label))
                        archive.writestr(zipfile.ZipInfo(labels[-1][0], DATE), _content(shard, files[name]))
                        meta = json.loads(_content(shard, files[f"{key}.json"]))
                        texts = {k: meta[k] for k in ("captions", "weights") if k in meta}
                        if text := files.get(f"{key}.txt"):
                            texts = {"caption": _content(shard, text).decode()}
                        if texts:
                            captions.append(json.dumps({"file_name": labels[-1][0], **texts}) + "\n")
            table = {"labels": labels, "class_names": list(self.source.class_names or ()) or None}
            archive.writestr(zipfile.ZipInfo(LABEL_FILE, DATE), json.dumps(table))
            if captions:
                archive.writestr(zipfile.ZipInfo(METADATA, DATE), "".join(captions))
            archive.writestr(zipfile.ZipInfo(REPORT, DATE), (self.folder / REPORT).read_bytes())
        shutil.rmtree(self.folder)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # a regular file
    return file.read()


_worker: _Work  # of a worker process


def _start_worker(work: _Work) -> None:
    global _worker
    _worker, parent = work, os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process

    def leave() -> None:  # when the parent is gone; a killed one cannot tell us to
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def _worker_part(part: int) -> int:
    _worker.make_part(part)
    return len(_worker.range(part))
