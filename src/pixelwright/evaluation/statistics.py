"""Mean and covariance of features in float64, gathered piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """What the Fréchet distance knows of a set."""

    mean: Tensor
    """[D] float64."""
    covariance: Tensor
    """[D,D] float64, with N - 1 in the denominator, as `numpy.cov` has it."""
    count: int | None = None
    """Number of images it is of; None where a file does not say."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of rows; two of them merge into those of both sets of rows.

    Merging is by Chan, Golub and LeVeque (1979): exact but for rounding, and safe where the mean is far
    larger than the spread, unlike sums of squares.
    """

    count: int
    mean: Tensor
    """[D] float64."""
    scatter: Tensor
    """[D,D] float64: sum of (x - mean)(x - mean)ᵀ."""

    @staticmethod
    def zero(width: int) -> Moments:
        """Those of no rows."""
        return Moments(
            0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
        )

    @staticmethod
    def of(rows: Tensor, chunk: int = 8192) -> Moments:
        """Those of rows [N,D] of any floating type; N = 0 will do."""
        found = Moments.zero(rows.shape[1])
        for part in rows.split(chunk):
            if len(part):
                wide = part.double()
                mean = wide.mean(0)
                centred = wide - mean
                found = found.merged(Moments(len(part), mean, centred.T @ centred))
        return found

    def merged(self, other: Moments) -> Moments:
        """Those of the rows of both."""
        count = self.count + other.count
        if not self.count or not other.count:
            return other if not self.count else self
        step = other.mean - self.mean
        share = other.count / count
        between = torch.outer(step, step) * (self.count * share)
        return Moments(count, self.mean + step * share, self.scatter + other.scatter + between)

    def gaussian(self) -> Gaussian:
        """Mean and covariance; needs two rows."""
        assert self.count > 1, "a covariance needs two rows"
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)
