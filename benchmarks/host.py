"""What the CPU does for a training step of 32 images on a GPU, before and after.

    python benchmarks/host.py

Needs no GPU. Forward and backward pass are left out altogether (`Idle`): they are the device's. What else the
device does is done on the CPU with next to no data, so that a call costs what launching a kernel does: the
model has as many weights as the one it stands for, of four numbers each, and what was put together for the
device is cut to 8x8 pixels and two tokens where its copy would end. All else is the trainer's own, full size:
what workers hand over, putting the batch together, drawing, the search for spikes, clipping, AdamW, averages.

The time is that of the processor in all threads of the training process; workers, and what the driver copies,
are counted on neither side. malloc is told to keep memory that was freed, as CUDA keeps pinned memory, lest
the first faults of pages count in each step. "Before" is how batches were made until then, kept in
`old_inputs`: floats, mirroring and noise on the CPU.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixelwright.data import Batch, Batches, DataConfig, Sample
from pixelwright.distributed.parallel import Layout
from pixelwright.images import from_uint8
from pixelwright.models.conditions import TextCondition, drop
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.presets import preset as preset_of
from pixelwright.rng import generator
from pixelwright.text.encoders import Features, stack_captions
from pixelwright.training import LoopConfig, Trainer
from pixelwright.training.inputs import Inputs

IMAGES, TOKENS, WIDTH = 32, 300, 2304  # captions as long and features as wide as those of Gemma-2-2b


class Pictures:
    """Images that are in memory already, so that workers are always ahead."""

    class_names, num_classes = None, 1000

    def __init__(self, size: int) -> None:
        dice = np.random.default_rng(0)
        self.images = [Image.fromarray(dice.integers(0, 256, (size, size, 3), np.uint8)) for _ in range(4)]

    def __len__(self) -> int:
        return 1 << 14

    def name(self, index: int) -> str:
        return str(index)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.images[index % 4], index % 1000, f"caption {index}", str(index))


class Captions:
    """Features of captions in memory, put together as `FeatureCache` does."""

    def __init__(self) -> None:
        self.held = [torch.zeros(TOKENS, WIDTH, dtype=torch.bfloat16) for _ in range(2 * IMAGES)]
        self.null = TextCondition(torch.zeros(1, TOKENS, WIDTH, dtype=torch.bfloat16))

    def encode(self, captions: Sequence[str]) -> TextCondition:
        rows = [self.held[hash(text) % len(self.held)] for text in captions]
        found = stack_captions([Features(row, TOKENS) for row in rows], torch.device("cpu"))
        return TextCondition(found.features, found.mask, self.null)

    def flush(self) -> None: ...


class Idle(Trainer):
    """A trainer whose forward and backward pass cost nothing."""

    def gradients(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        for p, gradient in zip(self.parameters, self.made, strict=True):
            p.grad = gradient
        return inputs.t, {}

    def start(self) -> None:
        """Gradients of the shapes they have."""
        self.made = [torch.empty_like(p) for p in self.parameters]


def old_inputs(trainer: Trainer, batches: Iterator[Batch]) -> Iterator[Inputs]:
    """The way of before: image by image and in floats, on the CPU."""
    config, classes = trainer.config, trainer.model.config.num_classes
    for number, batch in enumerate(batches):
        images = batch.images
        images[batch.flipped] = images[batch.flipped].flip(3)
        x = from_uint8(images.permute(0, 2, 3, 1))
        times, keeps, noises = [], [], []
        for j in range(len(x)):
            g = generator(config.seed, "flow", number, j)
            times.append(torch.randn((), generator=g))
            keeps.append(torch.rand((), generator=g) >= config.flow.null_probability)
            noises.append(torch.randn(x.shape[1:], generator=g))
        condition: Any = batch.labels if trainer.text is None else trainer.text.encode(batch.captions)
        condition = drop(condition, ~torch.stack(keeps), classes)
        times, noise = torch.sigmoid(torch.stack(times)), torch.stack(noises)
        yield Inputs(
            small(x),
            times,
            small(noise),
            condition.map(small) if isinstance(condition, TextCondition) else condition,
        )


def small(x: Tensor) -> Tensor:
    """What is left of a tensor on the device: 8x8 pixels of images, two tokens of captions."""
    return x[..., :8, :8].contiguous() if x.ndim == 4 else x[:, :2] if x.ndim > 1 else x


def new_inputs(trainer: Trainer, batches: Iterator[Batch]) -> Iterator[Inputs]:
    """The way of now; the draws are those of the device."""
    for number, batch in enumerate(batches):
        staged = trainer.prepare.stage(batch, number)
        yield trainer.prepare.draw(staged.map(small), number)


def milliseconds(trainer: Idle, inputs: Iterator[Inputs], steps: int) -> float:
    """Processor time of a step, the median of `steps`."""
    for _ in range(2):
        trainer.train_step(next(inputs))
    found = []
    for _ in range(steps):
        begun = time.process_time()
        trainer.train_step(next(inputs))
        found.append(time.process_time() - begun)
    return 1000 * float(np.median(found))


def measure(preset: str, size: int, steps: int, workers: int) -> tuple[float, float]:
    """Before and after, in milliseconds a step."""
    text = preset.startswith("pixeldit-t2i")
    more: dict[str, Any] = {} if text else {"num_classes": 1000}
    whole = preset_of(preset, **more)
    backbone = replace(whole.backbone, hidden_size=64, num_heads=2)
    with TemporaryDirectory() as folder:
        model = PixelDenoiser(replace(whole, backbone=backbone, image_size=(size, size)))
    for p in model.parameters():
        p.data = p.data.flatten()[:4].clone()
    settings = DataConfig(size=size, flip=True, workers=workers, cache="none")
    config = LoopConfig(run=str(Path(folder) / "run"), batch_size=IMAGES, precision="fp32", device="cpu")
    layout, source, found = Layout(config.parallel, torch.device("cpu")), Pictures(size), []
    for old in (True, False):
        data = lambda start: Batches(source, settings, IMAGES, 0, start, captions=text)  # noqa: E731
        features: Any = Captions() if text else None
        trainer = Idle(model, data, config, loggers=(), text=features, layout=layout)
        trainer.start()
        with torch.no_grad():
            batches = iter(data(0))
            inputs = (old_inputs if old else new_inputs)(trainer, batches)
            found.append(milliseconds(trainer, inputs, steps))
    return found[0], found[1]


def keep_memory() -> None:
    """Begin again with a malloc that keeps what was freed."""
    settings = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
    if not settings.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    print(f"{'milliseconds of CPU a step, 32 images':44}before   after")
    for preset, size in (("dip-xl-16", 256), ("pixeldit-xl-16", 256), ("pixeldit-t2i", 512)):
        before, after = measure(preset, size, options.steps, options.workers)
        print(f"{preset + f' at {size}²':44}{before:6.1f}  {after:6.1f}", flush=True)


if __name__ == "__main__":
    main()
