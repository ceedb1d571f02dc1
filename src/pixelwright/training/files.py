"""What the training room needs of files."""

from __future__ import annotations

import zlib
from pathlib import Path

from pixelwright.files import sync, write_text

__all__ = ["checksum", "sync", "write_text"]


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value
