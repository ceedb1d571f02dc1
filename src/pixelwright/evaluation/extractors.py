"""What a feature extractor is: from images to the numbers that the metrics compare.

A new one is a class with the members of `Extractor` and a row in `opening.EXTRACTORS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pixelwright.errors import UserError


class Activations(NamedTuple):
    """What an extractor makes of images; float32 on the CPU."""

    features: Tensor
    """[N,D]: for FID, precision and recall, KID."""
    spatial: Tensor | None = None
    """[N,S]: a flattened map, for sFID; None where the extractor has none."""
    probabilities: Tensor | None = None
    """[N,C]: class probabilities, for the Inception Score; None where the extractor has none."""


@dataclass(frozen=True)
class ExtractorInfo:
    """What makes the numbers of two reports comparable: equal in all but `place`, or not at all."""

    kind: str
    """The name in `opening.EXTRACTORS`."""
    checksum: str
    """SHA-256 of the weights."""
    size: int
    """Side of the square images that the network sees."""
    resize: str
    """The rule by which images of other sizes become that one, in words."""
    place: str = ""
    """Where it was read from; says nothing about the numbers."""

    def same_network(self, other: ExtractorInfo) -> bool:
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


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None


@contextmanager
def exactly() -> Iterator[None]:
    """Without gradients, and without the TF32 that CUDA uses in convolutions unasked."""
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        yield
