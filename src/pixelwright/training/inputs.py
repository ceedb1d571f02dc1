"""From a batch of images to what a training step computes its loss from."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from pixelwright.data import Batch, Batches, DataConfig, Source
from pixelwright.distributed.parallel import Layout
from pixelwright.models.conditions import Condition
from pixelwright.training.config import LoopConfig

Batched = Callable[[int], Iterable[Batch]]  # gives the batches from a step on, counted from 0


class Inputs(NamedTuple):
    """What this process computes the loss of a step from, on its device: b images of the batch."""

    images: Tensor  # [b,3,H,W]
    t: Tensor  # [b]
    noise: Tensor  # [b,3,H,W]
    condition: Condition  # labels [b] or captions of b images, some of them null


def batches_of(
    source: Source, settings: DataConfig, config: LoopConfig, layout: Layout, captions: bool
) -> Batched:
    """The batches of a source for this process."""
    run = (config.batch_size, config.seed)
    return lambda start: Batches(source, settings, *run, start, layout.rank, layout.world, captions)
