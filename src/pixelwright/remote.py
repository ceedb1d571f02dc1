"""Files behind addresses, by fsspec: http(s), s3, gs, hf and others alike, fetched once, checked, kept.

An address is PROTOCOL://PLACE. What can pass (lost connections, busy servers) is tried again; all that goes
wrong in the end is a `UserError` with the address and the reason.
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from pixelwright.errors import UserError
from pixelwright.files import FULL, cache_folder, decode_lines, digest, raise_write_error, sha256

CHECKSUMS = "SHA256SUMS"  # in the format of the tool sha256sum, beside the files
ATTEMPTS = 4
PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
TIMEOUT = 60.0  # seconds without a byte, over http
CONNECTIONS = 4
BLOCK = 1 << 24  # bytes of one request; an interrupted transfer goes on at a multiple of it
VERSION = ("size", "ETag", "Last-Modified", "LastModified", "mtime")
"""What tells two versions of a file apart."""
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # statuses worth another attempt
NOT_FOUND, REFUSED = (404, 410), (401, 403)
PACKAGES = dict.fromkeys(("http", "https"), "pixelwright[data]")  # what to install for an address
PACKAGES |= {"s3": "s3fs", "hf": "pixelwright[hub]"} | dict.fromkeys(("gs", "gcs"), "gcsfs")
PACKAGES |= dict.fromkeys(("az", "abfs", "abfss"), "adlfs")
NETWORK = ("aiohttp", "botocore", "aiobotocore", "gcsfs", "huggingface_hub", "requests", "httpx", "fsspec")
"""Packages whose exceptions are those of a network, not of a program."""
Result = TypeVar("Result")
logger = logging.getLogger(__name__)


def is_address(path: str) -> bool:
    """Whether a path is an address rather than a local file."""
    return re.match(r"[a-z][a-z0-9+.]*://", path, re.I) is not None


def glob(pattern: str) -> list[str]:
    """The addresses of the files that fit an address with `*` in it, sorted."""
    fs, path = _filesystem(pattern)
    return sorted(map(fs.unstrip_protocol, _try(pattern, lambda: fs.glob(path))))


def fetch(addresses: Sequence[str]) -> list[Path]:
    """Local copies of files, in order; those in the cache already are not fetched again.

    A file appears under its name only when it is whole: as long as the server said and, where a `SHA256SUMS`
    lies beside it, with that checksum. An interrupted transfer goes on where it stopped. Processes that ask
    for the same file at once fetch it once.

    Raises UserError, with the address and the reason, for what cannot be fetched or is not as it should be.
    """
    places = [_place(address) for address in addresses]
    missing = [pair for pair in zip(addresses, places, strict=True) if not pair[1].is_file()]
    if missing:
        sums = {folder: _checksums(folder) for folder in {_folder(address) for address, _ in missing}}
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            jobs = [pool.submit(_fetch, name, place, sums[_folder(name)]) for name, place in missing]
            try:
                for job in tqdm(jobs, desc="fetching", unit="file", disable=None):
                    job.result()
            finally:
                pool.shutdown(cancel_futures=True)
    return places


def _place(address: str) -> Path:
    """A folder of its own for each address, so that names stay as they are."""
    name = address.partition("?")[0].rpartition("/")[2]
    if not is_address(address) or not name or name.startswith("."):
        raise UserError(f'"{address}" names no file: give the address of one, such as https://host/set.tar')
    return cache_folder() / "downloads" / digest(address) / name


def _folder(address: str) -> str:
    """The address of the folder of a file; of none if there is a query, which may be a key to this file."""
    return "" if "?" in address else address.rpartition("/")[0]


def _checksums(folder: str) -> dict[str, str]:
    """File name -> SHA-256, empty if there is no such list in the folder.

    Raises UserError if there is one that cannot be read. One that is refused is taken for none, with a
    warning: stores that do not list their files say so of what is not there.
    """
    address, found = f"{folder}/{CHECKSUMS}", dict[str, str]()
    if not folder:
        return found
    fs, path = _filesystem(address)
    try:
        _try(address, lambda: fs.info(path))
        data = _try(address, lambda: fs.cat_file(path))
    except _NotFoundError:
        return found
    except _RefusedError as error:
        logger.warning("%s; what lies beside it is not checked", error)
        return found
    for number, line in enumerate(decode_lines(data, address), start=1):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line)
        if match is None:
            raise UserError(f"line {number} of {address} is no SHA-256 and name: mend or remove that file")
        found[match[2]] = match[1].lower()
    return found


def _fetch(address: str, place: Path, sums: dict[str, str]) -> None:
    from filelock import FileLock  # late, as fsspec is: most runs read local files alone

    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(place) + ".lock"):
        if place.is_file():  # another process was faster
            return
        fs, path = _filesystem(address)
        info = _try(address, lambda: fs.info(path))
        version = digest(*map(info.get, VERSION))
        part = place.with_name(f"{place.name}.{version}.part")  # of another version, nothing can be used
        try:
            _try(address, lambda: _transfer(fs, path, info.get("size"), part))
        except OSError as error:  # not of the network
            raise_write_error(error, place)
            raise
        if sums and place.name not in sums:
            logger.warning('"%s" is not in the %s beside it: it is not checked', address, CHECKSUMS)
        elif sums and (found := sha256(part)) != (listed := sums[place.name]):
            part.unlink()
            text = f'"{address}" has the SHA-256 {found[:12]}… where {CHECKSUMS} says {listed[:12]}…'
            raise UserError(f"{text}: try again, or tell whoever keeps the server")
        os.replace(part, place)


def _transfer(fs: Any, path: str, size: int | None, part: Path) -> None:
    """Fetch what is still missing of `part`. Raises an error of the network if the server stops short."""
    have = part.stat().st_size if part.exists() else 0
    whole = size is None  # of which no piece can be asked for
    if size is not None and have != size:
        try:
            with fs.open(path, "rb", block_size=BLOCK, cache_type="none") as source, part.open("ab") as file:
                source.seek(have)
                shutil.copyfileobj(source, file, BLOCK)
        except ValueError:  # what fsspec raises where the server gives no ranges
            whole = True
    if whole:
        with fs.open(path, "rb", block_size=0) as source, part.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    if size is not None and (got := part.stat().st_size) != size:
        part.unlink()
        raise ConnectionError(f"{got} of {size} bytes arrived")


# --- fsspec ---
def _filesystem(address: str) -> tuple[Any, str]:
    """The file system of an address and the path in it. Raises UserError for an unknown protocol, or one
    whose package is not installed."""
    import fsspec

    protocol = address.partition("://")[0].lower()
    if protocol in ("file", "local"):
        raise UserError(f'"{address}" is a local file: give its path without {protocol}://')
    settings: dict[str, Any] = {}
    try:
        fsspec.get_filesystem_class(protocol)
        if protocol in ("http", "https"):
            from aiohttp import ClientTimeout

            limits = ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
            settings["client_kwargs"] = {"timeout": limits, "trust_env": True}  # proxies of the environment
        return fsspec.core.url_to_fs(address, **settings)
    except ImportError as error:
        package = PACKAGES.get(protocol)
        remedy = f'pip install "{package}"' if package else str(error)
        raise UserError(f'"{address}" needs a package that is not installed: {remedy}') from None
    except ValueError:
        known = ", ".join(sorted(PACKAGES))
        raise UserError(f'"{address}" is of no known protocol: use one of {known}, or a local path') from None


class _NotFoundError(UserError):
    """There is nothing behind an address."""


class _RefusedError(UserError):
    """What is behind an address is not given to us."""


def _try(address: str, action: Callable[[], Result]) -> Result:
    """What `action` gives, with further attempts after errors that pass by themselves. Raises _NotFoundError,
    or UserError for all else that a network or a server refuses."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as raised:
            error: BaseException = raised  # fsspec calls a file not found whatever the server has against it
            while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
                error = error.__cause__
            response = getattr(error, "response", None)
            told = (getattr(error, "status", None), getattr(response, "status_code", None))
            status = next((each for each in told if isinstance(each, int)), None)
            message = getattr(error, "message", None) or str(error) or type(error).__name__
            reason = " ".join(f"{status or ''} {message}".split())[:200]
            if status in NOT_FOUND or (status is None and isinstance(error, FileNotFoundError)):
                raise _NotFoundError(f'"{address}" is not there ({reason}): check the address') from raised
            full = isinstance(error, OSError) and error.errno in FULL
            named = type(error).__module__.partition(".")[0] in NETWORK
            if not named and (full or not isinstance(error, (OSError, EOFError))):
                raise
            text = f'"{address}" cannot be fetched ({reason})'
            if status in REFUSED or isinstance(error, PermissionError):
                raise _RefusedError(f"{text}: check the address and your access") from raised
            if attempt == ATTEMPTS or (status is not None and status not in TRANSIENT):
                raise UserError(f"{text}: check the address, or try again later") from raised
        time.sleep(PAUSE * 2 ** (attempt - 1))
    raise AssertionError("the last attempt returns or raises")
