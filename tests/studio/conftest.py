"""Small models whose pictures are not all alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pixelwright as pw
from pixelwright.models.config import SamplerPreset, TextNote
from tests.encoders import tiny_bert


def save(folder: Path, name: str, **settings: object) -> str:
    torch.manual_seed(0)
    net = pw.create(name, **settings)  # type: ignore[arg-type]
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    pw.save(net, folder)
    return str(folder)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a model of two classes."""
    settings = {"class_names": ["cat", "dog"], "image_size": (16, 16)}
    return save(tmp_path_factory.mktemp("models") / "classes", "dip-n-8", num_classes=2, **settings)


@pytest.fixture(scope="session")
def quick_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a model of two classes, whose preset draws in one step."""
    settings = {"class_names": ["cat", "dog"], "image_size": (16, 16), "sampler": SamplerPreset(steps=1)}
    return save(tmp_path_factory.mktemp("models") / "quick", "dip-n-8", num_classes=2, **settings)


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a model of captions, and its encoder beside it."""
    folder = tmp_path_factory.mktemp("text-models")
    note = TextNote("minilm", str(tiny_bert(folder / "bert")))
    sizes = {"hidden_size": 24, "depth": 1, "num_heads": 2, "text_size": 24, "image_size": (16, 16)}
    return save(folder / "captions", "dip-t2i-ti", text=note, **sizes)
