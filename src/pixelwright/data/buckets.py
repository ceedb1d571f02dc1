"""Aspect-ratio buckets: pictures keep their shape, and a batch holds pictures of one shape.

A bucket is a size in pixels, (rows, columns). An image belongs to the bucket whose aspect ratio is nearest to
its own; it is enlarged or reduced to cover it, and what sticks out is cut off. Nothing is distorted.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
from tqdm import tqdm

from pixelwright.data.config import DataConfig
from pixelwright.data.sources import Source, identity
from pixelwright.data.transforms import UnreadableImage
from pixelwright.errors import UserError
from pixelwright.files import cache_folder, digest, replacing
from pixelwright.rng import generator

Bucket = tuple[int, int]
STEP, LONGEST = 32, 4.0
BLOCK = 4096  # steps whose buckets are drawn together

# The usual table for 512² (rows x columns, ratios 1:4 to 4:1); that for 1024² is twice as large.
_TALL = "1024x256 992x256 960x256 928x256 896x288 864x288 832x288 800x320 768x320 736x352 704x352"
_FLAT = "480x512 480x544 448x544 448x576 416x576 416x608 384x640 384x672 352x672"
_PAIRS = re.findall(r"(\d+)x(\d+)", f"{_TALL} {_FLAT} 512x512")
_UPRIGHT = [(int(rows), int(columns)) for rows, columns in _PAIRS]
_MIRRORED = {(columns, rows) for rows, columns in _UPRIGHT} - {(672, 352)}  # which the usual table lacks
STANDARD: tuple[Bucket, ...] = tuple(sorted({*_UPRIGHT, *_MIRRORED}))
logger = logging.getLogger(__name__)


def table(size: int, step: int = STEP, longest: float = LONGEST) -> tuple[Bucket, ...]:
    """The buckets for images of about size² pixels, by rising rows. The usual tables for 512 and 1024; else
    `make_table`. None is longer than `longest` to one."""
    if size in (512, 1024):
        factor = size // 512
        buckets: Iterable[Bucket] = ((rows * factor, columns * factor) for rows, columns in STANDARD)
    else:
        buckets = make_table(size, step, longest)
    return tuple(b for b in buckets if max(b) <= longest * min(b))


def buckets_of(config: DataConfig) -> tuple[Bucket, ...]:
    """The sizes that batches of a run may have."""
    if not config.aspects:
        return ((config.size, config.size),)
    return table(config.size, config.aspect_step or STEP, config.longest_aspect or LONGEST)


def make_table(size: int, step: int, longest: float = LONGEST) -> tuple[Bucket, ...]:
    """For every number of rows the columns nearest to size² pixels, all multiples of `step`. Raises
    UserError: `size` is no multiple of `step`."""
    if size % step:
        raise UserError(f"size is {size}: with buckets in steps of {step} it must be a multiple of {step}")
    found = {(size, size)}
    for rows in range(step, size, step):
        columns = round(size * size / rows / step) * step
        if columns <= longest * rows:
            found |= {(rows, columns), (columns, rows)}
    return tuple(sorted(found))


def nearest_bucket(buckets: Sequence[Bucket], sizes: np.ndarray) -> np.ndarray:
    """The number of the bucket for each image [n], by the ratio of the ratios; sizes [n, 2]."""
    ratios = np.log([rows / columns for rows, columns in buckets])  # [buckets]
    own = np.log(sizes[:, 0] / sizes[:, 1])  # [n]
    return np.abs(own[:, None] - ratios).argmin(1)


class Plan:
    """Which images a run sees, in groups of one size, and which group a step is of.

    Step k is of a group drawn with the groups' shares as probabilities, by (seed, k); each group goes through
    its own images, epoch after epoch. So all is a function of (source, settings, seed, k), and on average all
    images are seen equally often.
    """

    def __init__(self, sizes: Sequence[Bucket], members: Sequence[np.ndarray], count: int, seed: int) -> None:
        """`members` [n_g] are the images of each group, in rising order, of `count` there are."""
        self.sizes, self.members, self.seed = list(sizes), list(members), seed
        self.group_of = np.full(count, -1, np.int16)  # [count], -1: left out
        self.place_of = np.zeros(count, np.int64)  # [count], the place in the group
        for group, part in enumerate(members):
            self.group_of[part], self.place_of[part] = group, np.arange(len(part))
        self._shares = np.cumsum([len(part) for part in members]) / sum(map(len, members))
        self._draws = lru_cache(maxsize=4)(self._draw)
        self._counted = 0, np.zeros(len(members), np.int64)  # blocks, and how often each group was drawn

    def turn(self, step: int) -> tuple[int, int]:
        """The group that `step` is of, and how many steps before were of it."""
        if len(self.members) == 1:
            return 0, step
        block, place = divmod(step, BLOCK)
        drawn = self._draws(block)
        group = int(drawn[place])
        return group, int(self._before(block)[group] + np.count_nonzero(drawn[:place] == group))

    def name(self, group: int) -> tuple[str, ...]:
        """What tells the random numbers of a group from those of others; nothing where there is but one."""
        rows, columns = self.sizes[group]
        return () if len(self.members) == 1 else (f"{rows}x{columns}",)

    def _draw(self, block: int) -> np.ndarray:
        """The groups of the steps of a block, [BLOCK]."""
        numbers = torch.rand(BLOCK, generator=generator(self.seed, "buckets", block), dtype=torch.float64)
        return np.minimum(np.searchsorted(self._shares, numbers.numpy(), "right"), len(self._shares) - 1)

    def _before(self, block: int) -> np.ndarray:
        """How many steps before a block are of each group, [groups]."""
        blocks, counts = self._counted if self._counted[0] <= block else (0, np.zeros_like(self._counted[1]))
        for earlier in range(blocks, block):
            counts = counts + np.bincount(self._draws(earlier), minlength=len(counts))
        self._counted = block, counts
        return counts


def make_plan(source: Source, config: DataConfig, seed: int) -> Plan:
    """The plan of a run: one group of squares, or a group for each bucket that has images.

    Images that are too small, too long, or whose size cannot be read are left out; their number is logged.

    Raises UserError: no image is left.
    """
    count, square = len(source), (config.size, config.size)
    if not config.looks_at_sizes:
        return Plan([square], [np.arange(count)], count, seed)
    sizes = image_sizes(source)
    kept = _filter(sizes, config)
    if not config.aspects:
        return Plan([square], [kept], count, seed)
    buckets = buckets_of(config)
    groups = nearest_bucket(buckets, sizes[kept])
    used = np.unique(groups)
    logger.info("%d images in %d buckets", len(kept), len(used))
    return Plan([buckets[g] for g in used], [kept[groups == g] for g in used], count, seed)


def _filter(sizes: np.ndarray, config: DataConfig) -> np.ndarray:
    """The images to use, in rising order; sizes [n, 2], 0 where one cannot be read."""
    shorter, longer = sizes.min(1), sizes.max(1)
    limit = config.longest_aspect or (LONGEST if config.aspects else None)
    unreadable = shorter == 0
    small = ~unreadable & (shorter < config.min_side)
    long = ~unreadable & ~small & (longer > limit * shorter if limit is not None else np.zeros_like(small))
    reasons = [("whose size cannot be read", unreadable), (f"longer than {limit or 0:g} to 1", long)]
    reasons.insert(1, (f"with a side below {config.min_side} pixels", small))
    left_out = [f"{int(which.sum())} {reason}" for reason, which in reasons if which.any()]
    if left_out:
        logger.warning("of %d images are left out: %s", len(sizes), ", ".join(left_out))
    kept = np.flatnonzero(~(unreadable | small | long))
    if not len(kept):
        raise UserError(f'of "{config.path}" no image is left ({", ".join(left_out)}): ask for less in data')
    return kept


def image_sizes(source: Source) -> np.ndarray:
    """(rows, columns) of every image as it is shown, [n, 2]; 0, 0 where they cannot be read. Kept on the disk
    for sets of shards and of parquet files, by name, length and times of these."""
    files = getattr(source, "files", None)
    kept = cache_folder() / "sizes" / f"{digest(*map(identity, files))}.npy" if files else None
    if kept is not None:
        try:
            found = np.load(kept, allow_pickle=False)
            if found.shape == (len(source), 2):
                return found
        except (OSError, ValueError, EOFError):
            pass  # not there, or not as it should be: made anew
    numbers = tqdm(range(len(source)), desc="sizes of the images", unit="image", disable=None, delay=2)
    sizes = np.array([_size(source, index) for index in numbers], np.int32).reshape(-1, 2)
    if kept is not None:
        try:
            with replacing(kept) as part, part.open("wb") as file:
                np.save(file, sizes)
        except OSError as error:
            logger.warning("the sizes of the images are not kept: %s", error)
    return sizes


def _size(source: Source, index: int) -> Bucket:
    look = getattr(source, "dimensions", None)  # sources that can tell without decoding
    try:
        width, height = look(index) if look is not None else source[index].image.size
    except UnreadableImage:
        return 0, 0
    return height, width
