"""In-domain features: a small classifier that the project trains itself, in minutes on a CPU.

For sets where no published network can be had or would say little, such as CIFAR-10 and Shapes. Numbers with
the same classifier can be compared with one another, and with nothing else.
"""

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.config import Config, PositiveInt, UnitInterval, read, whole
from pixelwright.errors import UserError
from pixelwright.evaluation.features.extractor import Activations, ExtractorInfo, exactly
from pixelwright.files import read_json, replacing, sha256, write_text
from pixelwright.images import from_uint8

CONFIG, WEIGHTS = "config.json", "classifier.safetensors"
KIND, FORMAT = "in-domain-classifier", 1
RESIZE = "bicubic with antialiasing to a square, not rounded; [-1,1]"
SPATIAL_CHANNELS = 8
"""Of the map before the last group, for sFID: with 8 x 8 places about as many numbers as features allow."""


@dataclass(frozen=True)
class ClassifierConfig(Config, where="classifier"):
    """A classifier as data."""

    num_classes: Annotated[int, whole(2)]
    size: Annotated[int, whole(8)] = 32
    """Side of the square images that it sees; a multiple of 8."""
    widths: tuple[PositiveInt, PositiveInt, PositiveInt] = (32, 96, 128)
    """Channels of its three groups; the last is the width of the features."""
    source: str = ""
    """What it was trained on."""
    accuracy: UnitInterval | None = None
    """Share of images of `tested_on` that it names rightly."""
    tested_on: str = ""
    settings: dict[str, Any] | None = None
    """How it was trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 8:
            raise UserError(f"classifier.size is {self.size}: give a multiple of 8")


def _block(inputs: int, outputs: int, *pool: nn.Module) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, *pool, nn.BatchNorm2d(outputs), nn.GELU())


def _group(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions; the first pools, so that most of the work is at a quarter of the places."""
    return nn.Sequential(_block(inputs, outputs, nn.MaxPool2d(2)), _block(outputs, outputs))


class Classifier(nn.Module):
    """A plain convolutional network: a stem, three groups that halve the sides, a mean over places, a Linear.
    [B,3,S,S] in [-1,1] -> (spatial map [B,C2,S/4,S/4], features [B,C3], logits [B,num_classes])."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        widths = (config.widths[0] // 2 or 1, *config.widths)
        self.stem = _block(3, widths[0])
        self.groups = nn.ModuleList(_group(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], config.num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(x)
        x = self.groups[0](x)
        spatial = self.groups[1](x)
        features = self.groups[2](spatial).mean((2, 3))  # [B,C3]
        return spatial, features, self.head(features)


class ClassifierFeatures:
    """The extractor of a trained classifier's folder. Raises UserError: not such a folder, or damaged
    files."""

    distance = "FID, in-domain"

    def __init__(self, path: str, device: torch.device) -> None:
        if not path:
            remedy = "give it, or train some with `evaluation train-features`"
            raise UserError(f"in-domain features are in a folder: {remedy}")
        folder = Path(path).expanduser()
        self.config = read_config(folder)
        model = Classifier(self.config)
        try:
            model.load_state_dict(load_file(folder / WEIGHTS))
        except (SafetensorError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{folder / WEIGHTS} does not fit its {CONFIG}: {reason}") from None
        self.model = model.eval().requires_grad_(False).to(device)
        self.device = device
        size, accuracy = self.config.size, self.config.accuracy
        self.info = ExtractorInfo("in-domain", sha256(folder / WEIGHTS), size, RESIZE, path, accuracy)

    def __call__(self, images: Tensor) -> Activations:
        with exactly():
            x = fit(images.to(self.device), self.config.size)
            spatial, features, logits = self.model(x)
            flat = spatial[:, :SPATIAL_CHANNELS].flatten(1)  # [B,8·(S/4)²]
            return Activations(features.cpu(), flat.cpu(), logits.softmax(1).cpu())


def fit(images: Tensor, size: int) -> Tensor:
    """uint8 [B,H,W,3] -> float32 [B,3,size,size] in about [-1,1], by the rule `RESIZE`."""
    x = from_uint8(images)
    if x.shape[2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return x


def save_classifier(config: ClassifierConfig, model: Classifier, folder: Path) -> None:
    """Write `config.json` and the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as part:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, part)
    content = {"kind": KIND, "format": FORMAT, "checksum": sha256(folder / WEIGHTS), **asdict(config)}
    write_text(folder / CONFIG, json.dumps(content, indent=2) + "\n")


def read_config(folder: Path) -> ClassifierConfig:
    """The configuration of a saved classifier. Raises UserError if it is none or the weights are others."""
    path = folder / CONFIG
    if not path.is_file():
        remedy = "give a folder made by `pixelwright evaluation train-features`"
        raise UserError(f'"{folder}" holds no {CONFIG}: {remedy}')
    try:
        content = read_json(path)
        kind, number, checksum = (content.pop(key) for key in ("kind", "format", "checksum"))
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not the configuration of a classifier ({error})") from None
    if (kind, number) != (KIND, FORMAT):
        raise UserError(f"{path} is of {kind!r}, format {number!r}; {KIND!r}, format {FORMAT} is needed")
    config = read(ClassifierConfig, content, str(path))
    if sha256(folder / WEIGHTS) != checksum:
        text = f"{folder / WEIGHTS} is not the file that {CONFIG} was written with"
        raise UserError(f"{text}: train the features anew")
    return config
