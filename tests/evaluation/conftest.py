"""A model small enough to draw from in milliseconds: 8x8 pixels, one block of 16 channels, four classes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported here or in a child

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import pixelwright as pw
from pixelwright.evaluation.features import open_extractor
from pixelwright.evaluation.features.classifier import Classifier, ClassifierConfig, save_classifier
from pixelwright.evaluation.images import open_images
from pixelwright.evaluation.references import build_reference
from pixelwright.images import save_png


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


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 random images in four classes, random features, and the reference made with them."""
    folder = tmp_path_factory.mktemp("judged")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ClassifierConfig(num_classes=3, size=8, widths=(4, 6, 8))
        save_classifier(config, Classifier(config), folder / "features")
        images = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8)
    for i, image in enumerate(images):
        save_png(image, folder / "images" / "abcd"[i % 4] / f"{i:02d}.png")
    extractor = open_extractor(str(folder / "features"))
    build_reference(open_images(str(folder / "images")), extractor, folder / "reference.npz")
    return folder
