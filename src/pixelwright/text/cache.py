"""Features of captions, kept in memory and on the disk.

    CACHE/<digest>/<random name>.safetensors

One folder for each way of encoding (files of the encoder, prefix, length, padding); in it, files that are
whole or not there and never change. A process writes what it encoded as further files, so that any number of
processes and machines may share a cache without locks; at worst they encode a caption twice, to the same.
"""

import threading
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.files import digest, remove_abandoned, write_safetensors
from pixelwright.models.conditions import TextCondition
from pixelwright.text.encoders import Features, TextEncoder

IN_MEMORY = 1 << 29  # bytes of features that a process keeps
FILE_SIZE = 1 << 26  # bytes of new features after which a file is written


class FeatureCache:
    """An encoder that encodes no caption twice. Any number of threads may use it. In `folder` features are
    kept for other runs; None: in memory alone. Raises UserError: the folder cannot be made."""

    def __init__(self, encoder: TextEncoder, folder: str | Path | None = None) -> None:
        self.encoder = encoder
        self.folder: Path | None = None
        self._lock = threading.RLock()
        self._held: OrderedDict[str, Features] = OrderedDict()
        self._held_bytes = self._new_bytes = 0
        self._new: dict[str, Tensor] = {}
        self._places: dict[str, tuple[str, Any]] = {}  # digest of a caption -> name in a file, file
        self._seen: set[Path] = set()
        if folder is not None:
            way = digest(encoder.checksum(), encoder.prefix, encoder.length, encoder.padded, encoder.dtype)
            self.folder = Path(folder).expanduser() / way
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"text.cache {folder} cannot be made ({error}); name another") from None
            remove_abandoned(self.folder)
            self._look()

    def encode(self, captions: Sequence[str]) -> TextCondition:
        """As `TextEncoder.encode`."""
        return self.encoder.join([self.features(text) for text in captions], self.features(""))

    def features(self, caption: str) -> Features:
        """As `TextEncoder.features`, from memory or the disk where it is there."""
        with self._lock:
            if caption in self._held:
                self._held.move_to_end(caption)
                return self._held[caption]
            found = self._read(caption)
            if found is None:
                found = self.encoder.features(caption)
                if self.folder is not None:
                    self._new[f"{digest(caption)}-{found.used}"] = found.values
                    self._new_bytes += found.values.nbytes
                    if self._new_bytes >= FILE_SIZE:
                        self.flush()
            self._held[caption] = found
            self._held_bytes += found.values.nbytes
            while self._held_bytes > IN_MEMORY and len(self._held) > 1:
                self._held_bytes -= self._held.popitem(last=False)[1].values.nbytes
            return found

    def flush(self) -> None:
        """Write what is new as a file of its own, and see what other processes have written. Raises
        UserError: it cannot be written; the features stay in memory."""
        with self._lock:
            if self.folder is None or not self._new:
                return
            path = self.folder / f"{uuid.uuid4().hex}.safetensors"
            write_safetensors(path, self._new, self._new.__getitem__, {})
            self._new, self._new_bytes = {}, 0
            self._look()

    def _look(self) -> None:
        """Note the content of files that were not there before; damaged ones are as good as not there."""
        assert self.folder is not None
        for path in sorted(set(self.folder.glob("*.safetensors")) - self._seen):
            self._seen.add(path)
            try:
                file: Any = safe_open(path, framework="pt")
                self._places.update({name.partition("-")[0]: (name, file) for name in file.keys()})  # noqa: SIM118
            except (OSError, SafetensorError):
                continue

    def _read(self, caption: str) -> Features | None:
        if (place := self._places.get(digest(caption))) is None:
            return None
        name, file = place
        return Features(file.get_tensor(name), int(name.partition("-")[2]))
