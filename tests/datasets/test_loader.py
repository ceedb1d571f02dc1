"""Batches as a function of the step number."""

from __future__ import annotations

import itertools
import logging
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixelwright.data import Batch, Batches, DataConfig, Sample, Shapes, UnreadableImage, open_source
from pixelwright.data.loader import as_floats
from pixelwright.errors import UserError


class Numbered:
    """Image i has grey level i on its left half and 0 on its right; those in `bad` cannot be read."""

    class_names = None
    num_classes = 5

    def __init__(self, count: int, bad: frozenset[int] = frozenset()):
        self.count, self.bad, self.reads = count, bad, Counter[int]()

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"image {index}"

    def __getitem__(self, index: int) -> Sample:
        self.reads[index] += 1
        if index in self.bad:
            raise UnreadableImage(f"number {index} is bad")
        pixels = np.zeros((4, 4, 3), np.uint8)
        pixels[:, :2] = index
        return Sample(Image.fromarray(pixels), index % 5, None, self.name(index))


def batches(source: object, count: int, batch_size: int, seed: int = 0, **options: object) -> list[Batch]:
    setting = DataConfig(size=4, **{k: options.pop(k) for k in ("flip", "workers", "cache") if k in options})
    return list(itertools.islice(Batches(source, setting, batch_size, seed, **options), count))


def same(a: list[Batch], b: list[Batch]) -> bool:
    pairs = [(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


sizes = st.integers(1, 30)


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(1, 12), st.integers(0, 12), st.integers(0, 5), st.booleans(), st.booleans())
def test_batch_depends_on_its_step_alone(
    n: int, size: int, start: int, seed: int, flip: bool, cache: bool
) -> None:
    source = Numbered(n, frozenset({3, 4}) if n > 5 else frozenset())
    whole = batches(source, start + 3, size, seed, flip=flip)
    late = batches(source, 3, size, seed, flip=flip, start_step=start, cache="auto" if cache else "none")
    assert same(whole[start:], late)


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(1, 4), st.integers(1, 4), st.integers(0, 5))
def test_processes_share_the_batch_out(n: int, share: int, world: int, seed: int) -> None:
    source = Numbered(n, frozenset({1}) if n > 1 else frozenset())
    size = share * world
    parts = [batches(source, 3, size, seed, flip=True, rank=rank, world=world) for rank in range(world)]
    steps = [zip(*step, strict=True) for step in zip(*parts, strict=True)]
    joined = [Batch(*map(torch.cat, list(step)[:4])) for step in steps]  # there are no captions
    assert same(joined, batches(source, 3, size, seed, flip=True))


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(1, 7), st.integers(0, 9))
def test_each_epoch_shows_every_image_once(n: int, size: int, seed: int) -> None:
    enough = batches(Numbered(n), -(-3 * n // size), size, seed)
    shown = torch.cat([b.indices for b in enough])[: 3 * n].reshape(3, n)
    assert (shown.sort(dim=1).values == torch.arange(n)).all()
    if n >= 12:
        assert not torch.equal(shown[0], shown[1])


def test_images_labels_and_indices_belong_together() -> None:
    for batch in batches(Numbered(20), 8, 6, flip=True):
        assert batch.images.shape == (6, 3, 4, 4) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous() and batch.flipped.dtype == torch.bool
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert torch.equal(batch.labels, batch.indices % 5)
        assert torch.equal(batch.images.amax((1, 2, 3)).long(), batch.indices)


def test_images_become_floats_and_are_mirrored() -> None:
    images = torch.arange(2 * 3 * 2 * 4, dtype=torch.uint8).view(2, 3, 2, 4) * 5
    floats = as_floats(images, torch.tensor([False, True]))
    assert floats.dtype == torch.float32 and floats.is_contiguous()
    levels = ((floats + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(levels[0], images[0]) and torch.equal(levels[1], images[1].flip(2))
    ends = as_floats(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), torch.zeros(2) > 0)
    assert ends.flatten().tolist() == [-1, 1]


def flipped(batch: Batch) -> torch.Tensor:
    images = as_floats(batch.images, batch.flipped)
    return images[:, 0, 0, 3] > images[:, 0, 0, 0]


def test_flips_are_half_and_new_in_each_epoch() -> None:
    whole = batches(Numbered(200), 2, 200, flip=True)
    first, second = (
        {int(i): bool(f) for i, f in zip(b.indices, flipped(b), strict=True) if i > 0} for b in whole
    )
    assert 70 < sum(first.values()) < 130
    assert 70 < sum(first[i] != second[i] for i in first) < 130
    assert not any(flipped(b).any() for b in batches(Numbered(50), 3, 50, flip=False))


def test_seeds_give_other_orders() -> None:
    a, b = (batches(Numbered(30), 1, 30, seed)[0].indices for seed in (0, 1))
    assert not torch.equal(a, b)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of forking beside other threads
@pytest.mark.parametrize("cache", ["auto", "none"])
def test_workers_change_nothing(cache: str) -> None:
    source = Numbered(17, frozenset({2, 9}))
    assert same(batches(source, 9, 4, workers=2, cache=cache, flip=True), batches(source, 9, 4, flip=True))


def test_cache_reads_each_image_once() -> None:
    cached, plain = Numbered(12, frozenset({5})), Numbered(12, frozenset({5}))
    assert same(batches(cached, 12, 6), batches(plain, 12, 6, cache="none"))
    assert set(cached.reads.values()) == {1}
    assert plain.reads[0] == 6 and plain.reads[5] == 1  # known to be bad after the first try


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    batches(Numbered(10), 5, 4, flip=True)
    assert torch.equal(before, torch.get_rng_state())


def test_unreadable_image_is_replaced_by_the_next_one(caplog: pytest.LogCaptureFixture) -> None:
    order = batches(Numbered(10), 1, 10)[0].indices.tolist()
    bad = frozenset(order[3:5])
    feed = Batches(Numbered(10, bad), DataConfig(size=4), 10, 0)
    with caplog.at_level(logging.WARNING):
        shown = [b.indices.tolist() for b in itertools.islice(feed, 4)]
    assert shown[0] == [*order[:3], order[5], order[5], *order[5:]]
    assert feed.skipped == {f"image {i}": f"number {i} is bad" for i in bad}
    assert len(caplog.records) == 2 and "image" in caplog.text


def test_last_of_the_permutation_is_replaced_by_the_first() -> None:
    order = batches(Numbered(6), 1, 6)[0].indices.tolist()
    assert batches(Numbered(6, frozenset({order[5]})), 1, 6)[0].indices.tolist() == [*order[:5], order[0]]


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 11), max_size=11), st.integers(1, 5))
def test_bad_images_are_never_shown(bad: set[int], size: int) -> None:
    for batch in batches(Numbered(12, frozenset(bad)), 12, size):
        assert not bad & set(batch.indices.tolist())


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_nothing_readable_is_an_error(cache: str) -> None:
    with pytest.raises(UserError, match=r"none of the 3 images .* can be read"):
        batches(Numbered(3, frozenset(range(3))), 1, 2, cache=cache)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -4}, "batch_size is -4"),
        ({"batch_size": 5, "world": 2}, "batch_size is 5"),
        ({"rank": 2, "world": 2}, "rank is 2"),
        ({"rank": -1}, "rank is -1"),
        ({"start_step": -1}, "start_step is -1"),
    ],
)
def test_bad_arguments(arguments: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Batches(Numbered(5), DataConfig(size=4), **{"batch_size": 4, "seed": 0, **arguments})


def test_a_folder_with_damage_trains_on(tmp_path) -> None:
    for i in range(6):
        Image.new("RGB", (5 + i, 9), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:45])
    config = DataConfig(path=str(tmp_path), size=4)
    feed = Batches(open_source(config), config, 4, seed=0)
    shown = {i for b in itertools.islice(feed, 6) for i in b.indices.tolist()}
    assert shown == {0, 1, 3, 5} and set(feed.skipped) == {"2.png", "4.png"}
    assert feed.skipped["2.png"] == "the file is empty"


def test_shapes_batch() -> None:
    config = DataConfig(size=16, shapes_count=20)
    source = open_source(config)
    batch = next(iter(Batches(source, config, 8, seed=0)))
    assert isinstance(source, Shapes) and batch.images.shape == (8, 3, 16, 16)
    assert [source[int(i)].label for i in batch.indices] == batch.labels.tolist()
