"""The studio's jobs, without a browser."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import threading
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pixelwright as pw
from pixelwright.cli.main import main
from pixelwright.errors import UserError
from pixelwright.images import NOTE, from_uint8, load_png, read_notes, save_png
from pixelwright.studio.drawing import MOST
from pixelwright.studio.editing import METHODS, Edit
from pixelwright.studio.finetuning import FOLDER
from pixelwright.studio.jobs import Form, Jobs
from pixelwright.studio.models import Models


@pytest.fixture
def jobs(model: str, tmp_path: Path) -> Jobs:
    runs, out = tmp_path / "runs", tmp_path / "out"
    return Jobs(Models([model], (runs, out / FOLDER), torch.device("cpu")), runs, out)


def form(model: str, /, **values: object) -> Form:
    return dataclasses.replace(Form(model=model, steps=3, count=3), **values)  # type: ignore[arg-type]


def test_pictures_are_those_of_the_command_line(jobs: Jobs, model: str, tmp_path: Path) -> None:
    wanted = form(
        model, classes=["dog", "cat"], seed=5, guidance_scale=1.5, interval="0.1 0.9", time_shift=2.0
    )
    *_, last = jobs.draw("me", wanted)
    assert [file.name for file in last.files] == ["000000-dog.png", "000001-cat.png", "000002-dog.png"]
    command, python = jobs.as_code(wanted)
    assert main([*shlex.split(command)[1:-1], str(tmp_path / "samples")]) == 0
    names: dict[str, torch.Tensor] = {}
    exec(python, names)
    for i, file in enumerate(last.files):
        drawn = load_png(file)
        assert torch.equal(drawn, load_png(tmp_path / "samples" / file.name))
        assert torch.equal(drawn, names["images"][i])


def test_a_picture_gives_its_settings_back(jobs: Jobs, model: str, tmp_path: Path) -> None:
    *_, last = jobs.draw(
        "me", form(model, seed=7, solver="heun", interval="0.2 1", index=4, more="time_start=0.1")
    )
    again = jobs.restored(last.files[2])
    assert (again.count, again.index, again.classes) == (1, 6, ["cat"])
    assert (again.interval, again.more) == ("0.2 1", "time_start=0.1")
    *_, redrawn = jobs.draw("me", again)
    assert torch.equal(redrawn.images[0], last.images[2])
    main(["sample", model, "--labels", "1", "--out", str(tmp_path / "cli"), "--steps", "2", "--seed", "3"])
    found = jobs.restored(tmp_path / "cli" / "000000-dog.png")
    assert (found.classes, found.seed, found.steps) == (["dog"], 3, 2)


def test_previews_come_and_drawing_can_be_stopped(
    jobs: Jobs, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixelwright.studio.drawing.EVERY", 0)
    seen = []
    for progress in jobs.draw("me", form(model, steps=200)):
        seen.append(progress)
        assert progress.images.shape == (3, 16, 16, 3)
        jobs.stop("you")
        if len(seen) == 3:
            jobs.stop("me")
    assert not seen[-1].files
    assert "Stopped" in seen[-1].text
    assert len(seen) < 100
    assert not jobs.out.exists()
    assert threading.active_count() < 10


def test_one_model_is_in_memory_at_a_time(jobs: Jobs, model: str, tmp_path: Path) -> None:
    first = jobs.models.get(model)
    assert jobs.models.get(model) is first
    pw.save(pw.load(model), other := tmp_path / "runs" / "b" / "model")
    (other.parent / "config.yaml").write_text("{}")
    assert jobs.models.choices()[:2] == [model, str(other.parent)]
    before = weakref.ref(first)
    del first
    jobs.models.get(str(other.parent))
    assert before() is None


def test_a_damaged_run_does_not_keep_the_page_from_starting(model: str, tmp_path: Path) -> None:
    (tmp_path / "bad" / "model").mkdir(parents=True)
    for name in ("config.yaml", "model/config.json", "model/model.safetensors"):
        (tmp_path / "bad" / name).write_text("nothing")
    (good := tmp_path / "good" / "model").parent.mkdir()
    shutil.copytree(model, good)
    (good.parent / "config.yaml").write_text("{}")
    os.utime(good.parent, (0, 0))  # the damaged one is newer
    models = Models([], (tmp_path,), torch.device("cpu"))
    assert models.choices()[:2] == [str(tmp_path / "bad"), str(good.parent)]
    assert models.first() == str(good.parent)


def test_a_model_that_changed_is_read_anew(jobs: Jobs, model: str, tmp_path: Path) -> None:
    shutil.copytree(model, run := jobs.runs / "a" / "model")
    (run.parent / "config.yaml").write_text("{}")
    before = jobs.models.get(str(run.parent))
    changed = pw.load(model)
    torch.nn.init.zeros_(next(iter(changed.parameters())))
    pw.save(changed, run)
    assert jobs.models.get(str(run.parent)) is not before


def test_models_that_come_with_the_package_are_offered(
    jobs: Jobs, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model, tmp_path / "shipped" / "toy")
    monkeypatch.setattr("pixelwright.hub.shipped.PLACES", (tmp_path / "shipped",))
    assert jobs.models.choices() == [model, "pixelwright/toy"]
    *_, last = jobs.draw("me", form("pixelwright/toy", count=1))
    assert jobs.restored(last.files[0]).model == "pixelwright/toy"


def test_what_the_page_cannot_restore_is_refused(jobs: Jobs, model: str, tmp_path: Path) -> None:
    main(["sample", model, "--labels", "1", "--steps", "2", "--out", str(tmp_path / "cli")])
    picture = tmp_path / "cli" / "000000-dog.png"
    note = json.loads(read_notes(picture)[NOTE])
    save_png(load_png(picture), picture, {NOTE: json.dumps({**note, "weights": "raw"})})
    with pytest.raises(UserError, match="--weights raw"):
        jobs.restored(picture)


def test_sheets_vary_one_or_two_settings(jobs: Jobs, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ("class or prompt", "cat\ndog")
    *_, sheet = jobs.compare("me", form(model), ("steps", "1\n2\n3"), rows)
    assert sheet.images.shape == (6, 16, 16, 3)
    *_, plain = jobs.draw("me", form(model, classes=["dog"], steps=2, count=1))
    assert torch.equal(sheet.images[4], plain.images[0])
    copy = str(jobs.runs / "b")
    shutil.copytree(model, Path(copy) / "model")
    (Path(copy) / "config.yaml").write_text("{}")
    loaded: list[str] = []
    monkeypatch.setattr(
        "pixelwright.studio.models.load", lambda source, **_: loaded.append(source) or pw.load(source)
    )
    *_, both = jobs.compare("me", form(model), ("model", f"{copy}\n{model}"), ("steps", "1\n2"))
    assert len(loaded) <= 2  # each model once, though there are two rows
    assert both.files != sheet.files
    assert torch.equal(both.images[0], both.images[1])  # the same weights
    assert not torch.equal(both.images[0], both.images[2])  # other steps
    with Image.open(sheet.files[0]) as image:
        assert image.width > image.height > 100


MISTAKES = {
    "no model": (dict(model=None), "there is no model"),
    "a path": (dict(model="/etc"), 'does not offer the model "/etc"'),
    "class": (dict(classes=["bird"]), 'unknown class "bird"'),
    "count": (dict(count=MOST + 1), f"1 to {MOST}"),
    "empty field": (dict(seed=None), "Seed is None"),
    "solver": (dict(solver="eule"), 'unknown solver "eule"'),
    "interval": (dict(interval="0.5 0.1"), "LO <= HI"),
    "interval of one": (dict(interval="0.5"), "Guidance interval"),
    "size": (dict(width="17"), "multiples of 8"),
    "further settings": (dict(more="time_starts=0.5"), "time_start"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_mistakes_are_named(jobs: Jobs, model: str, name: str) -> None:
    values, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        list(jobs.draw("me", form(model, **values)))
    assert not jobs.out.exists()
    *_, last = jobs.draw("me", form(model))
    assert len(last.files) == 3


def broken(tmp_path: Path) -> Iterator[Path]:
    (text := tmp_path / "a.png").write_text("no picture")
    yield text
    Image.new("RGB", (8, 8)).save(plain := tmp_path / "b.png")
    yield plain
    plain.write_bytes(plain.read_bytes()[:40])
    yield plain
    Image.new("1", (20000, 10000)).save(bomb := tmp_path / "c.png")
    yield bomb


def test_what_is_no_picture_of_ours_is_refused(jobs: Jobs, tmp_path: Path) -> None:
    for file in broken(tmp_path):
        with pytest.raises(UserError, match="drawn here"):
            jobs.restored(file)


def test_only_pictures_of_the_folder_are_packed(jobs: Jobs, model: str, tmp_path: Path) -> None:
    *_, last = jobs.draw("me", form(model))
    secret = tmp_path / "secret.png"
    secret.write_text("x")
    path = jobs.zipped([*map(str, last.files), str(secret), str(jobs.out / ".." / "secret.png")])
    assert zipfile.ZipFile(path).namelist() == [file.name for file in last.files]
    with pytest.raises(UserError, match="Nothing"):
        jobs.zipped([str(secret)])


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_of_editing(jobs: Jobs, model: str, tmp_path: Path, method: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    stroke = np.zeros((64, 64, 4), np.uint8)
    stroke[20:30, 20:30] = 255
    values = (method, "dog", "", 1, "", "4", 0, True, method == "deblur", 9, 8, 1.5, 0, 0.5)
    wanted = Edit.of(str(tmp_path / "photo.png"), Image.fromarray(stroke), *values)
    *_, last = jobs.edit("me", model, wanted)
    before, after = last.images
    assert before.shape == after.shape == (16, 16, 3)
    names = [file.name.partition("-")[2] for file in last.files]
    assert names == ["before.png", f"{method}-dog.png", "000.png"]
    simulated = method in ("deblur", "colourise", "fill", "random", "dequantise")
    with Image.open(last.files[2]) as sheet:
        assert sheet.width // 160 == 2 + simulated
    changed = (before != after).any(-1)
    assert changed.any() or method == "flowedit"  # this model hardly tells classes apart
    if method == "inpaint":
        inside = torch.zeros(16, 16, dtype=torch.bool)
        inside[5:8, 5:8] = True  # what the stroke touches at this size
        assert torch.equal(changed | inside, inside)
    if method in ("fill", "random"):  # what is there keeps its value, what is missing is grey
        assert ((before == 128).all(-1) | ~changed).all()
    if method == "sr4":
        means = from_uint8(after[None]).unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2))
        small = from_uint8(before[None, ::4, ::4])
        assert (means - small).abs().mean() < 0.1  # 0 but for what is clipped


def test_an_edit_without_a_stroke_or_a_picture(jobs: Jobs, model: str, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    for wanted, message in ((Edit(None), "no picture"), (Edit(tmp_path / "photo.png"), "painted over")):
        with pytest.raises(UserError, match=message):
            list(jobs.edit("me", model, wanted))
