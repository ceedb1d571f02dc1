"""The ablations of configs/ablations: each changes the model of one baseline and nothing else, and trains."""

from pathlib import Path

import pytest
import torch

import pixelwright as pw
from pixelwright.cli import main as cli
from pixelwright.config import read_yaml
from pixelwright.training import load_config

from .conftest import log_of

FOLDER = Path(__file__).parents[2] / "configs" / "ablations"
BASELINE = FOLDER / "baseline.yaml"
FILES = sorted(FOLDER.glob("*.yaml"))
STUDIES = FOLDER.parent / "studies"
TOY = ["--data.path", "shapes", "--data.workers", "0", "--steps", "2", "--batch_size", "2", "--device", "cpu"]
TOY += ["--model.depth", "2", "--log_every", "1", "--sample.count", "1", "--sample.steps", "1"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_short_and_changes_the_model_alone(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 15
    values = read_yaml(path)
    assert values["run"] == f"runs/ablations/{path.stem}"
    assert path == BASELINE or values.keys() == {"run", "model"}


def test_no_two_are_the_same_model() -> None:
    models = [load_config(BASELINE, path).model.denoiser() for path in FILES]
    parts = {(m.backbone, m.detailer, m.placement) for m in models}
    assert len(parts) == len(FILES) >= 25


@pytest.mark.parametrize("base", ["demo/base.yaml", "cifar10/base.yaml"])
def test_rows_of_a_study_differ_from_their_base_and_from_one_another(base: str) -> None:
    folders = [STUDIES / "cifar10", STUDIES / "detailers"] if "cifar10" in base else [STUDIES / "demo"]
    files = sorted(path for folder in folders for path in folder.glob("*.yaml"))
    assert len(files) > 5
    found = [load_config(STUDIES / base, path) for path in files]
    same = [
        (a.stem, b.stem) for i, a in enumerate(files) for j, b in enumerate(files[:i]) if found[i] == found[j]
    ]
    assert same == [("unet", "base") if "cifar10" in base else ("base", "adamw")]


@pytest.mark.usefixtures("no_extras")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_ablation_trains_and_draws(path: Path, tmp_path: Path) -> None:
    files = ["--config", str(BASELINE), "--config", str(path)]
    assert cli.main(["train", *files, *TOY, "--run", str(tmp_path / "run")]) == 0
    lines = log_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2]
    assert all(0 < line["loss"] < 10 and not line["skipped"] for line in lines)
    model = pw.load(tmp_path / "run")
    images = pw.sample(model, [0, 1], pw.SamplerSettings("euler", steps=1))
    assert images.shape == (2, 32, 32, 3) and images.dtype == torch.uint8
