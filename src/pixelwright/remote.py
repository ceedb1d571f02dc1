"""Files behind http(s) addresses: fetched once into the cache folder, checked, then read as local files."""

from __future__ import annotations

import hashlib
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from filelock import FileLock
from tqdm import tqdm

from pixelwright.errors import UserError
from pixelwright.files import cache_folder

CHECKSUMS = "SHA256SUMS"  # in the format of the tool sha256sum, beside the files
ATTEMPTS = 4
PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
TIMEOUT = 60.0  # seconds without a byte
CONNECTIONS = 4
TRANSIENT = (408, 429, 500, 502, 503, 504)  # HTTP answers worth another attempt


def fetch(urls: Sequence[str]) -> list[Path]:
    """Local copies of `urls`, in order; those in the cache already are not fetched again.

    A file appears under its name only when it is whole: as long as the server said and, where a `SHA256SUMS`
    lies beside it, with that checksum. An interrupted transfer goes on where it stopped. Processes that ask
    for the same file at once fetch it once.

    Raises UserError, with the address and the reason, for what cannot be fetched or is not as it should be.
    """
    for url in urls:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise UserError(
                f'"{url}" is not an http(s) address: download or mount it and give the local path'
            )
    places = [_place(url) for url in urls]
    missing = [pair for pair in zip(urls, places, strict=True) if not pair[1].is_file()]
    if missing:
        sums = {folder: _checksums(folder) for folder in {urljoin(url, ".") for url, _ in missing}}
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            jobs = [pool.submit(_fetch, url, place, sums[urljoin(url, ".")]) for url, place in missing]
            try:
                for job in tqdm(jobs, desc="fetching", unit="file", disable=None):
                    job.result()
            finally:
                pool.shutdown(cancel_futures=True)
    return places


def _place(url: str) -> Path:
    """A folder of its own for each folder of the server, so that names stay as they are."""
    parts = urlsplit(url)
    folder = hashlib.blake2b((urljoin(url, ".") + "?" + parts.query).encode(), digest_size=8).hexdigest()
    name = parts.path.rpartition("/")[2]
    if not name or name.startswith("."):
        raise UserError(f'"{url}" names no file: give the address of .tar, .parquet or .zip files')
    return cache_folder() / "downloads" / folder / name


def _checksums(folder: str) -> dict[str, str]:
    """File name -> SHA-256, as far as the server tells."""
    url = urljoin(folder, CHECKSUMS)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            text = answer.read(1 << 24).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:  # the server has none
        error.close()
        return {}
    except OSError as error:
        raise UserError(f'"{url}" cannot be fetched ({_reason(error)}): try again later') from error
    return {name: digest for digest, name in re.findall(r"^([0-9a-f]{64}) [ *](\S+)$", text, re.M)}


def _reason(error: OSError) -> object:
    return getattr(error, "reason", None) or error


def _fetch(url: str, place: Path, sums: dict[str, str]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(place.name + ".part")
    with FileLock(str(place) + ".lock"):
        if place.is_file():  # another process was faster
            return
        for attempt in range(ATTEMPTS):
            try:
                _transfer(url, part)
                break
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in TRANSIENT or attempt + 1 == ATTEMPTS:
                    raise UserError(
                        f'"{url}" answers {error.code} {error.reason}: check the address'
                    ) from None
            except OSError as error:  # includes URLError, time-outs and short transfers
                if attempt + 1 == ATTEMPTS:
                    raise UserError(
                        f'"{url}" cannot be fetched ({_reason(error)}): try again later'
                    ) from error
            time.sleep(PAUSE * 2**attempt)
        _verify(url, part, sums.get(place.name))
        os.replace(part, place)


def _transfer(url: str, part: Path) -> None:
    """Fetch what is still missing of `part`. Raises OSError if the server stops short."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416:  # nothing after the last byte we have: it was whole, or is not what it was
            raise
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if total != str(have):
            part.unlink()
            raise OSError("the file on the server has changed") from None
        return
    with answer, part.open("ab" if answer.status == 206 else "wb") as file:
        expected = answer.headers.get("Content-Length")
        start = file.tell()
        while chunk := answer.read(1 << 20):
            file.write(chunk)
        got = file.tell() - start
    if expected is not None and got != int(expected):
        raise OSError(f"{got} of {expected} bytes arrived")


def _verify(url: str, part: Path, wanted: str | None) -> None:
    if wanted is None:
        return
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wanted:
        part.unlink()
        raise UserError(
            f'"{url}" has the SHA-256 {digest[:12]}… where {CHECKSUMS} says {wanted[:12]}…: '
            "try again, or tell whoever keeps the server"
        )
