"""Folders and zips: what counts as an image, which class it has, and what is refused."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelwright.data import DataConfig, FolderSource, Shapes, UnreadableImage, ZipSource, open_source
from pixelwright.errors import UserError


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def make_zip(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def make_folder(path: Path, members: Mapping[str, bytes]) -> Path:
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def value(source: FolderSource | ZipSource, index: int) -> int:
    return int(np.asarray(source[index].image)[0, 0, 0])


ANIMALS = {"dog/b.png": png(1), "cat/z.PNG": png(2), "cat/deep/a.png": png(3), "cat/notes.txt": b"x"}
CLUTTER = {
    ".hidden/x.png": png(9),
    "cat/.x.png": png(9),
    "__MACOSX/cat/._z.png": b"x",
    "README.md": b"x",
    "cat/Thumbs.db": b"x",
}


@pytest.fixture(params=["folder", "zip"])
def opened(request: pytest.FixtureRequest, tmp_path: Path):
    """The same files, as a folder or as a zip."""

    def make(members: Mapping[str, bytes]) -> FolderSource | ZipSource:
        if request.param == "zip":
            return ZipSource(make_zip(tmp_path / "set.zip", members))
        (tmp_path / "set").mkdir(exist_ok=True)
        return FolderSource(make_folder(tmp_path / "set", members))

    return make


def test_folders_are_classes_in_order(opened) -> None:
    source = opened({**ANIMALS, **CLUTTER})
    assert source.class_names == ("cat", "dog") and source.num_classes == 2 and len(source) == 3
    assert [source.name(i) for i in range(3)] == ["cat/deep/a.png", "cat/z.PNG", "dog/b.png"]
    assert [(source[i].label, value(source, i)) for i in range(3)] == [(0, 3), (0, 2), (1, 1)]


def test_flat_set_is_one_class(opened) -> None:
    source = opened({"b.png": png(1), "a.png": png(2)})
    assert source.class_names is None and source.num_classes == 1
    assert [value(source, i) for i in range(2)] == [2, 1] and source[0].label == 0


def labels(entries: object) -> bytes:
    return json.dumps({"labels": entries}).encode()


def test_label_file_overrides_folders(opened) -> None:
    source = opened(
        {
            "00000/a.png": png(1),
            "00001/b.png": png(2),
            "dataset.json": labels([["00001/b.png", 0], ["00000/a.png", 6]]),
        }
    )
    assert source.class_names is None and source.num_classes == 7
    assert [source[i].label for i in range(2)] == [6, 0]


def test_null_labels_are_one_class(opened) -> None:
    source = opened({"00000/a.png": png(1), "00001/b.png": png(2), "dataset.json": labels(None)})
    assert source.num_classes == 1 and [source[i].label for i in range(2)] == [0, 0]


BAD_LABELS = {
    "missing": (labels([["a.png", 0]]), r'no label for "b.png" \(1 in all\)'),
    "negative": (labels([["a.png", 0], ["b.png", -1]]), '"b.png" in .* has the label -1'),
    "fraction": (labels([["a.png", 0], ["b.png", 1.5]]), "1.5"),
    "bool": (labels([["a.png", 0], ["b.png", True]]), "True"),
    "word": (labels([["a.png", 0], ["b.png", "cat"]]), "'cat'"),
    "vector": (labels([["a.png", 0], ["b.png", [0, 1]]]), r"\[0, 1\]"),
    "not a list": (labels(3), "malformed"),
    "not pairs": (labels([["a.png"]]), "malformed"),
    "unhashable name": (labels([[["a"], 0]]), "malformed"),
    "no labels key": (b"{}", "malformed"),
    "top is a list": (b"[]", "malformed"),
    "not json": (b"labels: a", "malformed"),
    "not text": (b"\xff\xfe\xfa", "is not UTF-8 text"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_label_files(opened, name: str) -> None:
    content, message = BAD_LABELS[name]
    with pytest.raises(UserError, match=message) as caught:
        opened({"a.png": png(1), "b.png": png(2), "dataset.json": content})
    assert "dataset.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("members", [{}, {"readme.txt": b"x"}, {".a.png": png(1)}])
def test_no_images(opened, members: dict[str, bytes]) -> None:
    with pytest.raises(UserError, match="holds no images"):
        opened(members)


def test_images_beside_class_folders(opened) -> None:
    with pytest.raises(UserError, match=r'"stray.png"'):
        opened({**ANIMALS, "stray.png": png(1)})


def test_damaged_image_is_named_unreadable(opened) -> None:
    source = opened({"a.png": b"no picture", "b.png": png(1)})
    with pytest.raises(UnreadableImage, match="not an image"):
        source[0]
    assert value(source, 1) == 1


@pytest.mark.parametrize("wrapper", ["set/", "a/b/"])
def test_folders_around_everything_in_a_zip_are_no_class(tmp_path: Path, wrapper: str) -> None:
    source = ZipSource(make_zip(tmp_path / "s.zip", {wrapper + name: data for name, data in ANIMALS.items()}))
    assert source.class_names == ("cat", "dog") and value(source, 2) == 1


def test_single_class_folder_in_a_zip_is_a_class(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "s.zip", {"cat/a.png": png(1), "cat/b.png": png(1)})
    assert ZipSource(path).class_names == ("cat",)


def test_wrapped_label_file(tmp_path: Path) -> None:
    members = {"set/0/a.png": png(1), "set/dataset.json": labels([["0/a.png", 3]])}
    assert ZipSource(make_zip(tmp_path / "s.zip", members))[0].label == 3


@pytest.mark.parametrize(
    "member",
    [
        "../evil.png",
        "cat/../../evil.png",
        "/etc/evil.png",
        "C:/evil.png",
        "..\\evil.png",
        "cat/..",
        "../x.txt",
    ],
)
def test_zip_that_points_outside_itself_is_refused(tmp_path: Path, member: str) -> None:
    path = make_zip(tmp_path / "s.zip", {"cat/a.png": png(1), member: png(2)})
    with pytest.raises(UserError, match="points outside") as caught:
        ZipSource(path)
    assert member in str(caught.value)


@pytest.mark.parametrize("name", ["cat/a..b.png", "cat/...png"])
def test_dots_in_a_name_are_no_escape(tmp_path: Path, name: str) -> None:
    ZipSource(make_zip(tmp_path / "s.zip", {"cat/a.png": png(1), name: png(2)}))


def test_broken_zips(tmp_path: Path) -> None:
    whole = make_zip(tmp_path / "whole.zip", ANIMALS).read_bytes()
    for name, data in {"empty": b"", "text": b"hello" * 50, "half": whole[: len(whole) // 2]}.items():
        path = tmp_path / f"{name}.zip"
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"{name}.zip.*not a whole zip"):
            open_source(DataConfig(path=str(path)))


def test_damage_inside_a_zip_costs_one_image(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "s.zip", {"a.png": png(1), "b.png": png(2)})
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF  # within the first member; its checksum no longer fits
    path.write_bytes(bytes(data))
    source = ZipSource(path)
    with pytest.raises(UnreadableImage, match="CRC"):
        source[0]
    assert value(source, 1) == 2


def test_encrypted_member_is_unreadable(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "s.zip", {"a.png": png(1)})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag in the member's header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    path.write_bytes(bytes(data))
    with pytest.raises(UnreadableImage, match="password"):
        ZipSource(path)[0]


def test_zip_travels_to_other_processes(tmp_path: Path) -> None:
    source = ZipSource(make_zip(tmp_path / "s.zip", {f"{i:03}.png": png(i) for i in range(40)}))
    value(source, 0)  # the handle is open here before the copies are made
    copy = pickle.loads(pickle.dumps(source))
    assert [value(copy, i) for i in range(40)] == list(range(40))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of forking beside other threads
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_forked_readers_do_not_disturb_each_other(tmp_path: Path) -> None:
    source = ZipSource(make_zip(tmp_path / "s.zip", {f"{i:03}.png": png(i) for i in range(100)}))
    value(source, 0)
    queue = multiprocessing.get_context("fork").Queue()

    def read() -> None:
        queue.put([value(source, i) for _ in range(3) for i in range(100)])

    readers = [multiprocessing.get_context("fork").Process(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    mine = [value(source, i) for _ in range(3) for i in range(100)]
    assert [queue.get(timeout=20) for _ in readers] == [mine, mine] and mine == list(range(100)) * 3
    for reader in readers:
        reader.join()


def test_linked_folders_are_followed_without_turning_in_circles(tmp_path: Path) -> None:
    make_folder(tmp_path / "elsewhere", {"a.png": png(5)})
    make_folder(tmp_path / "set", {"dog/b.png": png(6)})
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "dog" / "loop").symlink_to(tmp_path / "set")
    assert FolderSource(tmp_path / "set").class_names == ("cat", "dog")


def test_open_source_by_path(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set", ANIMALS)
    archive = make_zip(tmp_path / "set.zip", ANIMALS)
    assert isinstance(open_source(DataConfig(path=str(folder))), FolderSource)
    assert isinstance(open_source(DataConfig(path=str(archive))), ZipSource)
    shapes = open_source(DataConfig(size=24, shapes_count=7, shapes_seed=3))
    assert isinstance(shapes, Shapes) and (shapes.size, shapes.seed, len(shapes)) == (24, 3, 7)


def test_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'data.path ".*nowhere" does not exist'):
        open_source(DataConfig(path=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"path": ""}, "data.path is ''"),
        ({"size": 0}, "data.size is 0"),
        ({"size": 32.0}, "data.size is 32.0"),
        ({"size": float("nan")}, "data.size is nan"),
        ({"workers": -1}, "data.workers is -1"),
        ({"workers": True}, "data.workers is True"),
        ({"flip": "yes"}, "data.flip is 'yes'"),
        ({"cache": "disk"}, "data.cache is 'disk'"),
        ({"shapes_count": 0}, "data.shapes_count is 0"),
        ({"path": "photos", "shapes_seed": 0}, 'data.path is "photos"'),
    ],
)
def test_bad_settings(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        DataConfig(**settings)  # type: ignore[arg-type]
    assert said in str(caught.value)
