"""Models that come with the package are found by name."""

from pathlib import Path

import pytest
import torch

import pixelwright as pw
from pixelwright.cli.main import main
from pixelwright.errors import UserError
from pixelwright.hub import shipped
from pixelwright.hub.checkpoint import is_model, load_config


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model "tiny" in half precision, in the place of those that come with the package."""
    model = pw.create(
        "dit-ti-4", num_classes=2, hidden_size=16, depth=1, num_heads=1, class_names=("cat", "dog")
    )
    folder = tmp_path / "models" / "tiny"
    pw.save(model.to(torch.float16), folder)
    monkeypatch.setattr(shipped, "PLACES", (tmp_path / "nowhere", folder.parent))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("name", ["tiny", "pixelwright/tiny"])
def test_found_by_name(tiny: Path, name: str) -> None:
    assert is_model(name) and load_config(name).class_names == ("cat", "dog")
    assert pw.load(name).dtype == torch.float16


def test_drawn_from_in_half_precision(tiny: Path, tmp_path: Path) -> None:
    words = [
        "sample",
        "tiny",
        "--labels",
        "cat",
        "--size",
        "8",
        "--steps",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0
    assert any((tmp_path / "out").glob("*.png"))


def test_a_path_of_that_name_goes_first(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    with pytest.raises(
        UserError, match=r"tiny holds no weights; the model of the package is pixelwright/tiny"
    ):
        pw.load("tiny")
    assert pw.load("pixelwright/tiny").config.num_classes == 2


def test_unknown_names_tell_those_there_are(tiny: Path) -> None:
    with pytest.raises(UserError, match=r'no model "pixelwright/tinny" comes with the package.*tiny'):
        pw.load("pixelwright/tinny")
    with pytest.raises(UserError, match="does not exist"):
        pw.load("pixelwright/more/parts")


def test_what_comes_with_the_package_is_small_and_has_a_card() -> None:
    for folder in shipped.shipped().values():
        assert (folder / "README.md").exists(), folder
        assert (folder / "model.safetensors").stat().st_size < 12 * 2**20, folder
        assert load_config(str(folder)).provenance is not None, folder
