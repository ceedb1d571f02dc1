"""Images on disk: the same bytes whatever the layout, nothing drawn twice after a kill, no settings mixed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pixelwright as pw
from pixelwright.cli.labels import labels_for
from pixelwright.data.sources import FolderSource, ZipSource
from pixelwright.diffusion.labels import balanced_labels
from pixelwright.distributed import parallel
from pixelwright.distributed.config import ParallelConfig
from pixelwright.errors import UserError
from pixelwright.evaluation import generate as room
from pixelwright.evaluation.generate import generate, settings_file
from pixelwright.models.config import SamplerSettings
from tests.training.test_parallel import torchrun

from .generating import generation

COUNT, BATCH = 22, 4
SCRIPT = Path(__file__).with_name("generating.py")
ALONE = parallel.Layout(ParallelConfig(), torch.device("cpu"))


def make(model: Path, out: Path, **changes: Any) -> Path:
    plan = generation(str(model), COUNT, BATCH, **changes)
    return generate(pw.load(model), plan, balanced_labels(plan.num_samples, 4), out, ALONE)


@pytest.fixture(scope="module")
def expected(model_folder: Path) -> np.ndarray:
    """The images as `pixelwright.sample` draws them, each batch by itself."""
    torch.set_num_threads(1)
    model, labels = pw.load(model_folder), balanced_labels(COUNT, 4)
    sampler = SamplerSettings(steps=3, guidance_scale=2.0, guidance_interval=(0.1, 0.9))
    parts = [
        pw.sample(model, labels[k : k + BATCH], sampler, seed=5, start_index=k)
        for k in range(0, COUNT, BATCH)
    ]
    return torch.cat(parts).numpy()


def read(out: Path) -> np.ndarray:
    if out.suffix == ".npz":
        with np.load(out) as file:
            return file["arr_0"]
    source = ZipSource(out) if out.suffix == ".zip" else FolderSource(out)
    return np.stack([np.asarray(source[i].image) for i in range(len(source))])


# --- what is written ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["images.npz", "images.zip", "images"])
def test_every_form_holds_the_images_and_their_labels(
    name: str, model_folder: Path, tmp_path: Path, expected: np.ndarray
) -> None:
    out = make(model_folder, tmp_path / name)
    np.testing.assert_array_equal(read(out), expected)
    labels = balanced_labels(COUNT, 4).tolist()
    if out.suffix == ".npz":
        with np.load(out) as file:
            assert file["arr_0"].dtype == np.uint8 and file["arr_1"].tolist() == labels
        assert zipfile.ZipFile(out).testzip() is None
    else:
        source = ZipSource(out) if out.suffix == ".zip" else FolderSource(out)
        assert [source[i].label for i in range(COUNT)] == labels
        assert source.name(21) == "000021.png"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"{name}.json"])
    settings = json.loads(settings_file(out).read_text())
    assert settings["guidance_interval"] == [0.1, 0.9] and len(settings["weights"]) == 64


def test_an_image_that_is_alone_in_the_last_batch(model_folder: Path, tmp_path: Path) -> None:
    out = make(model_folder, tmp_path / "five.npz", num_samples=5)
    assert read(out).shape == (5, 8, 8, 3)


# --- any number of processes -------------------------------------------------------------------------------
def test_two_processes_write_the_bytes_of_one(model_folder: Path, tmp_path: Path) -> None:
    alone, pair = make(model_folder, tmp_path / "images.npz"), tmp_path / "pair.npz"
    done = torchrun(2, model_folder, pair, COUNT, BATCH, script=SCRIPT)
    assert done.returncode == 0, done.stderr
    assert pair.read_bytes() == alone.read_bytes()
    drew = sorted(line for line in done.stdout.splitlines() if line.startswith("drew"))
    assert drew == ["drew 0 0 2 4", "drew 1 1 3 5"]


# --- kill and resume ---------------------------------------------------------------------------------------
def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(pw.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100)


def test_a_kill_loses_the_batch_it_interrupts_and_no_other(model_folder: Path, tmp_path: Path) -> None:
    whole, out = make(model_folder, tmp_path / "whole.npz"), tmp_path / "killed.npz"
    killed = process(model_folder, out, COUNT, BATCH, 3)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists() and room.Work(out, COUNT, (8, 8)).folder.is_dir()
    resumed = process(model_folder, out, COUNT, BATCH)
    assert resumed.stdout.split() == ["drew", "0", "3", "4", "5"], resumed.stderr
    assert out.read_bytes() == whole.read_bytes()
    assert not room.Work(out, COUNT, (8, 8)).folder.exists()


class _Killed(BaseException):
    pass


def interrupt(patch: pytest.MonkeyPatch, owner: object, name: str, at: int) -> None:
    """Make call number `at` of a function the last."""
    function: Callable[..., Any] = getattr(owner, name)
    calls = iter(range(at))

    def limited(*arguments: Any, **more: Any) -> Any:
        if next(calls, None) is None:
            raise _Killed
        return function(*arguments, **more)

    patch.setattr(owner, name, limited)


@pytest.mark.parametrize("name", ["images.npz", "images.zip", "images"])
@pytest.mark.parametrize(
    ("owner", "function", "at"),
    [
        ("room", "write_text", 0),  # before the work folder says whose it is
        ("work", "write", 2),
        ("room", "write_text", 1),  # before the settings stand beside the images
        ("work", "finish", 0),
        ("shutil", "rmtree", 0),  # when all is there
    ],
)
def test_stopped_anywhere_it_ends_alike(
    name: str,
    owner: str,
    function: str,
    at: int,
    model_folder: Path,
    tmp_path: Path,
    expected: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / name
    with monkeypatch.context() as patch:
        interrupt(patch, {"work": room.Work, "room": room, "shutil": shutil}[owner], function, at)
        with pytest.raises(_Killed):
            make(model_folder, out)
    np.testing.assert_array_equal(read(make(model_folder, out)), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"{name}.json"])


def test_finished_work_is_left_alone(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = make(model_folder, tmp_path / "images.npz")
    before = out.stat().st_mtime_ns
    interrupt(monkeypatch, room, "draw", 0)
    make(model_folder, out)
    assert out.stat().st_mtime_ns == before


# --- other settings ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"guidance_scale": 1.5}, "guidance_scale: 2.0 -> 1.5"),
        ({"guidance_interval": (0.1, 1.0)}, "guidance_interval: [0.1, 0.9] -> [0.1, 1.0]"),
        ({"weights": "another"}, "weights: .* -> 'another'"),
        ({"batch_size": 5}, "batch_size: 4 -> 5"),
        ({"seed": 6}, "seed: 5 -> 6"),
    ],
)
def test_other_settings_are_refused_and_nothing_touched(
    finished: bool,
    change: dict[str, Any],
    said: str,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "images.npz"
    with monkeypatch.context() as patch:
        if not finished:
            interrupt(patch, room, "draw", 1)
        with pytest.raises(_Killed) if not finished else pytest.MonkeyPatch.context():
            make(model_folder, out)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=said.replace("[", r"\[")):
        make(model_folder, out, **change)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_images_of_unknown_origin_are_refused(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "precious.png")
    with pytest.raises(UserError, match="no settings beside it"):
        make(model_folder, tmp_path / "images")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_full_disk_is_told_before_the_first_image(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match="GiB free"):
        make(model_folder, tmp_path / "images.npz")
    assert list(tmp_path.iterdir()) == []


def test_impossible_settings_are_refused_before_anything_is_done(model_folder: Path) -> None:
    for change, said in (
        ({"num_samples": 0}, "num_samples is 0"),
        ({"solver": "eular"}, '"euler"'),
        ({"steps": 0}, "steps is 0"),
        ({"guidance_interval": (0.9, 0.1)}, "guidance_interval"),
    ):
        with pytest.raises(UserError, match=said):
            generation(str(model_folder), **{"count": 4, "batch": 2, **change})


# --- labels ------------------------------------------------------------------------------------------------
def test_labels_of_many_images(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d")
    assert labels_for(["balanced"], 6, 4).tolist() == [0, 1, 2, 3, 0, 1]
    assert labels_for(["balanced"], 2, 4).tolist() == [0, 2]
    assert labels_for(["1-2", "d"], 5, 4, names).tolist() == [1, 2, 3, 1, 2]
    (tmp_path / "labels.txt").write_text("b\n3\n0\n")
    assert labels_for([str(tmp_path / "labels.txt")], 3, 4, names).tolist() == [1, 3, 0]
    with pytest.raises(UserError, match="holds 3 labels for 4 images"):
        labels_for([str(tmp_path / "labels.txt")], 4, 4, names)
    drawn = labels_for(["random"], 400, 4, seed=1)
    assert drawn[:50].tolist() == labels_for(["random"], 50, 4, seed=1).tolist()
    assert min(torch.bincount(drawn)) > 60 and not torch.equal(drawn, labels_for(["random"], 400, 4, seed=2))
