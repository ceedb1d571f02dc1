"""The three stages of text to image: the numbers in their files, and that each starts from the one before."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pixelwright as pw
from pixelwright.cli import main as cli
from pixelwright.models.config import SamplerSettings
from pixelwright.training import load_config
from tests.encoders import tiny_gemma

from .conftest import log_of, weights_of

CONFIGS = Path(__file__).parents[2] / "configs"
STAGES = ("t2i-512", "t2i-512-aspects", "t2i-1024-aspects")
#           size, aspects, REPA's block, lr, clip, shift, begins with
NUMBERS = {
    "t2i-512": (512, False, 6, 1e-4, 0.2, 3.0, None),
    "t2i-512-aspects": (512, True, None, 1e-4, 0.2, 3.0, "runs/t2i-512"),
    "t2i-1024-aspects": (1024, True, None, 2e-5, 0.1, 4.0, "runs/t2i-512-aspects"),
}


@pytest.mark.parametrize("name", STAGES)
def test_the_numbers_of_the_paper(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    repa = config.objectives[0].depth if config.objectives else None
    assert NUMBERS[name] == (
        config.data.size,
        config.data.aspects,
        repa,
        config.optim.lr,
        config.optim.clip,
        config.flow.time_shift,
        config.init,
    )
    assert all(objective.weight == 0.5 for objective in config.objectives)
    assert (config.model.preset, config.optim.name, config.sample.solver) == (
        "pixeldit-t2i",
        "came",
        "dpmpp-2m",
    )
    assert (config.flow.null_probability, config.flow.time_mean, config.flow.time_std) == (0.1, 0.0, 1.0)
    assert config.text is not None and config.text.encoder == "gemma"
    assert config.sample.time_shift == config.flow.time_shift


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of captioned noise in three shapes."""
    path = tmp_path_factory.mktemp("photos") / "set.tar"
    with tarfile.open(path, "w") as archive:
        for i, size in enumerate([(64, 64), (140, 40), (40, 140)] * 4):
            buffer = io.BytesIO()
            noise = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(noise).save(buffer, "PNG")
            for suffix, data in (("png", buffer.getvalue()), ("txt", b"a red star")):
                member = tarfile.TarInfo(f"{i:02}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.usefixtures("no_extras")
@pytest.mark.parametrize("preset", ["pixeldit-t2i-ti", "dip-t2i-ti"])
def test_their_twins_run_one_after_the_other(
    preset: str, tmp_path: Path, dino: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("came_pytorch")
    monkeypatch.setenv("PIXELWRIGHT_CACHE", str(tmp_path / "cache"))
    gemma = tiny_gemma(tmp_path / "gemma")
    before: dict[str, torch.Tensor] = {}
    for number, name in enumerate(STAGES):
        size = 32 * (1 + number // 2)
        small = {
            "model.preset": preset,
            "model.depth": 2,
            "model.hidden_size": 16,
            "model.num_heads": 2,
            "data.path": photos,
            "data.size": size,
            "data.min_side": 32,
            "data.workers": 0,
            "text.path": gemma,
            "text.cache": tmp_path / "features",
            "run": tmp_path / name,
            "steps": 2,
            "batch_size": 2,
            "log_every": 1,
            "sample.count": 1,
            "sample.steps": 1,
            "device": "cpu",
        }
        if number == 0:
            small |= {"objectives": f"[{{type: repa, teacher: {dino}, depth: 1}}]"}
        else:
            small |= {"init": tmp_path / STAGES[number - 1], "data.aspect_step": 16}
        words = [word for key, value in small.items() for word in (f"--{key}", str(value))]
        assert cli.main(["train", "--config", str(CONFIGS / f"{name}.yaml"), *words]) == 0
        assert [line["step"] for line in log_of(tmp_path / name)] == [1, 2]
        after = weights_of(tmp_path / name)
        for key, tensor in before.items():  # the weights of the stage before, two small steps on
            torch.testing.assert_close(after[key], tensor, rtol=0, atol=0.01)
        before = after
    assert pw.sample(
        pw.load(tmp_path / STAGES[-1]), ["a red star"], SamplerSettings(steps=1), size=(48, 80)
    ).shape == (1, 48, 80, 3)
