"""Aspect-ratio buckets: the tables, who belongs where, batches of one shape, what is left out."""

from __future__ import annotations

import io
import itertools
import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixelwright.data import Batch, Batches, DataConfig, UnreadableImage, open_source
from pixelwright.data.buckets import BLOCK, Plan, image_sizes, make_table, nearest_bucket, table
from pixelwright.data.sources import Sample
from pixelwright.data.transforms import centre_crop, cover, read_size
from pixelwright.errors import UserError


class Sized:
    """Grey images of given (width, height), whose level is their number; some cannot be read."""

    class_names = None
    num_classes = 1

    def __init__(self, sizes: Sequence[tuple[int, int]], broken: frozenset[int] = frozenset()):
        self.sizes, self.broken = sizes, broken

    def __len__(self) -> int:
        return len(self.sizes)

    def name(self, index: int) -> str:
        return f"image {index}"

    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise UnreadableImage("broken")
        return Sample(Image.new("RGB", self.sizes[index], (index,) * 3), 0, None, self.name(index))


SHAPES = [(40, 40), (80, 40), (40, 80)]


def some(count: int) -> Sized:
    return Sized([SHAPES[i % 3 if i % 2 else 0] for i in range(count)])


def config(**changes: object) -> DataConfig:
    return DataConfig(**{"path": "somewhere", "size": 16, "aspects": True, "aspect_step": 4, **changes})


def batches(
    source: Sized, steps: int, size: int = 4, data: DataConfig | None = None, **more: int
) -> list[Batch]:
    loop = iter(Batches(source, data or config(), size, **{"seed": 3, **more}))
    return [next(loop) for _ in range(steps)]


# ---------------------------------------------------------------- tables
def test_the_usual_tables() -> None:
    small, large = table(512), table(1024)
    assert len(small) == len(large) == 40
    assert large == tuple((2 * rows, 2 * columns) for rows, columns in small)
    ratios = sorted(round(rows / columns, 2) for rows, columns in small)
    assert (ratios[0], ratios[-1], ratios.count(1.0)) == (0.25, 4.0, 1)
    for rows, columns in small:
        assert rows % 32 == columns % 32 == 0
        assert 0.87 < rows * columns / 512**2 <= 1.01
    assert {(512, 512), (416, 608), (1024, 256), (352, 672)} <= set(small) and (672, 352) not in small


@settings(deadline=None)
@given(st.integers(2, 24), st.sampled_from([4, 16, 32]), st.floats(1, 5))
def test_made_tables_are_about_as_large_and_turn_into_themselves(
    side: int, step: int, longest: float
) -> None:
    size = side * step
    made = make_table(size, step, longest)
    assert (size, size) in made and set(made) == {(columns, rows) for rows, columns in made}
    for rows, columns in made:
        assert rows % step == columns % step == 0
        assert max(rows, columns) <= max(longest * min(rows, columns), size)
        assert abs(rows * columns - size * size) <= step / 2 * min(rows, columns) + 1e-6


def test_a_size_that_the_step_does_not_divide() -> None:
    with pytest.raises(UserError, match="size is 40: with buckets in steps of 32"):
        table(40)


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=20))
def test_the_nearest_bucket_is_nearest_in_ratio(sizes: list[tuple[int, int]]) -> None:
    buckets = table(512)
    found = nearest_bucket(buckets, np.array(sizes))
    for (rows, columns), chosen in zip(sizes, found, strict=True):
        apart = [abs(math.log(rows / columns * c / r)) for r, c in buckets]
        assert apart[chosen] <= min(apart) + 1e-9


# ---------------------------------------------------------------- no distortion
@settings(max_examples=60, deadline=None)
@given(st.integers(3, 200), st.integers(3, 200), st.integers(1, 12), st.integers(1, 12))
def test_covering_scales_both_sides_alike(width: int, height: int, rows: int, columns: int) -> None:
    rows, columns = rows * 4, columns * 4
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)[None]
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    shown = np.asarray(cover(Image.fromarray(ramp), rows, columns)).astype(float)
    assert shown.shape == (rows, columns, 3)
    if min(width, height) < 16 or max(width, height) > 4 * min(width, height):
        return
    scale = max(columns / width, rows / height)
    across = (shown[..., 0].max() - shown[..., 0].min()) / 255 * width  # pixels of the original that are seen
    down = (shown[..., 1].max() - shown[..., 1].min()) / 255 * height
    assert across == pytest.approx(columns / scale, abs=3 / scale + 3)
    assert down == pytest.approx(rows / scale, abs=3 / scale + 3)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_a_square_is_covered_by_the_rule_of_adm(width: int, height: int, size: int) -> None:
    image = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))
    assert cover(image, size, size).tobytes() == centre_crop(image, size).tobytes()


def test_the_size_as_shown_is_read_from_the_header() -> None:
    for orientation, expected in ((1, (6, 4)), (6, (4, 6)), (3, (6, 4))):
        buffer, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (6, 4)).save(buffer, "JPEG", exif=exif)
        assert read_size(buffer.getvalue()) == expected
    with pytest.raises(UnreadableImage):
        read_size(b"nothing")


# ---------------------------------------------------------------- batches
def test_each_batch_has_one_shape_and_images_of_it() -> None:
    source, seen = some(40), Counter()  # type: ignore[var-annotated]
    for batch in batches(source, 60):
        rows, columns = batch.images.shape[2:]
        for index in batch.indices.tolist():
            width, height = source.sizes[index]
            assert abs(math.log(rows / columns * width / height)) < 0.2  # between two steps of 4 pixels
        seen[rows > columns, rows < columns] += 1
    assert len(seen) == 3


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 30), st.integers(1, 5), st.integers(0, 30), st.integers(0, 5))
def test_a_batch_depends_on_its_step_alone(n: int, size: int, start: int, seed: int) -> None:
    source = some(n)
    whole = batches(source, start + 3, size, seed=seed)[start:]
    late = batches(source, 3, size, seed=seed, start_step=start)
    for a, b in zip(whole, late, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.indices, b.indices)


def test_processes_share_a_batch_of_one_shape() -> None:
    source = some(30)
    whole = batches(source, 20, 6)
    parts = [batches(source, 20, 6, rank=rank, world=3) for rank in range(3)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[step].images for part in parts]), batch.images)


def test_workers_and_no_cache_change_nothing() -> None:
    source = some(30)
    plain = batches(source, 12)
    for changed in (config(cache="none"), config(workers=2)):
        for a, b in zip(plain, batches(source, 12, data=changed), strict=True):
            assert torch.equal(a.images, b.images)


def test_all_images_of_a_bucket_are_seen_before_one_is_seen_again() -> None:
    source = some(40)
    by_shape: dict[torch.Size, list[int]] = {}
    for batch in batches(source, 80):
        by_shape.setdefault(batch.images.shape[2:], []).extend(batch.indices.tolist())
    for indices in by_shape.values():
        members = len(set(indices))
        for start in range(0, len(indices) - members, members):
            assert len(set(indices[start : start + members])) == members


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 3 * BLOCK))
def test_a_bucket_has_its_share_of_the_steps(counts: list[int], step: int) -> None:
    ends = np.cumsum([0, *counts])
    members = [np.arange(a, b) for a, b in itertools.pairwise(ends)]
    plan = Plan([(i + 1, 1) for i in range(len(counts))], members, int(ends[-1]), seed=1)
    turns: Counter[int] = Counter()
    for earlier in range(step, step + 50):  # turns count up, from wherever one begins
        group, turn = plan.turn(earlier)
        assert turns.setdefault(group, turn) == turn
        turns[group] += 1
    again = Plan(plan.sizes, members, int(ends[-1]), seed=1)
    assert [again.turn(s) for s in (step + 49, step)] == [plan.turn(step + 49), plan.turn(step)]
    for group, count in enumerate(counts):
        expected = count / sum(counts)
        drawn = plan._before(3)[group] / (3 * BLOCK)
        assert abs(drawn - expected) < 5 * math.sqrt(expected * (1 - expected) / (3 * BLOCK)) + 1e-9


# ---------------------------------------------------------------- what is left out
def test_small_long_and_broken_images_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    source = Sized([(40, 40), (20, 90), (90, 20), (8, 8), (9, 30), (40, 30)], frozenset({0}))
    data = config(min_side=16, longest_aspect=3)
    with caplog.at_level(logging.WARNING):
        seen = {i for batch in batches(source, 8, data=data) for i in batch.indices.tolist()}
    assert seen == {5}
    assert caplog.messages == [
        "of 6 images are left out: 1 whose size cannot be read, 2 with a side below 16 pixels, "
        "2 longer than 3 to 1"
    ]
    with pytest.raises(UserError, match=r'of "somewhere" no image is left \(1 whose size'):
        Batches(source, config(min_side=99), 4, seed=1)


def test_filters_without_buckets_leave_squares() -> None:
    source = some(12)
    found = batches(source, 6, data=DataConfig(path="somewhere", size=16, longest_aspect=1.5))
    assert {tuple(batch.images.shape[2:]) for batch in found} == {(16, 16)}
    assert {source.sizes[i] for batch in found for i in batch.indices.tolist()} == {(40, 40)}


def test_sizes_of_shards_are_kept_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.datasets.test_captions import png, tar

    monkeypatch.setenv("PIXELWRIGHT_CACHE", str(tmp_path / "cache"))
    path = tar(tmp_path / "set.tar", a__png=png(), b__png=b"broken")
    source = open_source(DataConfig(path=str(path), size=4))
    assert image_sizes(source).tolist() == [[4, 4], [0, 0]]
    monkeypatch.setattr("pixelwright.data.buckets._size", None)  # not asked any more
    assert image_sizes(source).tolist() == [[4, 4], [0, 0]]


def test_a_folder_tells_sizes_without_decoding(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[:60])  # a header is enough
    source = open_source(DataConfig(path=str(tmp_path), size=4))
    assert image_sizes(source).tolist() == [[4, 6], [4, 6]]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"aspect_step": 32, "size": 512, "aspects": True}, "aspect_step is 32, but data.size is 512"),
        ({"aspect_step": 32}, "aspect_step is 32, but data.aspects is false"),
        ({"longest_aspect": 0.5}, "give a number of at least 1"),
        ({"min_side": -1}, "data.min_side is -1"),
        ({"aspects": "yes"}, "data.aspects is 'yes'"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        DataConfig(**{"size": 16, **values})  # type: ignore[arg-type]
