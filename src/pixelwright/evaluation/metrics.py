"""The metrics, as functions of features: nothing here knows of images, files or networks.

All arithmetic is float64. `chunk` bounds the memory and does not change a result. Every estimate comes with
its standard error by the delta method: to first order a metric is a mean over the images, of each image's
influence on it, and the spread of the influences gives the noise of that mean.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.rng import generator

NEIGHBOURS = 3  # k of precision and recall, in ADM's protocol
SPLIT = 5000  # images in a split of the Inception Score, in ADM's protocol
SUBSETS, SUBSET_SIZE = 100, 1000  # of KID, as is usual
WIDE = 8192  # rows of a set that are float64 at one time, where distances to all of it are needed
PAIRS = 8  # samples most like a training image that are named
TIE = 1e-10
"""Squared distances that differ by less than this share of the squared norms are equal but for rounding."""


@dataclass(frozen=True)
class Estimate:
    """A metric of N images."""

    value: float
    error: float | None = None
    """One standard error: what other images of the same source would change; None where it is not known."""
    extrapolated: float | None = None
    """Fréchet distances: the value without the bias of N images; None where it is not known."""


# ---------------------------------------------------------------- mean and covariance
@dataclass(frozen=True)
class Gaussian:
    """What the Fréchet distance knows of a set."""

    mean: Tensor  # [D] float64
    covariance: Tensor  # [D,D] float64, with N - 1 in the denominator, as `numpy.cov` has it
    count: int | None = None  # number of images it is of; None where a file does not say


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of rows; two of them merge into those of both sets of rows.

    Merging is by Chan, Golub and LeVeque (1979): exact but for rounding, and safe where the mean is far
    larger than the spread, unlike sums of squares.
    """

    count: int
    mean: Tensor  # [D] float64
    scatter: Tensor  # [D,D] float64: sum of (x - mean)(x - mean)ᵀ

    @staticmethod
    def of(rows: Tensor, chunk: int = 8192) -> "Moments":
        """Those of rows [N,D] of any floating type; N = 0 will do."""
        width = rows.shape[1]
        found = Moments(0, torch.zeros(width).double(), torch.zeros(width, width).double())
        for part in rows.split(chunk) if len(rows) else ():
            mean = (wide := part.double()).mean(0)
            found = found.merged(Moments(len(part), mean, (wide - mean).T @ (wide - mean)))
        return found

    def merged(self, other: "Moments") -> "Moments":
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


# ---------------------------------------------------------------- Fréchet distances: FID, sFID, FD-DINOv2
def root(gaussian: Gaussian) -> Tensor:
    """A [D,R] with A Aᵀ the covariance, R its numerical rank. Eigenvalues within rounding of zero are left
    out: their square roots would be far larger than they are."""
    values, vectors = torch.linalg.eigh(gaussian.covariance)
    kept = values > values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁C₂)^½) (Heusel et al., 2017, eq. 6).

    With roots C = A Aᵀ, tr (C₁C₂)^½ is the sum of the singular values of A₁ᵀA₂, which needs neither a full
    rank nor the small imaginary parts that a matrix square root brings.

    Raises UserError: sets of different width.
    """
    _same_width(a.mean, b.mean)
    return _distance(a, b, torch.linalg.svdvals(root(a).T @ root(b)))


def _distance(a: Gaussian, b: Gaussian, singular: Tensor) -> float:
    apart = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    return max(0.0, float(apart - 2 * singular.sum()))


def frechet_estimate(features: Tensor, reference: Gaussian, chunk: int = 8192) -> Estimate:
    """Fréchet distance of features [N,D] from a reference, with its noise and without its bias.

    The bias of N images is c/N to first order (Chong and Forsyth, 2020): that of two halves is twice as
    large, and the difference is taken off. The halves are random: those of odd and even numbers would be of
    different classes where classes take turns. The error is that of the distance at N.
    """
    _enough(features, 2, "a Fréchet distance")
    _same_width(features[0], reference.mean)
    order = torch.randperm(len(features), generator=generator(0, "halves"))
    halves = [Moments.of(features[half], chunk) for half in order.tensor_split(2)]
    gaussian = halves[0].merged(halves[1]).gaussian()
    base = root(reference)
    left, singular, _ = torch.linalg.svd(base.T @ root(gaussian), full_matrices=False)
    value = _distance(reference, gaussian, singular)
    influence = _frechet_influence(features, gaussian, reference, base @ left, singular, chunk)
    error = float(influence.std() / math.sqrt(len(features)))
    if len(features) < 4:
        return Estimate(value, error)
    ends = [half.gaussian() for half in halves]
    biased = [_distance(reference, end, torch.linalg.svdvals(base.T @ root(end))) for end in ends]
    return Estimate(value, error, value - (sum(biased) / 2 - value))


def _frechet_influence(
    features: Tensor, own: Gaussian, reference: Gaussian, axes: Tensor, singular: Tensor, chunk: int
) -> Tensor:
    """What each row contributes to the distance, [N], but for a constant.

    The gradient is 2 (m − m_ref) by the mean and 1 − A U Σ⁻¹ Uᵀ Aᵀ by the covariance, A the reference's root
    and U Σ² Uᵀ = Aᵀ C A; `axes` is A U.
    """
    kept = singular > singular.max() * 1e-12 if len(singular) else singular > 0
    scaled = axes[:, kept] / singular[kept].sqrt()
    parts = []
    for part in features.split(chunk):
        centred = part.double() - own.mean
        along = 2 * (centred @ (own.mean - reference.mean))
        parts.append(along + centred.square().sum(1) - (centred @ scaled).square().sum(1))
    return torch.cat(parts)


# ---------------------------------------------------------------- Inception Score
def inception_score(probabilities: Tensor, split: int = SPLIT) -> Estimate:
    """exp of the mean KL divergence of each image's classes from those of its split, averaged over splits.

    `probabilities` [N,C] are cut in order into splits of `split` images, the last of which may be smaller
    (Salimans et al., 2016, as ADM does it). 0 log 0 is 0.
    """
    _enough(probabilities, 1, "an Inception Score")
    scores, divergences = [], []
    for part in probabilities.split(split):
        own = part.double()
        marginal = own.mean(0)
        divergence = (torch.xlogy(own, own) - torch.xlogy(own, marginal)).sum(1)
        scores.append(divergence.mean().exp())
        divergences.append(scores[-1] * (divergence - divergence.mean()))
    influence = torch.cat(divergences)
    error = float(influence.std() / math.sqrt(len(influence))) if len(influence) > 1 else None
    return Estimate(float(torch.stack(scores).mean()), error)


# ---------------------------------------------------------------- precision and recall
@dataclass(frozen=True)
class Coverage:
    """Improved precision and recall (Kynkäänniemi et al., 2019), image by image."""

    realistic: Tensor
    """bool [N]: the sample lies within the k-th neighbour's distance of some reference image."""
    covered: Tensor  # bool [M]: the reference image lies so near to some sample

    @property
    def precision(self) -> Estimate:
        return self._share(self.realistic)

    @property
    def recall(self) -> Estimate:
        return self._share(self.covered)

    def _share(self, flags: Tensor) -> Estimate:
        share = float(flags.double().mean())
        return Estimate(share, math.sqrt(share * (1 - share) / len(flags)))  # holds the other set fixed


def precision_recall(reference: Tensor, samples: Tensor, k: int = NEIGHBOURS, chunk: int = 256) -> Coverage:
    """Which samples [N,D] are within the reference [M,D], and which of the reference within the samples.

    A set's manifold is the union of balls around its members, each as wide as the distance to the member's
    k-th nearest neighbour in the set.
    """
    _same_width(reference[0], samples[0])
    for what, rows in (("reference", reference), ("samples", samples)):
        _enough(rows, k + 1, f"precision and recall (the {what})")
    centre = reference.double().mean(0)  # distances keep more digits near the origin
    real_radii, drawn_radii = (_radii(rows, centre, k, chunk) for rows in (reference, samples))
    real = reference.double() - centre
    realistic, covered = [], torch.zeros(len(real), dtype=torch.bool)
    for part, radii in zip(samples.split(chunk), drawn_radii.split(chunk), strict=True):
        squares, tie = _squares(part.double() - centre, real)  # [b,M]
        realistic.append((squares <= real_radii + tie).any(1))
        covered |= (squares <= radii[:, None] + tie).any(0)
    return Coverage(torch.cat(realistic), covered)


def _radii(rows: Tensor, centre: Tensor, k: int, chunk: int) -> Tensor:
    """Squared distance of each row to its k-th nearest neighbour among the others, [N]."""
    found = []
    for part in rows.split(chunk):
        own = part.double() - centre
        squares = torch.cat([_squares(own, other.double() - centre)[0] for other in rows.split(WIDE)], dim=1)
        found.append(squares.kthvalue(k + 1, dim=1).values)  # the nearest is the row itself
    return torch.cat(found)


def _squares(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances [N,M] of rows [N,D] and [M,D], and how far rounding may move each. Those within
    rounding of 0 are 0, so that equal rows are at no distance."""
    norms = torch.einsum("nd,nd->n", a, a)[:, None] + torch.einsum("nd,nd->n", b, b)
    tie = norms * TIE
    squares = torch.addmm(norms, a, b.T, alpha=-2)
    return squares.masked_fill_(squares <= tie, 0), tie


# ---------------------------------------------------------------- KID
def kid(
    reference: Tensor, samples: Tensor, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = 0
) -> Estimate:
    """Kernel Inception Distance: squared MMD with the kernel (xᵀy/D + 1)³, unbiased, mean over random subsets
    (Bińkowski et al., 2018). It can be below zero.

    Subset i holds `size` images of each set (fewer where there are fewer) and depends on (seed, i) alone.
    Subsets overlap, so the error is their spread times √(1/subsets + size/N), N the smaller set.
    """
    _same_width(reference[0], samples[0])
    for what, rows in (("reference", reference), ("samples", samples)):
        _enough(rows, 2, f"KID (the {what})")
    fewest = min(len(reference), len(samples))
    size = min(size, fewest)
    values = []
    for i in range(subsets):
        picks = [
            rows[torch.randperm(len(rows), generator=generator(seed, "kid", name, i))[:size]].double()
            for name, rows in (("reference", reference), ("samples", samples))
        ]
        values.append(mmd(*picks))
    spread = torch.tensor(values, dtype=torch.float64)
    error = float(spread.std()) * math.sqrt(1 / subsets + size / fewest) if subsets > 1 else None
    return Estimate(float(spread.mean()), error)


def mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of rows [N,D] and [M,D] with KID's kernel."""
    width = x.shape[1]

    def within(rows: Tensor) -> Tensor:
        kernel = (rows @ rows.T / width + 1) ** 3
        count = len(rows)
        return (kernel.sum() - kernel.diagonal().sum()) / (count * (count - 1))

    between = ((x @ y.T / width + 1) ** 3).mean()
    return float(within(x) + within(y) - 2 * between)


# ---------------------------------------------------------------- memorisation
@dataclass(frozen=True)
class Pair:
    """A sample and the training image nearest to it."""

    sample: int  # which of the samples
    image: int  # which of the reference's images
    distance: float
    own: float  # distance of that training image to the nearest other one

    @property
    def ratio(self) -> float:
        """Below 1, the sample is nearer to the training image than any other training image is."""
        return self.distance / self.own if self.own else math.inf if self.distance else 1.0


@dataclass(frozen=True)
class Memorisation:
    """Samples nearer to a training image than any other training image is to it (Alaa et al., 2022)."""

    images: int  # training images that were compared with
    share: float  # of the samples. About a half is what new images of the same kind have; copies have 1
    identical: int  # samples at no distance from a training image
    pairs: tuple[Pair, ...]  # the smallest ratios


def memorisation(
    samples: Tensor, numbers: Tensor, reference: Tensor, reference_numbers: Tensor, chunk: int = 1024
) -> Memorisation:
    """Compare features of samples [N,D] with those of training images [M,D], M at least 2. `numbers` [N] and
    `reference_numbers` [M] name the images in the result. Memory grows with chunk · M."""
    centre = reference.double().mean(0)  # distances keep more digits near the origin
    drawn, real = (rows.to(torch.float64, copy=True).sub_(centre) for rows in (samples, reference))
    starts = range(0, len(real), chunk)
    own = torch.cat([_nearest(real[at : at + chunk], real, at)[0] for at in starts])  # [M]
    found = [_nearest(part, real) for part in drawn.split(chunk)]
    distances, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    around = own[indices]
    ratios = torch.where((distances == 0) & (around == 0), 1.0, distances / around)
    columns = (numbers, reference_numbers[indices], distances, around)
    order = ratios.argsort(stable=True)[:PAIRS]
    pairs = [Pair(*row) for row in zip(*(column[order].tolist() for column in columns), strict=True)]
    share = float((distances < around).double().mean())
    return Memorisation(len(real), share, int((distances == 0).sum()), tuple(pairs))


def _nearest(rows: Tensor, real: Tensor, start: int | None = None) -> tuple[Tensor, Tensor]:
    """Distance to, and place of, the row of `real` nearest to each of `rows`, [b] each. With `start`, the
    rows are those of `real` from there on, and none is its own neighbour."""
    distances = torch.cdist(rows, real)  # [b,M]
    if start is not None:
        distances[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = math.inf
    indices = distances.argmin(1)
    # The fast way of distances is wrong by about 1e-7 of the norms; the one that counts is computed anew.
    return (rows - real[indices]).norm(dim=1), indices


# ---------------------------------------------------------------- checks
def _same_width(a: Tensor, b: Tensor) -> None:
    if a.shape[-1] != b.shape[-1]:
        widths = f"features of {a.shape[-1]} and of {b.shape[-1]} numbers"
        raise UserError(f"{widths} cannot be compared: the same extractor must have made both")


def _enough(rows: Tensor, least: int, what: str) -> None:
    if len(rows) < least:
        raise UserError(f"{what} needs at least {least} images; there are {len(rows)}")
