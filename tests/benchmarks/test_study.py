"""benchmarks/study.py: rows over seeds with one budget, not run twice; and benchmarks/speedrun.py."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import speedrun
import study

from pixelwright.evaluation.metrics import Estimate


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    model = "{preset: dit-ti-4, hidden_size: 16, depth: 2, num_heads: 2}"
    data = "{path: shapes, size: 8, shapes_count: 24}"
    (tmp_path / "base.yaml").write_text(
        f"run: run\nmodel: {model}\ndata: {data}\nbatch_size: 4\nprecision: fp32\nema_more: [0.5]\n"
        "sample: {count: 2, steps: 2}\nsteps: 5\n"
    )
    (tmp_path / "muon.yaml").write_text("optim: {name: muon, lr: 1.0e-3}\n")
    (tmp_path / "adamw.yaml").write_text("optim: {lr: 1.0e-3}\n")
    rows = [str(tmp_path / f"{name}.yaml") for name in ("muon", "adamw")]
    words = [*rows, "--base", str(tmp_path / "base.yaml"), "--seeds", "0", "1", "--held-out-count", "20"]
    return [*words, "--out", str(tmp_path / "out"), "--data.shapes_variation", "0.5"]


def run(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["study.py", *words])
    study.main()


def test_rows_over_seeds_with_a_budget_of_images(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*command, "--images", "24"]
    run(monkeypatch, words)
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    names = ["muon", "muon, 0.5", "adamw", "adamw, 0.5"]
    assert [(row["name"], row["seed"]) for row in rows] == [(name, seed) for seed in (0, 1) for name in names]
    assert {row["images"] for row in rows} == {24} and all(0 < row["loss"] < 4 for row in rows)
    assert "shapes_variation: 0.5" in (tmp_path / "out" / "muon" / "seed-1" / "config.yaml").read_text()
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("±") == 4 and (tmp_path / "out" / "study.png").exists()
    monkeypatch.setattr(study, "build_trainer", None)  # nothing is run again
    run(monkeypatch, words)
    assert (tmp_path / "out" / "table.md").read_text() == table


def test_a_budget_of_processor_seconds_gives_the_steps(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(study.time, "process_time", lambda: float(next(clock)))
    options = ["study.py", *command, "--cpu-seconds", "0.7"]  # one second for TRIAL steps
    monkeypatch.setattr(sys, "argv", options)
    parsed = study.parse()
    assert study.config_of(parsed.files[0], 0, parsed).steps == 7
    assert study.config_of(parsed.files[0], 1, parsed).steps == 7  # the same of all seeds


def test_held_out_images_must_be_named(command: list[str], tmp_path: Path) -> None:
    config = study.load_config(
        tmp_path / "base.yaml", changes={"data": {"path": "x.zip", "shapes_count": None}}
    )
    with pytest.raises(study.UserError, match="--held-out is not given"):
        study.held_out(config, None, 4)


def test_a_speed_run_ends_at_its_target(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = iter([3.5, 2.9, 2.0])

    def measured(*more: object) -> SimpleNamespace:
        value = next(found)
        return SimpleNamespace(metrics={"fid": Estimate(value, 0.1)}, values={"fid": value})

    scorer = SimpleNamespace(reference=None, extractor=None)
    monkeypatch.setattr(speedrun, "measure", measured)
    monkeypatch.setattr(speedrun.Scorer, "open", lambda *more: scorer)
    words = [str(tmp_path / "base.yaml"), "--every", "2", "--reference", "none"]
    words += ["--run", str(tmp_path / "race"), "--steps", "6"]
    monkeypatch.setattr(sys, "argv", ["speedrun.py", *words])
    speedrun.main()
    lines = (tmp_path / "race" / "speedrun.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]  # not to step 6
    assert "| 16 | 0." in capsys.readouterr().out  # images; minutes
