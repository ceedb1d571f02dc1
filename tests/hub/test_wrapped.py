"""Weights as people have them: prefixes, dicts within dicts, folders of other tools."""

from __future__ import annotations

import collections
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import pixelwright as pw
from pixelwright.cli.main import main
from pixelwright.hub.checkpoint import is_model, load_config, open_file
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
    trainer = {"optimizer": {"state": {}}, "scheduler": {"milestones": collections.Counter([3])}, "epoch": 2}
    trainer["rng_state"] = {**rng, "torch": torch.get_rng_state(), "torch_cuda": [torch.get_rng_state()]}
    empty = {"core.y_embedder.y_embedding": torch.ones(2, 3), "pos_embed": torch.ones(2)}
    return {
        "text-to-image trainer": {
            "state_dict": prefixed("core.", bad) | empty,
            "state_dict_ema": prefixed("core.", good) | empty,
            **trainer,
        },
        "averaged model of torch": {"ema": {"n_averaged": torch.tensor(3), **prefixed("module.", good)}},
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
    *("text-to-image trainer", "averaged model of torch"),
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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    inside=st.lists(
        st.sampled_from([*WORDS, "_checkpoint_wrapped_module", "diffusion_model", "core"]), max_size=4
    ),
    outside=st.lists(st.sampled_from([*WORDS, "state_dict", "model_state_dict"]), max_size=3),
    average=st.none() | st.sampled_from([*AVERAGES, "state_dict_ema", "model_ema1", "ema_state_dict"]),
    place=st.integers(0, 3),
    inner=st.booleans(),
)
def test_any_nesting_of_prefixes_and_dicts(
    tmp_path: Path, inside: list[str], outside: list[str], average: str | None, place: int, inner: bool
) -> None:
    """An average is read before all else, wherever its name stands; without one the only set is."""
    good = {"s_embedder.proj.weight": torch.zeros(1), "patch_blocks.0.mlp.w1.weight": torch.ones(1)}
    held = {key.replace("0.mlp", "0._orig_mod.mlp"): value for key, value in good.items()} if inner else good
    prefix = "".join(f"{word}." for word in inside)
    found: dict[str, Any] = prefixed(prefix, held)
    words = [*outside]
    if average is not None:
        words.insert(min(place, len(words)), average)
    for word in reversed(words):
        found = {word: found, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}
    if average is not None and words[0] == average:
        found["state_dict"] = prefixed(prefix, off(good))
    torch.save(found, tmp_path / "x.pt")
    file = open_file(tmp_path / "x.pt")
    network = network_tensors(file.specs)
    assert sorted(network.names) == sorted(good)
    assert all(torch.equal(file.read(network.names[key]), value) for key, value in good.items())
    assert (network.kind == "ema") == (average is not None)


# --- ComfyUI -----------------------------------------------------------------------------------------------
def comfy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As ComfyUI keeps them: the six modulation values of a pixel as two tensors of three."""
    channels, found = len(tensors["pixel_embedder.proj.weight"]), {}
    for name, value in tensors.items():
        if name.startswith("pixel_blocks.") and ".adaLN_modulation.0." in name:
            six = value.reshape(-1, 6, channels, *value.shape[1:])
            for part, chunk in (("msa", six[:, :3]), ("mlp", six[:, 3:])):
                key = name.replace("adaLN_modulation.0", f"adaLN_modulation_{part}")
                found[key] = chunk.reshape(-1, *value.shape[1:]).contiguous()
        else:
            found[name] = value
    return found


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "model.diffusion_model.core.", "net."])
@pytest.mark.parametrize("name", [NAME, "pixeldit_t2i"])
def test_files_of_comfyui(prefix: str, name: str, tmp_path: Path) -> None:
    beside = {
        "text_encoders.gemma2_2b.model.norm.weight": torch.ones(2),
        "vae.pixel_space_vae": torch.ones(1),
    }
    save_file(prefixed(prefix, comfy(weights(name))) | beside, tmp_path / "x.safetensors")
    expected = pw.hub.from_public(weights(name)).state_dict()
    for model in (pw.load(tmp_path / "x.safetensors"), pw.hub.from_public(comfy(weights(name)))):
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_half_a_modulation_is_named(tmp_path: Path) -> None:
    tensors = comfy(weights(NAME))
    del tensors["pixel_blocks.0.adaLN_modulation_mlp.weight"]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(pw.UserError, match=r'misses "pixel_blocks\.0\.adaLN_modulation\.0\.weight"'):
        pw.load(tmp_path / "x.safetensors")


# --- Folders of other tools --------------------------------------------------------------------------------
FOREIGN = {"architectures": ["PixelDiT"], "_class_name": "PixelDiT", "backbone": "dit", "format": "pt"}


@pytest.mark.parametrize(
    "file", ["model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin"]
)
def test_a_foreign_config_is_passed_over(file: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FOREIGN))
    path = tmp_path / file
    torch.save(weights(NAME), path) if file.endswith(".bin") else save_file(weights(NAME), path)
    same(tmp_path)
    same(path)


STATE = (
    *("optimizer.bin", "optimizer_1.bin", "scheduler.bin", "scaler.pt", "random_states_0.pkl", "sampler.bin"),
    *("rng_state_0.pth", "training_args.bin", "dl_state_dict.bin", "metadata.pth"),
)


@pytest.mark.parametrize("folder", ["", "transformer", "model", "pytorch_model", "transformer_ema"])
def test_a_folder_of_accelerate(folder: str, tmp_path: Path) -> None:
    """As it is, or with the network in a folder of its own; its average comes first."""
    for inside in {folder, "transformer"} if folder == "transformer_ema" else {folder}:
        (tmp_path / inside).mkdir(exist_ok=True)
        tensors = weights(NAME) if inside == folder else off(weights(NAME))
        save_file(prefixed("module.", tensors), tmp_path / inside / "model.safetensors")
    for name in STATE:
        torch.save({"state": {}}, tmp_path / name)
    (tmp_path / folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    same(tmp_path)
    assert is_model(str(tmp_path))


def test_a_folder_of_images_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.png").touch()
    assert not is_model(str(tmp_path)) and not is_model(str(tmp_path / "a.npz"))


def test_a_distributed_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").touch()
    with pytest.raises(pw.UserError, match=r"distributed checkpoint of PyTorch; .*merge-weights"):
        pw.load(tmp_path)


def test_shards_of_pickles(tmp_path: Path) -> None:
    names = sorted(weights(NAME))
    parts = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for file, keys in parts.items():
        torch.save({key: weights(NAME)[key] for key in keys}, tmp_path / file)
    index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    same(tmp_path)
    same(tmp_path / "pytorch_model.bin.index.json")


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
    inner = tmp_path / "transformer"
    for source in (tmp_path, inner, inner / "diffusion_pytorch_model.safetensors"):
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


def test_a_git_lfs_pointer_in_a_model_folder_is_named(tmp_path: Path) -> None:
    pw.save(pw.create("dit-n-4", 2, depth=1, hidden_size=16, num_heads=2), tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(pw.UserError, match="git-lfs pointer"):
        pw.load(tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_in_eight_bits_are_read(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    """In bf16, which holds them exactly; in the dtype of others, norms for instance, where there are some."""
    tensors = {key: value.to(dtype) for key, value in weights(NAME).items()}
    path = tmp_path / f"x{suffix}"
    for others in (torch.bfloat16, torch.float32):
        if others == torch.float32:
            tensors |= {key: value for key, value in weights(NAME).items() if "norm" in key}
        torch.save(tensors, path) if suffix == ".pt" else save_file(tensors, path)
        model = pw.load(path)
        found = pw.hub.to_public(model)
        assert all(torch.equal(found[key], value.to(others)) for key, value in tensors.items())
        assert f"8 bits read as {others}".replace("torch.", "") in model.config.provenance.read


@pytest.mark.parametrize("end", ["scale_weight", "weight_scale"])
def test_scales_of_eight_bits_multiply(end: str, tmp_path: Path) -> None:
    found: dict[str, Tensor] = {"model.diffusion_model.scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, value in weights(NAME).items():
        if value.ndim == 2:
            scale = value.abs().max() / 400
            found[f"model.diffusion_model.{key}"] = (value / scale).to(torch.float8_e4m3fn)
            found[f"model.diffusion_model.{key.removesuffix('.weight')}.{end}"] = scale
        else:
            found[f"model.diffusion_model.{key}"] = value
    save_file(found, tmp_path / "x.safetensors")
    for key, value in pw.hub.to_public(pw.load(tmp_path / "x.safetensors")).items():
        torch.testing.assert_close(
            value, weights(NAME)[key], rtol=0.07, atol=float(weights(NAME)[key].abs().max()) / 3e4
        )
    key = next(name for name in found if name.endswith(end))
    save_file(found | {key: torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(pw.UserError, match="a scale of 8 bits is one number"):
        pw.load(tmp_path / "x.safetensors")


def test_a_file_in_bf16_is_read(tmp_path: Path) -> None:
    save_file({key: value.bfloat16() for key, value in weights(NAME).items()}, tmp_path / "x.safetensors")
    model = pw.load(tmp_path / "x.safetensors")
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}


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
    assert not [*pw.hub.checkpoint._null_class_note(thousand, path)]


@pytest.mark.parametrize("preset", ["dip-n-8", "pixeldit-n-8"])
def test_a_file_without_its_last_block_is_told(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, depth = tmp_path / "x.safetensors", pw.create(preset).config.backbone.depth
    for blocks, said in ((depth, False), (depth - 1, True), (depth + 1, False)):
        save_file(pw.hub.to_public(pw.create(preset, depth=blocks, num_classes=5)), path)
        capsys.readouterr()
        assert pw.load(path).config.backbone.depth == blocks
        assert (f"{preset}, of the same sizes, has {depth}" in capsys.readouterr().err) == said
