"""From a batch of images to what a training step computes its loss from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor

from pixelwright.data import Batch, Batches, DataConfig, Source
from pixelwright.diffusion import flow
from pixelwright.distributed.parallel import Layout
from pixelwright.models.conditions import Condition
from pixelwright.models.config import DenoiserConfig
from pixelwright.text import FeatureCache
from pixelwright.training.config import LoopConfig

Batched = Callable[[int], Iterable[Batch]]
"""Gives the batches from a step on, counted from 0."""


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
    rank, world = layout.rank, layout.world
    return lambda start: Batches(
        source, settings, config.batch_size, config.seed, start, rank, world, captions
    )


def make_inputs(
    batch: Batch,
    number: int,
    model: DenoiserConfig,
    config: LoopConfig,
    layout: Layout,
    text: FeatureCache | None,
) -> Inputs:
    """This process's part of a batch on its device: times, noise and dropped conditions are drawn here.

    The batch of step k, counted from 0, has the number k, and a higher one after a rollback.
    """
    first = layout.rank * len(batch.images)
    condition: Any = batch.labels if text is None else text.encode(batch.captions)
    t, noise, condition = flow.draw(
        config.flow, batch.images, condition, model.num_classes, config.seed, number, first
    )
    return Inputs(*(x.to(layout.device, non_blocking=True) for x in (batch.images, t, noise, condition)))
