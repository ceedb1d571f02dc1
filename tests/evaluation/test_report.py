"""Reports: what is written is what was measured, and what must not be compared is said."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pixelwright.cli.main import main
from pixelwright.errors import UserError
from pixelwright.evaluation import report as room
from pixelwright.evaluation.evaluate import Scorer
from pixelwright.evaluation.images import open_images
from pixelwright.evaluation.measure import Report
from pixelwright.evaluation.neighbours import memorisation
from pixelwright.evaluation.report import (
    checkpoints,
    comparison,
    drawn_differently,
    incomparable,
    read_report,
    write_report,
)
from pixelwright.images import save_png
from tests.test_html import read


# --- memorisation ------------------------------------------------------------------------------------------
def test_memorisation_is_that_of_a_search_by_hand() -> None:
    torch.manual_seed(0)
    samples, real = torch.randn(11, 4) + 5, torch.randn(17, 4) + 5
    samples[3] = real[6]
    found = memorisation(samples, torch.arange(100, 111), real, torch.arange(200, 217))
    apart = (samples[:, None].double() - real.double()).norm(dim=2)
    among = (real[:, None].double() - real.double()).norm(dim=2).fill_diagonal_(torch.inf)
    own = among.min(1).values[apart.argmin(1)]
    nearest = apart.min(1).values
    assert found.share == pytest.approx((nearest < own).double().mean().item())
    assert found.identical == 1 and found.images == 17
    first = found.pairs[0]
    assert (first.sample, first.image, first.distance) == (103, 206, 0.0)
    for pair in found.pairs:
        assert pair.image - 200 == apart[pair.sample - 100].argmin()
        assert pair.distance == pytest.approx(nearest[pair.sample - 100].item(), abs=1e-12)
        assert pair.own == pytest.approx(own[pair.sample - 100].item())
    ratios = [pair.ratio for pair in found.pairs]
    assert ratios == sorted(ratios)


def test_copies_are_found_and_new_images_are_not() -> None:
    torch.manual_seed(0)
    real, other = torch.randn(2, 300, 6).unbind()
    numbers = torch.arange(300)
    assert memorisation(real + 1e-3, numbers, real, numbers).share == 1
    assert memorisation(real, numbers, real, numbers).identical == 300
    assert 0.35 < memorisation(other, numbers, real, numbers).share < 0.65


# --- one report --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, judged: Path) -> Path:
    """Twenty images of the reference's classes: new ones, but for one copy."""
    folder = tmp_path_factory.mktemp("samples")
    images = torch.randint(
        0, 256, (20, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    for i, image in enumerate(images):
        save_png(image, folder / "abcd"[i % 4] / f"{i:02d}.png")
    (folder / "b" / "05.png").write_bytes((judged / "images" / "d" / "07.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def made(samples: Path, judged: Path) -> Report:
    scorer = Scorer.open(str(judged / "reference.npz"), None, "cpu")
    return scorer.measure("samples", open_images(str(samples)))


def test_a_report_comes_back_as_it_was_written(made: Report, samples: Path, tmp_path: Path) -> None:
    write_report(made, tmp_path, open_images(str(samples)))
    again = read_report(tmp_path)
    assert again == made
    assert again.images.image_size == (8, 8) and again.values == made.values


def test_the_page_holds_numbers_provenance_and_pictures(made: Report, samples: Path, tmp_path: Path) -> None:
    write_report(made, tmp_path, open_images(str(samples)))
    page = read((tmp_path / "report.html").read_text())
    cells = page.texts("td")
    for wanted in (
        made.images.checksum,
        made.extractor.checksum,
        made.reference.checksum,
        made.extractor.kind,
    ):
        assert wanted in cells
    assert f"{made.values['fid']:.4g}" in cells
    assert len(page.images) == 2  # sheet, neighbours
    shares = [f"{share:.3f}" for label in "abcd" for share in made.per_class[label].values()]
    assert [cell for cell in cells if re.fullmatch(r"\d\.\d{3}", cell)][-8:] == shares
    assert all(str(image["src"]).startswith("data:image/") for image in page.images)


def test_names_are_escaped_on_the_page(made: Report, samples: Path, tmp_path: Path) -> None:
    write_report(replace(made, name="a|b<script>"), tmp_path, open_images(str(samples)))
    page = read((tmp_path / "report.html").read_text())
    assert page.texts("h1") == ["Evaluation of a|b<script>"] and not page.texts("script")


def test_the_copy_is_told(made: Report) -> None:
    assert made.memorisation is not None
    first = made.memorisation.pairs[0]
    source, reference = open_images(made.images.path), open_images(made.reference.source.path)
    copy, original = next(source.batches(1, first.sample)), next(reference.batches(1, first.image))
    assert torch.equal(copy.images, original.images)
    assert made.memorisation.identical == 1
    assert any("very features of a training image" in note for note in room.warnings(made))


def test_the_page_needs_no_matplotlib(
    made: Report, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    write_report(made, tmp_path, open_images(str(samples)))
    assert (tmp_path / "report.html").read_text().count("<meter") == 8


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "malformed JSON"),
        ("[]", "is no report"),
        ('{"format": 9}', "format is 9"),
        ('{"format": 3}', "is no report.*missing"),
    ],
)
def test_what_is_no_report(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError, match=said):
        read_report(tmp_path)
    with pytest.raises(UserError, match="pixelwright evaluate"):
        read_report(tmp_path / "nowhere")


# --- several -----------------------------------------------------------------------------------------------
def test_numbers_that_must_not_be_compared(made: Report) -> None:
    other = replace(
        made, name="other", metrics={**made.metrics, "fid": replace(made.metrics["fid"], value=7.5)}
    )
    assert incomparable([made, other]) == []
    assert "not comparable" not in comparison([made, other])
    changes = {
        "features": {"extractor": replace(made.extractor, checksum="another")},
        "reference": {"reference": replace(made.reference, checksum="another")},
        "number of images": {"images": replace(made.images, count=7)},
        "image size": {"images": replace(made.images, image_size=(16, 16))},
        "settings of the metrics": {"settings": replace(made.settings, adm_float16=True)},
    }
    for what, change in changes.items():
        differs = replace(other, **change)  # type: ignore[arg-type]
        assert [line.partition(" differ")[0] for line in incomparable([made, differs])] == [what]
        assert "not comparable" in comparison([made, differs])
    assert incomparable([made, replace(other, extractor=replace(made.extractor, path="elsewhere"))]) == []


def test_what_evaluations_differ_in_stands_on_their_page(made: Report) -> None:
    drawn = [{"guidance_scale": scale, "steps": 25, "weights": "0" * 64} for scale in (1.0, 2.5)]
    pair = [replace(made, name=str(i), generation=each) for i, each in enumerate(drawn)]
    assert drawn_differently(pair) == [("guidance scale", "1.0", "2.5")]
    cells = read(comparison(pair)).texts("td")
    assert cells[cells.index("guidance scale") :][:3] == ["guidance scale", "1.0", "2.5"]
    error = made.metrics["fid"].error
    assert error is not None and f"{made.values['fid']:.4g} ± {error:.2g}" in cells


def test_evaluations_of_one_name_are_told_apart_by_folder(
    made: Report, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one", "two"):
        write_report(made, tmp_path / name, open_images(str(samples)))
    page = tmp_path / "page.html"
    folders = [str(tmp_path / name) for name in ("one", "two")]
    assert main(["report", *folders, "--out", str(page)]) == 0
    assert {"one", "two"} <= set(read(page.read_text()).texts("td"))
    assert main(["report", folders[0], str(tmp_path), "--out", str(page)]) == 2
    assert "is an evaluation and" in capsys.readouterr().err


def test_few_samples_and_a_poor_classifier_come_before_the_figures(made: Report) -> None:
    poor = replace(made, extractor=replace(made.extractor, accuracy=0.53))
    both = "not a measurement (too few images, features of a classifier that is right on 53%)"
    assert both in room.summary(poor).partition(made.distance)[0] and both in room.warnings(poor)[0]
    many = replace(poor, images=replace(poor.images, count=20_000))
    assert "(features of a classifier" in room.summary(many)
    good = replace(many, extractor=replace(made.extractor, accuracy=0.9))
    assert "not a measurement" not in room.summary(good)


def test_checkpoints_from_names() -> None:
    assert checkpoints(["dip step-1000", "dip step-2000", "dit step-1000"]) == [
        ("dip step", 1000.0),
        ("dip step", 2000.0),
        ("dit step", 1000.0),
    ]
    assert checkpoints(["one", "two 2"]) == [("", 1.0), ("", 2.0)]
