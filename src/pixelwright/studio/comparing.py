"""One request with one or two of its settings varied, all from the same noise."""

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pixelwright.config import NonNegativeInt, convert
from pixelwright.errors import UserError
from pixelwright.studio.drawing import MOST, Drawing, as_number, frames
from pixelwright.studio.models import Models

AXES = ("model", "class or prompt", "seed", "steps", "guidance scale", "solver", "time shift")


def vary(drawing: Drawing, axis: str, value: str) -> Drawing:
    """The request with one setting in another value. Raises UserError: a value that does not fit."""
    if axis == "model":
        return dataclasses.replace(drawing, model=value)
    if axis == "class or prompt":
        return dataclasses.replace(drawing, drawn=(value,))
    if axis == "seed":
        return dataclasses.replace(drawing, seed=convert(as_number(value), NonNegativeInt, axis))
    settings: dict[str, Any] = {axis.replace(" ", "_"): value if axis == "solver" else as_number(value)}
    return dataclasses.replace(drawing, sampler=dataclasses.replace(drawing.sampler, **settings))


def cells(
    models: Models,
    drawing: Drawing,
    columns: tuple[str, Sequence[str]],
    rows: tuple[str, Sequence[str]] | None,
    stop: threading.Event,
) -> Iterator[tuple[int, Tensor]]:
    """(place, picture uint8 [H,W,3]) for each row and column; places count row by row. Each model is loaded
    once. Raises UserError: nothing or too much to draw, or a value that does not fit."""
    axis, values = columns
    below = [drawing] if rows is None else [vary(drawing, rows[0], value) for value in rows[1]]
    wanted = [dataclasses.replace(vary(each, axis, v), count=1) for each in below for v in values]
    if not 1 <= len(wanted) <= MOST:
        raise UserError(f"{len(wanted)} pictures are asked for; give 1 to {MOST} values, one a line")
    shape: torch.Size | None = None
    for place, each in sorted(enumerate(wanted), key=lambda pair: pair[1].model):
        words = each.words(models.config(each.model))
        *_, last = frames(models.get(each.model), each, words, stop)
        if stop.is_set():
            return
        if shape not in (None, last.images[0].shape):
            raise UserError("the models draw pictures of several sizes: give a size under Draw")
        shape = last.images[0].shape
        yield place, last.images[0]
