"""Every metric against an independent computation, on ordinary and on degenerate features."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.evaluation import metrics, neighbours
from pixelwright.evaluation.metrics import Gaussian, Moments
from pixelwright.rng import generator

WIDTH = 12


def normal(shape: tuple[int, ...], seed: int, *path: int | str) -> Tensor:
    return torch.randn(shape, generator=generator(seed, *path))


def drawn(count: int, name: str, width: int = WIDTH) -> Tensor:
    """Correlated features, far from the origin."""
    mix = normal((width, width), 0, "mix", name)
    return normal((count, width), 0, name) @ mix + 3


def flat(count: int, name: str) -> Tensor:
    """Features of rank 4 in 12 dimensions."""
    return normal((count, 4), 0, name) @ normal((4, WIDTH), 0, "flat") + 1


def repeated(count: int, name: str) -> Tensor:
    """Seven different rows, again and again."""
    return drawn(7, name)[torch.arange(count) % 7]


SETS: dict[str, Callable[[str], Tensor]] = {
    "random": lambda name: drawn(200, name),
    "rank-deficient": lambda name: flat(200, name),
    "repeated rows": lambda name: repeated(60, name),
    "fewer than dimensions": lambda name: drawn(9, name),
}
PAIRS = [("random", kind) for kind in SETS] + [(kind, kind) for kind in SETS] + [("rank-deficient", "random")]


def gaussian(rows: Tensor) -> Gaussian:
    return Moments.of(rows).gaussian()


def by_scipy(a: Tensor, b: Tensor) -> float:
    """The distance by scipy's matrix square root, of a matrix that is not singular.

    With H Hᵀ the covariance of b, H of full column rank from the singular vectors of its rows, tr (C₁C₂)^½ is
    tr (Hᵀ C₁ H)^½; what of it is null because C₁ is singular is cut off by its eigenvectors.
    """
    y = b.double().numpy() - b.double().numpy().mean(0)
    first, second = (np.cov(rows.double().numpy(), rowvar=False) for rows in (a, b))
    _, singular, right = np.linalg.svd(y / math.sqrt(len(y) - 1), full_matrices=False)
    rank = int((singular > 1e-6 * singular[0]).sum())
    half = right[:rank].T * singular[:rank]
    inner = half.T @ first @ half
    values = np.linalg.eigvalsh(inner)
    own = np.linalg.eigh(inner)[1][:, values > 1e-10 * values[-1]]
    trace = scipy.linalg.sqrtm(own.T @ inner @ own).trace().real
    apart = np.square(a.double().numpy().mean(0) - b.double().numpy().mean(0)).sum()
    return float(apart + first.trace() + second.trace() - 2 * trace)


def test_frechet_is_that_of_the_matrix_square_root() -> None:
    """The textbook formula, where it is safe: full rank."""
    a, b = gaussian(drawn(200, "a")), gaussian(drawn(300, "b"))
    product = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    apart = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    assert metrics.frechet_distance(a, b) == pytest.approx(float(apart) - 2 * product.trace().real, rel=1e-9)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_frechet_on_degenerate_features(first: str, second: str) -> None:
    a, b = SETS[first]("a"), SETS[second]("b")
    assert metrics.frechet_distance(gaussian(a), gaussian(b)) == pytest.approx(by_scipy(a, b), rel=1e-6)
    assert metrics.frechet_estimate(b, gaussian(a)).value == pytest.approx(by_scipy(a, b), rel=1e-6)


def test_frechet_of_gaussians_that_are_known() -> None:
    """Axis by axis: (m₁ - m₂)² + (s₁ - s₂)²."""
    means = normal((2, 5), 0, "means").double()
    spreads = normal((2, 5), 0, "spreads").double().abs()
    spreads[0, 0] = spreads[1, 1] = spreads[0, 2] = spreads[1, 2] = 0
    turn = torch.linalg.qr(normal((5, 5), 0, "turn").double())[0]  # the same turn for both changes nothing
    a, b = (
        Gaussian(turn @ m, turn @ torch.diag(s.square()) @ turn.T)
        for m, s in zip(means, spreads, strict=True)
    )
    expected = (means[0] - means[1]).square().sum() + (spreads[0] - spreads[1]).square().sum()
    assert metrics.frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("kind", SETS)
def test_a_shifted_copy_is_at_the_square_of_the_shift(kind: str) -> None:
    rows = SETS[kind]("a").double()
    shift = normal((WIDTH,), 0, "shift").double()
    estimate = metrics.frechet_estimate(rows + shift, gaussian(rows))
    assert estimate.value == pytest.approx(float(shift.square().sum()), rel=1e-6)
    assert metrics.frechet_estimate(rows, gaussian(rows)).value == pytest.approx(0, abs=1e-9)


def test_the_error_and_the_bias_of_a_frechet_distance() -> None:
    """From 300 independent sets of samples: their spread, and their mean against the true distance."""
    truth = Gaussian(torch.zeros(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64))
    scale = torch.linspace(0.6, 1.4, 8)
    exact = float((scale.double() - 1).square().sum()) + 0.25
    found = []
    for i in range(300):
        rows = normal((400, 8), 1, "noise", i) * scale
        rows[:, 0] += 0.5
        found.append(metrics.frechet_estimate(rows, truth))
    values = torch.tensor([one.value for one in found])
    errors = torch.tensor([one.error for one in found])
    beyond = torch.tensor([one.extrapolated for one in found])
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.15)
    bias = float(values.mean()) - exact
    assert bias > 5 * float(values.std()) / math.sqrt(300)  # the distance of few samples is too large
    assert abs(float(beyond.mean()) - exact) < bias / 4


def test_the_bias_is_right_where_classes_take_turns() -> None:
    """Odd and even images of different classes: either half alone would be 20 or more away."""
    rows = normal((400, 6), 4, "rows")
    rows[1::2] += 5
    truth = Gaussian(torch.full((6,), 2.5).double(), torch.eye(6).double() + 6.25)
    found = metrics.frechet_estimate(rows, truth)
    assert found.extrapolated is not None and abs(found.extrapolated - found.value) < 1


def by_mpmath(a: Gaussian, b: Gaussian) -> float:
    """The distance of two Gaussians in 60 digits."""
    with mpmath.workdps(60):
        first, second = (mpmath.matrix(g.covariance.tolist()) for g in (a, b))
        values, vectors = mpmath.eigsy(first)
        half = vectors * mpmath.diag([mpmath.sqrt(max(v, 0)) for v in values]) * vectors.T
        inner = mpmath.eigsy(half * second * half, eigvals_only=True)
        apart = sum(
            (x - y) ** 2 for x, y in zip(map(mpmath.mpf, a.mean.tolist()), b.mean.tolist(), strict=True)
        )
        trace = sum(first[i, i] + second[i, i] for i in range(len(a.mean)))
        return float(apart + trace - 2 * sum(mpmath.sqrt(max(v, 0)) for v in inner))


@pytest.mark.parametrize("decades", [1, 3, 5])
def test_frechet_is_exact_to_rounding(decades: int) -> None:
    """Against 60 digits, for covariances whose eigenvalues spread over 1, 3 and 5 powers of ten: within 1e-13
    of the traces, of which the distance is a difference."""
    spread = torch.logspace(0, -decades / 2, WIDTH).double()
    turn = torch.linalg.qr(normal((WIDTH, WIDTH), 0, "turn").double())[0]
    first, second = (drawn(90, name).double() * spread @ turn for name in ("a", "b"))
    a, b = gaussian(first), gaussian(second)
    exact, traces = by_mpmath(a, b), float(a.covariance.trace() + b.covariance.trace())
    assert abs(metrics.frechet_distance(a, b) - exact) < 1e-13 * traces
    assert abs(metrics.frechet_estimate(second, a).value - exact) < 1e-13 * traces


@pytest.mark.parametrize("smallest", [1e-3, 1e-9, 0.0])
def test_the_nuclear_norm_is_that_of_the_singular_values(smallest: float) -> None:
    """Also of those whose squares are lost to rounding, where the bound asks for a decomposition."""
    left, right = (torch.linalg.qr(normal((30, 30), 0, name).double())[0] for name in ("left", "right"))
    values = torch.linspace(1, 2, 30).double()
    values[:8] = smallest * (1 + torch.arange(8))
    for matrix in ((left * values) @ right, ((left * values) @ right)[:, :20]):
        norm, axes = metrics.nuclear_norm(matrix)
        expected = torch.linalg.svdvals(matrix)
        assert norm == pytest.approx(float(expected.sum()), abs=1e-13)
        inner = axes.T @ (matrix @ matrix.T) @ axes
        assert float((inner - inner.diagonal().diag()).abs().max()) < 1e-12
        kept = int((expected > 1e-12).sum())
        assert kept <= axes.shape[1] <= len(expected)


def classes(count: int, i: int, balanced: bool) -> tuple[Tensor, Tensor]:
    """Images of four classes that lie far apart."""
    places = 4 * normal((4, 8), 3, "places")
    random = generator(4, "labels", i)
    labels = torch.arange(count) % 4 if balanced else torch.randint(4, (count,), generator=random)
    return normal((count, 8), 4, "images", i) + places[labels], labels


@pytest.mark.parametrize("balanced", [True, False])
def test_the_bias_of_balanced_classes(balanced: bool) -> None:
    """Between images of fixed classes the means vary less: their bias is smaller, and so is the noise."""
    truth = gaussian(classes(200_000, 999, True)[0])
    found = [
        metrics.frechet_estimate(rows, truth, labels)
        for rows, labels in (classes(80, i, balanced) for i in range(150))
    ]
    value, error, beyond = (
        torch.tensor([getattr(f, name) for f in found]) for name in ("value", "error", "extrapolated")
    )
    bias = float(value.mean())
    assert float((value - beyond).mean()) == pytest.approx(bias, rel=0.15)
    assert bias == pytest.approx(0.46 if balanced else 1.84, rel=0.2)
    assert 0.75 < float(error.mean() / value.std()) < 1.5


def test_a_bias_that_is_not_known_is_left_out_with_its_reason() -> None:
    rows = drawn(60, "a")
    few = metrics.frechet_estimate(rows[:20], gaussian(rows))
    assert few.extrapolated is None and "20 images with 12 features are too few" in few.reason
    alone = metrics.frechet_estimate(rows, gaussian(rows), torch.arange(60))
    assert alone.extrapolated is None and alone.reason == "every image is of another class"
    assert metrics.frechet_estimate(rows, gaussian(rows)).reason == ""


@given(cuts=st.lists(st.integers(1, 90), min_size=1, max_size=6), far=st.sampled_from([0.0, 1e4]))
@settings(max_examples=25, deadline=None)
def test_moments_merge_in_any_pieces(cuts: list[int], far: float) -> None:
    rows = drawn(100, "moments").double() + far
    found = Moments.of(torch.zeros(0, WIDTH))
    for part in torch.tensor_split(rows, sorted(cuts)):
        found = found.merged(Moments.of(part))
    expected = np.cov(rows.numpy(), rowvar=False)
    assert found.count == 100
    torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        found.gaussian().covariance, torch.from_numpy(expected), rtol=1e-8, atol=1e-9 * (1 + far)
    )


# --- Inception Score ---


def direct_score(probabilities: np.ndarray, split: int) -> float:
    """As the formula says it, one image after the other."""
    scores = []
    for start in range(0, len(probabilities), split):
        part = probabilities[start : start + split]
        mean = part.mean(0)
        total = sum(p * math.log(p / q) for row in part for p, q in zip(row, mean, strict=True) if p > 0)
        scores.append(math.exp(total / len(part)))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("split", [50, 30, 1000])
def test_inception_score_is_the_direct_one(split: int) -> None:
    probabilities = torch.softmax(3 * normal((100, 6), 0, "logits").double(), 1)
    probabilities[:5] = torch.eye(6, dtype=torch.float64)[:5]  # with zeros
    found = metrics.inception_score(probabilities, split)
    assert found.value == pytest.approx(direct_score(probabilities.numpy(), split), rel=1e-9)


def test_inception_score_at_its_ends() -> None:
    certain = torch.eye(10).repeat(20, 1)  # every class alike, without doubt
    assert metrics.inception_score(certain).value == pytest.approx(10)
    assert metrics.inception_score(torch.full((50, 10), 0.1)).value == pytest.approx(1)


def test_the_error_of_an_inception_score() -> None:
    found = [
        metrics.inception_score(torch.softmax(2 * normal((500, 5), 2, "logits", i), 1)) for i in range(200)
    ]
    values, errors = torch.tensor([f.value for f in found]), torch.tensor([f.error for f in found])
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.2)


# --- precision and recall ---


def by_neighbours(reference: Tensor, samples: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Flags by scikit-learn's brute-force neighbours; ties within rounding count as inside."""
    real, fake = reference.double().numpy(), samples.double().numpy()

    def radii(rows: np.ndarray) -> np.ndarray:
        return NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(rows).kneighbors(rows)[0][:, k]

    apart = np.sqrt(np.square(fake[:, None] - real[None]).sum(2))
    slack = 1e-5
    return (apart <= radii(real) + slack).any(1), (apart <= radii(fake)[:, None] + slack).any(0)


@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_by_scikit_learn(first: str, second: str, k: int) -> None:
    reference, samples = SETS[first]("a"), SETS[second]("b")
    found = neighbours.neighbourhood(reference, samples, k)
    realistic, covered = by_neighbours(reference, samples, k)
    assert found.realistic.tolist() == realistic.tolist()
    assert found.recalled.tolist() == covered.tolist()
    shares = found.estimates()
    assert shares["precision"].value == realistic.mean() and shares["recall"].value == covered.mean()


@pytest.mark.parametrize("kind", SETS)
def test_equal_sets_cover_each_other(kind: str) -> None:
    rows = SETS[kind]("a")
    found = neighbours.neighbourhood(rows, rows.flip(0))
    assert bool(found.realistic.all() and found.recalled.all() and found.covered.all())


def test_repeated_rows_are_points_of_no_width() -> None:
    """Balls of radius 0: a sample beside one is outside, one upon it inside."""
    reference = repeated(60, "a")
    samples = torch.cat((reference[:5], reference[:5] + 1e-3))
    assert neighbours.neighbourhood(reference, samples).realistic.tolist() == [True] * 5 + [False] * 5


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_density_and_coverage_by_their_definition(first: str, second: str) -> None:
    """Naeem et al. (2020), equations 3 and 4, with k = 5."""
    reference, samples = SETS[first]("a").double().numpy(), SETS[second]("b").double().numpy()
    found = neighbours.neighbourhood(torch.from_numpy(reference), torch.from_numpy(samples))
    k = min(5, len(reference) - 1)
    radii = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(reference).kneighbors(reference)[0]
    inside = np.sqrt(np.square(samples[:, None] - reference[None]).sum(2)) <= radii[:, k] + 1e-5
    estimates = found.estimates()
    assert estimates["density"].value == pytest.approx(inside.sum() / (k * len(samples)), rel=1e-12)
    assert estimates["coverage"].value == inside.any(0).mean()


def test_the_float32_bound_holds() -> None:
    """Never above the distance, and below it by no more than the bound, for rows near and far."""
    for scale in (1e-6, 1.0, 1e5):
        rows = drawn(300, "bound", width=64).double() * scale
        rows[::7] *= 50
        points = neighbours.Points(rows, rows.mean(0))
        bounds = torch.from_numpy(points.left(slice(0, 300)) @ points.right.T).double()
        true = (rows[:, None] - rows).square().sum(2)
        norms = points.norms[:, None] + points.norms
        assert bool((bounds <= true).all()) and bool((bounds + 2 * points.error * norms >= true).all())


def test_float32_decides_nothing_that_float64_would_decide_otherwise() -> None:
    """Samples just inside and just outside of the balls, by less than float32 can tell."""
    reference = drawn(60, "a").double()
    apart = (reference[:, None] - reference).square().sum(2).sqrt().sort(1).values[:, 3]  # k = 3
    way = torch.nn.functional.normalize(drawn(60, "way").double(), dim=1)
    for shift, held in ((-1e-7, True), (1e-7, False)):
        samples = reference + way * (apart * (1 + shift))[:, None]
        found = neighbours.neighbourhood(reference, samples)
        by_float64 = ((samples[:, None] - reference).square().sum(2).sqrt() <= apart).any(1)
        assert found.realistic.tolist() == by_float64.tolist()
        own = (samples - reference).square().sum(1).sqrt() <= apart
        assert bool(own.all()) is held and bool(own.any()) is held


def test_the_nearest_of_many_equal_rows() -> None:
    """More rows at one distance than are kept as candidates."""
    rows = torch.cat((torch.eye(40), -torch.eye(40), torch.zeros(30, 40)))
    points = neighbours.Points(rows, rows.double().mean(0))
    squares, places = neighbours.nearest(points, 4)
    true = (rows[:, None] - rows).double().square().sum(2)
    chosen = true.gather(1, places)
    true.fill_diagonal_(torch.inf)
    assert torch.equal(squares, true.sort(1).values[:, :4]) and torch.equal(squares, chosen)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_one_row_far_away_changes_nothing_else(scale: float) -> None:
    """Its norm widens the bound for all: a single row has to be looked at again."""
    rows = drawn(200, "a", width=32) * scale
    far = torch.cat((rows, rows[:1] * 3000))
    alone, found = (neighbours.neighbourhood(real, rows.flip(0)[:150] * 1.01) for real in (rows, far))
    assert found.recalled[:-1].tolist() == alone.recalled.tolist()
    true = (far[:, None].double() - far.double()).square().sum(2).sort(1).values[:, 1:5]
    points = neighbours.Points(far, far.double().mean(0))
    torch.testing.assert_close(neighbours.nearest(points, 4)[0], true, rtol=1e-9, atol=0.0)
    with pytest.raises(UserError, match="beyond float32"):
        neighbours.neighbourhood(rows / scale * 1e19, rows)


def test_float16_distances_are_those_of_adm() -> None:
    """By numpy's float16, for features as large as Inception's."""
    reference, samples = drawn(90, "a").abs() * 3, drawn(70, "b").abs() * 3

    def squares(a: Tensor, b: Tensor) -> np.ndarray:
        u, v = (rows.numpy().astype(np.float16) for rows in (a, b))
        norms = [np.square(x).astype(np.float32).sum(1).astype(np.float16) for x in (u, v)]
        product = (u.astype(np.float32) @ v.astype(np.float32).T).astype(np.float16)
        return np.maximum((norms[0][:, None] - np.float16(2) * product) + norms[1], np.float16(0))

    radii = [np.partition(squares(rows, rows), 3, axis=1)[:, 3] for rows in (reference, samples)]
    apart = squares(samples, reference)
    realistic, recalled = neighbours.adm_neighbourhood(reference, samples)
    assert realistic.tolist() == (apart <= radii[0]).any(1).tolist()
    assert recalled.tolist() == (apart <= radii[1][:, None]).any(0).tolist()
    huge = neighbours.adm_neighbourhood(reference * 100, samples * 100)  # not finite in float16
    exact = neighbours.neighbourhood(reference * 100, samples * 100)
    assert torch.equal(huge[0], exact.realistic) and torch.equal(huge[1], exact.recalled)


# --- KID ---


def test_kid_of_all_images_is_the_direct_one() -> None:
    for kind in SETS:
        x, y = drawn(40, "a"), SETS[kind]("b")
        n, m = len(x), len(y)
        kernels = [
            polynomial_kernel(a.double().numpy(), b.double().numpy(), degree=3, coef0=1, gamma=1 / WIDTH)
            for a, b in ((x, x), (y, y), (x, y))
        ]
        expected = (
            (kernels[0].sum() - kernels[0].trace()) / (n * (n - 1))
            + (kernels[1].sum() - kernels[1].trace()) / (m * (m - 1))
            - 2 * kernels[2].mean()
        )
        assert metrics.mmd(x.double(), y.double()) == pytest.approx(expected, rel=1e-6), kind


def test_kid_is_unbiased_and_knows_its_error() -> None:
    """Two sets of one source: nothing on average, and the spread of many is the error of one."""
    found = [
        metrics.kid(normal((300, 6), 3, "x", i), normal((300, 6), 3, "y", i), subsets=20, size=100)
        for i in range(100)
    ]
    values, errors = torch.tensor([f.value for f in found]), torch.tensor([f.error for f in found])
    assert abs(float(values.mean())) < 3 * float(values.std()) / 10
    assert float(values.std()) < 2 * float(errors.mean()) < 6 * float(values.std())


def test_kid_depends_on_the_seed_alone() -> None:
    x, y = drawn(50, "a"), drawn(60, "b")
    first = metrics.kid(x, y, subsets=5, size=20, seed=1)
    torch.manual_seed(5)
    assert metrics.kid(x, y, subsets=5, size=20, seed=1) == first
    assert metrics.kid(x, y, subsets=5, size=20, seed=2) != first


# --- all ---


@given(block=st.integers(1, 250))
@settings(max_examples=12, deadline=None)
def test_blocks_change_nothing(block: int) -> None:
    reference, samples = drawn(120, "a"), drawn(200, "b")

    def every() -> tuple[neighbours.Neighbourhood, metrics.Estimate]:
        found = neighbours.neighbourhood(reference, samples)
        return found, metrics.frechet_estimate(samples, gaussian(reference))

    whole, a = every()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK", block)
        patch.setattr(neighbours, "BLOCK", block)
        parts, b = every()
    for name in ("realistic", "recalled", "dense", "covered"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name
    assert a.value == pytest.approx(b.value, rel=1e-13)
    assert a.error == pytest.approx(b.error, rel=1e-6)  # these are float32 by design
    assert a.extrapolated == pytest.approx(b.extrapolated, rel=1e-6)


def test_too_little_is_said() -> None:
    one, few = drawn(1, "a"), drawn(3, "a")
    with pytest.raises(UserError, match="at least 2 images; there are 1"):
        metrics.frechet_estimate(one, gaussian(few))
    with pytest.raises(UserError, match="at least 4 images; there are 3"):
        neighbours.neighbourhood(few, drawn(9, "b"))
    with pytest.raises(UserError, match="of 12 and of 5 numbers"):
        metrics.frechet_distance(gaussian(few), gaussian(drawn(9, "b", width=5)))


def test_generator_of_kid_is_ours() -> None:
    """Subset i is the same whatever the others."""
    picks = torch.randperm(50, generator=generator(0, "kid", "reference", 0))[:20]
    x, y = drawn(50, "a"), drawn(50, "b")
    own = torch.randperm(50, generator=generator(0, "kid", "samples", 0))[:20]
    expected = metrics.mmd(x[picks].double(), y[own].double())
    assert metrics.kid(x, y, subsets=1, size=20).value == pytest.approx(expected, rel=1e-12)


# ---------------------------------------------------------------- seams of patches
def noisy(count: int = 50, size: int = 16) -> torch.Tensor:
    """Images [N,H,W,3] whose steps are alike everywhere."""
    walk = torch.randn(count, size, size, 3, generator=torch.Generator().manual_seed(0)) * 5
    return (walk + 128).round().to(torch.uint8)


def test_images_without_seams_have_no_patch_grid() -> None:
    found = metrics.patch_grid(metrics.patch_steps(noisy(), 4))
    assert found.error is not None and abs(found.value) < 3 * found.error < 0.1


def test_patches_of_their_own_brightness_have_one() -> None:
    images = noisy()
    shades = torch.randint(0, 60, (50, 4, 4, 1), generator=torch.Generator().manual_seed(1))
    images = images + shades.repeat_interleave(4, 1).repeat_interleave(4, 2).to(torch.uint8)
    assert metrics.patch_grid(metrics.patch_steps(images, 4)).value > 5
    assert metrics.patch_grid(metrics.patch_steps(images[:, 1:, 1:], 4)).value < 0  # borders elsewhere


def test_patch_steps_by_their_definition() -> None:
    image = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    image[:, :, 2:] = 10  # a step of 10 across the one upright border, in each row; none across the level one
    steps = metrics.patch_steps(image, 2)
    assert steps.tolist() == [[100 / 2, 0.0]]
    with pytest.raises(UserError, match="patches of 4 have no seams inside images of 4x4"):
        metrics.patch_steps(image, 4)
