"""The models that the page may draw with, of which one is in memory at a time."""

import gc
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from pixelwright.acceleration import AcceleratedDenoiser, accelerate
from pixelwright.errors import UserError, nearest
from pixelwright.hub.checkpoint import is_model_folder, load, load_config
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
        runs: a folder of runs, whose models are offered too.
        device, precision: as for `acceleration.accelerate`.
    """

    def __init__(
        self, sources: Sequence[str], runs: Path, device: torch.device, precision: str = "auto"
    ) -> None:
        self.sources, self.runs, self.device, self.precision = tuple(sources), runs, device, precision
        self._lock = threading.Lock()
        self._configs: dict[str, DenoiserConfig] = {}
        self._held: tuple[str, AcceleratedDenoiser] | None = None

    def choices(self) -> list[str]:
        """The models named at the start, then the runs that have one by now."""
        folders = (self.runs / name for name in runs_in(self.runs))
        found = [str(folder) for folder in folders if is_model_folder(folder / "model")]
        return list(dict.fromkeys((*self.sources, *found)))

    def config(self, source: str) -> DenoiserConfig:
        """Raises UserError: the page does not offer this model, or it cannot be read."""
        self._check(source)
        if source not in self._configs:
            self._configs[source] = load_config(source)
        return self._configs[source]

    def get(self, source: str) -> AcceleratedDenoiser:
        """A model, ready to draw; the one before is let go of first. Raises UserError as `config`."""
        self._check(source)
        with self._lock:
            if self._held is None or self._held[0] != source:
                self._held = None
                gc.collect()  # so that two models are never in memory together
                made = accelerate(load(source).to(self.device), self.precision)
                self._held = source, made
            return self._held[1]

    def _check(self, source: str) -> None:
        """A name that is typed must not make the page read files that were not offered."""
        choices = self.choices()
        if source not in choices and not is_address(source):
            raise UserError(f'the page does not offer the model "{source}"{nearest(source, choices)}')
