"""What a feature extractor is, and the plainest one: means of pixels."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwright.errors import UserError


class Activations(NamedTuple):
    """What an extractor makes of images; float32 on the CPU."""

    features: Tensor  # [N,D]: for FID, precision and recall, KID
    spatial: Tensor | None = None  # [N,S]: a flattened map, for sFID; None where the extractor has none
    probabilities: Tensor | None = None
    """[N,C]: class probabilities, for the Inception Score; None where the extractor has none."""


@dataclass(frozen=True)
class ExtractorInfo:
    """What makes the numbers of two reports comparable: equal in all but the last two, or not at all."""

    kind: str  # the name in `features.EXTRACTORS`
    checksum: str  # SHA-256 of the weights
    size: int  # side of the square images that the network sees
    resize: str  # the rule by which images of other sizes become that one, in words
    path: str = ""  # where it was read from; says nothing about the numbers
    accuracy: float | None = None  # of a classifier: share of its test images that it names rightly

    @property
    def spec(self) -> str:
        """What `open_extractor` makes it from."""
        return f"{self.kind}:{self.path}" if self.path else self.kind

    def same_network(self, other: "ExtractorInfo") -> bool:
        """Whether features of both may be compared: same kind, weights and rule, wherever they lie."""
        mine, others = ((info.kind, info.checksum, info.size, info.resize) for info in (self, other))
        return mine == others

    def __str__(self) -> str:
        return f"{self.kind} {self.checksum[:12]}"


class Extractor(Protocol):
    """Maps images to activations. The same images give the same activations, however they are batched up to
    the rounding of float32."""

    @property
    def info(self) -> ExtractorInfo: ...

    @property
    def distance(self) -> str:
        """What the Fréchet distance of its features is called: "FID", "FD-DINOv2", ..."""
        ...

    def __call__(self, images: Tensor) -> Activations:
        """uint8 [B,H,W,3] on the CPU -> the activations of B images."""
        ...


def check_finite(activations: Activations, numbers: Tensor) -> None:
    """Raise UserError naming the first image whose activations are not finite; `numbers` [N] name them."""
    for part in activations:
        if part is not None and not bool(torch.isfinite(part).all()):
            broken = numbers[~torch.isfinite(part).all(1)]
            many = f"{len(broken)} of {len(numbers)} in its batch"
            text = f"the features of image {int(broken[0])} are NaN or infinite ({many})"
            raise UserError(f"{text}: the extractor's weights are damaged")


@contextmanager
def exactly() -> Iterator[None]:
    """Without gradients, and without the TF32 that CUDA uses in convolutions unasked."""
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        yield


PIXELS = 8  # areas along a side


class Pixels:
    """The extractor: the means of 8 × 8 areas of an image, RGB in [0,1]; coarse, and without any weights."""

    distance = "pixel distance"

    def __init__(self, path: str, device: torch.device) -> None:
        """Raises UserError: a path, which it has no use for."""
        if path:
            raise UserError(f'--features is "pixels:{path}", but pixels have no weights: give "pixels"')
        self.info = ExtractorInfo("pixels", "", PIXELS, "means of areas")

    def __call__(self, images: Tensor) -> Activations:
        x = images.permute(0, 3, 1, 2).float() / 255  # [B,3,H,W]
        return Activations(F.adaptive_avg_pool2d(x, PIXELS).flatten(1))
