"""The command line as a whole: help, exit codes, and the three commands on a tiny model."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pixelwright as pw
from pixelwright.cli.main import COMMANDS, main
from pixelwright.errors import UserError
from pixelwright.models.config import SamplerSettings

TINY = {"depth": 1, "hidden_size": 16, "num_heads": 1, "image_size": (8, 8)}
NAMES = ("red circle", "blue circle", "red square", "blue square")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny = pw.create("dit-ti-4", num_classes=4, class_names=NAMES, **TINY)
        for parameter in tiny.parameters():  # zero-initialised layers would make every label look the same
            torch.nn.init.normal_(parameter, std=0.1)
    pw.save(tiny, folder)
    return folder


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def process(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "pixelwright"]
    environment = {**os.environ, "PYTHONPATH": str(Path(pw.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *start, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


# --- help and exit codes -----------------------------------------------------------------------------------
def test_help_and_version_do_not_import_torch() -> None:
    code = """
import sys
from pixelwright.cli.main import COMMANDS, main
for word in ("--help", "--version"):
    try:
        main([word])
    except SystemExit as stop:
        assert stop.code == 0
sys.exit("torch" in sys.modules)
"""
    done = process(code=code)
    assert done.returncode == 0, done.stderr
    assert pw.__version__ in done.stdout
    for command in COMMANDS:
        assert command in done.stdout


def test_a_mistake_waits_for_torch_and_for_no_compiler_or_sharding() -> None:
    code = """
import sys
from pixelwright.cli.main import main
for words in (["info"], ["info", "dip-xl-16"], ["info", "nothing-like-this"], ["train", "--stpes", "3"],
              ["train", "--run", "r", "--model.preset", "dit"], ["sample", "nothing", "--out", "o"],
              ["evaluate", "--referance", "x"], ["convert", "nothing", "o"]):
    assert main(words) == (2 if words[1:2] != ["dip-xl-16"] and words != ["info"] else 0), words
slow = "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "transformers", "matplotlib"
sys.exit(", ".join(name for name in slow if name in sys.modules) or 0)
"""
    done = process(code=code)
    assert done.returncode == 0, done.stderr


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "examples:" in text and f"pixelwright {command}" in text


def test_every_training_setting_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help=advanced"])
    lines = capsys.readouterr().out.splitlines()
    settings = [i for i, line in enumerate(lines) if line.startswith("  --")]
    for i in settings:
        beside = lines[i].strip().partition("  ")[2].strip()
        text = beside or lines[i + 1].strip()
        assert text and not text.startswith("(type"), f"{lines[i]} has no help"


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    def fail(_: list[str]) -> int:
        raise error

    monkeypatch.setattr("pixelwright.cli.main._dispatch", fail)
    return main(["info", *flags])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("steps is 0;\n  give more"), 2, "pixelwright: error: steps is 0; give more\n"),
        (KeyboardInterrupt(), 130, "pixelwright: interrupted\n"),
    ],
)
def test_errors_become_a_line_and_a_code(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert raising(error, monkeypatch) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("error", [TypeError("oops"), ValueError("odd"), PermissionError(13, "no", "/x")])
def test_all_but_user_errors_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)):
        raising(error, monkeypatch)


def test_a_bug_ends_the_process_with_its_traceback() -> None:
    code = """
import sys
from pixelwright.cli import main as module
def fail(_):
    raise ValueError("a bug")
module._dispatch = fail
sys.exit(module.main(["info"]))
"""
    done = process(code=code)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and done.stderr.endswith("ValueError: a bug\n")


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(UserError("no"), monkeypatch, "--debug") == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed and printed.endswith("pixelwright: error: no\n")


def test_a_reader_that_leaves_is_no_error() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(pw.__file__).parents[1])}
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "pixelwright", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60, env=environment)
    os.close(writing)
    assert done.stderr == b""


# --- info --------------------------------------------------------------------------------------------------
def test_info_of_a_preset_a_folder_and_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "dip-xl-16"]) == 0
    assert "631,989,411" in capsys.readouterr().out
    assert main(["info", str(model), "--size", "16", "8"]) == 0
    assert "16x8 pixels, 8 patches of 4x4; 4 classes with names" in capsys.readouterr().out
    assert main(["info"]) == 0
    assert "pixeldit-xl-16" in capsys.readouterr().out


# --- sample ------------------------------------------------------------------------------------------------
def sample(model: Path, out: Path, *more: str) -> int:
    return main(["sample", str(model), "--out", str(out), "--steps", "2", "--precision", "fp32", *more])


def test_sample_writes_what_the_library_draws(model: Path, tmp_path: Path) -> None:
    options = ["--labels", "blue circle", "0-1", "--seed", "3", "--guidance-scale", "2", "--batch-size", "2"]
    assert sample(model, tmp_path / "out", *options, "--size", "8", "16", "--solver", "heun") == 0
    expected = pw.sample(pw.load(model), [1, 0, 1], SamplerSettings("heun", 2, 2.0), size=(8, 16), seed=3)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    drawn_of = ["000000-blue-circle.png", "000001-red-circle.png", "000002-blue-circle.png"]
    assert names == [*drawn_of, "grid.png", "samples.jsonl"]
    drawn = np.stack([read(tmp_path / "out" / name) for name in names[:3]])
    assert np.abs(drawn.astype(int) - expected.numpy()).max() <= 1


def test_a_set_can_be_drawn_in_pieces(model: Path, tmp_path: Path) -> None:
    assert sample(model, tmp_path / "whole", "--labels", "0-3") == 0
    assert sample(model, tmp_path / "piece", "--labels", "2-3", "--start-index", "2") == 0
    pieces = sorted((tmp_path / "piece").glob("0*.png"))
    assert [path.name[:6] for path in pieces] == ["000002", "000003"]
    for path in pieces:
        assert np.abs(read(tmp_path / "whole" / path.name).astype(int) - read(path)).max() <= 1


def test_what_a_picture_was_drawn_from_is_told_beside_and_in_it(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sample(model, out, "--labels", "blue circle*2, 0", "--seed", "4") == 0
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [line["drawn"] for line in lines] == ["blue circle", "blue circle", "red circle"]
    for line in lines:
        with Image.open(out / line["file"]) as image:
            notes = image.text
        assert (notes["drawn"], notes["seed"], notes["index"]) == (line["drawn"], "4", line["index"])
    assert sample(model, out, "--labels", "0", "--start-index", "3", "--overwrite") == 0
    again = (out / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in again] == ["0", "1", "2", "3"]


def test_a_number_of_images_goes_round_the_labels(model: Path, tmp_path: Path) -> None:
    assert sample(model, tmp_path / "two", "--labels", "0", "1", "--num-images", "5") == 0
    labels = [
        json.loads(line)["drawn"] for line in (tmp_path / "two" / "samples.jsonl").read_text().splitlines()
    ]
    assert labels == ["red circle", "blue circle", "red circle", "blue circle", "red circle"]
    assert sample(model, tmp_path / "all", "--num-images", "3") == 0
    lines = (tmp_path / "all" / "samples.jsonl").read_text().splitlines()
    assert len({json.loads(line)["drawn"] for line in lines}) == 3


def test_words_without_quotes_are_no_prompts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = pw.create("pixeldit-t2i-ti", depth=1, text_size=16, text_length=5, image_size=(32, 32))
    pw.save(folder, tmp_path / "m")
    assert sample(tmp_path / "m", tmp_path / "out", "--prompt", "a", "red", "fox") == 2
    assert 'did you mean one prompt, --prompt "a red fox"?' in capsys.readouterr().err


def test_a_full_folder_is_left_alone_unless_told_otherwise(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "000000-red-circle.png").write_text("precious")
    (tmp_path / "other.txt").write_text("precious")
    assert sample(model, tmp_path, "--labels", "0") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "000000-red-circle.png").read_text() == "precious"
    assert sample(model, tmp_path, "--labels", "0", "--overwrite") == 0
    assert read(tmp_path / "000000-red-circle.png").shape == (8, 8, 3)
    assert (tmp_path / "other.txt").read_text() == "precious"


# --- train -------------------------------------------------------------------------------------------------
def train(run: Path, *more: str) -> int:
    options = {
        "run": str(run),
        "model.preset": "dit-ti-4",
        "model.depth": "1",
        "model.hidden_size": "16",
        "model.num_heads": "1",
        "data.size": "8",
        "steps": "2",
        "batch_size": "2",
        "sample.count": "2",
        "sample.steps": "1",
        "device": "cpu",
    }
    return main(["train", *(word for key, value in options.items() for word in (f"--{key}", value)), *more])


def test_train_then_sample_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run) == 0
    assert (run / "model" / "model.safetensors").exists() and (run / "log.jsonl").exists()
    assert sample(run, tmp_path / "out", "--labels", "red circle") == 0
    assert read(tmp_path / "out" / "000000-red-circle.png").shape == (8, 8, 3)


def test_a_run_goes_on_with_its_own_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train(run, "--optim.lr", "0.005") == 0
    assert main(["train", "--run", str(run), "--steps", "3"]) == 0
    assert f"with the settings of {run / 'config.yaml'}" in capsys.readouterr().err
    stored = (run / "config.yaml").read_text()
    assert "lr: 0.005" in stored and "steps: 3" in stored
    assert json.loads((run / "log.jsonl").read_text().splitlines()[-1])["step"] == 3


def test_settings_come_from_the_file_and_flags_go_before_it(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("optim:\n  lr: 1e-3\n  warmup: 7\nseed: 5\n")
    assert train(tmp_path / "run", "--config", str(config), "--optim.lr", "2e-4") == 0
    stored = (tmp_path / "run" / "config.yaml").read_text()
    assert "lr: 0.0002" in stored and "warmup: 7" in stored and "seed: 5" in stored


MINE = """
from dataclasses import dataclass
from torch import nn
from pixelwright.models.detailers import register_detailer

@dataclass(frozen=True)
class MineConfig:
    width: int = 4

@register_detailer("mine-of-a-test", MineConfig)
class Mine(nn.Module):
    def __init__(self, config, hidden_size, patch_size):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, config.width, 1), nn.Conv2d(config.width, 3, 1))

    def forward(self, x, state):
        return self.net(x)
"""


def test_a_detailer_of_the_user_trains_and_samples(tmp_path: Path) -> None:
    mine, run = tmp_path / "detailer_of_a_test.py", tmp_path / "run"
    mine.write_text(MINE)
    detailer = ["--model.detailer.type", "mine-of-a-test", "--model.detailer.width", "6"]
    try:
        assert train(run, "--imports", str(mine), *detailer) == 0
        assert "width: 6" in (run / "config.yaml").read_text()
        assert sample(run, tmp_path / "out", "--labels", "0", "--imports", str(mine)) == 0
    finally:
        sys.modules.pop("detailer_of_a_test", None)
    without = process("info", str(run))
    assert without.returncode == 2 and "Traceback" not in without.stderr
    assert 'detailer.type is "mine-of-a-test"' in without.stderr and "--imports FILE" in without.stderr
    assert process("info", str(run), "--imports", str(mine)).returncode == 0


def test_ctrl_c_in_training_exits_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelwright.cli import train as command
    from pixelwright.training import Interrupted

    def stopped(*_: object, **__: object) -> Path:
        raise Interrupted("stopped at step 1")

    monkeypatch.setattr(command, "train", stopped)
    assert train(tmp_path / "run") == 130


# --- what the machine refuses ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "make room"),
        (PermissionError(13, "no", "out"), "folder"),
    ],
)
def test_a_full_disk_and_a_forbidden_folder_are_one_line(
    error: OSError,
    remedy: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        error.filename = str(tmp_path / "out")
        raise error

    monkeypatch.setattr("pixelwright.files.sync", refuse)
    assert sample(model, tmp_path / "out", "--labels", "0") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "cannot be written" in lines[-1] and remedy in lines[-1] and str(tmp_path / "out") in lines[-1]
    assert not (tmp_path / "out").exists()


def test_other_failures_of_the_machine_keep_their_traceback(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("pixelwright.files.sync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        sample(model, tmp_path / "out", "--labels", "0")


# --- options as people type them ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("--batch-size 6", "batch_size", 6),
        ("--batch_size=6", "batch_size", 6),
        ("--optim.weight-decay 0.5", "optim.weight_decay", 0.5),
        ("--lr 0.25", "optim.lr", 0.25),
        ("--resolution=64", "data.size", 64),
        ("--cfg 3.5", "sample.guidance_scale", 3.5),
    ],
)
def test_an_option_may_be_spelt_as_elsewhere(typed: str, key: str, value: float) -> None:
    from pixelwright.cli import train

    words = ["--run", "r", "--model.preset", "dip-ti-4", "--data.path", "shapes", *typed.split()]
    found: Any = train.config_of(train.parser().parse(words))
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("sample m --labels 0 --out o --cfg_scal 2", 'did you mean "--guidance-scale"'),
        ("train --run r --epochs 3", "give --steps"),
        ("evaluate runs/mine", "required: reference (pixelwright evaluate --help has examples)"),
        ("info photos", 'unknown model "photos": pixelwright info lists the presets'),
        ("train --run r --step 3", 'did you mean "--steps"'),
    ],
)
def test_a_suggestion_is_an_option_of_the_command(
    command: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    assert hint in capsys.readouterr().err
