"""Files written whole or not at all; text, JSON and members of zips read up to a limit."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from pixelwright.config import read_yaml
from pixelwright.errors import UserError
from pixelwright.files import (
    WriteError,
    decode_lines,
    decode_text,
    digest,
    parse_json,
    read_bytes,
    read_json,
    read_member,
    read_text,
    remove_abandoned,
    replacing,
    sha256,
    write_text,
)


def test_threads_that_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    path, together, failures = tmp_path / "a.txt", threading.Barrier(8), []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                with replacing(path) as part:
                    part.write_text(str(number) * 100)
                    together.wait()
        except Exception as error:
            failures.append(error)
            together.abort()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(set(path.read_text())) == 1 and len(path.read_text()) == 100
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_stays_of_a_failed_write(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a/b/c.txt") as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_told_in_a_line(tmp_path: Path, number: int) -> None:
    with pytest.raises(WriteError) as found, replacing(tmp_path / "a.txt"):
        raise OSError(number, os.strerror(number))
    assert isinstance(found.value, OSError) and isinstance(found.value, UserError)
    assert f'"{tmp_path}/a.txt" cannot be written ({os.strerror(number)}): ' in str(found.value)
    assert not list(tmp_path.iterdir())


def test_an_error_of_reading_is_not_taken_for_one_of_writing(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), replacing(tmp_path / "a.txt"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/elsewhere/b.txt")


def test_what_killed_processes_left_is_removed_a_day_later(tmp_path: Path) -> None:
    old, new, other = tmp_path / "a.1.tmp", tmp_path / "a.2.tmp", tmp_path / "a"
    for path in (old, new, other):
        path.mkdir()
        (path / "x").write_text("x")
    os.utime(old, (0, time.time() - 100_000))
    os.utime(other, (0, 0))
    remove_abandoned(tmp_path)
    assert sorted(tmp_path.iterdir()) == [other, new]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_text_by_its_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    text = "café \u2028 \x85 日本 🎈\r\nsecond\n"
    mark = "\ufeff" if encoding[-3:] in ("-le", "-be") else ""
    (tmp_path / "a.txt").write_bytes((mark + text).encode(encoding))
    assert read_text(tmp_path / "a.txt") == text
    assert decode_lines(text.encode(), "here") == ["café \u2028 \x85 日本 🎈", "second"]


def test_other_text_is_refused_by_file_and_line() -> None:
    for data in (
        b"good\nok\ncaf\xe9\n",
        b"good\nok\n\0c\0a",
        "\ufeffgood\nok\na".encode("utf-16-le") + b"\0\xd8",
    ):
        with pytest.raises(UserError, match=r'line 3 of "a\.txt" is not UTF-8 text'):
            decode_text(data, '"a.txt"')


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": ' + "1" * 5000 + "}", "", "a\nb"])
def test_malformed_json_is_told_with_its_place(text: str) -> None:
    with pytest.raises(UserError, match=r"here is malformed JSON \("):
        parse_json(text, "here")


def test_json_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('\ufeff{"a": "é"}'.encode())
    assert read_json(tmp_path / "a.json") == {"a": "é"}


def test_long_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(101))
    assert len(read_bytes(tmp_path / "a", 101)) == 101
    with pytest.raises(UserError, match="is longer than 100 bytes"):
        read_bytes(tmp_path / "a", 100)
    with pytest.raises(UserError, match=r"b. cannot be read \(No such file"):
        read_bytes(tmp_path / "b")


def bomb(path: Path, name: str, size: int, claimed: int | None = None) -> Path:
    """A zip with a member of `size` spaces, whose headers may claim fewer."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as file:
        for _ in range(size >> 20):
            file.write(b" " * (1 << 20))
    if claimed is not None:
        data, true = path.read_bytes(), size.to_bytes(4, "little")
        assert data.count(true) == 2
        path.write_bytes(data.replace(true, claimed.to_bytes(4, "little")))
    return path


@pytest.mark.parametrize("claimed", [None, 1 << 20])
def test_bombs_are_refused_before_they_fill_the_memory(tmp_path: Path, claimed: int | None) -> None:
    path = bomb(tmp_path / "a.zip", "a.json", 300 << 20, claimed)
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    with zipfile.ZipFile(path) as archive, pytest.raises((UserError, zipfile.BadZipFile)):
        read_member(archive, "a.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


def test_digests(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "abc")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert digest("a", "bc") != digest("ab", "c") and digest("a", 1) == digest("a", "1")


def test_settings_of_any_length_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.yaml").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match=r"a\.yaml is longer than"):
        read_yaml(tmp_path / "a.yaml")
