"""The configurations in configs/: each is read, says what the papers say, and runs at the size of a toy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pixelwright.cli import main as cli
from pixelwright.cli.train import config_of, parser
from pixelwright.config import read_yaml, to_dict
from pixelwright.training import RepaConfig, load_config

from .conftest import log_of, weights_of

CONFIGS = Path(__file__).parents[2] / "configs"
DEBUG = CONFIGS / "debug" / "sizes.yaml"
IMAGES, BATCH = 1_281_167, 256
#              preset, size, epochs as the papers or the file's comment have them
IMAGENET = {
    "imagenet256-dip-l-16": ("dip-l-16", 256, 160),
    "imagenet256-dip-xl-16": ("dip-xl-16", 256, 600),
    "imagenet512-dip-xl-32": ("dip-xl-32", 512, 600),
    "imagenet256-pixeldit-b-16": ("pixeldit-b-16", 256, 320),
    "imagenet256-pixeldit-b-16-postmod": ("pixeldit-b-16-postmod", 256, 320),
    "imagenet256-pixeldit-l-16": ("pixeldit-l-16", 256, 320),
    "imagenet256-pixeldit-l-16-postmod": ("pixeldit-l-16-postmod", 256, 320),
    "imagenet256-pixeldit-xl-16": ("pixeldit-xl-16", 256, 320),
    "imagenet256-pixeldit-xl-16-postmod": ("pixeldit-xl-16-postmod", 256, 320),
    "imagenet512-pixeldit-xl-16": ("pixeldit-xl-16", 512, 80),
}
#              preset, size, steps, guidance scale and interval, REPA
X_PREDICTION = {
    "imagenet256-jit-b-16": ("jit-b-16", 256, 750_684, 3.0, (0.1, 1.0), False),
    "imagenet256-jit-l-16": ("jit-l-16", 256, 750_684, 2.4, (0.1, 1.0), False),
    "imagenet256-jit-h-16": ("jit-h-16", 256, 750_684, 2.2, (0.1, 1.0), False),
    "imagenet512-jit-h-32": ("jit-h-32", 512, 750_684, 2.3, (0.1, 1.0), False),
    "imagenet256-pixeldit2-h-16": ("pixeldit2-h-16", 256, 750_000, 2.4, (0.125, 0.9), True),
    "imagenet512-pixeldit2-h-16": ("pixeldit2-h-16-512", 512, 850_000, 2.1, (0.1, 0.925), True),
}
# What makes a run a small one, and nothing else.
SIZES = {"run", "steps", "batch_size", "log_every", "checkpoint_every", "sample_every"}
SIZES |= {"model.depth", "model.hidden_size", "model.num_heads", "sample.count", "sample.steps"}
SIZES |= {"data.path", "data.size", "data.workers"}


def flat(values: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield from flat(value, f"{where}{key}.") if isinstance(value, dict) else [(where + key, value)]


def settings_of(*arguments: str) -> dict[str, Any]:
    """What the command line makes of these arguments, by dotted key."""
    return dict(flat(to_dict(config_of(parser().parse(list(arguments))))))


def test_none_is_forgotten() -> None:
    assert {path.stem for path in CONFIGS.glob("imagenet*.yaml")} == {*IMAGENET, *X_PREDICTION}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_is_read_the_same_by_the_command_and_the_library(path: Path) -> None:
    assert settings_of("--config", str(path)) == dict(flat(to_dict(load_config(path))))


@pytest.mark.parametrize("name", list(IMAGENET))
def test_the_numbers_of_the_papers(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    preset, size, epochs = IMAGENET[name]
    assert (config.model.preset, config.data.size) == (preset, size)
    assert config.model.denoiser().patch_size == (32 if name.endswith("dip-xl-32") else 16)
    assert (config.batch_size, config.steps) == (BATCH, round(epochs * IMAGES / BATCH))
    assert (config.optim.name, config.optim.lr, config.optim.weight_decay) == ("adamw", 1e-4, 0.0)
    assert (config.ema_decay, config.precision) == (0.9999, "bf16")
    (repa,) = config.objectives
    assert isinstance(repa, RepaConfig)
    assert (repa.depth, repa.weight) == (8, 0.5)
    assert config.flow.null_probability == 0.1
    assert config.flow.time_shift == (3.0 if name == "imagenet512-pixeldit-xl-16" else 1.0)
    if "pixeldit" in name:
        assert (config.optim.schedule, config.optim.lr_end) == ("step-down", 1e-5)
        assert config.optim.drop_at == ("75%" if size == 512 else "87.5%")
        assert config.optim.clip == (0.5 if size == 512 else 1.0)
    else:
        assert config.optim.schedule == "constant"
    assert (config.init is not None) == (name == "imagenet512-pixeldit-xl-16")


@pytest.mark.parametrize("name", list(X_PREDICTION))
def test_the_numbers_of_jit_and_pixeldit2(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    preset, size, steps, scale, interval, repa = X_PREDICTION[name]
    assert (config.model.preset, config.data.size, config.data.flip) == (preset, size, True)
    assert (config.batch_size, config.steps, config.precision) == (1024, steps, "bf16")
    optim = config.optim
    assert (optim.name, optim.lr, optim.betas, optim.weight_decay) == ("adamw", 2e-4, (0.9, 0.95), 0.0)
    assert (optim.schedule, optim.clip) == ("constant", None) and optim.warmup in (6255, 6256)
    assert (config.ema_decay, config.ema_more) == (0.9999, () if repa else (0.9996,))
    assert (config.flow.time_mean, config.flow.time_std, config.flow.null_probability) == (-0.8, 0.8, 0.1)
    assert [type(each) for each in config.objectives] == [RepaConfig] * repa
    model, sample = config.model.denoiser(), config.sample
    assert (model.prediction, model.noise_scale, model.image_size) == ("x", size / 256, (size, size))
    assert model.backbone.dropout == (0.2 if "-h-" in name else 0.0)
    assert config.flow.null_ungrounded_probability == (0.05 if repa and size == 512 else 0.0)
    assert (sample.solver, sample.steps, sample.guidance_scale) == ("heun", 50, scale)
    assert (sample.guidance_interval, sample.guidance_ends) == (interval, "zero")


@pytest.mark.usefixtures("no_extras")
@pytest.mark.parametrize("name", ["imagenet256-jit-h-16", "imagenet512-pixeldit2-h-16"])
def test_they_run_at_the_size_of_a_toy(name: str, tmp_path: Path, dino: Path, dinov3: str) -> None:
    files = ["--config", str(CONFIGS / f"{name}.yaml"), "--config", str(DEBUG)]
    more = ["--objectives", "[]", "--model.backbone.in_context_start", "1"]
    if "pixeldit2" in name:
        backbone = f"{{in_context_start: 1, encoder: {dinov3}, encoder_size: 24, grounding_heads: 2}}"
        more = ["--objectives.repa.teacher", str(dino), "--model.backbone", backbone]
    assert cli.main(["train", *files, "--run", str(tmp_path / "run"), "--device", "cpu", *more]) == 0
    assert all(0 < line["loss"] < 30 and not line["skipped"] for line in log_of(tmp_path / "run"))


def test_the_debug_file_holds_sizes_alone() -> None:
    assert {key for key, _ in flat(read_yaml(DEBUG))} == SIZES | {"objectives.repa.depth"}


@pytest.mark.parametrize("name", list(IMAGENET))
def test_twins_differ_from_their_originals_in_sizes_alone(name: str) -> None:
    full = settings_of("--config", str(CONFIGS / f"{name}.yaml"))
    twin = settings_of("--config", str(CONFIGS / f"{name}.yaml"), "--config", str(DEBUG))
    assert full.keys() == twin.keys()
    assert {key for key in full if full[key] != twin[key]} == SIZES | {"objectives"}
    assert twin["objectives"] == [{**full["objectives"][0], "depth": 2}]


@pytest.mark.usefixtures("no_extras")
@pytest.mark.parametrize("name", [name for name in IMAGENET if "512-pixeldit" not in name])
def test_every_twin_runs(name: str, tmp_path: Path, dino: Path) -> None:
    assert cli.main(twin(name, tmp_path / "run", dino)) == 0
    lines = log_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(0 < line["loss"] < 10 and 0 < line["repa_loss"] < 2 and not line["skipped"] for line in lines)


@pytest.mark.usefixtures("no_extras")
def test_the_second_stage_starts_from_the_weights_of_the_first(tmp_path: Path, dino: Path) -> None:
    assert cli.main(twin("imagenet256-pixeldit-xl-16", tmp_path / "256", dino)) == 0
    first = ["--init", str(tmp_path / "256"), "--data.size", "96", "--steps", "1"]
    assert cli.main([*twin("imagenet512-pixeldit-xl-16", tmp_path / "512", dino), *first]) == 0
    before, after = weights_of(tmp_path / "256"), weights_of(tmp_path / "512")
    assert before.keys() == after.keys()
    for name, tensor in before.items():  # one step of Adam moves a weight by 1e-4
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1.1e-4)


def twin(name: str, run: Path, dino: Path) -> list[str]:
    files = ["--config", str(CONFIGS / f"{name}.yaml"), "--config", str(DEBUG)]
    return ["train", *files, "--run", str(run), "--objectives.repa.teacher", str(dino), "--device", "cpu"]
