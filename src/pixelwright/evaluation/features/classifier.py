"""In-domain features: a small classifier that the project trains itself, in minutes on a CPU.

For sets where no published network can be had or would say little, such as CIFAR-10 and Shapes. Numbers with
the same classifier can be compared with one another, and with nothing else. It is trained on labelled images
in memory, by plain SGD with a learning rate like a roof.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.config import Config, NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval, read, whole
from pixelwright.data.sources import Source
from pixelwright.data.transforms import UnreadableImage, centre_crop
from pixelwright.errors import UserError
from pixelwright.evaluation.features.extractor import Activations, ExtractorInfo, exactly
from pixelwright.files import read_json, replacing, sha256, write_text
from pixelwright.images import from_uint8
from pixelwright.rng import generator

CONFIG, WEIGHTS = "config.json", "classifier.safetensors"
KIND, FORMAT = "in-domain-classifier", 1
RESIZE = "bicubic with antialiasing to a square, not rounded; [-1,1]"
SPATIAL_CHANNELS = 8
"""Of the map before the last group, for sFID: with 8 x 8 places about as many numbers as features allow."""
MEMORY_LIMIT = 4 << 30  # bytes of decoded images
HELD_OUT = 10  # one image in so many is for the test where there is no other test set
WARM_UP = 0.2  # of all steps
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # of SGD; the decay is of all weights, added to their gradients
SMOOTHING = 0.1  # share of each label that is spread over all classes


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


# ---------------------------------------------------------------- training
@dataclass(frozen=True)
class Training(Config, where=""):
    """How a classifier is trained."""

    size: Annotated[int, whole(8)] = 32
    """Side of the images in pixels."""
    epochs: PositiveInt = 8
    """Passes over the images."""
    batch_size: Annotated[int, whole(2)] = 256
    """Images per step."""
    lr: PositiveFloat = 0.2
    """Highest learning rate; it rises for a fifth of the steps and falls to 0."""
    flip: bool = True
    """Mirror half of the images."""
    seed: NonNegativeInt = 0
    """Of weights, order and augmentation."""

    def generator(self, *path: int | str) -> torch.Generator:
        """Random numbers of their own for each path."""
        return generator(self.seed, "train-features", *path)

    def rate(self, share: float, step: float) -> float:
        """Learning rate after a share of all steps, `step` the share of one."""
        return self.lr * min(share / WARM_UP, (1 - share) / (1 - WARM_UP) + step)


class Labelled(NamedTuple):
    """Images in memory."""

    images: Tensor  # uint8 [N,S,S,3]
    labels: Tensor  # int64 [N]


def read_labelled(
    source: Source, indices: Sequence[int], size: int, progress: Callable[[int], object]
) -> Labelled:
    """The readable ones of these images of a source, cropped by the rule of ADM. Raises UserError: more than
    fit into memory, or none that can be read."""
    if len(indices) * size * size * 3 > MEMORY_LIMIT:
        many = f"{len(indices)} images of {size}x{size} do not fit into {MEMORY_LIMIT >> 30} GiB"
        raise UserError(f"{many}: give a smaller --size or set")
    images, labels = [], []
    for index in indices:
        progress(1)
        try:
            sample = source[index]
        except UnreadableImage:
            continue
        images.append(torch.from_numpy(np.array(centre_crop(sample.image, size))))
        labels.append(sample.label)
    if not images:
        raise UserError("no image can be read")
    return Labelled(torch.stack(images), torch.tensor(labels))


def held_out(whole: Labelled) -> tuple[Labelled, Labelled]:
    """(train, test): one image in ten, evenly through the set, is for the test."""
    test = torch.arange(len(whole.labels)) % HELD_OUT == HELD_OUT - 1
    train, tested = (Labelled(*(part[rows] for part in whole)) for rows in (~test, test))
    return train, tested


def train(
    config: ClassifierConfig,
    settings: Training,
    train_set: Labelled,
    test_set: Labelled,
    folder: Path,
    device: torch.device,
    autocast: torch.dtype | None = None,
    progress: Callable[[int, float], object] = lambda images, loss: None,
) -> ClassifierConfig:
    """Train, measure the accuracy on the test set, save into `folder`; returns the config that was saved.
    `progress(images, loss)` is called after every step."""
    count = len(train_set.labels)
    network = _initial(config, settings).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    how: dict[str, Any] = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "nesterov": True}
    optimiser = torch.optim.SGD(network.parameters(), settings.lr, **how)
    sizes = -(-count // settings.batch_size) - (count % settings.batch_size == 1)  # steps of an epoch
    steps = settings.epochs * sizes
    for epoch in range(settings.epochs):
        order = torch.randperm(count, generator=settings.generator("order", epoch))
        for step, picks in enumerate(order.split(settings.batch_size)[:sizes]):  # one image has no statistics
            optimiser.param_groups[0]["lr"] = settings.rate((epoch * sizes + step + 1) / steps, 1 / steps)
            images = augment(train_set.images[picks], settings, epoch, step)
            x = images.to(device=device, memory_format=torch.channels_last)
            network.train()
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                logits = network(x)[2].float()
            labels = train_set.labels[picks].to(device)
            loss = F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if not math.isfinite(value := float(loss.detach())):
                raise UserError(f"the classifier's loss is {value} in epoch {epoch + 1}: give a lower --lr")
            progress(len(picks), value)
    done = replace(config, accuracy=_accuracy(network, test_set, device), settings=asdict(settings))
    save_classifier(done, network, folder)
    return done


def _initial(config: ClassifierConfig, settings: Training) -> Classifier:
    """A classifier with He's normal weights, from our own random numbers."""
    network = Classifier(config)
    for name, weights in network.named_parameters():
        if weights.ndim > 1:
            noise = torch.randn(weights.shape, generator=settings.generator("weights", name))
            weights.data = noise * math.sqrt(2 / weights[0].numel())
    network.head.bias.data.zero_()
    return network


def _accuracy(network: Classifier, test_set: Labelled, device: torch.device) -> float:
    network.eval()
    with torch.inference_mode():
        parts = [network(from_uint8(part).to(device))[2].cpu() for part in test_set.images.split(256)]
    return float((torch.cat(parts).argmax(1) == test_set.labels).double().mean())


def augment(images: Tensor, settings: Training, epoch: int, step: int) -> Tensor:
    """Images shifted by up to an eighth of their side and flipped, uint8 [B,S,S,3] -> [B,3,S,S] in [-1,1].
    What comes in at the edges is mirrored."""
    random = settings.generator("augment", epoch, step)
    count, side = images.shape[:2]
    reach = side // 8
    padded = F.pad(from_uint8(images), (reach,) * 4, mode="reflect")  # [B,3,S+2r,S+2r]
    shifts = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=random)
    flips = (torch.rand(count, generator=random) < 0.5) & settings.flip
    along = torch.arange(side)
    rows, columns = shifts[0] + along, shifts[1] + torch.where(flips[:, None], along.flip(0), along)  # [B,S]
    which = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
