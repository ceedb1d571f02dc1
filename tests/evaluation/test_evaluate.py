"""`pixelwright evaluate`: a model, images that exist, a sweep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixelwright.cli.main import main
from pixelwright.errors import UserError
from pixelwright.evaluation import generate as generating
from pixelwright.evaluation.evaluate import parse_axis, sweep_points
from pixelwright.evaluation.report import read_report

from .generating import generation


@pytest.fixture
def evaluate(model_folder: Path, judged: Path, tmp_path: Path) -> Callable[..., int]:
    """Runs the command on the tiny model, or on `subject`."""

    def run(out: str, *more: str, subject: Path = model_folder) -> int:
        words = [
            "evaluate",
            str(subject),
            "--reference",
            str(judged / "reference.npz"),
            "--out",
            str(tmp_path / out),
        ]
        if subject == model_folder:
            words += ["--num-samples", "24", "--steps", "2", "--batch-size", "8", "--precision", "fp32"]
        return main([*words, *more])

    return run


def test_a_model_and_its_images_have_the_same_numbers(
    evaluate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("model", "--seed", "3", "--guidance-scale", "2") == 0
    patches = ("--patch-size", "4")
    assert evaluate("images", *patches, subject=tmp_path / "model" / "samples.npz") == 0
    assert "report.html" in capsys.readouterr().out
    of_model, of_images = read_report(tmp_path / "model"), read_report(tmp_path / "images")
    assert of_model.values == of_images.values and of_model.images.checksum == of_images.images.checksum
    assert of_images.generation is None and of_model.generation is not None
    assert (of_model.generation["seed"], of_model.generation["guidance_scale"]) == (3, 2.0)
    assert of_model.per_class.keys() == {"a", "b", "c", "d"}


def test_a_sweep_takes_over_what_is_done(
    evaluate: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, tuple[float, float] | None]] = []
    draw = generating.draw

    def counted(model: Any, plan: Any, *more: Any) -> Any:
        drawn.append((plan.guidance_scale, plan.guidance_interval))
        if len(drawn) == 8:
            raise UserError("the power is gone")
        return draw(model, plan, *more)

    monkeypatch.setattr(generating, "draw", counted)
    axes = ("--sweep", "guidance_scale=1:2:0.5", "guidance_interval=all,0.1:0.9")
    assert evaluate("sweep", *axes) == 2  # in the second batch of the third point
    assert evaluate("sweep", *axes) == 0
    # Five points (without guidance its interval says nothing) of three batches; one batch was lost.
    assert len(drawn) == 5 * 3 + 1
    within = (0.1, 0.9)
    assert set(drawn) == {(1, None), (1.5, None), (1.5, within), (2, None), (2, within)}
    points = sorted((tmp_path / "sweep" / "points").iterdir())
    assert len(points) == 5 and not list((tmp_path / "sweep").rglob("*.npz"))
    reports = [read_report(point) for point in points]
    assert len({report.images.checksum for report in reports}) == 5
    lowest = min(report.values["fid"] for report in reports)
    text = (tmp_path / "sweep" / "sweep.html").read_text()
    assert any(f"at {report.name};" in text for report in reports if report.values["fid"] == lowest)
    assert text.count("<figure>") == 6
    before = len(drawn)
    assert evaluate("sweep", *axes) == 0 and len(drawn) == before
    assert evaluate("sweep", *axes, "--seed", "9") == 2


def test_one_page_of_several_evaluations(
    evaluate: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in ("1", "2"):
        assert evaluate(f"seed-{seed}", "--seed", seed, "--name", f"seed-{seed}") == 0
    folders, page = [str(tmp_path / "seed-1"), str(tmp_path / "seed-2")], tmp_path / "all.html"
    assert main(["report", *folders, "--out", str(page)]) == 0
    text = page.read_text()
    assert "not comparable" not in text and "<td>seed-1</td>" in text and "<td>seed-2</td>" in text
    assert text.count("<figure>") == len(read_report(tmp_path / "seed-1").metrics)
    monkeypatch.chdir(tmp_path)
    assert main(["report", *folders]) == 0
    assert (tmp_path / "comparison.html").read_text() == text
    assert main(["report", *folders]) == 2 and main(["report", *folders, "--overwrite"]) == 0


# --- the plan of a sweep -----------------------------------------------------------------------------------
def test_axes() -> None:
    assert parse_axis("guidance_scale=1:4:0.25") == ("guidance_scale", [1 + i / 4 for i in range(13)])
    assert parse_axis("guidance_scale=1:1.35:0.1")[1] == [1, 1.1, 1.2, 1.3]
    assert parse_axis("guidance_interval=all,0.1:0.9") == ("guidance_interval", [None, (0.1, 0.9)])
    assert parse_axis("steps=10,25") == ("steps", [10, 25])
    assert parse_axis("solver=euler,heun") == ("solver", ["euler", "heun"])
    for text, said in (
        ("guidance=1,2", "guidance_scale"),
        ("guidance_scale", "names no value|cannot be read"),
        ("guidance_scale=1:2", "LOW:HIGH:STEP"),
        ("guidance_scale=2:1:0.5", "LOW:HIGH:STEP"),
        ("guidance_scale=1:2:0", "LOW:HIGH:STEP"),
        ("guidance_scale=1:2:1e-9", "at most 1000"),
        ("steps=1.5", "LOW:HIGH:STEP"),
    ):
        with pytest.raises(UserError, match=said):
            parse_axis(text)


def test_points_that_cannot_be_are_told_before_the_first(model_folder: Path) -> None:
    base = generation(str(model_folder), 4, 2)
    with pytest.raises(UserError, match="solver"):
        sweep_points(base, [("solver", ["euler", "eular"])])
    with pytest.raises(UserError, match="twice"):
        sweep_points(base, [("steps", [1]), ("steps", [2])])
    names = list(
        sweep_points(base, [("guidance_scale", [1.0, 2.5]), ("guidance_interval", [(0.1, 0.9), None])])
    )
    assert names == [
        "guidance_scale=1,guidance_interval=all",
        "guidance_scale=2.5,guidance_interval=0.1-0.9",
        "guidance_scale=2.5,guidance_interval=all",
    ]
