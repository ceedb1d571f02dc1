"""The settings of the data: where the images are and what is done to them on their way to the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from pixelwright.errors import UserError

CacheMode = Literal["auto", "none"]
SHAPES = "shapes"  # the `path` of the procedural set; a folder of that name is "./shapes"
SHAPES_CAPTIONS = "shapes-captions"  # likewise of the one with captions
PROCEDURAL = (SHAPES, SHAPES_CAPTIONS)
SHAPES_COUNT = 50_000


@dataclass(frozen=True)
class DataConfig:
    """Training images. Checked when made; raises UserError on a value that cannot be used."""

    path: str = SHAPES
    """"shapes" or "shapes-captions" (drawn on the fly, no download), a folder of images (sub-folders are
    classes), a zip, or WebDataset shards (.tar) or Hugging Face parquet files: a folder of them, a pattern
    such as "set-{000..099}.tar", or an http(s) address of such files."""

    size: int = 32
    """Side of the square training images in pixels; others are resized and centre-cropped to it."""

    aspects: bool = False
    """Keep the shape of images: each batch is of one aspect ratio, at about size² pixels. The sizes are the
    usual ones for 512 and 1024; for others, their sides are multiples of aspect_step."""

    aspect_step: int | None = None
    """With aspects, at sizes other than 512 and 1024: sides are multiples of so many pixels (default 32)."""

    longest_aspect: float | None = None
    """Leave out images that are longer than this to one; None: none, but with aspects 4."""

    min_side: int = 0
    """Leave out images whose shorter side has fewer pixels."""

    flip: bool = False
    """Mirror half of the images left to right, drawn anew in each epoch."""

    workers: int = 0
    """Processes that read and decode images; 0 does it in the training process."""

    stall_seconds: int = 300
    """With workers: how long to wait for one batch before the workers are taken for stuck and restarted."""

    cache: CacheMode = "auto"
    """"auto" keeps decoded images in memory when the whole set fits in 1 GiB, "none" decodes every time."""

    shapes_count: int | None = None
    """Number of different images in the sets "shapes" and "shapes-captions" (default 50000); with no other
    path."""

    shapes_seed: int | None = None
    """Another seed is another set of "shapes" or "shapes-captions" (default 0); with no other path."""

    shapes_variation: float | None = None
    """How far "shapes" wander in place, size and tilt, 0 to 1 (default 1); only with path "shapes"."""

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path.strip():
            raise UserError(
                f'data.path is {self.path!r}: give "shapes", a folder, a .zip, .tar or .parquet files'
            )
        _whole("size", self.size, 1)
        _whole("workers", self.workers, 0)
        _whole("stall_seconds", self.stall_seconds, 1)
        if not isinstance(self.flip, bool):
            raise UserError(f"data.flip is {self.flip!r}: give true or false")
        if self.cache not in get_args(CacheMode):
            raise UserError(f'data.cache is {self.cache!r}: give "auto" or "none"')
        self._check_shapes()
        self._check_aspects()

    @property
    def looks_at_sizes(self) -> bool:
        """Whether the size of every image has to be known before training."""
        return self.aspects or self.min_side > 0 or self.longest_aspect is not None

    def _check_aspects(self) -> None:
        if not isinstance(self.aspects, bool):
            raise UserError(f"data.aspects is {self.aspects!r}: give true or false")
        if self.aspect_step is not None:
            _whole("aspect_step", self.aspect_step, 1)
            if not self.aspects or self.size in (512, 1024):
                why = f"size is {self.size}" if self.aspects else "aspects is false"
                raise UserError(
                    f"data.aspect_step is {self.aspect_step}, which has no use where {why}: leave it out"
                )
        _whole("min_side", self.min_side, 0)
        limit = self.longest_aspect
        good = isinstance(limit, (int, float)) and not isinstance(limit, bool) and 1 <= limit < math.inf
        if limit is not None and not good:
            raise UserError(f"data.longest_aspect is {limit!r}: give a number of at least 1")

    def _check_shapes(self) -> None:
        for name, lowest in (("shapes_count", 1), ("shapes_seed", None)):
            value = getattr(self, name)
            if value is None:
                continue
            if self.path not in PROCEDURAL:
                raise UserError(f'data.{name} is {value!r} but data.path is "{self.path}", not "shapes"')
            _whole(name, value, lowest)
        self._check_variation()
        if self.flip and self.path == SHAPES_CAPTIONS:
            raise UserError('data.flip is true, but the captions of "shapes-captions" tell left from right')

    def _check_variation(self) -> None:
        value = self.shapes_variation
        if value is None:
            return
        if self.path != SHAPES:
            raise UserError(
                f'data.shapes_variation is {value!r} but data.path is "{self.path}", not "shapes"'
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UserError(f"data.shapes_variation is {value!r}: give a number between 0 and 1")


def _whole(name: str, value: object, lowest: int | None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or (lowest is not None and value < lowest):
        bound = "" if lowest is None else f" of at least {lowest}"
        raise UserError(f"data.{name} is {value!r}: give a whole number{bound}")
