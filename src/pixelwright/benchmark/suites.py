"""Named lists of works: the table of docs/performance.md, and the quick one of the regression guard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pixelwright.benchmark.work import Work, usual_recipe
from pixelwright.errors import UserError, nearest


def _sampling(model: str, size: int, batch_size: int, steps: int) -> Work:
    return Work("sampling", model, batch_size, size, recipe=usual_recipe(model), steps=steps)


def _performance() -> list[Work]:
    """Both XL models at 256², both tiny ones at 32²: bf16, ours compiled."""
    training = [Work("training", f"{family}-ti-4", 64, 32) for family in ("pixeldit", "dip")]
    works = [
        Work("forward", "pixeldit-xl-16", 2, 256),
        Work("forward", "dip-xl-16", 2, 256),
        *training,
        *(replace(work, apart=True) for work in training),
        _sampling("dip-xl-16", 256, 1, 100),
        _sampling("pixeldit-xl-16", 256, 1, 100),
    ]
    return [replace(work, compile=True) for work in works]


def _short() -> list[Work]:
    """The same with 20 steps of sampling instead of 100, the same share of them guided; half the time."""
    return [replace(work, steps=20) if work.kind == "sampling" else work for work in _performance()]


def _check() -> list[Work]:
    """Small works that use every optimised path; a minute or two."""
    works = [Work("forward", f"{family}-b-16", 2, 256) for family in ("pixeldit", "dip")]
    for family in ("pixeldit", "dip"):
        works += [Work("training", f"{family}-ti-4", 64, 32), _sampling(f"{family}-s-8", 64, 4, 20)]
    return works


SUITES: dict[str, Callable[[], list[Work]]] = {
    "performance": _performance,
    "short": _short,
    "check": _check,
}

GOALS = {
    ("forward", "pixeldit-xl-16", 2, 256): 1.4,
    ("forward", "dip-xl-16", 2, 256): 1.7,
    ("training", "pixeldit-ti-4", 64, 32): 2.0,
    ("training", "dip-ti-4", 64, 32): 2.0,
    ("sampling", "dip-xl-16", 1, 256): 1.8,
    ("sampling", "pixeldit-xl-16", 1, 256): 1.55,
}
"""How many times faster than the plain baseline ours is to be at least, on two CPU cores in bf16."""


def goal(work: Work) -> float | None:
    """The ratio that a work is to reach, if one was set."""
    if (work.precision, work.device) != ("bf16", "cpu"):
        return None
    return GOALS.get((work.kind, work.model, work.batch_size, work.size))


def suite(name: str, device: str = "cpu", compile: bool = False) -> list[Work]:
    """The works of a named list, on a device, ours compiled or not.

    Raises:
        UserError: unknown name.
    """
    if name not in SUITES:
        raise UserError(f'unknown suite "{name}"{nearest(name, SUITES)}')
    return [replace(work, device=device, compile=compile) for work in SUITES[name]()]
