"""Training of the in-domain classifier: labelled images in memory, plain SGD, a learning rate like a roof."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwright import config as checks
from pixelwright.config import Config, Decay, NonNegativeInt, PositiveInt, whole
from pixelwright.data.sources import Source
from pixelwright.data.transforms import UnreadableImage, centre_crop
from pixelwright.errors import UserError
from pixelwright.evaluation.features.classifier import Classifier, ClassifierConfig, save_classifier
from pixelwright.images import from_uint8
from pixelwright.rng import generator

MEMORY_LIMIT = 4 << 30  # bytes of decoded images
HELD_OUT = 10  # one image in so many is for the test where there is no other test set
WARM_UP = 0.2  # of all steps


@dataclass(frozen=True)
class Training(Config, where=""):
    """How a classifier is trained."""

    size: Annotated[int, whole(8)] = 32
    """Side of the images in pixels."""
    epochs: PositiveInt = 8
    """Passes over the images."""
    batch_size: Annotated[int, whole(2)] = 256
    """Images per step."""
    lr: checks.PositiveFloat = 0.2
    """Highest learning rate; it rises for a fifth of the steps and falls to 0."""
    momentum: Decay = 0.9
    """Of SGD."""
    weight_decay: checks.NonNegativeFloat = 5e-4
    """Of all weights, added to their gradients."""
    smoothing: Decay = 0.1
    """Share of each label that is spread over all classes."""
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
    decay, momentum = settings.weight_decay, settings.momentum
    optimiser = torch.optim.SGD(
        network.parameters(), settings.lr, momentum, weight_decay=decay, nesterov=True
    )
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
            loss = F.cross_entropy(logits, labels, label_smoothing=settings.smoothing)
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
