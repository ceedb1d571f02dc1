"""`benchmarks/agreement.py` counts the samples whose class the classifier names."""

from pathlib import Path

import torch
from agreement import agreement

from pixelwright.evaluation.features import open_extractor
from pixelwright.evaluation.features.classifier import Classifier, ClassifierConfig, save_classifier


def test_a_sample_is_right_where_the_classifier_names_its_label(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ClassifierConfig(num_classes=3, size=8, widths=(4, 6, 8))
    save_classifier(config, Classifier(config), tmp_path / "features")
    images = torch.randint(0, 256, (501, 8, 8, 3), dtype=torch.uint8)  # one more than goes through at once
    probabilities = open_extractor(str(tmp_path / "features"), "cpu")(images).probabilities
    assert probabilities is not None
    named = probabilities.argmax(1)
    wrong = torch.arange(len(images)) % 5 == 0
    right = agreement(images, torch.where(wrong, (named + 1) % 3, named), str(tmp_path / "features"))
    assert torch.equal(right, ~wrong)
