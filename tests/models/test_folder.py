"""Models as folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pixelwright as pw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pw.save(pw.create("dip-n-4", num_classes=2, class_names=("cat", "dog")), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["dip-n-4", "pixeldit-n-4-postmod", "dit-n-4"])
@pytest.mark.parametrize("placement", ["post-hoc", "hybrid"])
def test_saving_and_loading_gives_the_same_model(name: str, placement: str, tmp_path: Path) -> None:
    model = pw.create(name, num_classes=2, placement=placement, class_names=("a", "b")).to(torch.bfloat16)
    pw.save(model, tmp_path)
    again = pw.load(tmp_path)
    assert again.config == model.config
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert next(again.parameters()).dtype == torch.bfloat16
    assert all(p.requires_grad for p in again.parameters())


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["backbone.blocks.0.attn.qvk.weight"] = weights.pop("backbone.blocks.0.attn.qkv.weight")
    weights["detailer.out.bias"] = torch.zeros(5)
    save_file(weights, path)
    with pytest.raises(pw.UserError) as error:
        pw.load(folder)
    message = str(error.value)
    assert (
        'unexpected "backbone.blocks.0.attn.qvk.weight", did you mean "backbone.blocks.0.attn.qkv.weight"'
        in message
    )
    assert 'missing "backbone.blocks.0.attn.qkv.weight"' in message
    assert '"detailer.out.bias" is [5], expected [3]' in message


def test_at_most_ten_problems_are_listed(folder: Path) -> None:
    save_file({f"x{i}": torch.zeros(1) for i in range(30)}, folder / "model.safetensors")
    with pytest.raises(pw.UserError, match=r"and \d+ more$") as error:
        pw.load(folder)
    assert str(error.value).count(";") == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"placment": "hybrid"}, r'"placment".*placement'),
        ({"format": 99}, "99"),
        ({"placement": "nowhere"}, "nowhere"),
        ({"backbone": {"type": "patch-dit"}}, "hidden_size"),
        ({"detailer": {"type": "unnet"}}, r'"unnet".*unet'),
        ({"image_size": [7, 8]}, "7x8"),
        ({"class_names": ["one"]}, "1 class_names"),
    ],
)
def test_config_mistakes_are_named(folder: Path, change: dict[str, object], message: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(pw.UserError, match=message):
        pw.load(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(pw.UserError, match="damaged"):
        pw.load(folder)


def test_saved_files_have_the_permissions_of_any_new_file(folder: Path) -> None:
    (folder / "other").touch()
    for name in ("model.safetensors", "config.json"):
        assert (folder / name).stat().st_mode == (folder / "other").stat().st_mode


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(folder: Path, value: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["detailer.out.bias"][1] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(pw.UserError, match=r'"detailer.out.bias" holds (NaN|infinite)'):
        pw.load(folder)
