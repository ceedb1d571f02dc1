"""A training run small enough to be done many times: 8x8 shapes, 16 channels, two blocks, 4 images a step."""

import json
import os
import sys
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported here or in a child

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pixelwright.data import DataConfig
from pixelwright.training import ModelConfig, OptimConfig, SampleConfig, TrainConfig
from tests.encoders import tiny_bert

Tiny = Callable[..., TrainConfig]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 with random weights, whose table is for 4 x 4 patches of 14 pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Dinov2Config, Dinov2Model
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14
    )
    model = Dinov2Model(config)
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    folder = tmp_path_factory.mktemp("dino") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dinov3(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A DINOv3 with random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import DINOv3ViTConfig, DINOv3ViTModel
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    folder = tmp_path_factory.mktemp("dinov3") / "model"
    DINOv3ViTModel(DINOv3ViTConfig(**sizes, num_register_tokens=4)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder with random weights."""
    return tiny_bert(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture
def no_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if matplotlib and TensorBoard were not installed, which is quicker."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """Makes configs of tiny runs: `tiny("name", steps=5)`."""

    def make(run: str = "run", **changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "model": ModelConfig("dit-ti-4", hidden_size=16, depth=2, num_heads=2),
            "data": DataConfig(path="shapes", size=8, shapes_count=24, flip=True),
            "optim": OptimConfig(lr=1e-3, warmup=5),
            "sample": SampleConfig(count=4, steps=2),
            "steps": 20,
            "batch_size": 4,
            "ema_decay": 0.9,
            "device": "cpu",
            "precision": "fp32",  # auto is bf16 on some processors
            "log_every": 1,
            "checkpoint_every": 5,
            "sample_every": 0,
        }
        return TrainConfig(run=str(tmp_path / run), **{**settings, **changes})

    return make


def same_state(one: dict[str, dict[str, torch.Tensor]], other: dict[str, dict[str, torch.Tensor]]) -> None:
    """Assert that two states hold the same names and the same bits."""
    assert one.keys() == other.keys()
    for group, tensors in one.items():
        assert tensors.keys() == other[group].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other[group][name]), f"{group}: {name}"


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """The exported weights of a run."""
    return load_file(run / "model" / "model.safetensors")


def log_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
