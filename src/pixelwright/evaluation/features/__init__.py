"""Feature extractors: from images to the numbers that the metrics compare."""

from collections.abc import Callable
from pathlib import Path

import torch

from pixelwright.errors import UserError, nearest
from pixelwright.evaluation.features.classifier import ClassifierFeatures
from pixelwright.evaluation.features.extractor import Activations, Extractor, ExtractorInfo, Pixels
from pixelwright.evaluation.features.published import Dinov2, Inception

__all__ = ["EXTRACTORS", "FORMS", "Activations", "Extractor", "ExtractorInfo", "open_extractor"]

EXTRACTORS: dict[str, Callable[[str, torch.device], Extractor]] = {
    "inception": Inception,
    "dinov2": Dinov2,
    "in-domain": ClassifierFeatures,
    "pixels": Pixels,
}
"""Kind -> class, made from the path of its weights ("" for the published ones) and a device.

A further extractor is a class with the members of `Extractor`, and a row here."""
FORMS = 'give "inception", "inception:FILE.pt", "dinov2:FOLDER-OR-NAME", "pixels", or a folder of features'


def open_extractor(spec: str, device: str | torch.device = "cpu") -> Extractor:
    """The extractor that `spec` names: KIND, KIND:PATH, or the folder of an in-domain classifier. Raises
    UserError: an unknown kind, or weights that are not there, not whole or not those of the network."""
    kind, _, path = spec.partition(":")
    if kind not in EXTRACTORS:
        if not Path(spec).expanduser().is_dir():
            known = nearest(kind, EXTRACTORS)
            raise UserError(f'--features "{spec}" is neither a folder nor a kind{known}; {FORMS}')
        kind, path = "in-domain", spec
    return EXTRACTORS[kind](path, torch.device(device))
