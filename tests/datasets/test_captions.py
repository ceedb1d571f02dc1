"""Captions: where they are read from, which one is drawn, and images without any."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelwright.data import Batches, DataConfig, open_source
from pixelwright.data.captions import Captions, from_meta
from pixelwright.data.prepare import Job, prepare
from pixelwright.data.sources import Source
from pixelwright.errors import UserError

from .conftest import png


def tar(path: Path, **members: bytes | str) -> Path:
    """Members by name, of which __ stands for the dot."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def source(path: Path) -> Source:
    return open_source(DataConfig(path=str(path), size=4))


def said(path: Path) -> list[Captions | None]:
    images = source(path)
    return [images[i].all_captions for i in range(len(images))]


def one(text: str) -> Captions:
    return Captions((text,), (1.0,))


def test_a_folder_has_them_beside_the_images_or_in_metadata(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (folder / "sub" / f"{name}.png").write_bytes(png())
    (folder / "sub" / "a.txt").write_text("a hat\non a cat\n")
    (folder / "sub" / "b.txt").write_text("not this")
    line = {"file_name": "sub/b.png", "captions": ["a dog", "an animal"], "weights": [3, 1]}
    (folder / "metadata.jsonl").write_text(json.dumps(line) + "\n\n")
    assert said(folder) == [one("a hat on a cat"), Captions(("a dog", "an animal"), (0.75, 0.25)), None]


def test_shards_have_them_as_text_or_as_json(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "set.tar",
        a__png=png(),
        a__txt=" a hat ",
        a__json='{"caption": "not this"}',
        b__png=png(),
        b__json='{"captions": ["x", "y"], "weights": [0, 1]}',
        c__png=png(),
        c__json='{"text": "a dog"}',
        d__png=png(),
        d__json='{"text": 5}',
    )
    for _ in range(2):  # the second time from the kept index
        assert said(path) == [one("a hat"), one("y"), one("a dog"), None]


def test_preparing_keeps_all_of_them_and_their_weights(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "set.tar",
        a__png=png(),
        a__json='{"captions": ["x", "y"], "weights": [1, 3]}',
        b__png=png(),
        b__txt="z",
    )
    prepare(Job(str(path), 4, 10), tmp_path / "out", 1)
    assert said(tmp_path / "out") == said(path)


def test_parquet_has_them_in_columns(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = {"image": [png(), png()], "captions": [["x", "y"], ["z"]], "weights": [[1.0, 3.0], [1.0]]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert said(tmp_path / "a.parquet") == [Captions(("x", "y"), (0.25, 0.75)), one("z")]
    pq.write_table(pa.table({"image": [png()], "text": [7], "label": [3]}), tmp_path / "b.parquet")
    assert said(tmp_path / "b.parquet") == [None]


def drawn(images: Source, steps: int, **settings: int) -> list[tuple[int, str]]:
    config = DataConfig(path="somewhere", size=4)
    loop = iter(Batches(images, config, 4, **{"seed": 1, **settings}, captions=True))
    batches = [next(loop) for _ in range(steps)]
    return [pair for b in batches for pair in zip(b.indices.tolist(), b.captions, strict=True)]


def test_each_epoch_draws_by_weight_and_a_late_start_draws_the_same(tmp_path: Path) -> None:
    meta = '{"captions": ["often", "seldom"], "weights": [3, 1]}'
    path = tar(
        tmp_path / "set.tar",
        **{f"{i}__{k}": v for i in range(8) for k, v in (("png", png(i)), ("json", meta))},
    )
    images = source(path)
    every = drawn(images, 100)
    assert every[40:] == drawn(images, 90, start_step=10)
    parts = [drawn(images, 100, rank=rank, world=2) for rank in range(2)]
    assert Counter(every) == Counter(parts[0] + parts[1])
    counts = Counter(text for _, text in every)
    assert 0.68 < counts["often"] / 400 < 0.82
    epochs = {tuple(sorted(every[start : start + 8])) for start in range(0, 400, 8)}
    assert len(epochs) > 10


def test_images_without_a_caption_are_replaced_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tar(tmp_path / "set.tar", a__png=png(), a__txt="x", b__png=png())
    assert {text for _, text in drawn(source(path), 4)} == {"x"}
    assert caplog.messages == ['skipped "set.tar/b": it has no caption (1 skipped so far)']
    bare = tar(tmp_path / "bare.tar", a__png=png())
    with pytest.raises(
        UserError, match=r'none of the 1 images .* can be read: "bare.tar/a": it has no caption'
    ):
        drawn(source(bare), 1)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.floats(0, 1, exclude_max=True))
def test_a_caption_of_weight_zero_is_never_drawn(weights: list[int], number: float) -> None:
    meta = {"captions": [str(i) for i in range(len(weights))], "weights": weights}
    if not any(weights):
        with pytest.raises(UserError, match=r"the weights of here are \[0"):
            from_meta(meta, "here")
        return
    found = from_meta(meta, "here")
    assert found is not None and weights[int(found.pick(number))] > 0


@pytest.mark.parametrize("weights", ['"1"', "[1]", "[1, -1]", "[1, true]"])
def test_weights_that_do_not_fit_are_told(weights: str, tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", a__png=png(), a__json=f'{{"captions": ["x", "y"], "weights": {weights}}}')
    with pytest.raises(UserError, match=r'the weights of sample "a" of .*: give 2 numbers'):
        source(path)


@pytest.mark.parametrize("line", ["{", '{"caption": "x"}', "[]"])
def test_a_malformed_line_of_metadata_is_told(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(UserError, match=r'line 1 of ".*metadata.jsonl" is malformed'):
        source(tmp_path)
