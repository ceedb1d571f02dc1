"""The methods against a model whose flow is known in closed form, in float64."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pixelwright as pw
from pixelwright.diffusion.solvers import SOLVERS, Step, Velocity, ancestral, solve, timesteps
from pixelwright.editing import methods, operators, restoration
from pixelwright.editing.restoration import Problem
from tests.editing.gaussian import velocity_of

SPREAD = 0.6
ORDERS = {"euler": 1, "heun": 2, "ab2": 2, "dpmpp-2m": 2}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MEAN, OTHER = randn(1, 3, 4, 4, seed=1), randn(1, 3, 4, 4, seed=2)
SHAPE = (5, 3, 4, 4)


def deviation(t: float) -> float:
    """Of x_t around t·mean."""
    return math.sqrt(t**2 * SPREAD**2 + (1 - t) ** 2)


def fresh(name: str) -> Tensor:
    return randn(*SHAPE, seed=hash(name) % 2**31)


@pytest.mark.parametrize("solver", ORDERS)
def test_inversion_finds_the_noise_with_the_order_of_the_solver(solver: str) -> None:
    noise = randn(*SHAPE, seed=3)
    image = MEAN + SPREAD * noise  # the flow of a Gaussian is x_t = t·mean + deviation(t)·noise
    errors = []
    for steps in (16, 32, 64, 128):
        found = methods.invert(velocity_of(MEAN, SPREAD), image, timesteps(steps), solver)
        errors.append(float((found - noise).abs().max()))
    order = math.log2(errors[-2] / errors[-1])
    assert abs(order - ORDERS[solver]) < 0.25, errors


@pytest.mark.parametrize("solver", ORDERS)
def test_inversion_and_back_is_the_image_with_the_order_of_the_solver(solver: str) -> None:
    image, velocity = MEAN + SPREAD * randn(*SHAPE, seed=3), velocity_of(MEAN, SPREAD)
    errors = []
    for steps in (32, 64, 128):
        noise = methods.invert(velocity, image, timesteps(steps), solver)
        errors.append(float((solve(velocity, noise, timesteps(steps), solver) - image).abs().max()))
    assert all(after < before * 0.75 * 2 ** (1 - ORDERS[solver]) for before, after in pairwise(errors)), (
        errors
    )


def test_inversion_of_x_prediction_begins_where_its_velocity_is_that_of_the_path() -> None:
    noise, true = randn(*SHAPE, seed=3), velocity_of(MEAN, SPREAD)
    seen: list[float] = []

    def clamped(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t))
        return true(x, t) * (1 - t) / max(float(1 - t), 0.05)  # as networks of x divide

    image = MEAN + SPREAD * noise
    exact = methods.invert(clamped, image, timesteps(200), "heun", 0.95)
    assert max(seen) <= 0.95 + 1e-12
    naive = methods.invert(clamped, image, timesteps(200), "heun")
    assert (exact - noise).abs().max() < 0.2 * (naive - noise).abs().max()


def test_sdedit_ends_where_the_flow_from_the_noised_image_does() -> None:
    image, noise = OTHER.expand(SHAPE), randn(*SHAPE, seed=4)
    x, times = methods.begin(image, noise, timesteps(400), 0.6)
    t = float(times[0])
    assert t == pytest.approx(0.4) and len(times) == 241
    expected = MEAN + SPREAD / deviation(t) * (t * image + (1 - t) * noise - t * MEAN)
    assert (solve(velocity_of(MEAN, SPREAD), x, times, "heun") - expected).abs().max() < 1e-4


@given(steps=st.integers(1, 60), strength=st.floats(0, 1))
def test_strength_counts_steps_as_diffusers_does(steps: int, strength: float) -> None:
    image, noise = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    x, times = methods.begin(image, noise, timesteps(steps), strength)
    taken = min(steps * strength, steps)
    assert len(times) - 1 == steps - int(max(steps - taken, 0))
    assert torch.equal(times, timesteps(steps)[len(timesteps(steps)) - len(times) :])
    if strength in (0, 1):
        assert torch.equal(x, noise if strength else image)


@pytest.mark.parametrize("solver", SOLVERS)
@given(seed=st.integers(0, 50))
@settings(max_examples=5)
def test_known_pixels_go_straight_to_the_image_and_nothing_else_moves(solver: str, seed: int) -> None:
    image, noise = randn(*SHAPE, seed=seed), randn(*SHAPE, seed=seed + 1)
    mask = randn(SHAPE[0], 1, 4, 4, seed=seed + 2) > 0
    seen: list[Tensor] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        known = t * image + (1 - t) * noise
        seen.append(torch.where(mask, 0, x - known).abs().max())
        return velocity_of(MEAN, SPREAD)(x, t)

    drawn = methods.inpaint(velocity, image, mask, noise, timesteps(12), 1.0, solver)
    assert max(map(float, seen)) == 0  # the network sees known pixels exactly on their path
    free = solve(velocity_of(MEAN, SPREAD), noise, timesteps(12), solver)  # pixels of MEAN are independent
    assert torch.equal(drawn, torch.where(mask, free, image))
    unfinished = solve(methods.keep(velocity, image, noise, mask), noise, timesteps(12), solver)
    assert (torch.where(mask, 0, unfinished - image)).abs().max() < 1e-9  # even without the last line


@given(t=st.floats(0.01, 1), share=st.floats(0, 1))
def test_a_jump_back_leaves_the_noise_that_the_path_has(t: float, share: float) -> None:
    before, now = torch.tensor(t * share, dtype=torch.float64), torch.tensor(t, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    signal, noise = methods.back(one, one * 0, now, before), methods.back(one * 0, one, now, before)
    assert float(signal) * t == pytest.approx(float(before))
    assert float((signal * (1 - now)) ** 2 + noise**2) == pytest.approx(float(1 - before) ** 2)


def test_resampling_draws_from_the_same_data() -> None:
    image, noise, mask = OTHER.expand(SHAPE), randn(*SHAPE, seed=5), torch.ones(5, 1, 4, 4, dtype=torch.bool)
    drawn = methods.inpaint(
        velocity_of(MEAN, SPREAD), image, mask, noise, timesteps(100), 1.0, "heun", resampling=3, fresh=fresh
    )
    scores = (drawn - MEAN) / SPREAD
    assert abs(float(scores.mean())) < 0.2 and abs(float(scores.std()) - 1) < 0.15
    assert (drawn - solve(velocity_of(MEAN, SPREAD), noise, timesteps(100), "heun")).abs().max() > 1


@pytest.mark.parametrize("n_max", [20, 33, 50])
@pytest.mark.parametrize("n_avg", [1, 3])
def test_flowedit_moves_by_the_difference_of_the_means(n_max: int, n_avg: int) -> None:
    # Of two Gaussians of one spread s: d(z − x)/dt is linear, z = x + (1 − t0·s/deviation(t0))·(m' − m).
    image = MEAN + SPREAD * randn(*SHAPE, seed=6)
    source, target = velocity_of(MEAN, SPREAD), velocity_of(OTHER, SPREAD)
    errors = []
    for factor in (4, 8):
        edited = methods.flowedit(
            target, source, image, timesteps(50 * factor), fresh, n_max * factor, 0, n_avg, "heun"
        )
        t0 = 1 - n_max / 50
        expected = image + (1 - t0 * SPREAD / deviation(t0)) * (OTHER - MEAN)
        errors.append(float((edited - expected).abs().max()))
    assert errors[-1] < 1e-4 and (errors[-1] < errors[0] / 3 or errors[-1] < 1e-12)


def test_flowedit_ends_with_the_target_alone_below_n_min() -> None:
    image = MEAN + SPREAD * randn(*SHAPE, seed=6)
    calls: list[tuple[str, float]] = []

    def noted(name: str, mean: Tensor) -> Velocity:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            calls.append((name, float(t)))
            return velocity_of(mean, SPREAD)(x, t)

        return velocity

    methods.flowedit(noted("target", OTHER), noted("source", MEAN), image, timesteps(10), fresh, 8, 3)
    assert [round(10 * t) for name, t in calls if name == "source"] == [2, 3, 4, 5, 6]
    assert [round(10 * t) for name, t in calls if name == "target"] == [2, 3, 4, 5, 6, 7, 8, 9]


def test_flowedit_from_a_class_to_itself_is_the_image() -> None:
    image, velocity = randn(*SHAPE, seed=6), velocity_of(MEAN, SPREAD)
    edited = methods.flowedit(velocity, velocity, image, timesteps(50), fresh, 50)
    assert (edited - image).abs().max() < 1e-12


@pytest.mark.parametrize("counts", [(5, 5, 1), (0, 0, 1), (11, 0, 1), (5, -1, 1), (5, 0, 0)])
def test_flowedit_refuses_counts_that_are_none(counts: tuple[int, int, int]) -> None:
    velocity = velocity_of(MEAN)
    with pytest.raises(pw.UserError, match=r"it must be 0 <= n_min < n_max <= steps \(10\) and n_avg >= 1"):
        methods.flowedit(velocity, velocity, MEAN, timesteps(10), fresh, *counts)


def test_slerp_keeps_the_length_of_noise_and_both_ends() -> None:
    a, b = randn(2, 3, 16, 16, seed=7), randn(2, 3, 16, 16, seed=8)
    assert (methods.slerp(a, b, 0) - a).abs().max() < 1e-15 and (
        methods.slerp(a, b, 1) - b
    ).abs().max() < 1e-15
    lengths = [float(methods.slerp(a, b, w / 10).norm()) for w in range(11)]
    assert max(lengths) / min(lengths) < 1.05
    assert (methods.slerp(a, a, 0.3) - a).abs().max() < 1e-15  # no arc between equals


# --- restoration ---
LINEAR = {
    "sr2": operators.AveragePool(2),
    "grey": operators.Grey(),
    "projection": operators.RandomProjection((4, 4), 0.4),
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("method", ["ddnm", "pigdm"])
@pytest.mark.parametrize(("sigma", "scale"), [(0.0, 1.0), (0.3, 1.0), (0.3, 2.0)])
def test_data_of_variance_one_are_drawn_from_the_exact_posterior(
    name: str, method: str, sigma: float, scale: float
) -> None:
    # x ~ N(m, 1), y = A x + σ·n with A·Aᵀ = c: x|y has the mean m + Aᵀ(y − A m)/(c + σ²) and the covariance
    # C = 1 − AᵀA/(c + σ²), and the flow ends in mean + C^(1/2)·ε.
    operator, correct = LINEAR[name], restoration.RESTORATION[method].correct
    y = operator.A(MEAN + randn(*SHAPE, seed=9)) + sigma * randn(1, seed=10)
    noise, c = randn(*SHAPE, seed=11), operator.gram
    mean = MEAN + operator.adjoint(y - operator.A(MEAN)) / (c + sigma**2)
    shrunk = (1 - math.sqrt(sigma**2 / (c + sigma**2))) / c * operator.adjoint(operator.A(noise))
    expected = mean + noise - shrunk
    velocity = correct(velocity_of(MEAN, 1.0, scale), Problem(operator, y, sigma, 1.0, scale))
    drawn = [solve(velocity, scale * noise, timesteps(steps), "heun") for steps in (40, 80)]
    errors = [float((x - expected).abs().max()) for x in drawn]
    assert errors[1] < 5e-3 and abs(math.log2(errors[0] / errors[1]) - 2) < 0.3, errors


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("method", ["ddnm", "pigdm"])
@pytest.mark.parametrize(("spread", "scale"), [(0.5, 1.0), (10.0, 1.0), (0.5, 2.0)])
def test_data_of_any_one_variance_are_drawn_from_the_exact_posterior_without_noise(
    name: str, method: str, spread: float, scale: float
) -> None:
    # x ~ N(m, τ²): what is measured is known, what is lost varies by τ around m.
    operator, correct, noise = LINEAR[name], restoration.RESTORATION[method].correct, randn(*SHAPE, seed=11)
    x, drawn = MEAN + spread * randn(*SHAPE, seed=9), MEAN + spread * noise
    velocity = correct(velocity_of(MEAN, spread, scale), Problem(operator, operator.A(x), noise_scale=scale))
    expected = drawn + operator.correction(drawn, operator.A(x))
    errors = [
        float((solve(velocity, scale * noise, timesteps(steps), "heun") - expected).abs().max())
        for steps in (100, 200)
    ]
    assert errors[1] < 5e-3 * max(1, spread) and errors[1] < 0.4 * errors[0], errors


def test_pigdm_restores_data_whose_directions_vary_unalike() -> None:
    # As images do: brightness varies much, details little. The paper's c led so far beyond the measurement
    # that 50 steps did not come back.
    operator, shape, (wide, narrow) = operators.AveragePool(2), (64, 3, 4, 4), (20.0, 0.2)

    def both(x: Tensor, of_mean: Callable[[Tensor], Tensor], of_rest: Callable[[Tensor], Tensor]) -> Tensor:
        mean = x.mean(dim=(1, 2, 3), keepdim=True).expand_as(x)
        return of_mean(mean) + of_rest(x - mean)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        flat, rest = (velocity_of(torch.zeros(()), spread) for spread in (wide, narrow))
        return both(x, lambda mean: flat(mean, t), lambda left: rest(left, t))

    y = operator.A(both(randn(*shape, seed=2), lambda mean: wide * mean, lambda left: narrow * left))
    for eta in (0.0, 1.0):
        guided = restoration.pigdm(velocity, Problem(operator, y))
        x = ancestral(
            guided, randn(*shape, seed=1), timesteps(50), eta=eta, fresh=lambda i: randn(*shape, seed=i)
        )
        assert (operator.A(x) - y).abs().max() < 0.05
        lost = x - operator.pinv(operator.A(x))
        assert float(lost.square().mean().sqrt()) < 1.2 * narrow * math.sqrt(0.75)  # 3 of 4 dimensions


def test_pigdm_chooses_the_component_of_a_mixture_that_was_measured() -> None:
    # Two Gaussians that differ in every pixel: what is measured of the colours tells which it is, and what is
    # lost varies as it does inside of that one.
    spread, operator, shape = 0.5, operators.Grey(), (256, 3, 4, 4)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        variance = t**2 * spread**2 + (1 - t) ** 2
        first = torch.sigmoid(2 * t * (x * MEAN).sum(dim=(1, 2, 3), keepdim=True) / variance)
        return first * velocity_of(MEAN, spread)(x, t) + (1 - first) * velocity_of(-MEAN, spread)(x, t)

    true = torch.where(torch.arange(256) % 2 == 0, 1, -1)[:, None, None, None] * MEAN
    y = operator.A(true + spread * randn(*shape, seed=3))
    guided = restoration.pigdm(velocity, Problem(operator, y))
    x = solve(guided, randn(*shape, seed=4), timesteps(50), "euler")
    nearer = (x - true).square().sum(dim=(1, 2, 3)) < (x + true).square().sum(dim=(1, 2, 3))
    assert nearer.double().mean() > 0.98
    lost = x - true - operator.pinv(operator.A(x - true))
    assert float(lost.square().mean().sqrt()) == pytest.approx(spread * math.sqrt(2 / 3), rel=0.03)


def test_pigdm_takes_the_jacobian_and_goes_as_far_as_ddnm() -> None:
    operator, x, t = operators.AveragePool(2), randn(*SHAPE, seed=12), torch.tensor(0.4, dtype=torch.float64)
    y = operator.A(MEAN + randn(*SHAPE, seed=13))
    slope = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)[:, None, None]  # ∂x0/∂x of red, green, blue

    def sloped(x: Tensor, t: Tensor) -> Tensor:
        return (slope * x + MEAN - x) / (1 - t)

    guided = 0.6 * (restoration.pigdm(sloped, Problem(operator, y, 0.3, 1.0))(x, t) - sloped(x, t))
    far = 0.6 * (restoration.ddnm(sloped, Problem(operator, y, 0.3, 1.0))(x, t) - sloped(x, t))
    assert torch.allclose(guided / (slope * far), (guided / (slope * far))[:, :1, :1, :1])  # c an image
    distances = [(c * operator.A(guided) - operator.A(far)).flatten(1).norm(dim=1) for c in (0.99, 1, 1.01)]
    assert bool((distances[1] < torch.minimum(distances[0], distances[2])).all())


def test_dps_goes_down_the_distance_by_its_gradient() -> None:
    operator, x, t = operators.Grey(), randn(*SHAPE, seed=12), torch.tensor(0.4, dtype=torch.float64)
    y, velocity = operator.A(randn(*SHAPE, seed=13)), velocity_of(MEAN, SPREAD)
    shift = restoration.dps(velocity, Problem(operator, y, 0.0, 2.0))(x, t) - velocity(x, t)
    slope = 0.4 * SPREAD**2 / deviation(0.4) ** 2
    residual = y - operator.A(x + 0.6 * velocity(x, t))
    length = residual.flatten(1).norm(dim=1)[:, None, None, None]
    assert torch.allclose(shift, 2 * slope * operator.adjoint(residual) / length)


def test_pnp_steps_down_the_data_term_and_noises_anew() -> None:
    operator, velocity = operators.AveragePool(2), velocity_of(MEAN, SPREAD)
    y, t = operator.A(randn(*SHAPE, seed=13)), torch.tensor(0.4, dtype=torch.float64)
    x = randn(*SHAPE, seed=12)
    shift = restoration.pnp(velocity, Problem(operator, y, 0.0, 1.0))(x, t) - velocity(x, t)
    x0 = x + 0.6 * velocity(x, t)
    assert torch.allclose(0.6 * shift, 0.6 * operator.adjoint(y - operator.A(x0)) / operator.gram)


def test_ancestral_is_euler_at_eta_0_and_noises_the_denoised_image_anew_at_eta_1() -> None:
    noise, velocity, times = randn(*SHAPE, seed=14), velocity_of(MEAN, SPREAD), timesteps(100)
    still = ancestral(velocity, noise, times, eta=0.0, fresh=lambda step: fresh(str(step)))
    assert (still - solve(velocity, noise, times, "euler")).abs().max() < 1e-12
    steps: list[Step] = []
    ancestral(velocity, noise, times, steps.append, eta=1.0, fresh=lambda step: fresh(str(step)))
    for step, after in pairwise(steps):
        expected = after.t * step.denoised + (1 - after.t) * fresh(str(step.index))
        assert (after.x - expected).abs().max() < 1e-12
    mixed = ancestral(velocity, noise, times[:3], eta=0.6, fresh=lambda step: fresh(str(step)))
    first = ancestral(velocity, noise, times[:2], eta=0.6, fresh=lambda step: fresh(str(step)))
    v, t, later = velocity(first, times[1]), times[1], times[2]
    kept = 0.8 * (first - t * v) + 0.6 * fresh("1")
    assert (mixed - (later * (first + (1 - t) * v) + (1 - later) * kept)).abs().max() < 1e-12
