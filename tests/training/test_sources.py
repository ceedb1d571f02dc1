"""A run ends with the same weights whatever its images are kept in."""

import io
import json
import zipfile
from pathlib import Path

import pytest

from pixelwright.cli import main as cli
from pixelwright.data import DataConfig, Shapes
from pixelwright.training import TrainConfig, train

from .conftest import Tiny, weights_of

pytestmark = pytest.mark.usefixtures("no_extras")


def png(index: int) -> tuple[bytes, int]:
    """One picture of Shapes and its class."""
    sample = Shapes(size=8, count=24)[index]
    file = io.BytesIO()
    sample.image.save(file, "png")
    return file.getvalue(), sample.label


def as_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "shapes.zip", "w") as archive:
        labels = []
        for index in range(24):
            data, label = png(index)
            archive.writestr(f"{index:05d}.png", data)
            labels.append([f"{index:05d}.png", label])
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return folder / "shapes.zip"


def as_shards(folder: Path) -> Path:
    command = [
        "data",
        "prepare",
        str(as_zip(folder)),
        str(folder / "shards"),
        "--size",
        "8",
        "--shard-size",
        "10",
    ]
    assert cli.main(command) == 0
    return folder / "shards"


def as_parquet(folder: Path) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"image": {"bytes": data, "path": None}, "label": label} for data, label in map(png, range(24))]
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "shapes.parquet")
    return folder / "shapes.parquet"


@pytest.mark.parametrize("keep", [as_shards, as_parquet])
def test_same_weights_from_every_kind_of_source(tiny: Tiny, tmp_path: Path, keep) -> None:  # type: ignore[no-untyped-def]
    def run(name: str, path: Path) -> TrainConfig:
        config = tiny(
            name, steps=6, data=DataConfig(path=str(path), size=8, flip=True, cache="none", workers=0)
        )
        train(config)
        return config

    plain, other = run("zip", as_zip(tmp_path)), run("other", keep(tmp_path))
    one, two = weights_of(Path(plain.run)), weights_of(Path(other.run))
    assert all(one[name].equal(two[name]) for name in one)
