"""What of a model a run trains, averages and exports; patterns of names say what is trained."""

import shlex
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from pixelwright.errors import UserError, nearest
from pixelwright.hub import runs
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import save, skeleton


class Weights:
    """All of a model."""

    def __init__(self, model: PixelDenoiser) -> None:
        self.model = model

    def tensors(self) -> dict[str, Tensor]:
        """What is trained, by reference: saved in checkpoints, and averaged."""
        return self.model.state_dict()

    def plain(self, weights: dict[str, Tensor]) -> PixelDenoiser:
        """A plain model that holds these, tensors as `tensors` gives them: an average."""
        model = skeleton(self.model.config, self.model)
        model.load_state_dict(weights, assign=True)
        return model.eval()  # with gradients: autocast keeps casts of such weights alone

    def export(self, checkpoint: Path, run: Path) -> None:
        """Write the average in a checkpoint's folder where `pixelwright sample` finds it."""
        save(runs.read(checkpoint, self.model.config, "ema"), run / "model")

    def named(self, run: Path) -> str:
        """How `pixelwright sample` is told of what is exported."""
        return shlex.quote(str(run))


def matching(pattern: str, names: Iterable[str], setting: str) -> list[str]:
    """The names that a pattern matches, or whose ends after a point it matches. Raises UserError: none,
    naming the nearest."""
    known = list(names)
    found = [name for name in known if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
    if not found:
        ends = {name.rpartition(".")[2] for name in known}
        raise UserError(f'{setting}: nothing matches "{pattern}"{nearest(pattern, {*known, *ends})}')
    return found


def freeze(model: PixelDenoiser, train_only: Sequence[str], frozen: Sequence[str]) -> None:
    """Train only the weights that `train_only` matches (all where it is empty), without those of `frozen`.
    What a model has frozen itself stays so.

    Raises UserError: a pattern that matches nothing, or no weight is left.
    """
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept = {name for pattern in train_only for name in matching(pattern, weights, "train_only")}
    left = {name for pattern in frozen for name in matching(pattern, weights, "freeze")}
    trained = (kept or weights.keys()) - left
    if not trained:
        raise UserError("freeze leaves no weight to train: give fewer patterns, or another train_only")
    for name, p in weights.items():
        p.requires_grad_(name in trained)
