"""From `--features` to an extractor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from pixelwright.errors import UserError, nearest
from pixelwright.evaluation.classifier import InDomain
from pixelwright.evaluation.dinov2 import Dinov2
from pixelwright.evaluation.extractors import Extractor
from pixelwright.evaluation.inception import Inception

EXTRACTORS: dict[str, Callable[[str, torch.device], Extractor]] = {
    "inception": Inception,
    "dinov2": Dinov2,
    "in-domain": InDomain,
}
"""Kind -> class, made from the place of its weights ("" for where it is by default) and a device."""
FORMS = 'give "inception", "inception:FILE.pt", "dinov2:FOLDER-OR-NAME", or the folder of trained features'


def open_extractor(spec: str, device: str | torch.device = "cpu") -> Extractor:
    """The extractor that `spec` names: KIND, KIND:PLACE, or the folder of an in-domain classifier.

    Raises:
        UserError: an unknown kind, or weights that are not there, not whole or not those of the network.
    """
    kind, _, place = spec.partition(":")
    if kind not in EXTRACTORS:
        if Path(spec).expanduser().is_dir():
            kind, place = "in-domain", spec
        else:
            raise UserError(
                f'--features "{spec}" is neither a folder nor a kind{nearest(kind, EXTRACTORS)}; {FORMS}'
            )
    return EXTRACTORS[kind](place, torch.device(device))
