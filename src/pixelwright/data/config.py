"""The settings of the data: where the images are and what is done to them on their way to the model."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pixelwright.config import Config, NonNegativeInt, PositiveInt, Text, UnitInterval, real
from pixelwright.errors import UserError

CacheMode = Literal["auto", "none"]
SHAPES = "shapes"  # the `path` of the procedural set; a folder of that name is "./shapes"
SHAPES_CAPTIONS = "shapes-captions"  # likewise of the one with captions
PROCEDURAL = (SHAPES, SHAPES_CAPTIONS)
SHAPES_COUNT = 50_000


@dataclass(frozen=True)
class DataConfig(Config, where="data"):
    """Training images: where they are, and what is done to them."""

    path: Text = SHAPES
    """"shapes" or "shapes-captions" (drawn on the fly, no download), a folder of images (sub-folders are
    classes), a zip, or WebDataset shards (.tar) or Hugging Face parquet files: a folder of them, a pattern
    such as "set-{000..099}.tar", or an address (http, s3, gs, hf) of such files."""
    size: PositiveInt = 32
    """Side of the square training images in pixels; others are resized and centre-cropped to it."""
    aspects: bool = False
    """Keep the shape of images: each batch is of one aspect ratio, at about size² pixels. The sizes are the
    usual ones for 512 and 1024; for others, their sides are multiples of aspect_step."""
    aspect_step: PositiveInt | None = None
    """With aspects, at sizes other than 512 and 1024: sides are multiples of so many pixels (default 32)."""
    longest_aspect: Annotated[float, real(least=1)] | None = None
    """Leave out images that are longer than this to one; None: none, but with aspects 4."""
    min_side: NonNegativeInt = 0
    """Leave out images whose shorter side has fewer pixels."""
    class_captions: bool = False
    """For models of captions: an image without one has the name of its class, its folder, as its caption."""
    flip: bool = False
    """Mirror half of the images left to right, drawn anew in each epoch."""
    workers: NonNegativeInt = 0
    """Processes that read and decode images; 0 does it in the training process."""
    stall_seconds: PositiveInt = 300
    """With workers: how long to wait for one batch before the workers are taken for stuck and restarted."""
    cache: CacheMode = "auto"
    """"auto" keeps decoded images in memory when the whole set fits in 1 GiB, "none" decodes every time."""
    shapes_count: PositiveInt | None = None
    """Number of different images in the sets "shapes" and "shapes-captions" (default 50000); with no other
    path."""
    shapes_seed: int | None = None
    """Another seed is another set of "shapes" or "shapes-captions" (default 0); with no other path."""
    shapes_variation: UnitInterval | None = None
    """How far "shapes" wander in place, size and tilt, 0 to 1 (default 1); only with path "shapes"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("shapes_count", "shapes_seed", "shapes_variation"):
            value, paths = getattr(self, name), (SHAPES,) if name == "shapes_variation" else PROCEDURAL
            if value is not None and self.path not in paths:
                raise UserError(f'data.{name} is {value!r} but data.path is "{self.path}", not "shapes"')
        if self.flip and self.path == SHAPES_CAPTIONS:
            raise UserError('data.flip is true, but the captions of "shapes-captions" tell left from right')
        if self.aspect_step is not None and (not self.aspects or self.size in (512, 1024)):
            why = f"size is {self.size}" if self.aspects else "aspects is false"
            raise UserError(f"data.aspect_step is {self.aspect_step}, but data.{why}: leave it out")

    @property
    def looks_at_sizes(self) -> bool:
        """Whether the size of every image has to be known before training."""
        return self.aspects or self.min_side > 0 or self.longest_aspect is not None
