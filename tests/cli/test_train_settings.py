"""Settings of a run from the command line: the same path as from files, parts, imports and the help."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from pixelwright.cli.main import main
from pixelwright.cli.train import config_of, parser
from pixelwright.config import to_dict
from pixelwright.training import RepaConfig, TrainConfig, load_config
from pixelwright.training.loggers import ProgressConfig

GOOD = "run: r\nmodel: {preset: dit-ti-4}\n"


def settings_of(*words: str) -> TrainConfig:
    return config_of(parser().parse(list(words)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(GOOD + "evaluation: {features: f, reference: r, sample: {steps: 10}}\n")
    return path


def test_samples_of_an_evaluation_are_the_same_wherever_they_are_set(file: Path) -> None:
    """The command line used to take 2,000 images without guidance, `load_config` 32 with guidance 2."""
    config = settings_of("--config", str(file))
    assert config == load_config(file) == load_config(str(file))
    assert config.evaluation is not None
    assert (config.evaluation.sample.count, config.evaluation.sample.guidance_scale) == (2000, 1.0)
    assert config.evaluation.sample.steps == 10
    words = ["--run", "r", "--model.preset", "dit-ti-4", "--evaluation.features", "f"]
    words += ["--evaluation.reference", "r", "--evaluation.sample.steps", "10"]
    assert settings_of(*words) == config


def test_single_settings_go_before_files_wherever_they_stand(file: Path) -> None:
    assert settings_of("--steps", "3", "--config", str(file)).steps == 3
    assert settings_of("--config", str(file), "--optim.betas", "0.5,0.9").optim.betas == (0.5, 0.9)
    assert settings_of("--config", str(file), "--optim.betas", "[0.5, 0.9]").optim.betas == (0.5, 0.9)
    assert settings_of("--config", str(file), "--optim.clip", "null").optim.clip is None
    assert settings_of("--config", str(file), "--run", "007").run == "007"


def test_print_config_shows_what_would_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", str(file), "--print-config", "--steps", "7"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == to_dict(settings_of("--config", str(file), "--steps", "7"))


def test_the_short_help_leaves_out_what_the_advanced_one_has(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for word in ("--help", "--help=advanced"):
        with pytest.raises(SystemExit) as stop:
            main(["train", word])
        assert stop.value.code == 0
        texts.append(capsys.readouterr().out)
    short, advanced = texts
    assert "--optim.lr" in short and "--optim.eps" not in short
    assert len(short.splitlines()) < 110 and "--help=advanced" in short
    assert "--optim.eps" in advanced and "--evaluation.sample.steps" in advanced and "--optim.lr" in advanced
    assert "default: dip" not in short


def test_files_of_the_user_are_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "mark"
    mine = tmp_path / "imported_by_a_test.py"
    mine.write_text(
        f"from pathlib import Path\nmark = Path({str(mark)!r})\nassert not mark.exists()\nmark.touch()\n"
    )
    file = tmp_path / "c.yaml"
    file.write_text(GOOD + f"imports: [{mine}]\n")
    try:
        load_config(file)
        assert not mark.exists()
        assert settings_of("--config", str(file)).imports == (str(mine),)
        assert mark.exists()  # and the file is not run twice
        assert main(["train", "--config", str(file), "--print-config", "--imports", str(mine)]) == 0
        assert mark.exists()  # and the file is not run twice
    finally:
        sys.modules.pop("imported_by_a_test", None)
    for name, message in (("nowhere.py", "is not a file"), ("nowhere.module", 'no module "nowhere"')):
        assert main(["train", "--config", str(file), "--imports", name]) == 2
        assert message in capsys.readouterr().err


def test_parts_on_the_command_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(file), "--objectives", "[{type: repa, teacher: a, depth: 2}]"]
    config = settings_of(*words)
    assert config.objectives == (RepaConfig(teacher="a", depth=2),)
    path = file.with_name("d.yaml")
    path.write_text(yaml.safe_dump(to_dict(config)))
    assert load_config(path) == config
    words = ["--objectives.repa.teacher", "b", "--objectives.repa.depth", "3"]
    changed = settings_of("--config", str(path), *words)
    assert changed.objectives == (RepaConfig(teacher="b", depth=3),)
    assert settings_of("--config", str(path), "--objectives", "[]").objectives == ()
    assert settings_of("--config", str(path), "--loggers", "[progress]").loggers == (ProgressConfig(),)
    for words, message in (
        (["--objectives", "[{type: rapa}]"], 'objectives.type is "rapa", did you mean "repa"'),
        (["--objectives.repa.teecher", "x"], 'unknown key "objectives.teecher", did you mean'),
        (["--objectives", "repa"], "objectives is 'repa': give a list"),
    ):
        assert main(["train", "--config", str(file), "--print-config", *words]) == 2
        assert message in capsys.readouterr().err
