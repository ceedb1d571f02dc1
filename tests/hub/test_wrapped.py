"""Weights as people have them: prefixes, dicts within dicts, folders of other tools."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import pixelwright as pw
from pixelwright.cli.main import main
from pixelwright.hub.checkpoint import load_config
from pixelwright.hub.prefixes import network_tensors, split
from tests.hub.published import prefixed, shards
from tests.hub.test_convert import reproduces
from tests.recordings import weights

NAME = "pixeldit_c2i"
WORDS = ("_orig_mod", "module", "_fsdp_wrapped_module", "transformer", "net", "student", "model", "denoiser")
AVERAGES = ("ema", "net_ema", "ema_denoiser", "model_ema", "ema_model")


def off(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other weights of the same network."""
    return {key: value + 1 for key, value in tensors.items()}


def same(source: Path, **options: Any) -> None:
    reproduces(pw.load(source, **options), NAME)


@pytest.mark.parametrize(
    "prefix", [*WORDS, *AVERAGES, "module.module", "model.diffusion_model.core", "student._orig_mod.module"]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_prefix_is_left_out(prefix: str, suffix: str, tmp_path: Path) -> None:
    tensors = prefixed(f"{prefix}.", weights(NAME))
    path = tmp_path / f"x{suffix}"
    torch.save(tensors, path) if suffix == ".pt" else save_file(tensors, path)
    same(path)
    assert load_config(path).provenance.read.startswith(f'"{prefix}."')
    assert ("EMA weights" in load_config(path).provenance.read) == (prefix in AVERAGES)


def test_prefixes_in_any_order() -> None:
    for words in itertools.permutations((*WORDS[:5], "ema"), 3):
        name = ".".join((*words, "blocks.0.attn.qkv.weight"))
        assert split(name) == (".".join(words) + ".", "blocks.0.attn.qkv.weight")


def test_wrappers_of_parts_are_left_out(tmp_path: Path) -> None:
    wrapped = {
        key.replace("_blocks.0.", "_blocks.0._fsdp_wrapped_module._orig_mod."): value
        for key, value in weights(NAME).items()
    }
    torch.save(prefixed("_orig_mod.", wrapped), tmp_path / "x.pt")
    same(tmp_path / "x.pt")


@pytest.mark.parametrize(("average", "raw"), list(zip(AVERAGES, WORDS, strict=False)))
def test_of_two_sets_the_average_is_taken(average: str, raw: str, tmp_path: Path) -> None:
    good = weights(NAME)
    save_file(prefixed(f"{raw}.", off(good)) | prefixed(f"{average}.", good), tmp_path / "x.safetensors")
    same(tmp_path / "x.safetensors")
    same(tmp_path / "x.safetensors", weights="ema")
    with pytest.raises(AssertionError):
        same(tmp_path / "x.safetensors", weights="raw")


def nested(kind: str) -> dict[str, Any]:
    """What public trainers save; the weights to read are the recorded ones, all others are off."""
    good = weights(NAME)
    bad = off(good)
    beside = {"step": 3, "opt": {"state": {0: {"exp_avg": torch.ones(2)}}}, "args": None}
    rng = {"numpy": np.random.RandomState(0).get_state(), "python": random.Random(0).getstate()}
    return {
        "model, ema": {"model": prefixed("module.", bad), "ema": good, **beside},
        "ema alone": {"ema": good},
        "model alone": {"model": prefixed("_orig_mod.", good), **beside},
        "module": {"module": good, "dp_world_size": 8},
        "two averages": {"model": bad, "model_ema2": off(bad), "model_ema1": good, "epoch": 2},
        "state_dict_ema": {"state_dict": bad, "state_dict_ema": good, "rng_state": rng},
        "state_dict in model": {"model": {"state_dict": good}, "iteration": torch.tensor(3)},
        "ema in ema": {"ema": {"module": good}, "state_dict": bad},
        "a number called ema": {"model": good, "ema": 0.999},
    }[kind]


KINDS = (
    *("model, ema", "ema alone", "model alone", "module", "two averages", "state_dict_ema"),
    *("state_dict in model", "ema in ema", "a number called ema"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_dicts_of_trainers(kind: str, tmp_path: Path) -> None:
    torch.save(nested(kind), tmp_path / "x.pt")
    same(tmp_path / "x.pt")
    assert main(["convert", str(tmp_path / "x.pt"), str(tmp_path / "out")]) == 0
    same(tmp_path / "out")


def test_the_raw_weights_of_a_trainer_can_be_had(tmp_path: Path) -> None:
    torch.save(nested("model, ema"), tmp_path / "x.pt")
    raw = pw.hub.to_public(pw.load(tmp_path / "x.pt", weights="raw"))
    assert all(torch.equal(raw[key], value + 1) for key, value in weights(NAME).items())


def test_dicts_that_share_one_another_take_no_memory(tmp_path: Path) -> None:
    inner: dict[str, Any] = {f"w{i}": torch.zeros(1) for i in range(200)}
    words = ["model." * (1 + i) + "net" for i in range(60)]
    for _ in range(3):
        inner = dict.fromkeys(words, inner)
    torch.save(inner, tmp_path / "x.pt")
    with pytest.raises(pw.UserError, match="more than 100000 tensors"):
        pw.load(tmp_path / "x.pt")


def test_what_belongs_to_other_networks_is_left_out(tmp_path: Path) -> None:
    beside = {
        "text_encoders.gemma.weight": torch.ones(2),
        "vae.decoder.weight": torch.ones(2),
        "model.diffusion_model.y_embedder.y_embedding": torch.ones(2),
    }
    save_file(prefixed("model.diffusion_model.", weights(NAME)) | beside, tmp_path / "x.safetensors")
    same(tmp_path / "x.safetensors")


def test_two_networks_are_told() -> None:
    with pytest.raises(pw.UserError, match=r'"teacher\.a" stands beside keys with the prefix "student\."'):
        network_tensors(["student.a", "student.b", "teacher.a"])


# --- Folders of other tools --------------------------------------------------------------------------------
FOREIGN = {"architectures": ["PixelDiT"], "_class_name": "PixelDiT", "hidden_size": 48}


@pytest.mark.parametrize(
    "file", ["model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin"]
)
def test_a_foreign_config_is_passed_over(file: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FOREIGN))
    path = tmp_path / file
    torch.save(weights(NAME), path) if file.endswith(".bin") else save_file(weights(NAME), path)
    same(tmp_path)
    same(path)


def test_a_folder_of_accelerate(tmp_path: Path) -> None:
    save_file(prefixed("module.", weights(NAME)), tmp_path / "model.safetensors")
    for name in ("optimizer.bin", "scheduler.bin", "scaler.pt", "random_states_0.pkl", "sampler.bin"):
        torch.save({"state": {}}, tmp_path / name)
    same(tmp_path)


@pytest.mark.parametrize("many", [False, True])
def test_a_pipeline_of_diffusers(many: bool, tmp_path: Path) -> None:
    inner = tmp_path / "transformer"
    inner.mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "PixelDiTPipeline"}')
    (inner / "config.json").write_text(json.dumps(FOREIGN))
    if many:
        shards(weights(NAME), inner)
    else:
        save_file(weights(NAME), inner / "diffusion_pytorch_model.safetensors")
    same(tmp_path)


def test_our_own_pipeline_of_diffusers(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from pixelwright.hub.diffusers import PixelDenoiserPipeline

    model = pw.create("dit-n-4", depth=1, hidden_size=16, num_heads=2, num_classes=2, class_names=("a", "b"))
    PixelDenoiserPipeline.from_model(model).save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "transformer"):
        again = pw.load(source)
        assert again.config == model.config == load_config(source)
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    assert main(["convert", str(tmp_path), str(tmp_path / "out")]) == 0
    assert load_config(tmp_path / "out").class_names == ("a", "b")


# --- Said by name ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt", "model.safetensors"])
def test_a_git_lfs_pointer_is_named(name: str, tmp_path: Path) -> None:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234\n"
    (tmp_path / name).write_text(text)
    with pytest.raises(pw.UserError, match=r"git-lfs pointer, not the weights.*git lfs pull"):
        pw.load(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_are_named(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    tensors = {key: value.to(dtype) for key, value in weights(NAME).items()}
    path = tmp_path / f"x{suffix}"
    torch.save(tensors, path) if suffix == ".pt" else save_file(tensors, path)
    with pytest.raises(pw.UserError, match=str(dtype)):
        pw.load(path)


def test_which_row_is_the_null_class_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pw.hub.checkpoint._announced.clear()
    table = "y_embedder.embedding_table.weight"
    rows = len(weights(NAME)[table]) - 1
    path = tmp_path / "nonull.safetensors"
    save_file(weights(NAME) | {table: weights(NAME)[table][:-1].clone()}, path)
    load_config(path)
    pw.load(path)
    told = capsys.readouterr().err
    assert told.count(f"has {rows} rows, of which the last is taken as the null class") == 1
    assert f"classes 0 to {rows - 2}" in told
    assert main(["convert", str(path), str(tmp_path / "folder")]) == 0
    pw.hub.checkpoint._announced.clear()
    capsys.readouterr()
    pw.load(tmp_path / "folder")
    assert capsys.readouterr().err == ""
    thousand = pw.create("dit-n-4", depth=1, hidden_size=16, num_heads=2).config
    assert pw.hub.checkpoint._null_class_note(thousand, path) is None
