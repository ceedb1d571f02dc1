"""WebDataset shards: what a sample is, random access, damage, and which paths lead to them."""

from __future__ import annotations

import itertools
import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest

from pixelwright.data import Batches, DataConfig, FolderSource, open_source
from pixelwright.data.open import expand_braces
from pixelwright.data.shards import Index, ShardSource, read_index
from pixelwright.errors import UserError

from .conftest import make_tar, png


def numbered(path: Path, first: int, count: int) -> Path:
    """Sample i has grey level i and the label i % 3."""
    members = {}
    for i in range(first, first + count):
        members |= {f"{i:04}.png": png(i), f"{i:04}.cls": str(i % 3).encode()}
    return make_tar(path, members)


def levels(source: ShardSource) -> list[int]:
    return [int(np.asarray(source[i].image)[0, 0, 0]) for i in range(len(source))]


def opened(path: object) -> ShardSource:
    source = open_source(DataConfig(path=str(path)))
    assert isinstance(source, ShardSource)
    return source


def test_members_of_a_sample(tmp_path: Path) -> None:
    members = {
        "d/a.jpg": png(10, "JPEG"),
        "d/a.cls": b"1\n",
        "d/a.txt": "ein Bär \n".encode(),
        "d/a.json": json.dumps({"label": 0, "class": "bear"}).encode(),
        "d/b.x.webp": b"of another kind by its extension",
        "d/b.WEBP": png(20, "WEBP"),
        "d/b.json": json.dumps({"label": 0, "class": "ant"}).encode(),
        "d/.hidden.png": b"x",
        "d/c.txt": b"no image, no sample",
    }
    source = opened(make_tar(tmp_path / "s.tar", members))
    assert len(source) == 2 and source.num_classes == 2 and source.class_names == ("ant", "bear")
    assert [(s.label, s.caption, s.name) for s in (source[0], source[1])] == [
        (1, "ein Bär", "s.tar/d/a"),  # .cls comes before .json
        (0, None, "s.tar/d/b"),
    ]
    assert levels(source) == [10, 20]


def test_without_labels_there_is_one_class(tmp_path: Path) -> None:
    source = opened(make_tar(tmp_path / "s.tar", {"a.png": png(1), "a.json": b'{"group": "x"}'}))
    assert source.num_classes == 1 and source[0].label == 0 and source.class_names is None


def test_random_access_across_shards(tmp_path: Path) -> None:
    for k in range(4):
        numbered(tmp_path / "set" / f"part-{k:02}.tar", 10 * k, 10)
    for path in (
        "set",
        "set/part-{00..03}.tar",
        "set/*.tar",
        "set/part-0[0-3].tar",
        "set/part-0{0,1,2,3}.tar",
    ):
        source = opened(tmp_path / path)
        assert len(source) == 40
        assert [int(np.asarray(source[i].image)[0, 0, 0]) for i in (39, 0, 17, 17, 20)] == [39, 0, 17, 17, 20]
        assert [source[i].label for i in (5, 39)] == [2, 0]
    copy = pickle.loads(pickle.dumps(source))
    assert levels(copy) == list(range(40))
    assert len(opened(tmp_path / "set/part-{00..01}.tar")) == 20


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of forking
def test_no_sample_is_lost_or_doubled_over_ranks_and_workers(tmp_path: Path) -> None:
    for k in range(3):
        numbered(tmp_path / "set" / f"{k}.tar", 8 * k, 8)
    config = DataConfig(path=str(tmp_path / "set"), size=4, workers=2, cache="none")
    for epoch in (0, 1):
        seen = []
        for rank in range(2):
            feed = Batches(open_source(config), config, 4, seed=5, rank=rank, world=2, start_step=6 * epoch)
            for batch in itertools.islice(feed, 6):
                shown = batch.images[:, 0, 0, 0].tolist()
                assert shown == batch.indices.tolist()
                seen += shown
        assert sorted(seen) == list(range(24))


def as_json(index: Index) -> str:
    return json.dumps(index)


def test_index_is_kept_and_renewed(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = numbered(tmp_path / "s.tar", 0, 5)
    first = read_index(shard)
    with monkeypatch.context() as patch:
        patch.setattr("pixelwright.data.shards._make_index", lambda shard: pytest.fail("made twice"))
        assert as_json(read_index(shard)) == as_json(first)
    for kept in cache.rglob("*.json"):
        kept.write_text(kept.read_text()[:40])  # a damaged index is no index
    assert as_json(read_index(shard)) == as_json(first)
    assert len(read_index(numbered(tmp_path / "s.tar", 0, 6)).keys) == 6


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIXELWRIGHT_CACHE", str(tmp_path / "file"))
    assert len(opened(numbered(tmp_path / "s.tar", 0, 5))) == 5
    assert "not kept" in caplog.text


def damaged(data: bytes, how: str) -> bytes:
    if how == "cut short":
        return data[:1300]
    if how == "no tar":
        return b"hello" * 400
    at = data.index(b"0002.png")  # a header in the middle
    return data[:at] + b"\xff" * 200 + data[at + 200 :]


@pytest.mark.parametrize("how", ["cut short", "no tar", "bad header"])
def test_damaged_shard_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    for k in range(3):
        numbered(tmp_path / f"{k}.tar", 10 * k, 10)
    bad = tmp_path / "0.tar"
    bad.write_bytes(damaged(bad.read_bytes(), how))
    with caplog.at_level(logging.WARNING):
        source = opened(tmp_path / "*.tar")
    assert levels(source) == list(range(10, 30))
    assert list(source.damaged) == [str(bad)] and f'left out "{bad}"' in caplog.text
    assert "1 of 3 files" in caplog.text
    (tmp_path / "1.tar").write_bytes(b"hello" * 400)
    with pytest.raises(UserError, match=r"2 of the 3 files .* are damaged"):
        opened(tmp_path / "*.tar")
    with pytest.raises(UserError, match=r"is damaged .* as are all 1 files"):
        opened(bad)


def test_bad_image_in_a_shard_costs_one_image(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "s.tar", {"a.png": png(3)[:40], "b.png": png(4), "c.png": b""})
    config = DataConfig(path=str(shard), size=4)
    feed = Batches(open_source(config), config, 2, seed=0)
    batch = next(iter(feed))
    assert batch.indices.tolist() == [1, 1] and set(feed.skipped) == {"s.tar/a", "s.tar/c"}


def test_shard_that_shrinks_while_it_is_used(tmp_path: Path) -> None:
    shard = numbered(tmp_path / "s.tar", 0, 10)
    config = DataConfig(path=str(shard), size=4, cache="none")
    source = open_source(config)
    shard.write_bytes(shard.read_bytes()[:6000])
    feed = Batches(source, config, 10, seed=0)
    assert set(next(iter(feed)).indices.tolist()) < set(range(10))
    assert any(
        "ends" in reason or "identif" in reason or "empty" in reason for reason in feed.skipped.values()
    )


BAD = {
    "two images": ({"a.png": png(1), "a.jpg": png(1, "JPEG")}, r"2 images \(png, jpg\)"),
    "label a word": ({"a.png": png(1), "a.cls": b"cat"}, "'cat'"),
    "label negative": ({"a.png": png(1), "a.cls": b"-1"}, "'-1'"),
    "label a fraction": ({"a.png": png(1), "a.json": b'{"label": 1.5}'}, "1.5"),
    "json malformed": ({"a.png": png(1), "a.json": b"{"}, "malformed"),
    "some labels": ({"a.png": png(1), "b.png": png(1), "b.cls": b"0"}, 's.tar/a" .* has no label'),
    "no images": ({"a.txt": b"x"}, "holds no images"),
    "empty": ({}, "holds no images"),
}


@pytest.mark.parametrize("name", BAD)
def test_shards_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    members, said = BAD[name]
    with pytest.raises(UserError, match=said) as caught:
        opened(make_tar(tmp_path / "s.tar", members))
    assert "\n" not in str(caught.value)


def test_shards_of_two_sets(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        meta = json.dumps({"label": 0, "class": name}).encode()
        make_tar(tmp_path / f"{name}.tar", {"a.png": png(1), "a.json": meta})
    with pytest.raises(UserError, match='class 0 is "ant" in earlier shards and "bee"'):
        opened(tmp_path / "*.tar")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a", ["a"]),
        ("a-{08..11}", ["a-08", "a-09", "a-10", "a-11"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("{0..0}", ["0"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert list(expand_braces(pattern)) == names


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no-{0..3}.tar", "no file matches"),
        ("{3..0}.tar", "counts down"),
        ("{x}.tar", "is no range"),
        ("*.zip", "names 2 files"),
        ("a.*", "different kinds"),
        ("{a,a}.tar", "twice"),
        ("a.tar.gz", "unpack it"),
        ("mixed", "keep one kind"),
        ("nested", "keep one kind"),
        ("out.prepare", "not finished"),
        ("gopher://host/a.tar", "of no known protocol"),
        ("file:///etc/passwd", "give its path without file://"),
        ("http://127.0.0.1/", "names no file"),
    ],
)
def test_ambiguous_and_unusable_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.tar", "mixed/a.tar", "nested/a.tar", "out.prepare/a.tar"):
        numbered(tmp_path / name, 0, 2)
    for name in ("a.zip", "b.zip", "a.tar.gz", "mixed/x.png", "nested/cat/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    with pytest.raises(UserError, match=said) as caught:
        opened(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "[new] {1..2}").mkdir()
    (tmp_path / "[new] {1..2}" / "a.png").write_bytes(png(1))
    assert isinstance(open_source(DataConfig(path=str(tmp_path / "[new] {1..2}"))), FolderSource)
