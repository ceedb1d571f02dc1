"""From a batch of images to what a training step computes its loss from.

Workers give uint8. A thread takes batches from them, has their captions encoded and begins their copy to the
device, `AHEAD` steps before they are used; all arithmetic (floats, mirroring, noise, times, dropped labels)
is done there by the thread of the training step. So the CPU only hands memory on, and no step waits for it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, starmap
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pixelwright.data import Batch, Batches, DataConfig, Source
from pixelwright.data.loader import as_floats
from pixelwright.diffusion import flow
from pixelwright.distributed.parallel import Layout
from pixelwright.models.conditions import Condition, TextCondition
from pixelwright.models.config import DenoiserConfig
from pixelwright.text import FeatureCache
from pixelwright.training.config import LoopConfig
from pixelwright.training.objectives import Objective

AHEAD = 2  # batches that are on the device before they are used
T = TypeVar("T")
Batched = Callable[[int], Iterable[Batch]]  # gives the batches from a step on, counted from 0


class Staged(NamedTuple):
    """What is copied to the device for a step: b images of the batch, and what they show."""

    images: Tensor  # [b,3,H,W] uint8
    flipped: Tensor  # [b] bool
    condition: Condition  # labels [b], or captions of b images
    targets: Mapping[str, Tensor] = {}  # [b, ...] by objective, see `Objective.targets`

    def map(self, function: Callable[[Tensor], Tensor]) -> "Staged":
        """With every tensor as `function` makes it."""
        condition = self.condition
        changed = condition.map(function) if isinstance(condition, TextCondition) else function(condition)
        targets = {name: function(x) for name, x in self.targets.items()}
        return Staged(function(self.images), function(self.flipped), changed, targets)


class Inputs(NamedTuple):
    """What this process computes the loss of a step from, on its device: b images of the batch."""

    images: Tensor  # [b,3,H,W] in [-1,1]
    t: Tensor  # [b]
    noise: Tensor  # [b,3,H,W]
    condition: Condition  # labels [b] or captions of b images, some of them null
    targets: Mapping[str, Tensor] = {}  # [b, ...] by objective

    def split(self, size: int) -> Iterator["Inputs"]:
        """Micro-batches of `size` images."""
        for start in range(0, len(self.images), size):
            part = slice(start, start + size)
            targets = {name: x[part] for name, x in self.targets.items()}
            yield Inputs(self.images[part], self.t[part], self.noise[part], self.condition[part], targets)


def batches_of(
    source: Source, settings: DataConfig, config: LoopConfig, layout: Layout, captions: bool
) -> Batched:
    """The batches of a source for this process."""
    run, pinned = (config.batch_size, config.seed), layout.device.type == "cuda"
    return lambda start: Batches(source, settings, *run, start, layout.rank, layout.world, captions, pinned)


class Preparation:
    """From this process's part of a batch to the inputs of a step; called with a batch and its number."""

    def __init__(
        self,
        config: LoopConfig,
        model: DenoiserConfig,
        text: FeatureCache | None,
        layout: Layout,
        objectives: Sequence[Objective] = (),
    ) -> None:
        self.config, self.model, self.text, self.layout = config, model, text, layout
        self.objectives = objectives

    def __call__(self, batch: Batch, number: int) -> Inputs:
        return self.draw(self.stage(batch, number).map(lambda x: x.to(self.layout.device)), number)

    def ahead(self, batches: Iterator[Batch], start: int) -> Iterator[Inputs]:
        """The inputs of batches numbered from `start`, which are copied to the device beforehand."""
        staged = map(self.stage, batches, count(start))
        return map(self.draw, staged_ahead(staged, self.layout.device), count(start))

    def stage(self, batch: Batch, number: int) -> Staged:
        """What is to be copied; captions are encoded, and objectives add what they know beforehand."""
        condition: Any = batch.labels if self.text is None else self.text.encode(batch.captions)
        images, flipped, device = batch.images, batch.flipped, self.layout.device
        known = [each.targets(images, flipped, number, device) for each in self.objectives]
        targets = {name: value for each in known for name, value in each.items()}
        return Staged(images, flipped, condition, targets)

    def draw(self, staged: Staged, number: int) -> Inputs:
        """All that is done on the device: floats, and what is drawn for this batch."""
        condition: Any = staged.condition
        images, config = as_floats(staged.images, staged.flipped), self.config
        place = (config.seed, number, self.layout.rank * len(images))
        t, noise, condition = flow.draw(config.flow, images, condition, self.model, *place)
        return Inputs(images, t, noise, condition, staged.targets)


def staged_ahead(items: Iterator[Staged], device: torch.device, cuda: Any = torch.cuda) -> Iterator[Staged]:
    """The same on a device other than the CPU, their copies begun `AHEAD` items before in another thread.

    On CUDA (and ROCm) copies go from pinned memory over a stream of their own; the stream that uses an item
    waits for its copy, and the CPU for nothing. `cuda` is what streams and events come from.
    """
    if device.type != "cuda":
        return ahead(item.map(lambda x: x.to(device, non_blocking=True)) for item in items)
    copying = cuda.Stream(device)

    def begin(item: Staged) -> tuple[Staged, Any]:
        pinned = item.map(lambda x: x if x.device.type != "cpu" or x.is_pinned() else x.pin_memory())
        with cuda.stream(copying):
            return pinned.map(lambda x: x.to(device, non_blocking=True)), copying.record_event()

    def arrive(item: Staged, copied: Any) -> Staged:
        using = cuda.current_stream(device)
        using.wait_event(copied)

        def use(x: Tensor) -> Tensor:
            x.record_stream(using)  # its memory is not given away before this stream is done with it
            return x

        return item.map(use)

    return starmap(arrive, ahead(map(begin, items)))


def ahead(items: Iterator[T], number: int = AHEAD) -> Iterator[T]:
    """The same items, made in a thread, `number` before they are taken."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="inputs")
    try:
        pending = deque(pool.submit(next, items) for _ in range(number))
        while True:
            pending.append(pool.submit(next, items))
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
