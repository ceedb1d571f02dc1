"""Published files in, our folders and published files out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pixelwright as pw
from pixelwright.cli.main import main
from pixelwright.hub import presets
from pixelwright.hub.checkpoint import load_config
from pixelwright.models.config import SamplerPreset
from pixelwright.models.folder import read_config
from tests.hub.published import LAYOUTS, write
from tests.recordings import NETWORKS, difference, recording, weights


def reproduces(model: pw.PixelDenoiser, name: str) -> None:
    tensors, _ = recording(name)
    with torch.no_grad():
        output = model(tensors["input.x"], tensors["input.t"], tensors["input.y"])
    assert difference(output, tensors["output"]) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_and_converts_to_the_recorded_outputs(
    layout: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(layout, name, tmp_path)
    reproduces(pw.load(file), name)
    assert main(["convert", str(file), str(tmp_path / "out")]) == 0
    reproduces(pw.load(tmp_path / "out"), name)
    provenance = read_config(tmp_path / "out").provenance
    assert provenance is not None and provenance.files[0] == file.name
    assert provenance.sha256[0] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert ("EMA" in provenance.read) == (layout == "lightning")
    assert provenance.read in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_the_published_layout_comes_back_byte_by_byte(
    name: str, suffix: str, dtype: str | None, tmp_path: Path
) -> None:
    options = ["--dtype", dtype] if dtype else []
    folder, back = tmp_path / "folder", tmp_path / f"back{suffix}"
    assert main(["convert", str(write("lightning", name, tmp_path)), str(folder), *options]) == 0
    assert main(["convert", str(folder), str(back), "--to", "public"]) == 0
    if suffix == ".ckpt":
        tensors = torch.load(back, weights_only=True)["state_dict"]
        tensors = {key.removeprefix("ema_denoiser."): value for key, value in tensors.items()}
    else:
        tensors = load_file(back)
    expected = weights(name)
    assert list(tensors.keys() ^ expected.keys()) == []
    for key, value in expected.items():
        assert torch.equal(tensors[key], value.bfloat16() if dtype else value)
        assert tensors[key].dtype == (torch.bfloat16 if dtype else value.dtype)


def test_raw_weights_stay_raw_through_a_round_trip(tmp_path: Path) -> None:
    file = write("lightning", "pixeldit_c2i", tmp_path)
    assert main(["convert", str(file), str(tmp_path / "raw"), "--weights", "raw"]) == 0
    assert main(["convert", str(tmp_path / "raw"), str(tmp_path / "b.ckpt"), "--to", "public"]) == 0
    state = torch.load(tmp_path / "b.ckpt", weights_only=True)["state_dict"]
    for key, value in weights("pixeldit_c2i").items():
        assert torch.equal(state[f"denoiser.{key}"], value + 1)


def test_converting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    file = write("lightning", "pixeldit_c2i_postmod", tmp_path)
    for out in ("a", "b"):
        assert main(["convert", str(file), str(tmp_path / out)]) == 0
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_model_does_not_depend_on_the_file(tmp_path: Path) -> None:
    file = write("lightning", "pixeldit_c2i", tmp_path)
    model = pw.load(file)
    with file.open("r+b") as handle:
        handle.write(bytes(file.stat().st_size))
    reproduces(model, "pixeldit_c2i")


def test_a_missing_set_of_weights_is_refused_when_asked_for(tmp_path: Path) -> None:
    with pytest.raises(pw.UserError, match="EMA weights are asked for"):
        pw.load(write("raw-only", "pixeldit_c2i", tmp_path), weights="ema")
    with pytest.raises(pw.UserError, match="raw weights are asked for"):
        pw.load(write("plain", "pixeldit_c2i", tmp_path), weights="raw")


# --- what is known of published files ----------------------------------------------------------------------
@pytest.mark.parametrize("published", presets.PUBLISHED[:4], ids=lambda p: p.sampler.name)
def test_a_sampler_preset_is_known_by_name_and_architecture(published: presets.Published) -> None:
    stem, sampler = (published.pattern or "").strip("*"), published.sampler
    xl = pw.models.presets.PRESETS["pixeldit-xl-16"]
    config = presets.with_notes(xl, stem)
    assert config.sampler == sampler
    assert config.image_size == (published.side, published.side)
    small = pw.models.presets.PRESETS["pixeldit-s-8"]
    assert presets.with_notes(small, stem).sampler is None
    assert presets.with_notes(xl, "mine").sampler is None
    assert presets.with_notes(xl, "mine", sampler.name).sampler == sampler
    assert presets.with_notes(xl, stem, "none").sampler is None


def test_the_published_settings() -> None:
    """The table of the two papers; those of their relatives are tested with them."""
    table = {
        name: (r.solver, r.steps, r.guidance_scale, r.guidance_interval, r.time_shift)
        for name, r in pw.hub.SAMPLER_PRESETS.items()
        if name.startswith(("pixeldit-", "dip-"))
    }
    assert table == {
        "pixeldit-xl-epoch80": ("ab2-fixed", 100, 3.25, (0.1, 1.0), 1.0),
        "pixeldit-xl-epoch160": ("ab2-fixed", 100, 3.25, (0.1, 1.0), 1.0),
        "pixeldit-xl-epoch320": ("ab2-fixed", 100, 2.75, (0.1, 0.9), 1.0),
        "pixeldit-xl-512": ("ab2-fixed", 100, 3.5, (0.1, 1.0), 2.0),
        "dip-imagenet256": ("euler", 100, 2.9, (0.11, 0.97), 1.0),
        "pixeldit-t2i-1024": ("dpmpp-2m", 30, 3.0, None, 4.0),
        "pixeldit-t2i-512": ("dpmpp-2m", 30, 3.0, None, 3.0),
    }
    assert {r.solver for r in pw.hub.SAMPLER_PRESETS.values()} <= set(pw.diffusion.solvers.SOLVERS)


def test_sample_uses_the_preset_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write("lightning", "pixeldit_c2i", tmp_path)
    folder = tmp_path / "model"
    assert main(["convert", str(file), str(folder), "--sampler", "pixeldit-xl-epoch320"]) == 0
    config = read_config(folder)
    assert config.sampler == pw.hub.SAMPLER_PRESETS["pixeldit-xl-epoch320"]
    data = json.loads((folder / "config.json").read_text())
    data["sampler"]["steps"] = 3
    (folder / "config.json").write_text(json.dumps(data))
    draw = ["sample", str(folder), "--labels", "0", "--size", "8", "--precision", "fp32", "--out"]
    capsys.readouterr()
    assert main([*draw, str(tmp_path / "a")]) == 0
    assert "ab2-fixed, 3 steps, guidance 2.75 where 0.1 < t < 0.9, time shift 1" in capsys.readouterr().out
    assert main([*draw, str(tmp_path / "b"), "--solver", "euler", "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "euler, 2 steps, guidance 2.75" in said and "given: solver, steps" in said
    assert main([*draw, str(tmp_path / "c"), "--sampler", "none", "--steps", "3"]) == 0
    assert "ab2, 3 steps, guidance 1 everywhere" in capsys.readouterr().out
    model = pw.load(folder)
    expected = pw.sample(model, [0], SamplerPreset("ab2-fixed", 3, 2.75, (0.1, 0.9)), size=8)
    from tests.cli.test_main import read

    assert abs(read(next((tmp_path / "a").glob("000000-*.png"))).astype(int) - expected[0].numpy()).max() <= 1


def test_the_licence_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pw.hub.checkpoint._announced.clear()
    file = write("plain", "pixeldit_c2i", tmp_path).rename(tmp_path / "imagenet512_pixeldit_xl.safetensors")
    assert main(["convert", str(file), str(tmp_path / "a")]) == 0
    pw.load(tmp_path / "a")
    pw.load(file)
    assert capsys.readouterr().err.count("non-commercial") == 1
    assert "non-commercial" in (tmp_path / "a" / "config.json").read_text()


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("sampler", {"steps": 0}),
        ("sampler", {"guidance_interval": [0.9, 0.1]}),
        ("sampler", {"guidance_interval": 3}),
        ("sampler", {"guidance_scale": "strong"}),
        ("sampler", {"solver": 3}),
        ("sampler", {"sovler": "ab2"}),
        ("sampler", {"origin": "\x1b[2J"}),
        ("provenance", {"sha256": "x"}),
        ("provenance", {"files": []}),
        ("provenance", {"licence": 3}),
    ],
)
def test_broken_notes_in_a_config_are_named(part: str, change: dict[str, object], tmp_path: Path) -> None:
    file = write("lightning", "pixeldit_c2i_postmod", tmp_path)
    assert main(["convert", str(file), str(tmp_path / "m"), "--sampler", "dip-imagenet256"]) == 0
    path = tmp_path / "m" / "config.json"
    data = json.loads(path.read_text())
    data[part] |= change
    path.write_text(json.dumps(data))
    with pytest.raises(pw.UserError, match=f"(?i){part}") as error:
        pw.load(tmp_path / "m")
    assert next(iter(change)) in str(error.value) or "sha256" in str(error.value)


def test_notes_survive_another_conversion(tmp_path: Path) -> None:
    file = write("lightning", "dip", tmp_path)
    assert main(["convert", str(file), str(tmp_path / "a"), "--sampler", "dip-imagenet256"]) == 0
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--dtype", "fp16"]) == 0
    assert read_config(tmp_path / "b") == read_config(tmp_path / "a")
    assert load_config(tmp_path / "b") == dataclasses.replace(read_config(tmp_path / "a"))
