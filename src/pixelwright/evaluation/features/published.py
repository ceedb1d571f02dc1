"""Published networks: Inception of 2015 (FID, sFID, IS, precision and recall) and DINOv2 (FD-DINOv2).

Inception is TorchScript, in the distribution of StyleGAN2-ADA and EDM, a translation of the TensorFlow graph
that ADM evaluates with; it takes pixels from 0 to 255 of any size and resizes them itself. DINOv2 comes
through transformers.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pixelwright.errors import UserError
from pixelwright.evaluation.features.extractor import Activations, ExtractorInfo, exactly
from pixelwright.files import sha256
from pixelwright.models.vision import load_dinov2, normalised, weights_digest
from pixelwright.remote import fetch

URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
SIDE = 299
RESIZE = "the network's own: bilinear to 299 x 299 as TensorFlow 1 did it, without antialiasing, not rounded"
PREFIX = (
    *("conv", "conv_1", "conv_2", "pool0", "conv_3", "conv_4", "pool1"),
    *("mixed", "mixed_1", "mixed_2", "mixed_3", "mixed_4", "mixed_5"),
)
"""The layers before mixed_6, whose first convolution gives the spatial feature."""
SPATIAL_CHANNELS = 7  # of its 17 x 17 map: 2,023 numbers, about as many as features (Nash et al., 2021; ADM)
TOLERANCE = 1e-3  # how far, relative to the largest, our way through the layers may be from the network's own


class Inception:
    """The extractor. `path` is the TorchScript file, an address of it (fetched once, into the cache), or ""
    for the published one. Raises UserError: the file cannot be had, or is not that network."""

    distance = "FID"

    def __init__(self, path: str, device: torch.device) -> None:
        file = _local(path or URL)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, which the file is in
                self.network: Any = torch.jit.load(file, map_location=device).eval()
        except (RuntimeError, ValueError) as error:
            text = f"{file} is no TorchScript file ({str(error).splitlines()[0][:200]})"
            raise UserError(f"{text}: give the inception-2015-12-05.pt") from None
        self.device = device
        self.info = ExtractorInfo("inception", sha256(file), SIDE, RESIZE, path)
        self._check(file)

    def __call__(self, images: Tensor) -> Activations:
        with exactly():
            x = images.to(self.device).permute(0, 3, 1, 2)  # [B,3,H,W], 0 to 255
            features = self.network(x, return_features=True)
            # The published Inception Score leaves out the bias of the last layer.
            probabilities = (features @ self.network.output.weight.T).softmax(1)
            spatial = self._spatial(resized(x)).flatten(1)  # [B,7·17·17]
            return Activations(*(part.float().cpu() for part in (features, spatial, probabilities)))

    def _spatial(self, x: Tensor) -> Tensor:
        for name in PREFIX:
            x = getattr(self.network.layers, name)(x)
        return self.network.layers.mixed_6.conv(x)[:, :SPATIAL_CHANNELS]

    def _check(self, path: Path) -> None:
        """Make sure that our way to the spatial feature is the network's own, on an image of waves."""
        line = torch.arange(40, device=self.device) * 0.4
        wave = (127 * (line.sin()[:, None] * line.cos()) + 128).to(torch.uint8).expand(1, 3, 40, 40)
        try:
            with exactly():
                own = self.network(wave, return_features=True)
                ours = self.network.layers(resized(wave)).reshape(own.shape)
                self._spatial(resized(wave))
                bare = self.network(wave, no_output_bias=True)
                probabilities = (own @ self.network.output.weight.T).softmax(1)
        except (RuntimeError, AttributeError, TypeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{path} is not the Inception network of 2015 ({reason})") from None
        for what, a, b in (("features", ours, own), ("probabilities", probabilities, bare)):
            if not bool((a - b).abs().max() <= TOLERANCE * b.abs().max()):
                raise UserError(f"{path} is not the Inception network of 2015: its {what} come out otherwise")


def resized(images: Tensor) -> Tensor:
    """[B,3,H,W] from 0 to 255 -> float32 [B,3,299,299] in [-1,1), as the network does it inside. Bilinear by
    the rule of TensorFlow 1: pixel i of the outcome looks at place i·H/299, not at centres."""
    rows, columns = (
        2 * torch.arange(SIDE, device=images.device, dtype=torch.float32) / SIDE + 1 / side - 1
        for side in images.shape[2:]
    )
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # [299,299,2], x before y
    grid = grid.expand(len(images), -1, -1, -1)
    x = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (x - 128) / 128


def _local(path: str) -> Path:
    """The local file of a path or an address. Raises UserError if it cannot be had."""
    if "://" in path:
        try:
            return fetch([path])[0]
        except UserError as error:
            raise UserError(f"{error}; or fetch it by hand and give --features inception:FILE") from None
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f'"{path}" is no file: give the inception-2015-12-05.pt, or leave it out to fetch it')
    return file


# ---------------------------------------------------------------- DINOv2
DINOV2 = "facebook/dinov2-large"
DINOV2_SIDE = 224
DINOV2_RESIZE = "Pillow's bicubic with antialiasing to 224 x 224, rounded to uint8"
DINOV2_RESIZE += ", normalised as ImageNet (dgm-eval)"


class Dinov2:
    """The extractor: the class token after the last normalisation. `path` is a folder in the format of
    transformers, a hub name, or "" for DINOv2-L, the customary one.

    Raises UserError: transformers is not installed, or the model cannot be read.
    """

    distance = "FD-DINOv2"

    def __init__(self, path: str, device: torch.device) -> None:
        self.model: Any = load_dinov2(path or DINOV2, "--features", "eval").to(device)
        self.device = device
        checksum = weights_digest(self.model, hashlib.sha256())
        self.info = ExtractorInfo("dinov2", checksum, DINOV2_SIDE, DINOV2_RESIZE, path)

    def __call__(self, images: Tensor) -> Activations:
        with exactly():
            fitted = images.numpy()
            if fitted.shape[1:3] != (DINOV2_SIDE, DINOV2_SIDE):
                how = ((DINOV2_SIDE, DINOV2_SIDE), Image.Resampling.BICUBIC)
                fitted = np.stack([np.asarray(Image.fromarray(each).resize(*how)) for each in fitted])
            shown = torch.from_numpy(fitted)
            x = shown.to(self.device).permute(0, 3, 1, 2).float() / 255  # [B,3,224,224]
            tokens = self.model(normalised(x)).last_hidden_state
            return Activations(tokens[:, 0].float().cpu())
