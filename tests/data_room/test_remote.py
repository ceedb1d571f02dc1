"""Shards behind http addresses, served from 127.0.0.1."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pixelwright.data import DataConfig, Shapes, open_source
from pixelwright.data.prepare import Job, prepare
from pixelwright.errors import UserError


class Server(ThreadingHTTPServer):
    """Serves `files` with ranges; each answer to a name in `breaks` stops after that many bytes, once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.breaks: dict[str, int] = {}
        self.failures: dict[str, list[int]] = {}
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.lstrip("/").partition("?")[0]
        asked = self.headers.get("Range")
        self.server.asked.append((name, asked))
        if self.server.failures.get(name):
            self.send_error(self.server.failures[name].pop())
            return
        if name not in self.server.files:
            self.send_error(404)
            return
        data = self.server.files[name]
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0  # type: ignore[index]
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: self.server.breaks.pop(name, None)])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("PIXELWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("pixelwright.remote.PAUSE", 0.01)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("made") / "set"
    _small(out)
    return {file.name: file.read_bytes() for file in out.iterdir()}


def _small(out: Path) -> None:
    folder = out.with_name("images")
    folder.mkdir()
    shapes = Shapes(8, count=9)
    for i in range(9):
        shapes[i].image.save(folder / f"{i}.png")
    prepare(Job(str(folder), 8, "shards", 3, None), out)


def pixels(source: object) -> list[bytes]:
    return [source[i].image.tobytes() for i in range(len(source))]  # type: ignore[index, arg-type]


def test_shards_are_fetched_once(server: Server, shards: dict[str, bytes]) -> None:
    server.files = shards
    config = DataConfig(path=f"{server.url}/shard-{{00000..00002}}.tar")
    source = open_source(config)
    assert pixels(source) == [Shapes(8, count=9)[i].image.tobytes() for i in range(9)]
    count = len(server.asked)
    assert count == 4  # three shards and the checksums
    assert len(open_source(config)) == 9 and len(server.asked) == count


def test_broken_transfers_go_on_where_they_stopped(server: Server, shards: dict[str, bytes]) -> None:
    server.files, server.breaks = shards, {"shard-00001.tar": 1000}
    server.failures = {"shard-00002.tar": [503, 500]}
    assert len(open_source(DataConfig(path=f"{server.url}/shard-{{00000..00002}}.tar"))) == 9
    assert ("shard-00001.tar", "bytes=1000-") in server.asked


def test_a_part_of_an_earlier_attempt_is_used(
    server: Server, shards: dict[str, bytes], tmp_path: Path
) -> None:
    server.files, name = shards, "shard-00000.tar"
    for breaks in (1500, len(shards[name])):  # cut in the middle, and complete but not yet renamed
        config = DataConfig(path=f"{server.url}/{name}?v={breaks}")
        open_source(config)
        (whole,) = (tmp_path / "cache").rglob(name)
        whole.with_name(name + ".part").write_bytes(shards[name][:breaks])
        whole.unlink()
        server.asked.clear()
        assert len(open_source(config)) == 3
        assert (name, f"bytes={breaks}-") in server.asked
        whole.unlink()


def test_checksum(server: Server, shards: dict[str, bytes], tmp_path: Path) -> None:
    name = "shard-00000.tar"
    server.files = {**shards, name: shards[name][:-1] + b"x"}
    with pytest.raises(UserError, match=f"{name}. has the SHA-256"):
        open_source(DataConfig(path=f"{server.url}/{name}"))
    assert not list((tmp_path / "cache").rglob("*.tar")) and not list((tmp_path / "cache").rglob("*.part"))
    server.files = shards
    assert len(open_source(DataConfig(path=f"{server.url}/{name}"))) == 3
    assert hashlib.sha256(shards[name]).hexdigest() in shards["SHA256SUMS"].decode()


def test_missing_files_and_servers(server: Server, shards: dict[str, bytes]) -> None:
    server.files = shards
    with pytest.raises(UserError, match=r"shard-00009.tar. answers 404 .*: check the address"):
        open_source(DataConfig(path=f"{server.url}/shard-0000{{0,9}}.tar"))
    with pytest.raises(UserError, match="cannot be fetched"):
        open_source(DataConfig(path="http://127.0.0.1:9/a.tar"))


def test_a_zip_behind_an_address(server: Server, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for i in range(2):
            Shapes(8, count=9)[i].image.save(tmp_path / "x.png")
            archive.write(tmp_path / "x.png", f"{i}.png")
    server.files = {"s.zip": (tmp_path / "s.zip").read_bytes()}
    assert len(open_source(DataConfig(path=f"{server.url}/s.zip"))) == 2
