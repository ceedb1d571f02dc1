"""Features of captions, kept in memory and on the disk.

    CACHE/<digest>/<random name>.safetensors

One folder for each way of encoding (files of the encoder, its dtype, prefix, length, padding); in it, files
that are whole or not there and never change. A process writes what it encoded as further files, so that any
number of processes and machines may share a cache without locks; at worst they encode a caption twice.
"""

import threading
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.files import digest, remove_abandoned, write_safetensors
from pixelwright.models.conditions import TextCondition
from pixelwright.text.encoders import Features, TextEncoder

IN_MEMORY = 1 << 29  # bytes of features that a process keeps
FILE_SIZE = 1 << 26  # bytes of new features after which a file is written
NUMERICS = "16 captions a pass"  # how the bits of features come about; files of another way are not read


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
            way = (encoder.checksum(), encoder.prefix, encoder.length, encoder.padded, encoder.dtype)
            self.folder = Path(folder).expanduser() / digest(*way, encoder.weights, NUMERICS)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"text.cache {folder} cannot be made ({error}); name another") from None
            remove_abandoned(self.folder)
            self._look()

    def encode(self, captions: Sequence[str]) -> TextCondition:
        """As `TextEncoder.encode`. The features of a caption are a function of the caption alone."""
        *rows, null = self.features([*captions, ""])
        return self.encoder.join(rows, null)

    def features(self, captions: Sequence[str]) -> list[Features]:
        """As `TextEncoder.features`: from memory or the disk, on the CPU, or else encoded, on the device."""
        with self._lock:
            found: dict[str, Any] = {text: self._held.get(text) or self._read(text) for text in captions}
            missing = [text for text, features in found.items() if features is None]
            new = self.encoder.features(missing, same=True)
            if new:
                copies = torch.cat([each.values for each in new]).to("cpu")  # in one
                parts = copies.split([len(each.values) for each in new])
                found |= {k: Features(v, n.used) for k, v, n in zip(missing, parts, new, strict=True)}
            self._keep(found, missing)
            found |= zip(missing, new, strict=True)
            return [found[text] for text in captions]

    def _keep(self, found: dict[str, Any], missing: Sequence[str]) -> None:
        """Hold features in memory, the newest last; those that were missing will be written."""
        for text, features in found.items():
            self._held_bytes += 0 if text in self._held else features.values.nbytes
            self._held[text] = features
            self._held.move_to_end(text)
        while self._held_bytes > IN_MEMORY and len(self._held) > 1:
            self._held_bytes -= self._held.popitem(last=False)[1].values.nbytes
        for text in missing if self.folder is not None else ():
            self._new[f"{digest(text)}-{found[text].used}"] = found[text].values
            self._new_bytes += found[text].values.nbytes
            if self._new_bytes >= FILE_SIZE:
                self.flush()

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
