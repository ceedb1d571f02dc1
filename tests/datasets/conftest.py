"""What the tests of data sets have in common: a cache of their own, and small files."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of downloads and indices."""
    monkeypatch.setenv("PIXELWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def png(level: int = 7, kind: str = "PNG") -> bytes:
    """A grey 4x4 image as the bytes of a file."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (level, level, level)).save(buffer, kind, quality=95)
    return buffer.getvalue()


def make_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
