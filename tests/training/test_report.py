"""report.html of a run, and its verdict."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pixelwright.cli.main import main
from pixelwright.cli.report import names_of
from pixelwright.images import read_notes
from pixelwright.training import OptimConfig, train
from pixelwright.training.diagnosis import diagnose
from pixelwright.training.health import describe_spike
from pixelwright.training.report import WORDS, headline, series_of, write_report
from tests.test_html import read

from .conftest import Tiny


def line(step: int, **changes: Any) -> dict[str, Any]:
    usual = {"loss": 1 / step**0.2, "grad_norm": 0.5, "lr": 1e-3, "images_per_second": 100.0, "seconds": step}
    return {"step": step, "skipped": 0, **usual, **changes}


def kinds(lines: list[dict[str, Any]], clip: float | None = 1.0) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"ok": [], "look": [], "bad": []}
    for finding in diagnose(lines, clip):
        found[finding.kind].append(finding.text)
    return found


def test_a_good_run_is_called_good() -> None:
    found = kinds([line(step) for step in range(1, 101)])
    assert found["look"] == found["bad"] == []
    assert len(found["ok"]) == 5


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (lambda s: {"skipped": 2} if s == 100 else {}, "bad", "2 of 100 steps were skipped"),
        (lambda s: {"skipped": 1} if s == 100 else {}, "look", "1 of 100 steps were skipped"),
        (lambda s: {"loss": 2.0} if s > 90 else {}, "look", "loss over the last tenth of the log 2"),
        (lambda s: {"grad_norm": 9.0} if s > 90 else {}, "look", "gradient norm over the last tenth is 18"),
        (lambda s: {"grad_norm": 1.5}, "look", "above optim.clip 1 in 100%"),
        (lambda s: {"images_per_second": 50.0} if s > 90 else {}, "look", "last tenth 50 images/s"),
        (lambda s: {"loss": None}, "bad", "most lines of the log have no finite loss"),
        (lambda s: {"event": {"spikes": 1}} if s == 3 else {}, "look", "1 event in the log"),
        (lambda s: {"rollbacks": [[9, 4], [7, 4]]} if s == 5 else {}, "look", "rolled back 2 times"),
    ],
)
def test_what_is_wrong_is_named(change: Any, kind: str, told: str) -> None:
    found = kinds([line(step, **change(step)) for step in range(1, 101)])
    assert any(told in text for text in found[kind])
    assert sum(map(len, (found["look"], found["bad"]))) == 1


def test_short_and_empty_logs_are_not_judged() -> None:
    assert kinds([]) == {"ok": [], "look": ["nothing was logged yet"], "bad": []}
    assert any("3 lines of log" in text for text in kinds([line(s, loss=s) for s in (1, 2, 3)])["ok"])


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        ({"noise": 0.9, "patch_grid": 0.1, "variety": 1.0}, "full of noise, as early in a run, 0.90"),
        ({"noise": 0.1, "patch_grid": 2.4, "variety": 1.0}, "show the grid of patches, 2.40"),
        ({"noise": 0.1, "variety": 0.05}, "nearly one picture, 0.05"),
    ],
)
def test_what_is_wrong_with_the_samples_is_named(samples: dict[str, float], told: str) -> None:
    lines = [line(step) for step in range(1, 101)]
    lines[49]["samples"] = samples  # older ones do not count
    lines.append({"step": 100, "samples": {"noise": 0.1, "patch_grid": 0.1, "variety": 0.9}})
    assert kinds(lines)["look"] == [] and len(kinds(lines)["ok"]) == 8
    lines[-1]["samples"] = samples
    (found,) = kinds(lines)["look"]
    assert told in found and "samples of step 100" in found


def test_all_is_well_only_where_the_samples_were_looked_at() -> None:
    lines = [line(step) for step in range(1, 101)]
    assert headline(diagnose(lines, 1.0), lines) == (
        "The log shows nothing to worry about; no samples were looked at."
    )
    lines[-1]["samples"] = {"noise": 0.1}
    assert headline(diagnose(lines, 1.0), lines) == WORDS["ok"]


def test_a_run_of_noise_is_never_called_good(tiny: Tiny) -> None:
    """A model of random weights draws what it is given: noise."""
    pytest.importorskip("matplotlib")
    run = train(tiny(steps=2, optim=OptimConfig(lr=1e-9)))
    assert float(read_notes(run / "samples" / "step-0000002.png")["noise"]) > 0.5
    page = read((run / "report.html").read_text())
    assert "Worth a look." in page.texts("strong")
    assert any("full of noise" in text for text in page.texts("li"))


def test_runs_are_compared(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    runs = [
        train(tiny("a", steps=4, sample_every=2)),
        train(tiny("b", steps=2, sample_every=2, batch_size=8)),
    ]
    assert main(["report", *map(str, runs)]) == 0
    assert capsys.readouterr().out == "comparison.html\n"
    page = read((tmp_path / "comparison.html").read_text())
    cells = page.texts("td")
    assert cells[cells.index("batch_size") :][:3] == ["batch_size", "4", "8"]
    assert cells[cells.index("steps") :][:3] == ["steps", "4", "2"] and "run" not in cells
    captions = page.texts("figcaption")
    assert captions[:2] == ["a, step 2", "b, step 2"] and "loss, smoothed" in captions
    assert all(str(image["src"]).startswith("data:image/") for image in page.images)
    assert main(["report", str(runs[0]), str(runs[0])]) == 2
    assert "is named twice" in capsys.readouterr().err
    assert main(["report", *map(str, runs)]) == 2
    assert "comparison.html is there already: give another --out, or --overwrite" in capsys.readouterr().err
    assert main(["report", str(runs[0]), str(tmp_path), "--overwrite"]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_names_tell_folders_apart() -> None:
    assert names_of([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert names_of([Path("x/1/a"), Path("y/1/a"), Path("y/2/b")]) == ["x/1/a", "y/1/a", "y/2/b"]


def test_curves_keep_their_order_where_values_are_missing() -> None:
    lines = [
        {"step": 1, "loss_by_time": [None, 3.0, None, 4.0]},
        {"step": 2, "loss_by_time": [2.0, 5.0, None, None]},
    ]
    assert list(series_of(lines, "loss_by_time").items()) == [
        ("0 to 0.25", ([2], [2.0])),
        ("0.25 to 0.5", ([1, 2], [3.0, 5.0])),
        ("0.75 to 1", ([1], [4.0])),
    ]


def test_a_run_writes_its_page_with_all_it_logged(tiny: Tiny) -> None:
    pytest.importorskip("matplotlib")
    run = train(tiny(steps=10, sample_every=5))
    page = read((run / "report.html").read_text())
    assert page.texts("h1") == ["Run run"]
    assert "step 10 of 10, 40 images" in page.texts("p")[0]
    captions = page.texts("figcaption")
    assert captions[:2] == ["step 10", "step 5"]
    assert {"loss (flow matching)", "gradient norm", "loss by time t", "learning rate"} <= set(captions)
    sources = [image["src"] for image in page.images]
    assert sources[:2] == ["samples/step-0000010.png", "samples/step-0000005.png"]
    assert all((run / str(source)).is_file() for source in sources[:2])
    settings = page.texts("td")
    assert "optim.warmup" in settings and "model.preset" in settings
    assert "optim.betas" not in settings and "optim.eps" not in settings  # defaults, though filled in


def test_a_dead_run_has_its_page_too(tiny: Tiny, no_extras: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(tiny(steps=3))
    assert not (run / "report.html").exists()
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    spike = {"spikes": 1, "on_spike": "skip", "step": 1, "grad_norm": 1e4, "loss": 0.5, "z": 44.0}
    lines = [
        line(1, event=spike),
        line(2, skipped=3, rollbacks=[[9, 1]]),
        line(3, skipped=3, odd={"a": 1, "b": None}),
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"step": 4, "lo')
    assert main(["report", str(run)]) == 0
    page = read((run / "report.html").read_text())
    assert "Something is wrong." in page.texts("strong")  # 3 of 3 steps skipped
    assert describe_spike(spike) in page.texts("td")
    assert any("step 9: rolled back to the checkpoint of step 1 " in text for text in page.texts("td"))
    assert "3 steps skipped, whose loss or gradient was not finite" in page.texts("td")
    assert "odd" in page.texts("figcaption")


def test_no_run_and_no_matplotlib(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run folder: it has no config.yaml" in capsys.readouterr().err
    run = train(tiny(steps=1, sample_every=0))
    (run / "config.yaml").write_text("run: [")
    assert main(["report", str(run)]) == 2
    assert "is not valid YAML" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_does_not_stop_the_run(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("matplotlib")

    def full(run: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pixelwright.training.callbacks.write_report", full)
    with caplog.at_level(logging.ERROR):
        run = train(tiny(steps=4, sample_every=2))
    assert (run / "model" / "config.json").is_file()
    assert caplog.text.count("Report.on_step failed") == 2 and "No space left on device" in caplog.text
    monkeypatch.undo()
    assert write_report(run).is_file()
