"""Metrics of who is near whom: precision, recall, density, coverage, and samples that look like copies.

Distances come from float32 products of blocks, made a little too small, so that they are sure lower bounds.
Where the difference could change an outcome they are computed again in float64, so outcomes are float64's.
The bound: for rows a and b of K numbers around a common centre, s = |a|² + |b|² - 2ab of float32 rows is one
product of K + 2 terms. With u = 2⁻²⁴ and γ(n) = nu/(1-nu), rounding the rows moves s by at most
3u (|a|² + |b|²), and summing in any order by γ(K+2) (|a|² + |b|² + 2|a||b|) (Higham 2002, 3.1), together less
than `float32_error(K)` (|a|² + |b|²). It holds for any data short of the limits of float32 and is about a
hundred times what is seen; yet of 10,000 x 10,000 distances only some thousands lie so near to a radius.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.evaluation.metrics import BLOCK, Estimate, blocks, enough, same_width

NEIGHBOURS = 3  # k of precision and recall, in ADM's protocol
DENSITY_NEIGHBOURS = 5  # k of density and coverage, in their paper
TIE = 1e-10
"""Squared distances that differ by less than this share of the squared norms are equal but for rounding."""
SPARE = 2  # neighbours kept beyond those asked for, so that most can be shown to be the nearest
PAIRS = 8  # samples most like a training image that are named
AT_ONCE = 1 << 18  # numbers of pairs in float64 at a time: they stay in the cache


def float32_error(width: int) -> float:
    """See above: the share of the squared norms by which float32 may be wrong in rows of `width` numbers."""
    terms = (width + 10) * 2.0**-24
    return 2 * terms / (1 - terms)


class Points:
    """Rows [N,D] made ready for products."""

    def __init__(self, rows: Tensor, centre: Tensor) -> None:
        """`centre` [D] float64 is the origin: distances keep more digits near it. Raises UserError: rows too
        long or too short for squares in float32."""
        self.rows, self.error = rows, float32_error(rows.shape[1])
        self.norms = torch.empty(len(rows), dtype=torch.float64)
        self.right = np.empty((len(rows), rows.shape[1] + 2), np.float32)  # [b, 1, less than |b|²]
        for at in blocks(len(rows)):
            wide = rows[at].double() - centre
            self.norms[at] = wide.square().sum(1)
            self.right[at, :-2] = wide.numpy()
        length = math.sqrt(float(self.norms.max()))
        if length and not 1e-14 < length < 1e18:
            raise UserError(
                f"features {length:.0e} long are beyond float32: scale them to lengths of about 1"
            )
        self.right[:, -2] = 1
        self.right[:, -1] = self.norms.numpy() * (1 - self.error)

    def __len__(self) -> int:
        return len(self.rows)

    def left(self, at: slice | np.ndarray) -> np.ndarray:
        """[-2a, less than |a|², 1] for some rows; its products with `right` are the lower bounds."""
        found = self.right[at] * np.float32(-2)
        found[:, -2], found[:, -1] = self.right[at, -1], 1
        return found


def exact(a: Points, rows: Tensor, b: Points, columns: Tensor) -> Tensor:
    """Squared distances [P] float64 of the pairs a[rows], b[columns]; those within rounding of 0 are 0."""
    found, step = torch.empty(len(rows), dtype=torch.float64), max(1, AT_ONCE // a.rows.shape[1])
    for at in range(0, len(rows), step):
        i, j = rows[at : at + step], columns[at : at + step]
        squares = (a.rows[i].double() - b.rows[j].double()).square().sum(1)
        found[at : at + step] = squares.masked_fill_(squares <= TIE * (a.norms[i] + b.norms[j]), 0)
    return found


def nearest(a: Points, count: int, b: Points | None = None) -> tuple[Tensor, Tensor]:
    """Squared distances of each row of `a` to the `count` nearest of `b`, the nearest first, and their
    places: [N,count] each, float64 and int64. Without `b`, to the other rows of `a`, of which each pair is
    computed once. Needs so many rows."""
    other = a if b is None else b
    kept = min(count + SPARE, len(other) - (b is None))
    best = torch.full((len(a), kept), torch.inf)
    places = torch.zeros(len(a), kept, dtype=torch.int64)

    def take(rows: slice, bounds: Tensor, first: int) -> None:
        values, found = bounds.topk(min(kept, bounds.shape[1]), largest=False)
        joined, order = torch.cat((best[rows], values), 1).topk(kept, largest=False)
        best[rows] = joined
        places[rows] = torch.cat((places[rows], found + first), 1).gather(1, order)

    for rows in blocks(len(a)):
        left = a.left(rows)
        for columns in blocks(len(other), rows.start if b is None else 0):
            bounds = torch.from_numpy(left @ other.right[columns].T)
            if b is None and columns == rows:
                bounds.fill_diagonal_(torch.inf)
            take(rows, bounds, columns.start)
            if b is None and columns != rows:
                take(columns, bounds.T.contiguous(), rows.start)
    every = torch.arange(len(a))[:, None].expand_as(places).flatten()
    squares, order = exact(a, every, other, places.flatten()).view_as(best).sort(dim=1, stable=True)
    places = places.gather(1, order)
    # What was not kept is further away than the last bound. Where this does not settle it, look at every row
    # whose bound is below the distance found.
    for part in (squares[:, count - 1] > best.amax(1).clamp(min=0)).nonzero().flatten().split(BLOCK):
        bounds = torch.from_numpy(a.left(part.numpy()) @ other.right.T)
        if b is None:
            bounds[torch.arange(len(part)), part] = torch.inf
        i, j = (bounds <= squares[part, count - 1, None]).nonzero(as_tuple=True)
        found = torch.full_like(bounds, torch.inf, dtype=torch.float64)
        found[i, j] = exact(a, part[i], other, j)
        squares[part], places[part] = found.topk(kept, largest=False)
    return squares[:, :count], places[:, :count]


# ---------------------------------------------------------------- precision, recall, density, coverage
@dataclass(frozen=True)
class Neighbourhood:
    """Improved precision and recall (Kynkäänniemi et al., 2019), density and coverage (Naeem et al., 2020),
    image by image. A ball around an image is as wide as the distance to its k-th neighbour in its set."""

    realistic: Tensor  # bool [N]: the sample is in the ball of some reference image
    recalled: Tensor  # bool [M]: the reference image is in the ball of some sample
    dense: Tensor  # float64 [N]: reference images whose balls the sample is in, in units of k
    covered: Tensor  # bool [M]: some sample is in the ball of the reference image

    def estimates(self) -> dict[str, Estimate]:
        """Precision, recall, density and coverage, by name; the errors hold the other set fixed."""
        density = Estimate(float(self.dense.mean()), float(self.dense.std()) / math.sqrt(len(self.dense)))
        shares = {"precision": self.realistic, "recall": self.recalled, "coverage": self.covered}
        found = {name: _share(flags) for name, flags in shares.items()}
        return {**found, "density": density}


def _share(flags: Tensor) -> Estimate:
    share = float(flags.double().mean())
    return Estimate(share, math.sqrt(share * (1 - share) / len(flags)))


def neighbourhood(
    reference: Tensor, samples: Tensor, k: int = NEIGHBOURS, density_k: int = DENSITY_NEIGHBOURS
) -> Neighbourhood:
    """Precision and recall with `k` neighbours, density and coverage with `density_k` of them (fewer where a
    set is smaller), of samples [N,D] and reference [M,D].

    Raises UserError: sets of different width, or of fewer than k + 1 rows.
    """
    same_width(reference[0], samples[0])
    for what, rows in (("reference", reference), ("samples", samples)):
        enough(rows, k + 1, f"precision and recall (the {what})")
    centre = reference.double().mean(0)
    real, drawn = Points(reference, centre), Points(samples, centre)
    density_k = min(density_k, len(real) - 1)
    squares, _ = nearest(real, max(k, density_k))
    narrow, wide = squares[:, k - 1], squares[:, density_k - 1]  # squared radii of the reference, [M]
    own = nearest(drawn, k)[0][:, -1]  # those of the samples, [N]
    realistic, dense = (torch.zeros(len(drawn), dtype=dtype) for dtype in (torch.bool, torch.float64))
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool)
    for rows, columns, inside in _inside(drawn, real, (narrow, wide), own):
        realistic[rows[inside[0]]] = True
        dense += torch.bincount(rows[inside[1]], minlength=len(drawn))
        covered[columns[inside[1]]] = True
        recalled[columns[inside[2]]] = True
    return Neighbourhood(realistic, recalled, dense / density_k, covered)


def _inside(
    a: Points, b: Points, of_columns: tuple[Tensor, Tensor], of_rows: Tensor
) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
    """Pairs (row of `a`, row of `b`) that some ball may hold, and which balls do: those of the squared radii
    `of_columns` around rows of `b`, and `of_rows` around rows of `a`."""
    widest = torch.maximum(*of_columns)
    for rows in blocks(len(a)):
        left, far = a.left(rows), a.norms[rows].max()
        for columns in blocks(len(b)):
            bounds = torch.from_numpy(left @ b.right[columns].T)
            slack = TIE * (far + b.norms[columns])
            limits = ((widest[columns] + slack).float(), (of_rows[rows] + slack.max()).float()[:, None])
            up = [torch.nextafter(limit, torch.tensor(torch.inf)) for limit in limits]
            i, j = ((bounds <= up[0]) | (bounds <= up[1])).nonzero(as_tuple=True)
            low = bounds[i, j].double()
            i, j = i + rows.start, j + columns.start
            norms = a.norms[i] + b.norms[j]
            radii = [radius + TIE * norms for radius in (*(of[j] for of in of_columns), of_rows[i])]
            high, unsure = low + 2 * a.error * norms, torch.zeros(len(i), dtype=torch.bool)
            for radius in radii:
                unsure |= (low <= radius) & (high > radius)
            low[unsure] = exact(a, i[unsure], b, j[unsure])
            yield i, j, [low <= radius for radius in radii]


def adm_neighbourhood(reference: Tensor, samples: Tensor, k: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """`realistic` and `recalled` with the float16 distances of ADM's evaluator: products and sums in float32,
    rounded to float16 after each operation, as on a GPU; float32 where a block of them is not finite."""

    def squares(a: Tensor, b: Tensor) -> Tensor:
        for half in (torch.half, torch.float32):
            u, v = (rows.to(half).float() for rows in (a, b))
            norms = [rows.square().to(half).float().sum(1).to(half).float() for rows in (u, v)]
            product = torch.from_numpy(u.numpy() @ v.numpy().T).to(half).float()
            found = (norms[0][:, None] - 2 * product).to(half).float().add_(norms[1]).to(half).float()
            if bool(found.isfinite().all()):
                break
        return found.clamp_(min=0)

    def radii(rows: Tensor) -> Tensor:
        return torch.cat([squares(rows[at], rows).kthvalue(k + 1, dim=1).values for at in blocks(len(rows))])

    same_width(reference[0], samples[0])
    of_reference, of_samples = radii(reference), radii(samples)
    realistic, recalled = [], torch.zeros(len(reference), dtype=torch.bool)
    for at in blocks(len(samples)):
        apart = squares(samples[at], reference)
        realistic.append((apart <= of_reference).any(1))
        recalled |= (apart <= of_samples[at, None]).any(0)
    return torch.cat(realistic), recalled


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
    samples: Tensor, numbers: Tensor, reference: Tensor, reference_numbers: Tensor
) -> Memorisation:
    """Compare features of samples [N,D] with those of training images [M,D], M at least 2. `numbers` [N] and
    `reference_numbers` [M] name the images in the result."""
    centre = reference.double().mean(0)
    drawn, real = Points(samples, centre), Points(reference, centre)
    distances, indices = (part[:, 0] for part in nearest(drawn, 1, real))
    around = nearest(real, 1)[0][:, 0][indices].sqrt()
    distances = distances.sqrt()
    ratios = torch.where((distances == 0) & (around == 0), 1.0, distances / around)
    columns = (numbers, reference_numbers[indices], distances, around)
    order = ratios.argsort(stable=True)[:PAIRS]
    pairs = [Pair(*row) for row in zip(*(column[order].tolist() for column in columns), strict=True)]
    share = float((distances < around).double().mean())
    return Memorisation(len(reference), share, int((distances == 0).sum()), tuple(pairs))
