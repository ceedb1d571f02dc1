"""Which weights are trained: patterns of their names."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from pixelwright.errors import UserError, nearest
from pixelwright.models.denoiser import PixelDenoiser


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
