"""Means of pixels, as features that need no weights: coarse, and there for every image."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwright.errors import UserError
from pixelwright.evaluation.features.extractor import Activations, ExtractorInfo

SIDE = 8


class Pixels:
    """The extractor: the means of 8 × 8 areas of an image, RGB in [0,1]."""

    distance = "pixel distance"

    def __init__(self, path: str, device: torch.device) -> None:
        """Raises UserError: a path, which it has no use for."""
        if path:
            raise UserError(f'--features is "pixels:{path}", but pixels have no weights: give "pixels"')
        self.info = ExtractorInfo("pixels", "", SIDE, "means of areas")

    def __call__(self, images: Tensor) -> Activations:
        x = images.permute(0, 3, 1, 2).float() / 255  # [B,3,H,W]
        return Activations(F.adaptive_avg_pool2d(x, SIDE).flatten(1))
