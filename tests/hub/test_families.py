"""Files of the relatives: there and back by the command line, and what is wrong with them in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import pixelwright as pw
from pixelwright.cli.main import main
from pixelwright.hub.presets import with_notes
from pixelwright.models.folder import WEIGHTS
from pixelwright.models.presets import preset
from tests.hub.published import prefixed
from tests.recordings import weights

TOLD: dict[str, dict[str, Any]] = {
    "pixnerd": {},
    "deco": {},
    "ddt": {"depth": 3},
    "flattendit": {},
    "jit": {"in_context_start": 2},
    "jit_nocontext": {},
    "pixeldit2": {"in_context_start": 2, "encoder": "dinov3"},
    "pixnerd_t2i": {"positions": "rotary"},
    "deco_t2i": {},
    "pixelgen_t2i": {},
}
"""What their files do not tell, by recording."""
FAMILIES = {"jit_nocontext": "JiT", "pixnerd_t2i": "PixNerd-T2I", "deco_t2i": "DeCo-T2I"}
FAMILIES |= {"pixelgen_t2i": "PixelGen-T2I", "pixnerd": "PixNerd", "deco": "DeCo", "ddt": "DDT"}
FAMILIES |= {"flattendit": "FlattenDiT", "jit": "JiT", "pixeldit2": "PixelDiT2"}
EVERY = pytest.mark.parametrize("name", TOLD)


def published(name: str) -> dict[str, Tensor]:
    """As a file has them: without a frozen encoder."""
    return {
        key: value for key, value in weights(name).items() if not key.startswith("dino_conditioner.encoder")
    }


def words(name: str) -> list[str]:
    """The settings on the command line."""
    return ["--set", *(f"{key}={value}" for key, value in TOLD[name].items())] if TOLD[name] else []


def write(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_by_the_command_line(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """A file of its training becomes a folder, and that a file of either kind, bit for bit."""
    own = {key: value.to(dtype) for key, value in published(name).items()}
    prefix, container = ("net.", "model_ema1") if "jit" in name else ("ema_denoiser.", "state_dict")
    torch.save({container: prefixed(prefix, own), "epoch": 3}, tmp_path / "first.pth")
    assert main(["convert", str(tmp_path / "first.pth"), str(tmp_path / "folder"), *words(name)]) == 0
    for file in ("back.safetensors", "back.ckpt"):
        back = tmp_path / file
        assert main(["convert", str(tmp_path / "folder"), str(back), "--to", "public"]) == 0
        if file.endswith("safetensors"):
            found = load_file(back)
        else:
            state = torch.load(back, weights_only=True)[container]
            found = {key.removeprefix(prefix): value for key, value in state.items()}
        assert found.keys() == own.keys()
        assert all(torch.equal(found[key], own[key]) for key in own)
    assert main(["convert", str(tmp_path / "back.ckpt"), str(tmp_path / "again"), *words(name)]) == 0
    one, other = (load_file(tmp_path / folder / WEIGHTS) for folder in ("folder", "again"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def refused(source: Path, *named: str, **settings: Any) -> None:
    """One line, which begins with the file and names these."""
    with pytest.raises(pw.UserError) as caught:
        pw.load(source, **settings)
    message = str(caught.value)
    assert message.startswith(str(source)) and "\n" not in message and len(message) < 400 + len(str(source))
    assert all(name in message for name in named), message


@EVERY
def test_half_a_checkpoint_is_one_line(name: str, tmp_path: Path) -> None:
    tensors = published(name)
    keys = sorted(tensors)
    for number, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :], keys[::2], keys[1::2])):
        refused(write({key: tensors[key] for key in part}, tmp_path / f"{number}.safetensors"), **TOLD[name])
    last = next(key for key in reversed(keys) if "mlp" in key and key.endswith("weight"))
    rest = write({key: tensors[key] for key in keys if key != last}, tmp_path / "all-but-one.safetensors")
    refused(rest, f"read as {FAMILIES[name]}", last, **TOLD[name])
    more = write({**tensors, "strange.weight": torch.ones(2)}, tmp_path / "one-more.safetensors")
    refused(more, f"read as {FAMILIES[name]}", 'unexpected "strange.weight"', **TOLD[name])


@EVERY
def test_a_wrong_patch_size_is_one_line(name: str, tmp_path: Path) -> None:
    file = write(published(name), tmp_path / "x.safetensors")
    refused(file, f"read as {FAMILIES[name]}", "expected [", patch_size=4, **TOLD[name])


@EVERY
def test_weights_beside_another_familys_config_are_one_line(name: str, tmp_path: Path) -> None:
    other = pw.create("jit-n-4" if name == "deco" else "deco-ti-8", 3, depth=2)
    pw.save(other, tmp_path / "model")
    file = write(published(name), tmp_path / "model" / WEIGHTS)
    with pytest.raises(pw.UserError, match="unexpected") as caught:
        pw.load(tmp_path / "model")
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pixnerd", "deco", "jit_nocontext", "flattendit"])
def test_a_run_does_not_start_from_another_family(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(published(name), tmp_path / "x.safetensors")
    run = ["train", "--run", str(tmp_path / "run"), "--init", str(file), "--data.path", "shapes"]
    run += ["--model.preset", "dip-ti-8", "--data.size", "16", "--steps", "1", "--device", "cpu"]
    assert main(run) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]  # a note on the null class comes before
    part = "backbone.type: 'jit'" if name == "jit_nocontext" else "detailer.type: '"
    assert f"init: {file} holds another model ({part}" in told
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("pair", [("deco", "pixeldit2"), ("ddt", "dip"), ("pixelgen_t2i", "pixeldit_c2i")])
def test_two_networks_in_one_file_are_named(pair: tuple[str, str], tmp_path: Path) -> None:
    refused(write(published(pair[0]) | published(pair[1]), tmp_path / "x.safetensors"), "the keys of both")


def test_ddts_sampler_is_that_of_its_results() -> None:
    sampler = with_notes(preset("ddt-xl-16"), "model").sampler
    assert sampler is not None and (sampler.name, sampler.solver, sampler.steps) == ("ddt-xl", "euler", 250)
    assert (sampler.guidance_scale, sampler.guidance_interval) == (2.0, (0.3, 1.0))
    assert sampler.last_step == 0.04 and "in latents" in sampler.origin
