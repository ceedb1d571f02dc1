"""Hugging Face parquet image sets."""

from __future__ import annotations

import io
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelwright.data import Batches, DataConfig, UnreadableImage, open_source
from pixelwright.data.parquet import ParquetSource
from pixelwright.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

CLASSES = ["tench, Tinca tinca", "goldfish", "shark"]
FEATURES = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def cells(values: list[int]) -> list[dict[str, Any]]:
    return [{"bytes": picture(v), "path": f"{v}.png"} for v in values]


def write(path: Path, columns: dict[str, list[Any]], features: Any = None, group: int = 3) -> Path:
    table = pyarrow.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=group)
    return path


def numbered(path: Path, first: int, count: int, features: Any = FEATURES) -> Path:
    values = list(range(first, first + count))
    return write(path, {"image": cells(values), "label": [v % 3 for v in values]}, features)


def opened(path: object) -> ParquetSource:
    source = open_source(DataConfig(path=str(path)))
    assert isinstance(source, ParquetSource)
    return source


def level(source: ParquetSource, index: int) -> int:
    return int(np.asarray(source[index].image)[0, 0, 0])


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A set as the Hub lays it out."""
    for k in range(3):
        numbered(tmp_path / "set" / "data" / f"train-{k:05}-of-00003.parquet", 10 * k, 10)
    (tmp_path / "set" / "README.md").touch()
    return tmp_path / "set"


def test_random_access_over_files_and_row_groups(hub: Path) -> None:
    for path in (hub, hub / "data", hub / "data" / "train-*.parquet"):
        source = opened(path)
        assert len(source) == 30 and source.num_classes == 3 and source.class_names == tuple(CLASSES)
        assert [level(source, i) for i in (29, 0, 13, 12, 9, 10)] == [29, 0, 13, 12, 9, 10]
        assert [source[i].label for i in (4, 29)] == [1, 2]
    assert source.name(13) == "train-00001-of-00003.parquet#3"
    copy = pickle.loads(pickle.dumps(source))
    assert [level(copy, i) for i in range(30)] == list(range(30))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of forking
def test_workers_read_the_same(hub: Path) -> None:
    runs = []
    for workers in (0, 2):
        config = DataConfig(path=str(hub), size=4, workers=workers, cache="none")
        source = opened(hub)
        assert level(source, 3) == 3  # files are open here before the workers start
        feed = itertools.islice(Batches(source, config, 6, seed=2), 5)
        runs.append([b.images[:, 0, 0, 0].tolist() for b in feed])
    assert runs[0] == runs[1] and sorted(itertools.chain(*runs[0])) == list(range(30))


def test_columns_of_other_names(tmp_path: Path) -> None:
    features = {"photo": {"_type": "Image"}, "kind": {"names": ["a", "b"], "_type": "ClassLabel"}}
    columns = {"photo": cells([7]), "kind": [1], "text": ["a thing"]}
    source = opened(write(tmp_path / "a.parquet", columns, features))
    assert source.class_names == ("a", "b") and source[0][1:4] == (1, "a thing", "a.parquet#0")


def test_plain_bytes_without_labels(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "a.parquet", {"img": [picture(5), picture(6)]}))
    assert source.num_classes == 1 and source.class_names is None and level(source, 1) == 6


def test_rows_without_a_whole_image(tmp_path: Path) -> None:
    columns = {"image": [*cells([1]), {"bytes": None, "path": "x"}, {"bytes": b"x", "path": "y"}]}
    source = opened(write(tmp_path / "a.parquet", columns))
    for index, said in ((1, "no image bytes"), (2, "not an image")):
        with pytest.raises(UnreadableImage, match=said):
            source[index]


def test_damage_inside_a_file_costs_its_row_group(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.parquet", 0, 9)
    source = opened(path)
    data = bytearray(path.read_bytes())
    data[4:400] = b"\xff" * 396
    path.write_bytes(bytes(data))
    with pytest.raises(UnreadableImage, match="row group 0"):
        ParquetSource([path])[0]
    assert len(source) == 9


def test_damaged_file_is_left_out(hub: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = hub / "data" / "train-00001-of-00003.parquet"
    bad.write_bytes(bad.read_bytes()[:500])
    source = opened(hub)
    assert [level(source, i) for i in (0, 10)] == [0, 20] and list(source.damaged) == [str(bad)]
    assert "left out" in caplog.text


BAD: dict[str, tuple[dict[str, list[Any]], Any, str]] = {
    "no image column": ({"x": [1]}, None, '"x" and none of images'),
    "two image columns": ({"img": cells([1]), "png": cells([1])}, None, "several of images"),
    "label -1": ({"image": cells([1]), "label": [-1]}, None, "label -1"),
    "label null": (
        {"image": cells([1]), "label": pyarrow.array([None], pyarrow.int64())},
        None,
        "label None",
    ),
    "label half a word": ({"image": cells([1, 2]), "label": ["cat", None]}, None, "are names"),
    "label without a name": (
        {"image": cells([1]), "label": [7]},
        FEATURES,
        "label 7 of 3 class names: add its name",
    ),
    "two labels": (
        {"image": cells([1]), "fine": [1], "coarse": [0]},
        {"image": {"_type": "Image"}, "fine": {"_type": "ClassLabel"}, "coarse": {"_type": "ClassLabel"}},
        'label columns "fine", "coarse"',
    ),
    "no rows": ({"image": pyarrow.array([], pyarrow.binary())}, None, "holds no rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_sets_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    columns, features, said = BAD[name]
    with pytest.raises(UserError, match=said) as caught:
        opened(write(tmp_path / "a.parquet", columns, features))
    assert "\n" not in str(caught.value)


def test_splits_are_not_mixed(hub: Path) -> None:
    numbered(hub / "data" / "test-00000-of-00001.parquet", 0, 2)
    with pytest.raises(UserError, match=r"splits test, train side by side: give .*train-\*\.parquet"):
        opened(hub)


def test_files_of_two_sets(tmp_path: Path) -> None:
    numbered(tmp_path / "a.parquet", 0, 2)
    write(tmp_path / "b.parquet", {"image": cells([1])})
    with pytest.raises(UserError, match="give the files of one set"):
        opened(tmp_path)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = numbered(tmp_path / "a.parquet", 0, 2)

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("pixelwright.data.parquet.import_module", absent)
    with pytest.raises(UserError, match=r"pip install .pixelwright\[data\]"):
        opened(path)


def named(names: list[str], column: str = "label") -> dict[str, Any]:
    return {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}


def test_files_that_number_their_classes_differently_are_joined_by_name(tmp_path: Path) -> None:
    for number, names in enumerate((["cat", "dog"], ["dog", "cat"], ["eel", "dog"])):
        write(tmp_path / f"{number}.parquet", {"image": cells([0, 1]), "label": [0, 1]}, named(names))
    source = opened(tmp_path)
    assert source.class_names == ("cat", "dog", "eel")
    assert [source[i].label for i in range(6)] == [0, 1, 1, 0, 2, 1]


@pytest.mark.parametrize("column", ["label", "labels", "class", "category"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_labels_may_be_names_or_numbers_in_columns_of_several_names(
    tmp_path: Path, column: str, dictionary: bool
) -> None:
    words = pyarrow.array(["dog", "cat", "dog"])
    columns = {"image": cells([0, 1, 2]), column: words.dictionary_encode() if dictionary else words}
    source = opened(write(tmp_path / "a.parquet", columns))
    assert (source.class_names, [source[i].label for i in range(3)]) == (("cat", "dog"), [1, 0, 1])
    numbers = pyarrow.array([2, 0, 1])
    columns[column] = numbers.dictionary_encode() if dictionary else numbers
    source = opened(write(tmp_path / "b.parquet", columns))
    assert (source.class_names, [source[i].label for i in range(3)]) == (None, [2, 0, 1])


def test_columns_that_may_be_labels_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(write(tmp_path / "a.parquet", {"image": cells([0]), "text": ["a dog"]}))
    assert not caplog.text
    source = opened(write(tmp_path / "b.parquet", {"image": cells([0]), "species": [3]}))
    assert source.num_classes == 1 and "has no column of labels (label, labels, class" in caplog.text
    assert '"species"' in caplog.text


@pytest.mark.parametrize(
    "names", [("train.parquet", "test.parquet"), ("a-train-0.parquet", "a-val-0.parquet")]
)
def test_splits_by_any_name_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        numbered(tmp_path / name, 0, 2)
    with pytest.raises(UserError, match=r"holds the splits .*train.* side by side: give one, such as"):
        opened(tmp_path)


def test_captions_of_which_some_are_empty(tmp_path: Path) -> None:
    columns = {"image": cells([0, 1, 2]), "captions": [["one", ""], ["", None], [None, "two"]]}
    source = opened(write(tmp_path / "a.parquet", columns))
    assert [(c := source[i].all_captions) and c.texts for i in range(3)] == [("one",), None, ("two",)]
    assert (
        source.uncaptioned() == 1
        and opened(write(tmp_path / "b.parquet", {"image": cells([0])})).uncaptioned()
    )
