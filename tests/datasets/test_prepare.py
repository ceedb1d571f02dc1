"""`data prepare` and `data check`."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelwright.cli.main import main
from pixelwright.data import DataConfig, Sample, centre_crop, open_source
from pixelwright.data.check import Findings, check, contact_sheet, describe
from pixelwright.data.open import find_source
from pixelwright.data.prepare import Job, prepare
from pixelwright.errors import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Python 3.12 warns of forking
    pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here"),
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty pictures of different shapes in classes ant and bee; two of them are damaged."""
    rng = np.random.default_rng(0)
    for i in range(20):
        folder = tmp_path / "photos" / ("ant" if i < 12 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + i, 50 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    (tmp_path / "photos/ant/03.png").write_bytes(b"")
    damaged = tmp_path / "photos/bee/15.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    return tmp_path / "photos"


def job(photos: Path, **settings: object) -> Job:
    values = {"source": str(photos), "size": 16, "shard_size": 3, "quality": None, **settings}
    return Job(**values)  # type: ignore[arg-type]


def digests(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("kind", ["shards", "zip"])
def test_outcome_is_the_cropped_set_whatever_the_workers(photos: Path, tmp_path: Path, kind: str) -> None:
    suffix = ".zip" if kind == "zip" else ""
    outs = [tmp_path / str(workers) / f"out{suffix}" for workers in (1, 2, 3)]
    for workers, out in enumerate(outs, start=1):
        report = prepare(job(photos), out, workers)
        assert (report.images, report.classes, report.resumed) == (18, 2, 0)
        assert report.skipped["ant/03.png"] == "the file is empty" and len(report.skipped) == 2
        assert [p.name for p in out.parent.iterdir()] == [out.name]
        assert list(digests(out).values()) == list(digests(outs[0]).values())
    made, plain = open_source(DataConfig(path=str(outs[0]))), open_source(DataConfig(path=str(photos)))
    assert made.class_names == ("ant", "bee") and len(made) == 18
    whole = [i for i in range(20) if plain.name(i) not in report.skipped]
    for i, j in enumerate(whole):
        assert made[i].label == plain[j].label
        assert made[i].image.tobytes() == centre_crop(plain[j].image, 16).tobytes()


def test_shards_folder(photos: Path, tmp_path: Path) -> None:
    prepare(job(photos), tmp_path / "out")
    sums = digests(tmp_path / "out")
    written = dict(line.split("  ")[::-1] for line in (tmp_path / "out/SHA256SUMS").read_text().splitlines())
    assert written == {name: d for name, d in sums.items() if name.endswith(".tar")} and len(written) == 7
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["per_class"] == {"0": 11, "1": 7} and set(report["skipped"]) == {"ant/03.png", "bee/15.png"}
    with tarfile.open(tmp_path / "out/shard-00001.tar") as archive:
        assert archive.getnames()[:4] == ["00000004.png", "00000004.cls", "00000004.json", "00000005.png"]
        meta = json.load(archive.extractfile("00000004.json"))  # type: ignore[arg-type]
    assert meta == {"label": 0, "name": "ant/04.png", "class": "ant"}


def test_jpeg(photos: Path, tmp_path: Path) -> None:
    prepare(job(photos, quality=90), tmp_path / "out")
    with tarfile.open(tmp_path / "out/shard-00000.tar") as archive:
        assert "00000000.jpg" in archive.getnames()


@pytest.mark.parametrize("kind", ["shards", "zip"])
def test_captions_stay(tmp_path: Path, kind: str) -> None:
    out = tmp_path / ("out.zip" if kind == "zip" else "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pixelwright.data.prepare.open_source", lambda config: Slow(tmp_path, 0.0))
        prepare(job(tmp_path), out)
    source = open_source(DataConfig(path=str(out)))
    assert [source[i].caption for i in range(8)] == [f"number {i}" for i in range(8)]


class Slow:
    """Eight images; each read leaves a trace in `folder` and takes `seconds`."""

    class_names, num_classes = None, 1

    def __init__(self, folder: Path, seconds: float, fault: OSError | None = None):
        self.folder, self.seconds, self.fault = folder / "reads", seconds, fault
        self.folder.mkdir(exist_ok=True)

    def __len__(self) -> int:
        return 8

    def name(self, index: int) -> str:
        return f"image {index}"

    def __getitem__(self, index: int) -> Sample:
        (self.folder / f"{index}-{time.monotonic_ns()}").touch()
        time.sleep(self.seconds)
        if self.fault and index == 6:
            raise self.fault
        return Sample(Image.new("RGB", (9, 9), (index, 0, 0)), 0, f"number {index}", self.name(index))

    def reads(self) -> list[int]:
        return sorted(int(p.name.split("-")[0]) for p in self.folder.iterdir())


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_work_goes_on_and_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    slow = Slow(tmp_path, 0.15)
    monkeypatch.setattr("pixelwright.data.prepare.open_source", lambda config: slow)
    work, out = job(tmp_path, shard_size=2), tmp_path / "out"
    victim = multiprocessing.get_context("fork").Process(target=prepare, args=(work, out, workers))
    victim.start()
    deadline = time.monotonic() + 20
    while not list((tmp_path / "out.prepare/.notes").glob("0*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(victim.pid or 0, signal.SIGKILL)
    victim.join()
    time.sleep(1.2)  # its workers leave
    assert not out.exists()
    with pytest.raises(UserError, match="not finished"):
        open_source(DataConfig(path=str(tmp_path / "out.prepare")))
    done = [int(p.stem) for p in (tmp_path / "out.prepare/.notes").glob("0*.json")]
    before = slow.reads()
    assert 0 < len(done) < 4
    slow.seconds = 0
    report = prepare(work, out, workers)
    assert report.resumed == len(done) and report.images == 8
    again = slow.reads()
    for index in before:
        again.remove(index)
    assert again == [i for i in range(8) if i // 2 not in done]
    prepare(work, tmp_path / "undisturbed")
    assert digests(out) == digests(tmp_path / "undisturbed")
    assert not (tmp_path / "out.prepare").exists() and not list(out.glob("*.tmp"))


@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    fault = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("pixelwright.data.prepare.open_source", lambda config: Slow(tmp_path, 0, fault))
    with pytest.raises(OSError, match="No space left"):
        prepare(job(tmp_path, shard_size=2), tmp_path / "out", workers)
    assert not (tmp_path / "out").exists() and not list((tmp_path / "out.prepare").glob("*.tmp"))
    monkeypatch.setattr("pixelwright.data.prepare.open_source", lambda config: Slow(tmp_path, 0))
    assert prepare(job(tmp_path, shard_size=2), tmp_path / "out", workers).resumed == 3


def test_a_worker_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Deadly(Slow):
        def __getitem__(self, index: int) -> Sample:
            if index == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    monkeypatch.setattr("pixelwright.data.prepare.open_source", lambda config: Deadly(tmp_path, 0))
    with pytest.raises(UserError, match="a worker process died"):
        prepare(job(tmp_path, shard_size=2), tmp_path / "out", 2)


def test_unfinished_work_of_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("pixelwright.data.prepare.open_source", lambda config: Slow(tmp_path, 0, fault))
    with pytest.raises(OSError, match="No space"):
        prepare(job(tmp_path), tmp_path / "out")
    with pytest.raises(UserError, match="unfinished work with size 16, not 32"):
        prepare(job(tmp_path, size=32), tmp_path / "out")


def test_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr("pixelwright.data.prepare.open_source", lambda config: Slow(tmp_path, 0))
    (tmp_path / "out.prepare/.notes").mkdir(parents=True)
    with (
        FileLock(tmp_path / "out.prepare/.notes/lock"),
        pytest.raises(UserError, match="being prepared by another"),
    ):
        prepare(job(tmp_path), tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_check_counts(photos: Path, workers: int) -> None:
    seen: list[int] = []
    found = check(find_source(DataConfig(path=str(photos))), workers, seen.append)
    assert sum(seen) == found.images == 20 and not found.whole
    assert set(found.broken) == {"ant/03.png", "bee/15.png"}
    assert found.labels == {0: 11, 1: 7} and found.sizes[(50, 20)] == 1


def test_contact_sheet_passes_over_damage(photos: Path) -> None:
    source = find_source(DataConfig(path=str(photos)))
    assert contact_sheet(source, 100, 8).shape == (18, 8, 8, 3)
    assert contact_sheet(source, 4, 8).shape == (4, 8, 8, 3)


def test_aspects(photos: Path) -> None:
    source = find_source(DataConfig(path=str(photos)))
    found = check(source)
    ratios = sorted(width / height for width, height in found.sizes.elements())
    assert f"width / height: {ratios[0]:.3g} to 2.5, median {ratios[9]:.3g}" in describe(found, source)
    assert "width / height" not in describe(Findings(), source)


def test_commands(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", "photos", "out.zip", "--size", "8"]) == 0
    said = capsys.readouterr().out
    assert "out.zip: 18 images of 2 classes in a zip" in said and "ant/03.png: the file is empty" in said
    assert main(["data", "check", "photos"]) == 1 and not list(tmp_path.glob("*.png"))
    said = capsys.readouterr().out
    assert "20 images, 18 readable" in said and "unreadable images: 2" in said and "11  ant" in said
    assert main(["data", "check", "out.zip", "--sheet", "s.png", "--images", "9", "--side", "8"]) == 0
    with Image.open("s.png") as sheet:
        assert sheet.size == (3 * 10 + 2, 3 * 10 + 2)
    assert "nothing is broken" in capsys.readouterr().out
    assert main(["data"]) == 0


BAD = {
    "no verb of that name": (["chek"], 'unknown command "data chek", did you mean "check"'),
    "prepare without a size": (["prepare", "photos", "out"], "size"),
    "size 0": (["prepare", "photos", "out", "--size", "0"], "--size is 0"),
    "size a word": (["prepare", "photos", "out", "--size", "big"], "size is 'big'"),
    "no workers": (["prepare", "photos", "out", "--size", "8", "--workers", "0"], "--workers is 0"),
    "shard size": (["prepare", "photos", "out", "--size", "8", "--shard-size", "0"], "--shard-size is 0"),
    "quality": (
        ["prepare", "photos", "out", "--size", "8", "--jpeg-quality", "101"],
        "--jpeg-quality is 101",
    ),
    "there already": (["prepare", "photos", "photos", "--size", "8"], "exists already"),
    "no source": (["prepare", "nowhere", "out", "--size", "8"], "nowhere"),
    "unknown option": (["prepare", "photos", "out", "--size", "8", "--seize", "3"], '"--seize"'),
    "only damage": (["prepare", "broken", "out", "--size", "8"], "none of the 1 images"),
    "check nothing": (["check", "nowhere"], "nowhere"),
    "check a pattern": (["check", "no-{0..3}.tar"], "no file matches"),
    "check no workers": (["check", "photos", "--workers", "0"], "--workers is 0"),
    "check images": (["check", "photos", "--images", "-1"], "--images is -1"),
    "check without a sheet": (["check", "photos", "--images", "9"], "give --sheet FILE"),
    "check side": (["check", "photos", "--side", "0"], "--side is 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_commands(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.png").write_bytes(b"x")
    before = digests(tmp_path)
    words, said = BAD[name]
    assert main(["data", *words]) == 2
    stdout, stderr = capsys.readouterr()
    assert said in stderr and stderr.startswith("pixelwright: error: ") and stderr.count("\n") == 1
    assert not stdout and digests(tmp_path) == before and not (tmp_path / "out.prepare").exists()


def test_jpeg_keeps_the_colours_of_every_pixel(tmp_path: Path) -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2], stripes[:, 1::2] = (255, 0, 0), (0, 0, 255)
    (tmp_path / "in").mkdir()
    Image.fromarray(stripes).save(tmp_path / "in" / "a.png")
    prepare(Job(str(tmp_path / "in"), 32, 10, 100), tmp_path / "out")
    source = open_source(DataConfig(path=str(tmp_path / "out")))
    assert np.abs(np.asarray(source[0].image).astype(int) - stripes).max() <= 3
