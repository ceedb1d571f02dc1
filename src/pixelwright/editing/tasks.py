"""Restoration tasks by name: the operator of each, and whether a picture is its measurement."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pixelwright.editing.operators import AveragePool, Blur, Grey, Mask, Operator, Quantise
from pixelwright.errors import UserError

ROUNDING = 2 / 255 / 12**0.5  # standard deviation of the rounding of 8 bits, in units of [-1,1]


@dataclass(frozen=True)
class TaskSettings:
    """Settings of the operators; each task reads those in its `uses`."""

    sigma: float = 1.5  # of a Gaussian blur, in pixels
    length: int = 9  # of a motion blur, in pixels
    angle: float = 0.0  # of a motion blur, in degrees from the horizontal, anticlockwise
    levels: int = 8  # of each channel
    share: float = 0.5  # of the pixels, lost at random
    mask: Tensor | None = None  # bool [H,W], true = missing
    seed: int = 0


class Task(NamedTuple):
    """A measurement to undo."""

    help: str
    operator: Callable[[TaskSettings, tuple[int, int]], Operator]  # for images of a (height, width)
    uses: tuple[str, ...] = ()  # settings
    measured: bool = True  # a picture is the measurement; else it is whole, and measured first
    noise: float = 0.0  # of a measurement of 8 bits


def _mask(settings: TaskSettings) -> Mask:
    if settings.mask is None or not settings.mask.any():
        raise UserError("the task fill needs a mask of the missing pixels, and there is none")
    return Mask(settings.mask)


TASKS = {
    "sr2": Task("enlarge twice", lambda settings, size: AveragePool(2)),
    "sr4": Task("enlarge 4 times", lambda settings, size: AveragePool(4)),
    "sr8": Task("enlarge 8 times", lambda settings, size: AveragePool(8)),
    "colourise": Task("colour a grey picture", lambda settings, size: Grey(), measured=False),
    "deblur": Task(
        "undo a Gaussian blur",
        lambda settings, size: Blur.gaussian(settings.sigma),
        ("sigma",),
        noise=ROUNDING,
    ),
    "motion": Task(
        "undo a motion blur",
        lambda settings, size: Blur.motion(settings.length, settings.angle),
        ("length", "angle"),
        noise=ROUNDING,
    ),
    "fill": Task("fill in missing pixels", lambda settings, size: _mask(settings), ("mask",), measured=False),
    "random": Task(
        "fill in pixels lost at random",
        lambda settings, size: Mask.random(size, settings.share, settings.seed),
        ("share",),
        measured=False,
    ),
    "dequantise": Task(
        "undo rounding to few levels",
        lambda settings, size: Quantise(settings.levels),
        ("levels",),
        measured=False,
    ),
}
