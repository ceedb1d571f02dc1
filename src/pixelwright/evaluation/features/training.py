"""Training of the in-domain classifier: labelled images in memory, plain SGD, a triangle of a learning rate.

An interrupted training goes on from the last whole epoch and ends with the same weights.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from pixelwright import config as checks
from pixelwright.config import Config, Decay, NonNegativeInt, PositiveInt, whole
from pixelwright.data.sources import Source
from pixelwright.data.transforms import UnreadableImage, centre_crop
from pixelwright.errors import UserError
from pixelwright.evaluation.features.classifier import Classifier, ClassifierConfig, save_classifier
from pixelwright.files import replacing
from pixelwright.images import from_uint8
from pixelwright.rng import generator

UNFINISHED = "unfinished.safetensors"
MEMORY_LIMIT = 4 << 30  # bytes of decoded images
HELD_OUT = 10  # one image in so many is for the test where there is no other test set
WARM_UP = 0.2  # of all steps


@dataclass(frozen=True)
class Training(Config, where=""):
    """How a classifier is trained."""

    size: Annotated[int, whole(8)] = 32
    """Side of the images in pixels."""
    epochs: PositiveInt = 8
    batch_size: Annotated[int, whole(2)] = 256
    lr: checks.PositiveFloat = 0.2
    """Highest learning rate; it rises for a fifth of the steps and falls to 0."""
    momentum: Decay = 0.9
    weight_decay: checks.NonNegativeFloat = 5e-4
    smoothing: Decay = 0.1
    """Of the labels."""
    flip: bool = True
    """Mirror half of the images."""
    seed: NonNegativeInt = 0

    def generator(self, *path: int | str) -> torch.Generator:
        """A stream of random numbers of its own for each path."""
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
    `progress(images, loss)` is called after every step, and for the images of epochs that were there."""
    count = len(train_set.labels)
    state = _State(config, settings, count, folder / UNFINISHED, device)
    state.restore()
    if state.epoch:
        progress(state.epoch * count, math.nan)
    for epoch in range(state.epoch, settings.epochs):
        order = torch.randperm(count, generator=settings.generator("order", epoch))
        for step, picks in enumerate(order.split(settings.batch_size)):
            if len(picks) < 2:  # too few for batch normalisation
                continue
            images = augment(train_set.images[picks], settings, epoch, step)
            loss = state.step(images, train_set.labels[picks], autocast)
            progress(len(picks), loss)
        state.save(epoch + 1)
    state.model.eval()
    with torch.inference_mode():
        parts = [state.model(from_uint8(part).to(device))[2].cpu() for part in test_set.images.split(256)]
    accuracy = float((torch.cat(parts).argmax(1) == test_set.labels).double().mean())
    done = replace(config, accuracy=accuracy, settings=asdict(settings))
    save_classifier(done, state.model, folder)
    (folder / UNFINISHED).unlink(missing_ok=True)
    return done


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


class _State:
    """Network, optimiser and the number of whole epochs."""

    def __init__(
        self, config: ClassifierConfig, settings: Training, count: int, path: Path, device: torch.device
    ) -> None:
        self.settings, self.path, self.device = settings, path, device
        self.job = json.dumps([asdict(replace(config, accuracy=None)), asdict(settings), count])
        self.model = Classifier(config)
        for name, parameter in self.model.named_parameters():  # He's normal weights, from our own generators
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=settings.generator("weights", name))
                parameter.data = noise * math.sqrt(2 / parameter[0].numel())
        self.model.head.bias.data.zero_()
        self.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        pace: dict[str, Any] = {"momentum": settings.momentum, "weight_decay": settings.weight_decay}
        self.optimiser = torch.optim.SGD(self.model.parameters(), settings.lr, nesterov=True, **pace)
        batches = -(-count // settings.batch_size)
        self.steps = settings.epochs * (batches - (count % settings.batch_size == 1))
        self.done = self.epoch = 0

    def step(self, images: Tensor, labels: Tensor, autocast: torch.dtype | None) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.rate((self.done + 1) / self.steps, 1 / self.steps)
        x = images.to(device=self.device, memory_format=torch.channels_last)
        self.model.train()
        with torch.autocast(self.device.type, autocast, enabled=autocast is not None):
            logits = self.model(x)[2].float()
        loss = F.cross_entropy(logits, labels.to(self.device), label_smoothing=self.settings.smoothing)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.done += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UserError(f"the classifier's loss is {value} at step {self.done}: give a lower --lr")
        return value

    def save(self, epoch: int) -> None:
        """Write all that going on needs."""
        self.epoch = epoch
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            tensors[f"momentum.{name}"] = self.optimiser.state[parameter]["momentum_buffer"]
        content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with replacing(self.path) as part:
            save_file(content, part, {"job": self.job, "epoch": str(epoch), "done": str(self.done)})

    def restore(self) -> None:
        """Go on where an earlier training with the same settings stopped. Raises UserError if they differ."""
        if not self.path.is_file():
            return
        with safe_open(self.path, "pt") as file:
            notes = file.metadata()
            if notes["job"] != self.job:
                text = f"{self.path} is of an unfinished training with other settings or images"
                raise UserError(f"{text}: use those, or remove it")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        self.epoch, self.done = int(notes["epoch"]), int(notes["done"])
        self.model.load_state_dict({name: tensors[f"model.{name}"] for name in self.model.state_dict()})
        for name, parameter in self.model.named_parameters():
            buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
            self.optimiser.state[parameter]["momentum_buffer"] = buffer
