"""`pixelwright reproduce`, with a tiny checkpoint that is published for the test."""

from pathlib import Path

import pytest

from pixelwright.cli.main import main
from pixelwright.evaluation import reproduce
from pixelwright.evaluation.report import read_report
from pixelwright.evaluation.reproduce import TARGETS, Target, rows
from pixelwright.hub.presets import SAMPLER_PRESETS
from pixelwright.models.config import SamplerPreset

TINY = SamplerPreset("ab2-fixed", 2, 1.5, (0.1, 0.9), name="tiny", origin="this test")


@pytest.fixture
def published(
    model_folder: Path, judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Target]:
    """A folder with all the files, and the target they belong to."""
    monkeypatch.chdir(tmp_path)
    folder = Path("reproduce")
    folder.mkdir()
    for name, place in (
        ("tiny", model_folder),
        ("ref.npz", judged / "reference.npz"),
        ("net", judged / "features"),
    ):
        (folder / name).symlink_to(place)
    tolerances = {"fid": 1e-6, "recall": 0.25}
    target = Target(
        TINY, "tiny", "us", {"fid": 0.0, "recall": 0.9}, 8, "ref.npz", "in-domain:net", 24, tolerances
    )
    monkeypatch.setitem(TARGETS, "tiny", target)
    return folder, target


def test_expected_measured_and_difference(
    published: tuple[Path, Target], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, target = published
    assert main(["reproduce", "tiny", "--batch-size", "8"]) == 0
    report = read_report(folder / "tiny")
    assert report.images.count == 24 and report.generation is not None
    assert (report.generation["solver"], report.generation["guidance_interval"]) == ("ab2-fixed", [0.1, 0.9])
    name, expected, measured, difference, tolerance, verdict = rows(target, report.values)[1]
    assert (name, expected, tolerance, verdict) == ("recall", 0.9, 0.25, "as published")
    assert measured == report.values["recall"] and difference == pytest.approx(measured - 0.9)
    assert "as published" in capsys.readouterr().out

    stricter = Target(**{**target.__dict__, "expected": {"fid": 3.0, "recall": 0.9}})
    monkeypatch.setitem(TARGETS, "tiny", stricter)
    assert main(["reproduce", "tiny", "--batch-size", "8"]) == 1
    assert "| differs |" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["tiny", "ref.npz", "net"])
def test_a_missing_file_is_told_with_its_origin(
    missing: str, published: tuple[Path, Target], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = published
    (folder / missing).unlink()
    assert main(["reproduce", "tiny"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert (
        len(lines) == 1
        and f"reproduce/{missing} is not there: get it" in lines[0]
        and "put it there" in lines[0]
    )


OWN = ("dip-", "pixeldit-")


def test_every_published_preset_has_its_figures() -> None:
    # Captions have no FID to meet; the relatives' figures are of other protocols than ADM's.
    of_classes = {name for name in SAMPLER_PRESETS if "t2i" not in name and name.startswith(OWN)}
    assert {target.sampler.name for target in TARGETS.values()} == of_classes
    for target in TARGETS.values():
        assert target.num_samples == 50_000 and target.expected.keys() <= reproduce.TOLERANCES.keys()
        assert (
            f"{target.expected['fid']:g}" in target.sampler.origin or target.sampler.name == "dip-imagenet256"
        )
        assert target.reference_file.startswith("VIRTUAL_imagenet" + str(target.size))
