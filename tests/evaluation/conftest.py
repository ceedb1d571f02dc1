"""A model small enough to draw from in milliseconds: 8x8 pixels, one block of 16 channels, four classes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported here or in a child

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import pixelwright as pw


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with random weights; every label gives another image."""
    folder = tmp_path_factory.mktemp("evaluated") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny = {"depth": 1, "hidden_size": 16, "num_heads": 1, "image_size": (8, 8)}
        model = pw.create("dit-ti-4", num_classes=4, class_names=("a", "b", "c", "d"), **tiny)
        for parameter in model.parameters():  # zero-initialised layers would make every label look the same
            torch.nn.init.normal_(parameter, std=0.1)
    pw.save(model, folder)
    return folder
