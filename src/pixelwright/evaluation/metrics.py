"""FID and its kin, Inception Score and KID, as functions of features; seams of patches, of images.

Nothing here knows of files or networks. Values are float64; where they are of matrix products, numpy
computes these, which halves the work of a matrix times its own transpose. Every value comes with its standard
error: to first order a metric is a mean over the images of each image's influence on it (the delta method).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.rng import generator

SPLIT = 5000  # images in a split of the Inception Score, in ADM's protocol
SUBSETS, SUBSET_SIZE = 100, 1000  # of KID, as is usual
ENOUGH = 2  # images a feature from which on the bias of a Fréchet distance is one of first order
BLOCK = 2048  # rows at a time, which stay in the cache
EPSILON = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Estimate:
    """A metric of N images."""

    value: float
    error: float | None = None
    """One standard error: what other images of the same source would change; None where it is not known."""
    extrapolated: float | None = None
    """Fréchet distances: the value without the bias of N images."""
    reason: str = ""
    """Why there is no `extrapolated`."""


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
    def of(rows: Tensor) -> "Moments":
        """Those of rows [N,D] of any floating type; N = 0 will do."""
        count, width = rows.shape
        scatter, mean = np.zeros((width, width)), torch.zeros(width, dtype=torch.float64)
        for at in blocks(count):
            mean += rows[at].sum(0, dtype=torch.float64) / count
        for at in blocks(count):
            centred = (rows[at].double() - mean).numpy()
            scatter += centred.T @ centred
        return Moments(count, mean, torch.from_numpy(scatter))

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
def root(covariance: Tensor) -> Tensor:
    """An A [D,R] with A Aᵀ = `covariance` [D,D], R its numerical rank.

    Cholesky's factor, or, where a pivot is near rounding, the eigenvectors of the eigenvalues that are not:
    square roots of what rounding leaves in place of zero would be far larger than that. Either A belongs to a
    matrix within O(D ε) · max eigenvalue of the given one, as near as the covariance itself is known.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    pivots, least = factor.diagonal().square(), 1e3 * len(factor) * EPSILON
    if not failed and pivots.min() > least * covariance.diagonal().max():
        return factor
    values, vectors = (torch.from_numpy(part) for part in np.linalg.eigh(covariance.numpy()))
    kept = values > values.abs().max() * len(values) * EPSILON
    return vectors[:, kept] * values[kept].sqrt()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m₁ - m₂|² + tr(C₁ + C₂ - 2 (C₁C₂)^½) (Heusel et al., 2017, eq. 6), where with roots C = A Aᵀ the trace
    of (C₁C₂)^½ is the sum of the singular values of A₁ᵀA₂. Raises UserError: sets of different width."""
    same_width(a.mean, b.mean)
    apart = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    return max(0.0, float(apart) - 2 * nuclear_norm(_product(root(a.covariance), root(b.covariance)))[0])


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.from_numpy(a.numpy().T @ b.numpy())


def nuclear_norm(matrix: Tensor) -> tuple[float, Tensor]:
    """The sum of the singular values of B [M,N], and the axes [M,R] of those that are not null.

    From the eigenvectors V of the smaller of BBᵀ and BᵀB, which take less time than a singular value
    decomposition. Squaring loses half of the digits of small singular values, so these are not the roots of
    the eigenvalues but the lengths dᵢ of the rows wᵢ of VᵀB, which are as exact as the rows are orthogonal.
    With Fᵢⱼ their cosines, 0 for i = j, the sum of the dᵢ is too large, by at most ½ Σᵢⱼ dᵢFᵢⱼ²: for rows
    ŵᵢ = wᵢ/dᵢ, Q = (1 - F/2) ŵ has QQᵀ = 1 - ¾F² + ¼F³ ≤ 1, so |B| ≥ tr(BQᵀ) = Σ dᵢ - ½ Σ dᵢFᵢⱼ². Where this
    or what was left out as null is not below rounding, the singular values are computed, which Weyl's
    inequality bounds: each is within O(ε) of the largest.
    """
    b = matrix.numpy() if matrix.shape[0] <= matrix.shape[1] else matrix.numpy().T
    vectors = np.linalg.eigh(b @ b.T)[1]
    rows = vectors.T @ b
    lengths = np.sqrt(np.einsum("rn,rn->r", rows, rows))
    kept = lengths > len(lengths) * EPSILON * lengths.max()
    unit = rows[kept] / lengths[kept, None]
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, 0)
    gap = lengths[~kept].sum() + lengths[kept] @ np.einsum("ij,ij->i", cosines, cosines) / 2
    axes = vectors[:, kept] if b.shape == matrix.shape else unit.T
    total = float(lengths[kept].sum())
    if gap > EPSILON * total:
        total = float(np.linalg.svd(b, compute_uv=False).sum())
    return total, torch.from_numpy(axes)


def frechet_estimate(features: Tensor, reference: Gaussian, labels: Tensor | None = None) -> Estimate:
    """Fréchet distance of features [N,D] from a reference, with its noise and without its bias.

    Where `labels` int64 [N] are balanced (each class as often as any other), images are taken to be drawn so:
    error and bias are then those of other images of the same classes. The distance itself needs no labels.

    Raises UserError: fewer than two rows, or sets of different width.
    """
    count, width = features.shape
    enough(features, 2, "a Fréchet distance")
    same_width(features[0], reference.mean)
    if count > width:
        own = Moments.of(features).gaussian()
        mean, trace, factor = own.mean, own.covariance.trace(), root(own.covariance)
    else:  # the centred rows are a root of the covariance, which is the larger matrix
        mean = features.double().mean(0)
        factor = (features.double() - mean).T / math.sqrt(count - 1)
        trace = factor.square().sum()
    base, step = root(reference.covariance), mean - reference.mean
    norm, axes = nuclear_norm(_product(base, factor))
    value = max(0.0, float(step.square().sum() + reference.covariance.trace() + trace) - 2 * norm)
    reason, partners = "", _partners(labels, count)
    if partners is None:
        reason, partners = "every image is of another class", _partners(None, count)
    if count < ENOUGH * width:
        reason = f"{count} images with {width} features are too few: at least {ENOUGH * width} are needed"
    assert partners is not None
    error, bias = _error_and_bias(features, mean, step, (base @ axes).float(), partners)
    return Estimate(value, error, None if reason else value - bias, reason)


def _partners(labels: Tensor | None, count: int) -> Tensor | None:
    """For each image another one at random, of its own class where the classes are balanced, [N]: half the
    mean squared difference of partners is the variance of one draw. None where no class has two."""
    order = torch.randperm(count, generator=generator(0, "partners"))
    groups = torch.zeros(count, dtype=torch.int64)
    if labels is not None:
        sizes = torch.unique(labels, return_counts=True)[1]
        if len(sizes) > 1 and sizes.max() - sizes.min() <= 1:
            if sizes.min() < 2:
                return None
            groups = labels
    order = order[groups[order].argsort(stable=True)]  # the images of a class together
    following = torch.arange(1, count + 1)
    ends = torch.cat((groups[order][1:] != groups[order][:-1], torch.tensor([True])))
    starts = torch.cat((torch.tensor([0]), ends.nonzero().flatten()[:-1] + 1))
    following[ends] = starts  # the last of a class has the first
    partners = torch.empty_like(order)
    partners[order] = order[following]
    return partners


def _error_and_bias(
    features: Tensor, mean: Tensor, step: Tensor, axes: Tensor, partners: Tensor
) -> tuple[float, float]:
    """Standard error and bias of the distance at N, by its first and second derivative; a few digits are
    enough, so most of it is float32.

    `step` is the mean less the reference's, `axes` [D,R] are AP, with A the reference's root and P Σ² Pᵀ =
    AᵀCA, so that z = (AP)ᵀx has the covariance Σ². A small change E of C, F = (AP)ᵀE(AP), adds to tr (AᵀCA)^½
    ½ Σᵢ Fᵢᵢ/σᵢ - ¼ Σᵢⱼ Fᵢⱼ²/(σᵢσⱼ(σᵢ+σⱼ)). The first gives the influence of a row on the distance,
    2 stepᵀx + g(x) with g(x) = |x|² - Σ zᵢ²/σᵢ; the mean of the second, with var(zᵢzⱼ)/N for Fᵢⱼ², its bias,
    beside that of |step|², the trace of the covariance over N. Balanced classes leave only what varies inside
    them, W, and make C larger by (C - W)/N: in all tr W plus the mean of g over C - W, which is that of g
    over C plus Σ var(zᵢ)/σᵢ over W.
    """
    count, other, centre, towards = len(features), partners.numpy(), mean.float(), step.float().numpy()
    z = np.empty((count, axes.shape[1]), np.float32)
    for at in blocks(count):
        z[at] = (features[at] - centre).float().numpy() @ axes.numpy()
    sigma = np.sqrt(np.einsum("nr,nr->r", z, z) / max(count - 1, 1)).clip(np.finfo(np.float32).tiny)
    z /= np.sqrt(sigma)  # so that g(x) = |x|² - |z|²
    influence, slope = np.empty(count), 0.0
    spread = np.zeros((len(sigma), len(sigma)))
    for at in blocks(count):
        rows = (features[at] - centre).float().numpy()
        squares, both, apart = np.square(z[at]), z[at] * z[other[at]], z[at] - z[other[at]]
        spread += squares.T @ squares - both.T @ both  # var(zᵢzⱼ)/(σᵢσⱼ)
        g = np.einsum("nd,nd->n", rows, rows) - squares.sum(1)
        influence[at] = 2 * (rows @ towards) + g
        slope += float(g.sum()) + float(np.vdot(apart, apart)) / 2
    error = math.sqrt(float(np.square(influence - influence[other]).mean()) / 2 / count)
    curved = float((spread / np.add.outer(sigma, sigma)).sum()) / 2
    return error, (slope + curved) / count**2


# ---------------------------------------------------------------- Inception Score
def inception_score(probabilities: Tensor, split: int = SPLIT) -> Estimate:
    """exp of the mean KL divergence of each image's classes from those of its split, averaged over splits.

    `probabilities` [N,C] are cut in order into splits of `split` images, the last of which may be smaller
    (Salimans et al., 2016, as ADM does it). 0 log 0 is 0.
    """
    enough(probabilities, 1, "an Inception Score")
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


# ---------------------------------------------------------------- KID
def kid(
    reference: Tensor, samples: Tensor, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = 0
) -> Estimate:
    """Kernel Inception Distance: squared MMD with the kernel (xᵀy/D + 1)³, unbiased, mean over random subsets
    (Bińkowski et al., 2018). It can be below zero.

    Subset i holds `size` images of each set (fewer where there are fewer) and depends on (seed, i) alone.
    Subsets overlap, so the error is their spread times √(1/subsets + size/N), N the smaller set.
    """
    same_width(reference[0], samples[0])
    for what, rows in (("reference", reference), ("samples", samples)):
        enough(rows, 2, f"KID (the {what})")
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
    a, b = x.numpy(), y.numpy()

    def kernel(product: np.ndarray) -> np.ndarray:
        product /= a.shape[1]
        product += 1
        cube = np.square(product)
        cube *= product
        return cube

    def within(rows: np.ndarray) -> float:
        values, count = kernel(rows @ rows.T), len(rows)
        return float(values.sum() - values.trace()) / (count * (count - 1))

    return within(a) + within(b) - 2 * float(kernel(a @ b.T).mean())


# ---------------------------------------------------------------- seams of patches
def patch_steps(images: Tensor, patch_size: int) -> Tensor:
    """Mean squared step from a pixel to the next, across borders of patches and inside them, of each of the
    images uint8 [N,H,W,3]: [N,2] float64. Raises UserError: no border, or no inside."""
    height, width = images.shape[1:3]
    if not 1 < patch_size < max(height, width):
        raise UserError(f"patches of {patch_size} have no seams inside images of {height}x{width}")
    sums = torch.zeros(2, len(images), dtype=torch.float64)
    counts = [0, 0]
    for axis, length in ((1, height), (2, width)):
        steps = images.movedim(axis, 1).float().diff(dim=1).square().mean((2, 3))  # [N, length - 1]
        border = torch.arange(1, length) % patch_size == 0
        for row, chosen in enumerate((border, ~border)):
            sums[row] += steps[:, chosen].sum(1)
            counts[row] += int(chosen.sum())
    return (sums / torch.tensor(counts)[:, None]).T


def patch_grid(steps: Tensor) -> Estimate:
    """Seams: by how much larger, as a share, steps across the borders of patches are than those inside, from
    `patch_steps` [N,2]. 0: none to be seen; below 0: borders are smoother than the rest."""
    enough(steps, 1, "the grid of patches")
    border, inside = steps.mean(0).tolist()
    ratio = border / max(inside, EPSILON)
    influence = (steps[:, 0] - ratio * steps[:, 1]) / max(inside, EPSILON)
    error = float(influence.std() / math.sqrt(len(steps))) if len(steps) > 1 else None
    return Estimate(ratio - 1, error)


# ---------------------------------------------------------------- a few samples, without a reference
LOOKS = ("noise", "patch_grid", "variety")  # what `look` tells
FEWEST_PATCHES = 4  # along a side; in fewer, what is in the pictures looks like a grid


def look(images: Tensor, patch: int) -> dict[str, float]:
    """What can be told of uint8 images [N,H,W,3] of a model with this patch size, by name."""
    count, height, width, _ = images.shape
    found = {"noise": noise_left(images)} if min(height, width) > 2 else {}
    if min(height, width) >= FEWEST_PATCHES * patch and patch > 1:
        found["patch_grid"] = patch_grid(patch_steps(images, patch)).value
    if count > 1:
        found["variety"] = variety(images)
    return {name: round(value, 4) for name, value in found.items()}


def noise_left(images: Tensor) -> float:
    """Standard deviation of white noise in uint8 images [N,H,W,3], as a share of that of their pixels: 1 for
    noise alone, about 0.1 for photographs. From the median response to a Laplacian, which edges hardly move
    (after Immerkær, 1996)."""
    x = images.permute(0, 3, 1, 2).float()
    second = lambda y, dim: y.diff(dim=dim).diff(dim=dim)  # noqa: E731
    response = second(second(x, 2), 3)  # of unit noise: sqrt(1 + 4 + 1)² = 6
    return float(response.abs().median() / 0.6745 / 6 / x.std().clamp_min(1e-6))


def variety(images: Tensor) -> float:
    """Share of the variance of uint8 images [N,H,W,3] that is between images: 0 where all are the same, near
    1 where they have nothing in common."""
    x = images.float()
    return float(x.var(0).mean() / x.var().clamp_min(1e-6))


# ---------------------------------------------------------------- checks
def blocks(count: int, start: int = 0) -> Iterator[slice]:
    """`count` rows, from `start` on, in pieces of BLOCK."""
    return (slice(at, min(at + BLOCK, count)) for at in range(start, count, BLOCK))


def same_width(a: Tensor, b: Tensor) -> None:
    if a.shape[-1] != b.shape[-1]:
        widths = f"features of {a.shape[-1]} and of {b.shape[-1]} numbers"
        raise UserError(f"{widths} cannot be compared: the same extractor must have made both")


def enough(rows: Tensor, least: int, what: str) -> None:
    if len(rows) < least:
        raise UserError(f"{what} needs at least {least} images; there are {len(rows)}")
