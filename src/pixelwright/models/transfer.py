"""The weights of a model of some classes for one of other classes."""

from unicodedata import normalize

import torch
from torch import Tensor, nn

from pixelwright.models.config import DenoiserConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.layers import ClassEmbedder

MOST_NAMED = 4


def class_tables(model: nn.Module) -> list[str]:
    """The names of the modules that hold a row for each class."""
    return [f"{name}.table" for name, module in model.named_modules() if isinstance(module, ClassEmbedder)]


def for_classes(model: PixelDenoiser, new: DenoiserConfig) -> tuple[dict[str, Tensor], str | None]:
    """The weights of a model for one that differs in its classes alone, and what became of the classes in a
    line, None where they are the same.

    A class keeps the row of the class of its name; others start at the mean of the old rows. The row of the
    null class, the last one, stays. Where either side has no names, equal numbers are the same classes.
    """
    old, weights = model.config, model.state_dict()
    before, after = ([normalize("NFC", name) for name in config.class_names or ()] for config in (old, new))
    if old.num_classes == new.num_classes and (before == after or not (before and after)):
        return weights, None
    rows = {name: row for row, name in enumerate(before)}
    names = after or [f"class {label}" for label in range(new.num_classes)]
    found = [rows.get(name) for name in names]
    for name in class_tables(model):
        table = weights[f"{name}.weight"]  # [old classes + 1, D]
        fresh = table[:-1].float().mean(0).to(table.dtype)
        kept = [fresh if row is None else table[row] for row in found]
        weights[f"{name}.weight"] = torch.stack([*kept, table[-1]])
    return weights, _described(names, found, old.num_classes)


def _described(names: list[str], found: list[int | None], old: int) -> str:
    fresh = [name for name, row in zip(names, found, strict=True) if row is None]
    kept = f"classes: {len(names) - len(fresh)} of {len(names)} keep their row, found by name among {old}"
    if not fresh:
        return kept
    more = f" and {len(fresh) - MOST_NAMED} more" if len(fresh) > MOST_NAMED else ""
    return f"{kept}; {len(fresh)} new start at the mean ({', '.join(fresh[:MOST_NAMED])}{more})"
