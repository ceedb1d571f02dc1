"""Model folders of the first layout, written by its own code: converted, and refused as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pixelwright as pw
from pixelwright.cli.main import main
from pixelwright.hub.checkpoint import load_config
from tests.recordings import DATA

FOLDERS = DATA / "old_folders"
NAMES = ("unet", "pit", "linear", "text")


@pytest.mark.parametrize("name", NAMES)
def test_a_converted_folder_gives_the_recorded_output(name: str, tmp_path: Path) -> None:
    assert main(["convert", str(FOLDERS / name), str(tmp_path / "new")]) == 0
    model, recorded = pw.load(tmp_path / "new"), load_file(FOLDERS / name / "recorded.safetensors")
    condition = pw.TextCondition(recorded["y"], recorded["mask"].bool()) if name == "text" else recorded["y"]
    with torch.no_grad():
        output = model(recorded["x"], recorded["t"], condition)
    assert (output - recorded["output"]).abs().max() < 1e-6
    assert main(["convert", str(tmp_path / "new"), str(tmp_path / "again")]) == 0
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "new" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_what_a_config_says_is_kept(tmp_path: Path) -> None:
    pw.hub.convert(FOLDERS / "unet", tmp_path / "unet")
    assert load_config(tmp_path / "unet").sampler == pw.hub.SAMPLER_PRESETS["dip-imagenet256"]
    pw.hub.convert(FOLDERS / "unet", tmp_path / "none", sampler="none")
    assert load_config(tmp_path / "none").sampler is None
    pw.hub.convert(FOLDERS / "linear", tmp_path / "linear", dtype="bf16")
    assert load_config(tmp_path / "linear").class_names == ("a", "b", "c")


def test_a_run_folder_of_then_is_converted(tmp_path: Path) -> None:
    shutil.copytree(FOLDERS / "pit", tmp_path / "run" / "model")
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "new")]) == 0
    assert load_config(tmp_path / "new").name == "pixeldit-n-4"


@pytest.mark.parametrize("command", ["info", "sample"])
def test_given_as_it_is_the_remedy_is_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = FOLDERS / "unet"
    with pytest.raises(pw.UserError, match=f"pixelwright convert {folder} "):
        pw.load(folder)
    options = ["--labels", "0", "--out", str(tmp_path / "out")] if command == "sample" else []
    assert main([command, str(folder), *options]) == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1 and f"pixelwright convert {folder} " in printed


def test_damage_is_named(tmp_path: Path) -> None:
    shutil.copytree(FOLDERS / "unet", tmp_path / "unet")
    path = tmp_path / "unet" / "model.safetensors"
    weights = load_file(path)
    weights["backbone.blocks.0.mlp.w3.weight"] = weights["backbone.blocks.0.mlp.w3.weight"][1:].clone()
    save_file(weights, path)
    with pytest.raises(pw.UserError, match=r'w3\.weight" is \[20, 8\], expected \[21, 8\]'):
        pw.hub.convert(tmp_path / "unet", tmp_path / "new")
    assert not (tmp_path / "new").exists()
