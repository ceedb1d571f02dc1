"""Every operator against its definition: adjoint, pseudo-inverse, what it refuses."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pixelwright as pw
from pixelwright.editing import operators as ops

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4)).map(lambda s: (8 * s[0], 8 * s[1]))
MAKE: dict[str, Callable[[tuple[int, int]], ops.Operator]] = {
    "sr2": lambda size: ops.AveragePool(2),
    "sr4": lambda size: ops.AveragePool(4),
    "sr8": lambda size: ops.AveragePool(8),
    "grey": lambda size: ops.Grey(),
    "gaussian": lambda size: ops.Blur.gaussian(0.5),
    "motion": lambda size: ops.Blur.motion(5, 30),
    "uneven": lambda size: ops.Blur(torch.tensor([[0.1, 0.5], [0.3, -0.2], [0.0, 0.1]]), floor=0.2),
    "box": lambda size: ops.Mask.box(size, 1, 2, 3, 4),
    "random": lambda size: ops.Mask.random(size, 0.7, seed=3),
    "projection": lambda size: ops.RandomProjection(size, 0.2, seed=1),
}


def images(size: tuple[int, int], seed: int = 0, count: int = 2) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, *size, generator=random, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("name", MAKE)
@given(size=SIZES, seed=st.integers(0, 99))
@settings(max_examples=6)
def test_adjoint_and_inverse_are_those_of_the_operator(name: str, size: tuple[int, int], seed: int) -> None:
    operator, x = MAKE[name](size), images(size, seed)
    y = operator.A(x)
    other = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    back = operator.adjoint(other)
    assert abs(float((y * other).sum() - (x * back).sum())) < 1e-12 * float(x.norm() * other.norm())
    assert (operator.A(operator.pinv(y)) - y).abs().max() < 1e-12  # A A⁺ A = A
    assert (operator.pinv(operator.A(operator.pinv(y))) - operator.pinv(y)).abs().max() < 1e-11
    assert operator.A(x).norm() ** 2 <= operator.gram * float(x.norm()) ** 2 * (1 + 1e-9)
    assert operator.size(y) == size
    assert (operator.A(operator.correction(x * 0, y)) - y).abs().max() < 1e-12


@pytest.mark.parametrize("name", MAKE)
def test_solve_inverts_the_gram_matrix_and_the_ridge(name: str) -> None:
    operator = MAKE[name]((16, 24))
    y = operator.A(images((16, 24)))
    solved = operator.solve(y, 0.3)
    assert (operator.A(operator.adjoint(solved)) + 0.3 * solved - y).abs().max() < 1e-12


def test_measurements_are_what_their_names_promise() -> None:
    x = images((16, 16))
    assert torch.equal(ops.AveragePool(4).A(x)[0, 1, 2, 3], x[0, 1, 8:12, 12:16].mean())
    grey = ops.Grey().A(x)
    assert grey.shape == (2, 1, 16, 16)
    assert torch.allclose(
        grey[0, 0, 3, 4], 0.299 * x[0, 0, 3, 4] + 0.587 * x[0, 1, 3, 4] + 0.114 * x[0, 2, 3, 4]
    )
    flat = torch.full((1, 3, 32, 32), 0.25, dtype=torch.float64)
    for blur in (ops.Blur.gaussian(2), ops.Blur.motion(9, 45)):
        assert torch.allclose(blur.A(flat), flat)  # the kernel sums to one
    dot = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    dot[:, :, 16, 16] = 1
    spread = ops.Blur.gaussian(1.5, floor=0).A(dot)[0, 0]
    assert spread.argmax() == 16 * 32 + 16 and torch.allclose(spread, spread.T)
    streak = ops.Blur.motion(7, 0, floor=0).A(dot)[0, 0]
    assert torch.equal((streak.abs() > 1e-12).nonzero()[:, 0].unique(), torch.tensor([16]))
    missing = ops.Mask.random((20, 20), 0.7).missing
    assert int(missing.sum()) == 280
    assert torch.equal(missing, ops.Mask.random((20, 20), 0.7).missing)
    assert not torch.equal(missing, ops.Mask.random((20, 20), 0.7, seed=1).missing)


def test_quantisation_is_its_own_inverse_once_measured() -> None:
    x, operator = images((8, 8)) * 1.2, ops.Quantise(5)
    y = operator.A(x)
    assert set(y.unique().tolist()) <= {-1, -0.5, 0, 0.5, 1}
    assert torch.equal(operator.A(operator.pinv(y)), y)
    assert not operator.linear
    with pytest.raises(pw.UserError, match=r"not linear and has no adjoint: use method ddnm or pigdm"):
        operator.adjoint(y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ops.AveragePool(0), "factor is 0; give a whole number of at least 1"),
        (
            lambda: ops.AveragePool(4).A(images((10, 8))),
            "images of 10x8 do not divide by 4: crop or pad them",
        ),
        (
            lambda: ops.AveragePool(2).size(images((8, 8))[:, :1]),
            r"torch.float64 \[2, 1, 8, 8\]; give floats",
        ),
        (lambda: ops.Grey().size(images((8, 8))), r"give floats \[B, 1, H, W\]"),
        (lambda: ops.Mask(torch.zeros(3)), r"missing is torch.float32 \[3\]; give bool \[H, W\]"),
        (lambda: ops.Mask.box((8, 8), 4, 4, 8, 2), "is not inside of an image of 8x8"),
        (lambda: ops.Mask.random((8, 8), 1.0), "share is 1.0; it must be above 0 and below 1"),
        (lambda: ops.Mask.random((8, 8), 0.5).size(images((8, 16))), "8x16 do not fit the mask of 8x8"),
        (lambda: ops.Blur.gaussian(0), "sigma is 0; give a number of pixels above 0"),
        (lambda: ops.Blur.motion(1), "motion of 1 pixels at 0.0 degrees: give at least 2"),
        (lambda: ops.Blur(torch.ones(3, 3).int()), r"the kernel is torch.int32 \[3, 3\]; give finite floats"),
        (lambda: ops.Blur.gaussian(3).A(images((8, 8))), "kernel of 25x25 is larger than images of 8x8"),
        (lambda: ops.Blur.gaussian(1, floor=1), "floor is 1; it must be at least 0 and below 1"),
        (lambda: ops.RandomProjection((8, 8), 0.1).size(images((8, 8))), r"this projection gives \[B, 19\]"),
        (lambda: ops.RandomProjection((8, 8), 0.1).A(images((8, 16))), "do not fit the projection of 8x8"),
        (lambda: ops.Quantise(1), "levels is 1; give a whole number of at least 2"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(pw.UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
