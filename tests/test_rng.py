"""Random numbers: Philox as its authors publish it, normal, independent, the same wherever they are drawn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pixelwright import rng

WORD = st.integers(0, 2**32 - 1)
LAST = 2**32 - 1


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> list[int]:
    """Philox4x32-10 in whole numbers of any size."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) ^ b ^ k, q & LAST, (p >> 32) ^ d ^ m, p & LAST
        k, m = (k + 0x9E3779B9) & LAST, (m + 0xBB67AE85) & LAST
    return [a, b, c, d]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_words_its_authors_publish(counter: str, key: str, words: str) -> None:
    """Known answers of Random123."""
    own, k = ([int(word, 16) for word in text.split()] for text in (counter, key))
    assert philox((*own,), (*k,)) == [int(word, 16) for word in words.split()]
    assert [int(word) for word in rng.philox(torch.tensor(own), (k[0], k[1]))] == philox((*own,), (*k,))


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_philox_is_the_same_in_numpy_torch_and_whole_numbers(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> None:
    for array in (np.array(counter)[:, None], torch.tensor(counter)[:, None]):
        assert [int(word[0]) for word in rng.philox(array, key)] == philox(counter, key)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=4), st.integers(1, 700), st.tuples(WORD, WORD))
def test_torch_and_numpy_draw_the_same_numbers(indices: list[int], blocks: int, key: tuple[int, int]) -> None:
    """Torch on a CPU stands for a GPU; it does not round its roots correctly, which numpy and CUDA do."""
    index, block = torch.tensor(indices), torch.arange(blocks)
    own = rng._draw(np, index.numpy(), block.numpy(), key)
    for a, b in zip(rng._draw(torch, index, block, key), own, strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=4e-7, atol=0)


def test_numbers_are_the_same_on_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    index = torch.arange(6) + 2**33
    for a, b in zip(rng.draw(index, (3, 40, 41), 1), rng.draw(index.cuda(), (3, 40, 41), 1), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=0, atol=1e-6)


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 20))
def test_the_numbers_of_an_index_do_not_depend_on_the_others(start: int, count: int, blocks: int) -> None:
    index, shape = torch.arange(start, start + count), (blocks, 4, 3)
    together = rng.draw(index, shape, 5, "noise", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    alone = [rng.draw(index[i : i + 1], shape, 5, "noise", 2) for i in range(count)]
    torch.set_num_threads(threads)
    for part, whole in zip(zip(*alone, strict=True), together, strict=True):
        assert torch.equal(torch.cat(part), whole)


def test_more_than_the_cache_holds_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    index, shape = torch.arange(7), (3, 9, 9)
    whole = rng.draw(index, shape, 0)
    monkeypatch.setattr(rng, "CPU_BLOCKS", 130)
    for a, b in zip(rng.draw(index, shape, 0), whole, strict=True):
        assert torch.equal(a, b)


def test_box_muller_is_exact_to_float32() -> None:
    dice = np.random.default_rng(0)
    first, second = dice.integers(0, 2**32, (2, 1 << 18))
    first[:4], second[:4] = (0, 1, LAST, LAST), (0, LAST, 2**31, 2**31 - 1)
    u = ((first.astype(np.float32) + np.float32(0.5)) / np.float32(2**32)).astype(np.float64)
    r = np.sqrt(-2 * np.log(u)) * (1 - 2 * (second & 1))
    x = np.where(second < 2**31, second, second - 2**32) / 2**31
    one, other = rng.box_muller(np, first, second)
    assert np.abs(one - r * np.cos(math.pi / 2 * x)).max() < 1e-6
    assert np.abs(other - r * np.sin(math.pi / 2 * x)).max() < 1e-6
    assert np.hypot(one[:4], other[:4]) == pytest.approx([6.763706, 6.599279, 0, 0], abs=1e-6)


def kolmogorov(values: Tensor, distribution: Tensor) -> float:
    """The statistic times the root of the number of values; above 1.95 in one of a thousand cases."""
    n = len(values)
    return float((distribution - torch.arange(1, n + 1) / n).abs().max() * math.sqrt(n))


def test_noise_is_normal() -> None:
    noise = rng.normal(torch.arange(64), (3, 64, 64), 3, "test")
    values = noise.double().flatten().sort().values
    assert kolmogorov(values, torch.special.ndtr(values)) < 1.95
    n, moments = len(values), {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}  # power: mean, variance
    for power, (mean, variance) in moments.items():
        assert abs(float((values**power).mean()) - mean) < 4 * math.sqrt(variance / n), power
    # The planes that a block's four numbers go to, and neighbours in the picture.
    four = noise.view(64, 4, -1).transpose(0, 1).flatten(1)
    assert (torch.corrcoef(four) - torch.eye(4)).abs().max() < 4 / math.sqrt(four.shape[1])
    assert (torch.corrcoef(four.abs()) - torch.eye(4)).abs().max() < 4 / math.sqrt(four.shape[1])
    near = torch.corrcoef(torch.stack((noise[..., 1:].flatten(), noise[..., :-1].flatten())))[0, 1]
    assert abs(near) < 4 / math.sqrt(noise.numel())


def test_single_numbers_are_normal_and_uniform_and_independent_of_the_noise() -> None:
    draw = rng.draw(torch.arange(40_000), (4,), 0, "single")
    normal, uniform = (each.double().sort().values for each in draw[:2])
    assert kolmogorov(normal, torch.special.ndtr(normal)) < 1.95
    assert kolmogorov(uniform, uniform) < 1.95 and uniform[0] >= 0 and uniform[-1] < 1
    rows = torch.stack((draw.normal, draw.uniform, *draw.noise.T))
    assert (torch.corrcoef(rows) - torch.eye(6)).abs().max() < 4 / math.sqrt(40_000)


def test_streams_are_independent() -> None:
    """By seed, by path, and by index, also where but one bit of it differs."""
    indices = torch.tensor([0, 1, 2, 2**31, 2**32, 2**32 + 1])
    paths = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1)]
    rows = torch.cat([rng.normal(indices, (20_000,), *path) for path in paths])
    assert (torch.corrcoef(rows) - torch.eye(len(rows))).abs().max() < 5 / math.sqrt(20_000)


def test_negative_and_large_seeds_name_streams_too() -> None:
    one, other = (rng.normal(torch.tensor([0]), (8,), seed, "x") for seed in (-1, 2**63))
    assert not torch.equal(one, other) and one.isfinite().all()
