"""DINOv2 features, for FD-DINOv2 (Stein et al., 2023), through transformers."""

import hashlib
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixelwright.evaluation.features.extractor import Activations, ExtractorInfo, exactly
from pixelwright.models.vision import load_dinov2, normalised, weights_digest

NAME = "facebook/dinov2-large"
SIDE = 224
_RULE = "Pillow's bicubic with antialiasing to 224 x 224, rounded to uint8"
RESIZE = f"{_RULE}, normalised as ImageNet (dgm-eval)"


class Dinov2:
    """The extractor: the class token after the last normalisation. `path` is a folder in the format of
    transformers, a hub name, or "" for DINOv2-L, the customary one.

    Raises UserError: transformers is not installed, or the model cannot be read.
    """

    distance = "FD-DINOv2"

    def __init__(self, path: str, device: torch.device) -> None:
        self.model: Any = load_dinov2(path or NAME, "--features", "eval").to(device)
        self.device = device
        checksum = weights_digest(self.model, hashlib.sha256())
        self.info = ExtractorInfo("dinov2", checksum, SIDE, RESIZE, path)

    def __call__(self, images: Tensor) -> Activations:
        with exactly():
            fitted = images.numpy()
            if fitted.shape[1:3] != (SIDE, SIDE):
                how = ((SIDE, SIDE), Image.Resampling.BICUBIC)
                fitted = np.stack([np.asarray(Image.fromarray(each).resize(*how)) for each in fitted])
            shown = torch.from_numpy(fitted)
            x = shown.to(self.device).permute(0, 3, 1, 2).float() / 255  # [B,3,224,224]
            tokens = self.model(normalised(x)).last_hidden_state
            return Activations(tokens[:, 0].float().cpu())
