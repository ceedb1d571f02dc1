"""`pixelwright finetune`: few pictures of any kind, prior images, measures, and what is said of mistakes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import pixelwright as pw
from pixelwright.cli.finetune import default_steps
from pixelwright.cli.main import main
from pixelwright.data import DataConfig
from pixelwright.text.config import TextConfig
from pixelwright.training import ModelConfig, OptimConfig, SampleConfig, TrainConfig, train
from tests.encoders import tiny_bert

pytest.importorskip("peft", reason="LoRA needs peft (extra finetune)")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
FAST = ["--steps", "4", "--rank", "2", "--device", "cpu", "--precision", "fp32"]


def base_of(folder: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "model": ModelConfig("dip-ti-4", hidden_size=16, depth=2, num_heads=2),
        "data": DataConfig(path="shapes", size=8, shapes_count=24),
        "optim": OptimConfig(lr=1e-2),
        "sample": SampleConfig(count=4, steps=2, guidance_scale=1.5),
        "steps": 3,
        "batch_size": 4,
        "device": "cpu",
        "precision": "fp32",
        "sample_every": 0,
        "loggers": (),
    }
    return train(TrainConfig(run=str(folder / "base"), **{**settings, **changes}))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_of(tmp_path_factory.mktemp("base"))


def pictures(folder: Path, count: int) -> Path:
    """Pictures of many sizes and formats, one of them damaged if there are several."""
    folder.mkdir()
    for i in range(count):
        kind = ("png", "jpg", "webp")[i % 3]
        Image.new("RGB", (9 + 7 * i, 12), (40 * i % 255, 90, 200)).save(folder / f"{i}.{kind}")
    if count > 2:
        (folder / "0.png").write_bytes(b"no picture")
    return folder


def log(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["finetuning"] for line in lines if "finetuning" in line]


def test_a_new_class_with_prior_images(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, run = pictures(tmp_path / "pics", 4), tmp_path / "run"
    command = ["finetune", str(base), str(shown), "--class", "wug", "--prior", "6", "--run", str(run), *FAST]
    assert main(command) == 0
    told = capsys.readouterr()
    assert "24 of 25 keep their row" in told.err and "new start at the mean (wug)" in told.err
    (draw,) = (line for line in told.err.splitlines() if line.startswith("draw more: "))
    assert draw.endswith("--labels wug --out drawn")
    words = draw.removeprefix("draw more: pixelwright ").removesuffix("drawn").split()
    assert main([*words, str(tmp_path / "drawn"), "--device", "cpu"]) == 0
    model = pw.load(base, adapter=run)
    assert model.config.class_names is not None and model.config.class_names[-1] == "wug"
    prior = Path(f"{run}-prior")
    assert len(list(prior.glob("*.png"))) == 6
    first, *_, last = log(run)
    assert set(first) == set(last) == {"learned", "forgotten", "memorised"}
    assert (run / "samples" / "nearest.png").exists() and (run / "report.html").exists()
    when = {file: file.stat().st_mtime_ns for file in prior.iterdir()}
    shutil.rmtree(run)  # another start has the prior images already
    assert main(command) == 0
    assert {file: file.stat().st_mtime_ns for file in prior.iterdir()} == when
    assert torch.equal(*(m.state_dict()["detailer.out.weight"] for m in (model, pw.load(base))))


@pytest.mark.parametrize(("count", "more"), [(1, []), (2, ["--method", "full", "--no-flip"])])
def test_one_picture_or_two_are_enough(base: Path, tmp_path: Path, count: int, more: list[str]) -> None:
    shown, run = pictures(tmp_path / "pics", count), tmp_path / "run"
    fast = [word for word in FAST if word not in ("--rank", "2")] if more else FAST
    command = ["finetune", str(base), str(shown), "--class", "red circle", "--run", str(run), *fast, *more]
    assert main(command) == 0
    whole = (run / "model").exists()
    assert whole == bool(more) and whole != (run / "adapter").exists()
    assert ("learned" in log(run)[-1]) == (count > 1)


def test_captions_and_prior_prompts(tmp_path: Path) -> None:
    bert = tiny_bert(tmp_path / "bert")
    base = base_of(
        tmp_path,
        model=ModelConfig("dip-t2i-ti", hidden_size=16, depth=2, num_heads=2),
        data=DataConfig(path="shapes-captions", size=8, shapes_count=24),
        text=TextConfig("minilm", path=str(bert)),
    )
    shown, run = pictures(tmp_path / "pics", 3), tmp_path / "run"
    more = ["--prior", "3", "--prior-prompts", "a star", "--run", str(run), *FAST]
    assert main(["finetune", str(base), str(shown), *more]) == 2  # no captions
    assert main(["finetune", str(base), str(shown), "--prompt", "a wug", *more]) == 0
    lines = (Path(f"{run}-prior") / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["caption"] for line in lines] == ["a star"] * 3
    assert set(log(run)[-1]) == {"learned", "forgotten", "memorised"}
    weights = {}
    for way, adapter in (("with", ["--adapter", f"{run}=0.5"]), ("without", [])):
        out = tmp_path / f"bench-{way}"
        quick = [
            "--steps",
            "1",
            "--images",
            "1",
            "--batch-size",
            "84",
            "--guidance-scale",
            "1",
            "--out",
            str(out),
        ]
        assert main(["prompts", "shapes", str(base), *adapter, *quick]) == 0
        weights[way] = json.loads((out / "settings.json").read_text())["weights"]
    assert weights["with"].startswith(weights["without"] + " + 0.5 x ")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "nothing says what the images show"),
        (["--prompt", "a wug"], "subject.prompt is given, but the model draws from classes"),
        (["--class", "wug", "--method", "full", "--rank", "4"], "--rank is of an adapter"),
        (["--class", "wug", "--rank", "99"], "adapter.rank is 99, above 16"),
        (["--class", "wug", "--features", "pixels:x"], "pixels have no weights"),
    ],
)
def test_mistakes(base: Path, tmp_path: Path, capsys: Any, more: list[str], told: str) -> None:
    shown = pictures(tmp_path / "pics", 1)
    words = ["--steps", "3", "--device", "cpu", "--run", str(tmp_path / "run"), *more]
    assert main(["finetune", str(base), str(shown), *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert told in error and error.startswith("pixelwright: error: ")
    assert not (tmp_path / "run").exists()


def test_no_pictures_and_unreadable_ones(base: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "0.png").write_bytes(b"no picture")
    for folder, told in ((tmp_path / "empty", "holds no images"), (broken, "can be read")):
        words = ["--class", "wug", "--run", str(tmp_path / "run")]
        assert main(["finetune", str(base), str(folder), *words]) == 2
        assert told in capsys.readouterr().err


def test_steps_go_with_the_number_of_pictures() -> None:
    assert [default_steps(n) for n in (1, 4, 30, 100, 400, 500)] == [400, 400, 1095, 2000, 4000, 4000]
