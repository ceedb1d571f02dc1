"""`pixelwright sample --prompt`: pictures of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pixelwright as pw
from pixelwright.cli.main import main
from pixelwright.cli.parsing import image_size
from pixelwright.diffusion.sample import as_condition
from pixelwright.models.config import SamplerSettings, TextNote
from tests.encoders import tiny_bert


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("prompts") / "bert")


def save(folder: Path, note: TextNote | None) -> Path:
    torch.manual_seed(0)
    options = {"hidden_size": 24, "depth": 1, "num_heads": 2, "text_size": 24, "image_size": (8, 8)}
    model = pw.create("dip-t2i-ti", text=note, **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pw.save(model, folder)
    return folder


def sample(model: Path, out: Path, *more: str) -> int:
    return main(["sample", str(model), "--out", str(out), "--steps", "2", "--precision", "fp32", *more])


def pictures(folder: Path) -> np.ndarray:
    paths = sorted(folder.glob("0*.png"))
    return np.stack([np.asarray(Image.open(path)) for path in paths]).astype(int)


def test_prompts_from_the_command_line_and_from_a_file(encoder: Path, tmp_path: Path) -> None:
    model = save(tmp_path / "model", TextNote("minilm", str(encoder)))
    file = tmp_path / "prompts.txt"
    file.write_text("a green square\n")
    options = ["--guidance-scale", "3", "--seed", "3", "--size", "12x8", "--batch-size", "2"]
    options += ["--prompt", "a red star", "two blue circle", "--prompts", str(file), "--negative", "green"]
    assert sample(model, tmp_path / "out", *options) == 0
    loaded = pw.load(model)
    prompts = as_condition(["a red star", "two blue circle", "a green square"], loaded, negative="green")
    expected = pw.sample(loaded, prompts, SamplerSettings("ab2", 2, 3.0), size=(8, 12), seed=3)
    assert np.abs(pictures(tmp_path / "out") - expected.numpy()).max() <= 1
    assert sample(model, tmp_path / "plain", *options[:-2]) == 0
    assert (pictures(tmp_path / "plain") != pictures(tmp_path / "out")).any()


def test_the_encoder_may_be_named(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = save(tmp_path / "moved", TextNote("minilm", str(tmp_path / "gone")))
    assert sample(moved, tmp_path / "out", "--prompt", "a star") == 2
    assert "gone" in capsys.readouterr().err
    assert sample(moved, tmp_path / "out", "--prompt", "a star", "--text-encoder", str(encoder)) == 0
    silent = save(tmp_path / "silent", None)
    assert sample(silent, tmp_path / "other", "--prompt", "a star") == 2
    assert "does not say which text encoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "give --prompt or --prompts"),
        (["--labels", "0"], "give --prompt or --prompts instead of --labels"),
        (["--prompts", "nothing.txt"], 'nothing.txt" cannot be read'),
    ],
)
def test_without_a_prompt(
    more: list[str], told: str, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save(tmp_path / "model", TextNote("minilm", str(encoder)))
    assert sample(model, tmp_path / "out", *more) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sizes_as_people_write_them() -> None:
    assert image_size(["1024x768"]) == (768, 1024)  # rows and columns
    assert image_size(["768", "1024"]) == (768, 1024)
    assert image_size(["64"]) == image_size([64]) == (64, 64)
    for wrong in (["64x"], ["a"], ["-8"], ["1", "2", "3"], ["8x8", "8"]):
        with pytest.raises(pw.UserError, match="--size is"):
            image_size(wrong)
