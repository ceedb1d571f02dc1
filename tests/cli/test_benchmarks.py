"""`pixelwright prompts`: pictures of benchmarks drawn, resumed, scored and reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import pixelwright as pw
from pixelwright.cli.main import main
from pixelwright.evaluation.prompts import shapesbench
from pixelwright.evaluation.prompts.common import noise_index
from pixelwright.images import load_png
from pixelwright.models.config import SamplerSettings, TextNote
from tests.encoders import tiny_bert

ONE = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a red star"}
TWO = {**ONE, "tag": "two_object", "prompt": "two blue circle"}
ONE_STEP = SamplerSettings(steps=1, guidance_scale=2.0)
FAST = ["--steps", "1", "--precision", "fp32", "--guidance-scale", "2", "--batch-size", "64"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model of captions."""
    folder = tmp_path_factory.mktemp("benchmarks")
    torch.manual_seed(0)
    note = TextNote("minilm", str(tiny_bert(folder / "bert")))
    options = {"hidden_size": 24, "depth": 1, "num_heads": 2, "text_size": 24, "image_size": (8, 8)}
    drawn = pw.create("dip-t2i-ti", text=note, **options)
    for parameter in drawn.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pw.save(drawn, folder / "model")
    return folder / "model"


def metadata(folder: Path) -> str:
    (folder / "metadata.jsonl").write_text(json.dumps(ONE) + "\n" + json.dumps(TWO) + "\n")
    return str(folder / "metadata.jsonl")


def geneval(model: Path, folder: Path, *more: str) -> int:
    words = ["prompts", "geneval", str(model), "--metadata", metadata(folder), "--out", str(folder / "out")]
    return main([*words, *FAST, *more])


def test_pictures_are_those_that_sample_draws_with_the_same_index(model: Path, tmp_path: Path) -> None:
    assert geneval(model, tmp_path, "--images", "2", "--seed", "5") == 0
    expected = pw.sample(
        pw.load(model),
        ["a red star", "two blue circle"],
        ONE_STEP,
        seed=5,
        start_index=[noise_index(0, 1), noise_index(1, 0)],
    )
    drawn = [
        load_png(tmp_path / "out" / name) for name in ("00000/samples/0001.png", "00001/samples/0000.png")
    ]
    assert (torch.stack(drawn).int() - expected.int()).abs().max() <= 1


def test_going_on_draws_what_is_missing_and_refuses_other_settings(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert geneval(model, tmp_path, "--images", "2") == 0
    files = sorted((tmp_path / "out").glob("*/samples/*.png"))
    before = {file: file.read_bytes() for file in files}
    kept, gone = files[0], files[3]
    kept.write_bytes(before[files[1]])  # were it drawn again, this would be undone
    gone.unlink()
    assert geneval(model, tmp_path, "--images", "3", "--batch-size", "1") == 0
    assert kept.read_bytes() == before[files[1]]
    difference = load_png(gone).int() - pw_picture(model, 1, 1).int()
    assert difference.abs().max() <= 1 and len(list((tmp_path / "out").glob("*/samples/*.png"))) == 6
    assert geneval(model, tmp_path, "--seed", "1") == 2
    assert "seed: 0 -> 1" in capsys.readouterr().err


def pw_picture(model: Path, prompt: int, image: int) -> torch.Tensor:
    texts = [ONE["prompt"], TWO["prompt"]]
    index = noise_index(prompt, image)
    return pw.sample(pw.load(model), [texts[prompt]], ONE_STEP, start_index=index)[0]


def test_shapesbench_reports_what_the_judge_finds(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [p for p in shapesbench.prompts() if p.claim.category in ("single object", "colour attribution")]
    few = whole[10:15]  # two of the first, three of the second that are held out
    few += whole[-1:]
    monkeypatch.setattr(shapesbench, "prompts", lambda: few)
    monkeypatch.setattr(shapesbench, "CATEGORIES", ("single object", "colour attribution"))
    out = tmp_path / "out"
    words = ["prompts", "shapes", str(model), "--out", str(out), "--images", "2", *FAST]
    assert main(words) == 0
    report = json.loads((out / "results.json").read_text())
    images = [load_png(path).numpy() for path in sorted((out / "images").iterdir())]
    verdicts = shapesbench.assess_images(images, 2)
    assert [v["correct"] for v in report["images"]] == [v.correct for v in verdicts]
    assert len(verdicts) == 12
    assert set(report["held_out"]) == {"colour attribution"} and report["version"] == shapesbench.VERSION
    assert "| colour attribution |" in (out / "report.md").read_text()
    assert np.asarray(load_png(out / "sheet.png")).shape[2] == 3


def test_dpg_grids(model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "7.txt").write_text("a red star")
    words = [
        "prompts",
        "dpg",
        str(model),
        "--prompts",
        str(tmp_path / "prompts"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*words, *FAST]) == 0
    grid, first = load_png(tmp_path / "out/grids/7.png"), load_png(tmp_path / "out/samples/7-0.png")
    assert grid.shape == (16, 16, 3) and torch.equal(grid[:8, :8], first)
