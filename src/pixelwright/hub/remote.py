"""Models at addresses.

hf://OWNER/NAME[@REVISION][/FILE] goes through the hub's own client and cache, which other tools share and
which works offline; a file at https://, s3:// and the like is fetched by `pixelwright.remote`.
"""

import contextlib
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pixelwright import remote
from pixelwright.errors import UserError
from pixelwright.hub.files import INDEX_SUFFIX, ONE_FILE, SUFFIXES, only_weights, shard_names
from pixelwright.models.folder import CONFIG, WEIGHTS

SCHEME = "hf://"
_ADDRESS = re.compile(r"hf://(?P<repo>[\w.\-]+/[\w.\-]+)(@(?P<revision>[\w.\-]+))?(/(?P<file>.+?))?/?")


def fetch(address: str, beside: Iterable[str] = (CONFIG,)) -> Path:
    """The local copy of a file of weights; on the hub with the files of these names that are beside it.

    Files of the hub come from its cache where they are current; offline (HF_HUB_OFFLINE=1) from it alone.

    Raises UserError: a malformed address, huggingface_hub is not installed, or the hub cannot be reached, has
    no such model or file, or does not give it to you.
    """
    if not address.startswith(SCHEME):
        if not address.partition("?")[0].endswith(ONE_FILE):
            raise UserError(f"{address} names no file of weights; give that of a {', '.join(ONE_FILE)} file")
        return remote.fetch([address])[0]
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f'"{address}" is no hub address; write {SCHEME}OWNER/NAME or {SCHEME}OWNER/NAME/FILE')
    repo, revision, file = match["repo"], match["revision"], match["file"]

    def download(name: str) -> Path:
        return Path(_ask(address, "hf_hub_download", repo, name, revision=revision))

    if file is None or not file.endswith(SUFFIXES):
        names = _names(address, repo, revision)
        names = [name for name in names if file is None or name.startswith(f"{file}/")]
        if not names:
            raise UserError(f"{address} names no file of weights; their names end in {', '.join(SUFFIXES)}")
        file = WEIGHTS if {CONFIG, WEIGHTS} <= set(names) else only_weights(names, address)
    path, folder = download(file), file.rpartition("/")[0]
    for name in shard_names(path) if file.endswith(INDEX_SUFFIX) else ():
        download(f"{folder}/{name}" if folder else name)
    for name in beside:
        with contextlib.suppress(UserError):  # few have one of ours
            download(f"{folder}/{name}" if folder else name)
    return path


def _names(address: str, repo: str, revision: str | None) -> list[str]:
    """The files of a repository; where the hub cannot be reached, those of it in the cache."""
    try:
        return list(_ask(address, "list_repo_files", repo, revision=revision))
    except _UnreachableError:
        cached = [
            file.file_path.relative_to(copy.snapshot_path).as_posix()
            for cached in _ask(address, "scan_cache_dir").repos
            if cached.repo_id == repo and cached.repo_type == "model"
            for copy in cached.revisions
            if (revision or "main") in {copy.commit_hash, *copy.refs}
            for file in copy.files
        ]
        if not cached:
            raise
        return cached


class _UnreachableError(UserError):
    """The hub does not answer, or is not to be asked."""


_UNREACHABLE = "is not in the cache, and the hub cannot be reached (no network, or HF_HUB_OFFLINE is set)"
_REASONS = {  # the client's errors, the narrower ones first
    "GatedRepoError": "is gated: accept its terms on its page, then log in with `hf auth login`",
    "RepositoryNotFoundError": "does not exist, or is private and you are not logged in (`hf auth login`)",
    "RevisionNotFoundError": "has no such revision",
    **dict.fromkeys(("LocalEntryNotFoundError", "OfflineModeIsEnabled", "CacheNotFound"), _UNREACHABLE),
    "EntryNotFoundError": "has no such file",
    "HfHubHTTPError": "was refused by the hub: {error}",
    "HTTPError": _UNREACHABLE,  # of its HTTP library, which is not an OSError in every version
}


def _ask(address: str, function: str, *arguments: Any, **settings: Any) -> Any:
    """Call a function of the client; whatever goes wrong becomes one line."""
    try:
        import huggingface_hub as client
    except ImportError:
        raise UserError('hf:// addresses need huggingface_hub: pip install "pixelwright[hub]"') from None
    ask = getattr(client, function)  # imports a part of the client, which sets up the log
    log = logging.getLogger("huggingface_hub")  # tells of every attempt; the reason below says enough
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return ask(*arguments, **settings)
    except Exception as error:
        from huggingface_hub import errors

        known = ((getattr(errors, kind, ()), text) for kind, text in _REASONS.items())
        reason = next((text for kind, text in known if isinstance(error, kind)), None)
        if reason is None and isinstance(error, OSError):
            reason = _UNREACHABLE
        if reason is None and isinstance(error, ValueError):
            reason = "is no address the hub knows: {error}"
        if reason is None:
            raise
        kind = _UnreachableError if reason is _UNREACHABLE else UserError
        raise kind(f"{address} {reason.format(error=' '.join(str(error).split())[:200])}") from None
    finally:
        log.setLevel(level)
