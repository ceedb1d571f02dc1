"""Batches of training images as a function of the step number."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pixelwright.data.buckets import Bucket, make_plan
from pixelwright.data.captions import Captions
from pixelwright.data.config import DataConfig
from pixelwright.data.sources import Source
from pixelwright.data.transforms import UnreadableImage, cover
from pixelwright.data.workers import Feed
from pixelwright.errors import UserError
from pixelwright.images import from_uint8
from pixelwright.rng import generator

CACHE_LIMIT = 1 << 30  # bytes of decoded images that cache "auto" keeps
logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """What one step of training sees."""

    images: Tensor  # [b, 3, H, W] uint8, RGB
    flipped: Tensor  # [b] bool: to be mirrored left to right, see `as_floats`
    labels: Tensor  # [b] int64
    indices: Tensor  # [b] int64, places in the source
    captions: tuple[str, ...] = ()  # a caption for each image, where they were asked for


def as_floats(images: Tensor, flipped: Tensor) -> Tensor:
    """The images of a batch as a model sees them, [b, 3, H, W] float32 in [-1, 1], on their device."""
    mirrored = torch.where(flipped[:, None, None, None], images.flip(3), images)
    return from_uint8(mirrored.permute(0, 2, 3, 1))


class Batches:
    """The endless batches of steps `start_step`, `start_step + 1`, ...

    The batch of step k depends on (source, seed, k) alone: sample j of it has the running number c = k *
    batch_size + j, belongs to epoch c // n and is `permutation(seed, epoch)[c % n]`. So the data position of
    a run is its step number, and neither `workers` nor `cache` nor the step it started from changes what it
    sees. Of `world` processes, process `rank` gets the `rank`-th of `world` equal, contiguous slices of each
    batch.

    With `config.aspects`, each batch is of one bucket (see `buckets.Plan`), and c counts the images of that.
    Images that the config leaves out are never seen.

    With `captions`, an image without one is as good as unreadable; of several, each epoch draws one by (seed,
    epoch, index).

    An unreadable image is replaced by the next readable one in the permutation, recorded in `skipped` and
    reported once through logging. Workers that die or stall are replaced (see `Feed`), which changes nothing
    in the batches either.

    With `pinned`, images are put together in memory that a GPU copies from while the CPU goes on.

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
        pinned: bool = False,
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
        self._with_captions, self._pinned = captions, pinned
        self.plan = make_plan(source, config, seed)
        self._reader = _Reader(source, self.plan.sizes, self.plan.group_of, captions)
        self._keep = config.cache == "auto" and len(source) * config.size**2 * 3 <= CACHE_LIMIT
        self._held: dict[int, _Decoded] = {}  # of the whole set if `_keep`, else of one batch
        self._order = lru_cache(maxsize=2 * len(self.plan.members))(self._draw_order)

    def __iter__(self) -> Iterator[Batch]:
        config = self.config
        feed = Feed(self._reader, self.request, self.start_step, config.workers, config.stall_seconds)
        for step, loaded in zip(itertools.count(self.start_step), feed, strict=False):
            yield self._assemble(step, loaded)

    def request(self, step: int) -> list[int]:
        """Indices to read for `step`: those of its samples that are not in memory yet."""
        group, places = self._places(step)
        members = self.plan.members[group]
        needed = {int(members[self._order(group, epoch).permutation[place]]) for epoch, place in places}
        return sorted(i for i in needed if i not in self._held and i not in self._unreadable)

    def _places(self, step: int) -> tuple[int, list[tuple[int, int]]]:
        """The group that a step is of; and of its samples, the epoch and the place in its permutation."""
        group, turn = self.plan.turn(step)
        first = turn * self.batch_size + self._offset
        return group, [divmod(c, len(self.plan.members[group])) for c in range(first, first + self._share)]

    def _draw_order(self, group: int, epoch: int) -> "_Order":
        n, name = len(self.plan.members[group]), self.plan.name(group)
        permutation = torch.randperm(n, generator=generator(self.seed, "permutation", *name, epoch))
        flipped = torch.rand(n, generator=generator(self.seed, "flip", *name, epoch)) < 0.5
        random = generator(self.seed, "caption", *name, epoch)
        drawn = torch.rand(n if self._with_captions else 0, generator=random)
        return _Order(permutation.numpy(), flipped.numpy() & self.config.flip, drawn.numpy())

    def _assemble(self, step: int, loaded: "_Loaded") -> Batch:
        self._take(loaded)
        group, places = self._places(step)
        picks = [(self._order(group, epoch), self._readable(group, epoch, place)) for epoch, place in places]
        shape = (len(picks), 3, *self.plan.sizes[group])
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned)
        np.stack([self._held[index].pixels for _, index in picks], out=images.numpy())
        labels = torch.tensor([self._held[index].label for _, index in picks])
        flipped = torch.tensor([bool(order.flipped[self.plan.place_of[index]]) for order, index in picks])
        captions: list[str] = []
        for order, index in picks if self._with_captions else ():
            held = self._held[index].captions
            assert held is not None  # the reader refuses images without
            captions.append(held.pick(float(order.drawn[self.plan.place_of[index]])))
        if not self._keep:
            self._held.clear()
        indices = torch.tensor([index for _, index in picks])
        return Batch(images, flipped, labels, indices, tuple(captions))

    def _readable(self, group: int, epoch: int, place: int) -> int:
        """The index at `place` of the permutation, or the first readable one after it, now held in memory."""
        permutation, members = self._order(group, epoch).permutation, self.plan.members[group]
        n = len(permutation)
        for step in range(n):
            index = int(members[permutation[(place + step) % n]])
            if index not in self._held and index not in self._unreadable:
                self._take(self._reader[[index]])
            if index in self._held:
                return index
        name, reason = next(iter(self.skipped.items()))
        raise UserError(f'none of the {n} images of "{self.config.path}" can be read: "{name}": {reason}')

    def _take(self, loaded: "_Loaded") -> None:
        # Memory shared with a worker costs a file handle for as long as it is held.
        shared = self._keep and loaded.pixels.is_shared()
        pixels = (loaded.pixels.clone() if shared else loaded.pixels).numpy()
        for row, (index, (label, captions)) in enumerate(loaded.samples.items()):
            self._held[index] = _Decoded(pixels[row], label, captions)
        for index, reason in loaded.failures.items():
            self._unreadable.add(index)
            name = self.source.name(index)
            if name not in self.skipped:
                self.skipped[name] = reason
                logger.warning('skipped "%s": %s (%d skipped so far)', name, reason, len(self.skipped))


class _Order(NamedTuple):
    """What an epoch of a group of n images draws."""

    permutation: np.ndarray  # [n] places in the group
    flipped: np.ndarray  # [n] bool, by place in the group
    drawn: np.ndarray  # [n] in [0, 1), by place in the group: which caption; empty without captions


class _Decoded(NamedTuple):
    pixels: np.ndarray  # [3, H, W] uint8
    label: int
    captions: Captions | None


class _Loaded(NamedTuple):
    """What reading a list of indices gave."""

    samples: dict[int, tuple[int, Captions | None]]  # index -> label and captions, in the order of the pixels
    pixels: Tensor  # [m, 3, H, W] uint8
    failures: dict[int, str]


class _Reader(Dataset[_Loaded]):
    """Reads, decodes and crops, a request of one size at a time; the part that runs in worker processes."""

    def __init__(self, source: Source, sizes: Sequence[Bucket], group_of: np.ndarray, captions: bool):
        self.source, self.sizes, self.group_of, self.captions = source, sizes, group_of, captions

    def __getitem__(self, indices: Sequence[int]) -> _Loaded:
        images, samples, failures = [], {}, {}
        for index in indices:
            try:
                sample = self.source[index]
            except UnreadableImage as error:
                failures[index] = str(error)
                continue
            if self.captions and sample.all_captions is None:
                failures[index] = "it has no caption"
                continue
            picture = np.asarray(cover(sample.image, *self.sizes[self.group_of[index]]))  # [H, W, 3]
            images.append(np.ascontiguousarray(picture.transpose(2, 0, 1)))
            samples[index] = sample.label, (sample.all_captions if self.captions else None)
        nothing = torch.empty((0, 3, *self.sizes[0]), dtype=torch.uint8)
        pixels = torch.from_numpy(np.stack(images)) if images else nothing
        return _Loaded(samples, pixels, failures)
