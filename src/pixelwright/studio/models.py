"""The models that may be drawn with, of which one is in memory at a time."""

import gc
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from pixelwright.acceleration import AcceleratedDenoiser, accelerate
from pixelwright.errors import UserError, nearest
from pixelwright.files import read_json
from pixelwright.hub.adapters import SETTINGS, WEIGHTS, find_adapter
from pixelwright.hub.checkpoint import is_model_folder, load, load_config, locate
from pixelwright.hub.shipped import PREFIX, shipped
from pixelwright.models.config import DenoiserConfig
from pixelwright.remote import is_address


def runs_in(folder: Path) -> list[str]:
    """The names of the runs in a folder, the one that was written to last first."""
    if not folder.is_dir():
        return []
    runs = [path for path in folder.iterdir() if (path / "config.yaml").is_file()]
    return [path.name for path in sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True)]


class Models:
    """What may be drawn with, and the model that was drawn with last.

    Args:
        sources: model folders, runs, files of weights or hf:// addresses.
        folders: folders of runs, whose models and adapters are offered too.
        device, precision: as for `acceleration.accelerate`.
    """

    def __init__(
        self, sources: Sequence[str], folders: Sequence[Path], device: torch.device, precision: str = "auto"
    ) -> None:
        self.sources, self.folders = tuple(sources), tuple(folders)
        self.device, self.precision = device, precision
        self._lock = threading.Lock()
        self._configs: dict[tuple[str, int], DenoiserConfig] = {}
        self._held: tuple[tuple[str, int], AcceleratedDenoiser] | None = None

    def choices(self) -> list[str]:
        """The models named at the start, the runs that have one by now, those that come with the package."""
        runs = (folder / name for folder in self.folders for name in runs_in(folder))
        found = (str(run) for run in runs if is_model_folder(run / "model") or find_adapter(run) is not None)
        return list(dict.fromkeys((*self.sources, *found, *(PREFIX + name for name in shipped()))))

    def first(self) -> str | None:
        """The first that can be read: a damaged run is no reason to offer nothing."""
        for source in self.choices():
            with suppress(UserError):
                self.config(source)
                return source
        return None

    def parts(self, source: str) -> tuple[str, str | None]:
        """A model and the adapter that goes with it: where `source` is a run that trained an adapter, the
        model it was trained on and itself. Raises UserError: the page does not offer `source`."""
        choices = self.choices()  # a name that is typed must not make the page read other files
        if source not in choices and not is_address(source):
            raise UserError(f'the page does not offer the model "{source}"{nearest(source, choices)}')
        if is_address(source) or (found := find_adapter(Path(source))) is None:
            return source, None
        if not isinstance(base := read_json(found / SETTINGS).get("base_model_name_or_path"), str):
            raise UserError(f"{found} does not say which model it was trained on")
        return base, source

    def config(self, source: str) -> DenoiserConfig:
        """Raises UserError: the page does not offer this model, or it cannot be read."""
        if (key := self._key(source)) not in self._configs:
            self._configs[key] = load_config(*self.parts(source))
        return self._configs[key]

    def get(self, source: str) -> AcceleratedDenoiser:
        """A model, ready to draw, read anew where its file has changed; the one before is let go of first.
        Raises UserError as `config`."""
        key = self._key(source)
        with self._lock:
            if self._held is None or self._held[0] != key:
                self._held = None
                gc.collect()  # so that two models are never in memory together
                model, adapter = self.parts(source)
                self._held = key, accelerate(load(model, adapter=adapter).to(self.device), self.precision)
            return self._held[1]

    def _key(self, source: str) -> tuple[str, int]:
        """The model, and when its file was written."""
        model, adapter = self.parts(source)
        if is_address(model):
            return source, 0
        file = locate(model) if adapter is None else (find_adapter(Path(adapter)) or Path()) / WEIGHTS
        return source, file.stat().st_mtime_ns if file.exists() else 0
