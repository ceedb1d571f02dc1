"""Shards behind http addresses, served from 127.0.0.1."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from pixelwright.data import DataConfig, Shapes, open_source
from pixelwright.data.prepare import Job, prepare
from pixelwright.errors import UserError
from pixelwright.remote import fetch, glob


def download(address: str) -> Path:
    return fetch([address])[0]


class Server(ThreadingHTTPServer):
    """Serves `files` with ranges; a file in `breaks` stops after that many bytes, once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.breaks: dict[str, int] = {}
        self.failures: dict[str, list[int]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.ranges = True

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
        if self.command == "GET":
            self.server.asked.append((name, asked))
        if self.server.failures.get(name):
            self.send_error(self.server.failures[name].pop())
            return
        if name not in self.server.files:
            self.send_error(404)
            return
        data = self.server.files[name]
        asked = asked if self.server.ranges else None
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked) if asked else None
        first, last = (int(match[1]), min(int(match[2]), len(data) - 1)) if match else (0, len(data) - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("ETag", hashlib.sha256(data).hexdigest())
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            body = data[first : last + 1]
            at = self.server.breaks.get(name, len(data)) - first
            if 0 <= at < len(body):
                del self.server.breaks[name]
            self.wfile.write(body[: at if 0 <= at < len(body) else None])

    do_HEAD = do_GET


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("PIXELWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("pixelwright.remote.PAUSE", 0.01)
    monkeypatch.setattr("pixelwright.remote.BLOCK", 1000)
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
    prepare(Job(str(folder), 8, 3), out)


def pixels(source: object) -> list[bytes]:
    return [source[i].image.tobytes() for i in range(len(source))]  # type: ignore[index, arg-type]


def test_shards_are_fetched_once(server: Server, shards: dict[str, bytes]) -> None:
    server.files = shards
    config = DataConfig(path=f"{server.url}/shard-{{00000..00002}}.tar")
    source = open_source(config)
    assert pixels(source) == [Shapes(8, count=9)[i].image.tobytes() for i in range(9)]
    assert {name for name, _ in server.asked} == {*(f"shard-0000{i}.tar" for i in range(3)), "SHA256SUMS"}
    count = len(server.asked)
    assert len(open_source(config)) == 9 and len(server.asked) == count


def test_broken_transfers_go_on_where_they_stopped(server: Server, shards: dict[str, bytes]) -> None:
    server.files, server.breaks = shards, {"shard-00001.tar": 2500}
    server.failures = {"shard-00002.tar": [503, 500]}
    assert len(open_source(DataConfig(path=f"{server.url}/shard-{{00000..00002}}.tar"))) == 9
    asked = [reach for name, reach in server.asked if name == "shard-00001.tar"]
    assert asked[:4] == ["bytes=0-999", "bytes=1000-1999", "bytes=2000-2999", "bytes=2000-2999"]
    assert len(set(asked)) == len(asked) - 1


def interrupt(monkeypatch: pytest.MonkeyPatch, server: Server, name: str, url: str) -> None:
    """Leave the first 2,000 bytes of a file in the cache, as an earlier process that gave up did."""
    with monkeypatch.context() as change:
        change.setattr("pixelwright.remote.ATTEMPTS", 1)
        server.breaks = {name: 2500}
        with pytest.raises(UserError, match="cannot be fetched"):
            download(url)
    server.asked.clear()


def test_a_part_of_an_earlier_attempt_is_used(
    monkeypatch: pytest.MonkeyPatch, server: Server, shards: dict[str, bytes]
) -> None:
    server.files, name = dict(shards), "shard-00000.tar"
    interrupt(monkeypatch, server, name, f"{server.url}/{name}")
    assert download(f"{server.url}/{name}").read_bytes() == shards[name]
    assert (name, "bytes=2000-2999") in server.asked and (name, "bytes=0-999") not in server.asked


def test_a_part_of_another_version_is_not_used(
    monkeypatch: pytest.MonkeyPatch, server: Server, shards: dict[str, bytes]
) -> None:
    server.files, name = {"a.tar": shards["shard-00000.tar"]}, "a.tar"
    interrupt(monkeypatch, server, name, f"{server.url}/{name}")
    server.files = {"a.tar": shards["shard-00001.tar"]}  # as long
    assert download(f"{server.url}/{name}").read_bytes() == shards["shard-00001.tar"]


def test_a_server_that_gives_whole_files_only(server: Server, shards: dict[str, bytes]) -> None:
    server.files, server.ranges, server.breaks = shards, False, {"shard-00000.tar": 1500}
    assert download(f"{server.url}/shard-00000.tar").read_bytes() == shards["shard-00000.tar"]


def test_addresses_that_differ_in_the_query_are_different_files(server: Server) -> None:
    server.files = {"a.tar": b"one"}
    first = download(f"{server.url}/a.tar?v=1")
    server.files = {"a.tar": b"two"}
    assert download(f"{server.url}/a.tar?v=2").read_bytes() == b"two" and first.read_bytes() == b"one"


def test_checksum(server: Server, shards: dict[str, bytes], tmp_path: Path) -> None:
    name = "shard-00000.tar"
    server.files = {**shards, name: shards[name][:-1] + b"x"}
    with pytest.raises(UserError, match=f"{name}. has the SHA-256"):
        open_source(DataConfig(path=f"{server.url}/{name}"))
    assert not list((tmp_path / "cache").rglob("*.tar")) and not list((tmp_path / "cache").rglob("*.part"))
    server.files = shards
    assert len(open_source(DataConfig(path=f"{server.url}/{name}"))) == 3
    assert hashlib.sha256(shards[name]).hexdigest() in shards["SHA256SUMS"].decode()


@pytest.mark.parametrize("status", [400, 500])
def test_checksums_that_cannot_be_had_are_an_error(
    server: Server, shards: dict[str, bytes], tmp_path: Path, status: int
) -> None:
    server.files, server.failures = shards, {"SHA256SUMS": [status] * 10}
    with pytest.raises(UserError, match=rf"SHA256SUMS. cannot be fetched \({status} .*\): "):
        download(f"{server.url}/shard-00000.tar")
    assert not list((tmp_path / "cache").rglob("*.tar"))


def test_checksums_that_are_refused_are_none_with_a_warning(
    server: Server, shards: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    server.files, server.failures = (
        shards,
        {"SHA256SUMS": [403] * 10},
    )  # as S3 says where there is no such file
    assert download(f"{server.url}/shard-00000.tar").read_bytes() == shards["shard-00000.tar"]
    assert "(403 Forbidden)" in caplog.text and "what lies beside it is not checked" in caplog.text


def test_checksums_that_are_none_are_an_error(server: Server, shards: dict[str, bytes]) -> None:
    server.files = {**shards, "SHA256SUMS": b"<html>Welcome</html>"}
    with pytest.raises(UserError, match=r"line 1 of .*SHA256SUMS is no SHA-256 and name"):
        download(f"{server.url}/shard-00000.tar")


def test_a_file_without_checksum_beside_others_is_named(
    server: Server, shards: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    server.files = {**shards, "more.tar": b"x"}
    download(f"{server.url}/more.tar")
    assert "more.tar" in caplog.text and "it is not checked" in caplog.text


def test_missing_files_and_servers(server: Server, shards: dict[str, bytes]) -> None:
    server.files = shards
    with pytest.raises(UserError, match=r"shard-00009.tar. is not there \(404 .*: check the address"):
        open_source(DataConfig(path=f"{server.url}/shard-0000{{0,9}}.tar"))
    with pytest.raises(UserError, match="cannot be fetched"):
        open_source(DataConfig(path="http://127.0.0.1:9/a.tar"))


def test_errors_that_do_not_pass_are_not_tried_again(server: Server, shards: dict[str, bytes]) -> None:
    server.files = shards
    server.failures = {"shard-00000.tar": [200, 200, 200, 403, 403]}  # HEAD and GET of the first attempt
    with pytest.raises(UserError, match=r"cannot be fetched \(403 .*: check the address and your access"):
        download(f"{server.url}/shard-00000.tar")
    assert server.failures["shard-00000.tar"] == [200, 200, 200]


def test_any_protocol_of_fsspec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: dict[str, bytes]
) -> None:
    monkeypatch.setenv("PIXELWRIGHT_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/{tmp_path.name}/{name}": name.encode() for name in ("a.tar", "b.tar", "c.txt")})
    base = f"memory://{tmp_path.name}"
    assert glob(f"{base}/*.tar") == [f"memory:///{tmp_path.name}/a.tar", f"memory:///{tmp_path.name}/b.tar"]
    assert [path.read_bytes() for path in fetch([f"{base}/b.tar", f"{base}/a.tar"])] == [b"b.tar", b"a.tar"]
    memory.pipe(f"/{tmp_path.name}/set/0.tar", shards["shard-00000.tar"])
    memory.pipe(f"/{tmp_path.name}/set/1.tar", shards["shard-00001.tar"])
    assert len(open_source(DataConfig(path=f"{base}/set/*.tar"))) == 6
    with pytest.raises(UserError, match="no file matches; check the pattern"):
        open_source(DataConfig(path=f"{base}/set/*.parquet"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str) -> None:
        raise ImportError(f"Install {protocol}")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    for address, package in {"s3": "s3fs", "gs": "gcsfs", "https": r"pixelwright\[data\]"}.items():
        with pytest.raises(
            UserError, match=f'needs a package that is not installed: pip install "{package}"'
        ):
            download(f"{address}://host/a.tar")


def test_what_is_no_address() -> None:
    with pytest.raises(UserError, match=r"is of no known protocol: use one of .*https, s3"):
        download("gopher://host/a.tar")
    with pytest.raises(UserError, match=r"names no file"):
        download("https://host/folder/")


def test_a_zip_behind_an_address(server: Server, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for i in range(2):
            Shapes(8, count=9)[i].image.save(tmp_path / "x.png")
            archive.write(tmp_path / "x.png", f"{i}.png")
    server.files = {"s.zip": (tmp_path / "s.zip").read_bytes()}
    assert len(open_source(DataConfig(path=f"{server.url}/s.zip"))) == 2
