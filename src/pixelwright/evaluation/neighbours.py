"""Has the model learnt its training images by heart? The nearest training image of each sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PAIRS = 8
"""The most suspicious samples, which are shown."""


@dataclass(frozen=True)
class Pair:
    """A sample and the training image nearest to it."""

    sample: int
    """Which of the samples."""
    image: int
    """Which of the reference's images."""
    distance: float
    own: float
    """Distance of that training image to the nearest other one."""

    @property
    def ratio(self) -> float:
        """Below 1, the sample is nearer to the training image than any other training image is."""
        return self.distance / self.own if self.own else math.inf if self.distance else 1.0


@dataclass(frozen=True)
class Memorisation:
    """Samples nearer to a training image than any other training image is to it (Alaa et al., 2022)."""

    images: int
    """Training images that were compared with."""
    share: float
    """Of the samples. About a half is what new images of the same kind have; copies have 1."""
    identical: int
    """Samples at no distance from a training image."""
    pairs: tuple[Pair, ...]
    """The smallest ratios."""


def memorisation(
    samples: Tensor, numbers: Tensor, reference: Tensor, reference_numbers: Tensor, chunk: int = 1024
) -> Memorisation:
    """Compare features of samples [N,D] with those of training images [M,D], M at least 2.

    `numbers` [N] and `reference_numbers` [M] name the images in the result. Memory grows with chunk · M.
    """
    centre = reference.double().mean(0)  # distances keep more digits near the origin
    drawn, real = (rows.to(torch.float64, copy=True).sub_(centre) for rows in (samples, reference))
    own = torch.cat([_to_others(real, start, chunk) for start in range(0, len(real), chunk)])  # [M]
    distances, indices = map(
        torch.cat, zip(*(_nearest(part, real) for part in drawn.split(chunk)), strict=True)
    )
    around = own[indices]
    ratios = torch.where((distances == 0) & (around == 0), 1.0, distances / around)
    pairs = [
        Pair(int(numbers[i]), int(reference_numbers[indices[i]]), float(distances[i]), float(around[i]))
        for i in ratios.argsort(stable=True)[:PAIRS].tolist()
    ]
    share = float((distances < around).double().mean())
    return Memorisation(len(real), share, int((distances == 0).sum()), tuple(pairs))


def _nearest(rows: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to, and place of, the row of `real` nearest to each of `rows`, [b] each."""
    found = torch.cdist(rows, real).min(1)  # [b,M] -> [b]
    # The fast way of distances is wrong by about 1e-7 of the norms; the one that counts is computed anew.
    return (rows - real[found.indices]).norm(dim=1), found.indices


def _to_others(real: Tensor, start: int, chunk: int) -> Tensor:
    """Distance of rows start … start+chunk−1 to the nearest other row, [b]."""
    rows = real[start : start + chunk]
    distances = torch.cdist(rows, real)  # [b,M]
    distances[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = math.inf
    return (rows - real[distances.argmin(1)]).norm(dim=1)
