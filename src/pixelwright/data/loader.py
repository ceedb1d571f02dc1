"""Batches of training images as a function of the step number."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pixelwright.data.captions import Captions
from pixelwright.data.config import DataConfig
from pixelwright.data.sources import Source
from pixelwright.data.transforms import UnreadableImage, centre_crop
from pixelwright.data.workers import Feed
from pixelwright.errors import UserError
from pixelwright.images import from_uint8
from pixelwright.streams import generator

CACHE_LIMIT = 1 << 30  # bytes of decoded images that cache "auto" keeps
logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """What one step of training sees."""

    images: Tensor
    """[b, 3, H, W] float32 in [-1, 1]."""
    labels: Tensor
    """[b] int64."""
    indices: Tensor
    """[b] int64, places in the source."""
    captions: tuple[str, ...] = ()
    """A caption for each image, where they were asked for."""


class Batches:
    """The endless batches of steps `start_step`, `start_step + 1`, ...

    The batch of step k depends on (source, seed, k) alone: sample j of it has the running number c = k *
    batch_size + j, belongs to epoch c // n and is `permutation(seed, epoch)[c % n]`. So the data position of
    a run is its step number, and neither `workers` nor `cache` nor the step it started from changes what it
    sees. Of `world` processes, process `rank` gets the `rank`-th of `world` equal, contiguous slices of each
    batch.

    With `captions`, an image without one is as good as unreadable; of several, each epoch draws one by (seed,
    epoch, index).

    An unreadable image is replaced by the next readable one in the permutation, recorded in `skipped` and
    reported once through logging. Workers that die or stall are replaced (see `Feed`), which changes nothing
    in the batches either.

    Raises UserError if `batch_size` cannot be shared out, and while iterating if no image can be read at all.
    """

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        captions: bool = False,
    ):
        if batch_size < 1 or batch_size % world:
            raise UserError(f"batch_size is {batch_size}: give a positive multiple of the {world} processes")
        if not 0 <= rank < world:
            raise UserError(f"rank is {rank}: give 0 to {world - 1} for {world} processes")
        if start_step < 0:
            raise UserError(f"start_step is {start_step}: give 0 or more")
        self.source, self.config, self.seed = source, config, seed
        self.batch_size, self.start_step = batch_size, start_step
        self.skipped: dict[str, str] = {}
        """Name and reason of each image that could not be used so far."""
        self._unreadable: set[int] = set()
        self._offset, self._share = rank * (batch_size // world), batch_size // world
        self._with_captions = captions
        self._reader = _Reader(source, config.size, captions)
        fits = len(source) * config.size**2 * 3 <= CACHE_LIMIT
        self._keep = config.cache == "auto" and fits
        self._held: dict[int, _Decoded] = {}  # of the whole set if `_keep`, else of one batch
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def __iter__(self) -> Iterator[Batch]:
        config = self.config
        feed = Feed(self._reader, self.request, self.start_step, config.workers, config.stall_seconds)
        for step, loaded in zip(itertools.count(self.start_step), feed, strict=False):
            yield self._assemble(step, loaded)

    def request(self, step: int) -> list[int]:
        """Indices to read for `step`: those of its samples that are not in memory yet."""
        wanted = {int(self._order(epoch).permutation[place]) for epoch, place in self._places(step)}
        return sorted(i for i in wanted if i not in self._held and i not in self._unreadable)

    def _places(self, step: int) -> Iterator[tuple[int, int]]:
        first = step * self.batch_size + self._offset
        return (divmod(c, len(self.source)) for c in range(first, first + self._share))

    def _draw_order(self, epoch: int) -> _Order:
        n = len(self.source)
        permutation = torch.randperm(n, generator=generator(self.seed, "permutation", epoch))
        flipped = torch.rand(n, generator=generator(self.seed, "flip", epoch)) < 0.5
        drawn = torch.rand(n if self._with_captions else 0, generator=generator(self.seed, "caption", epoch))
        return _Order(permutation.numpy(), flipped.numpy() & self.config.flip, drawn.numpy())

    def _assemble(self, step: int, loaded: _Loaded) -> Batch:
        self._take(loaded)
        picks = [(epoch, self._readable(epoch, place)) for epoch, place in self._places(step)]
        images = torch.from_numpy(np.stack([self._held[index].pixels for _, index in picks]))  # [b, 3, H, W]
        labels = torch.tensor([self._held[index].label for _, index in picks])
        flipped = torch.tensor([bool(self._order(epoch).flipped[index]) for epoch, index in picks])
        captions = tuple(self._caption(epoch, index) for epoch, index in picks if self._with_captions)
        if flipped.any():
            images[flipped] = images[flipped].flip(3)  # mirror the columns
        if not self._keep:
            self._held.clear()
        indices = torch.tensor([index for _, index in picks])
        return Batch(from_uint8(images.permute(0, 2, 3, 1)), labels, indices, captions)

    def _caption(self, epoch: int, index: int) -> str:
        said = self._held[index].said
        assert said is not None  # the reader refuses images without
        return said.pick(float(self._order(epoch).drawn[index]))

    def _readable(self, epoch: int, place: int) -> int:
        """The index at `place` of the permutation, or the first readable one after it, now held in memory."""
        permutation = self._order(epoch).permutation
        n = len(permutation)
        for step in range(n):
            index = int(permutation[(place + step) % n])
            if index not in self._held and index not in self._unreadable:
                self._take(self._reader[[index]])
            if index in self._held:
                return index
        name, reason = next(iter(self.skipped.items()))
        raise UserError(f'none of the {n} images of "{self.config.path}" can be read: "{name}": {reason}')

    def _take(self, loaded: _Loaded) -> None:
        # Memory shared with a worker costs a file handle for as long as it is held.
        shared = self._keep and loaded.pixels.is_shared()
        pixels = (loaded.pixels.clone() if shared else loaded.pixels).numpy()
        for row, index in enumerate(loaded.indices):
            self._held[index] = _Decoded(pixels[row], loaded.labels[row], loaded.said[row])
        for index, reason in loaded.failures.items():
            self._unreadable.add(index)
            name = self.source.name(index)
            if name not in self.skipped:
                self.skipped[name] = reason
                logger.warning('skipped "%s": %s (%d skipped so far)', name, reason, len(self.skipped))


class _Order(NamedTuple):
    """What an epoch draws."""

    permutation: np.ndarray  # [n]
    flipped: np.ndarray  # [n] bool, by index
    drawn: np.ndarray  # [n] in [0, 1), by index: which caption; empty without captions


class _Decoded(NamedTuple):
    pixels: np.ndarray  # [3, H, W] uint8
    label: int
    said: Captions | None


class _Loaded(NamedTuple):
    """What reading a list of indices gave."""

    indices: list[int]
    pixels: Tensor  # [m, 3, H, W] uint8
    labels: list[int]
    said: list[Captions | None]
    failures: dict[int, str]


class _Reader(Dataset[_Loaded]):
    """Reads, decodes and crops; the part that runs in worker processes."""

    def __init__(self, source: Source, size: int, captions: bool):
        self.source, self.size, self.captions = source, size, captions

    def __getitem__(self, indices: Sequence[int]) -> _Loaded:
        images, labels, said, good = [], [], [], []
        failures: dict[int, str] = {}
        for index in indices:
            try:
                sample = self.source[index]
            except UnreadableImage as error:
                failures[index] = str(error)
                continue
            if self.captions and sample.said is None:
                failures[index] = "it has no caption"
                continue
            picture = np.asarray(centre_crop(sample.image, self.size))  # [H, W, 3]
            images.append(np.ascontiguousarray(picture.transpose(2, 0, 1)))
            labels.append(sample.label)
            said.append(sample.said if self.captions else None)
            good.append(index)
        shape = (len(good), 3, self.size, self.size)
        pixels = torch.from_numpy(np.stack(images)) if images else torch.empty(shape, dtype=torch.uint8)
        return _Loaded(good, pixels, labels, said, failures)
