"""The averaged weights: one average that is exported and drawn from, and any number beside it."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pixelwright.distributed.parallel import local
from pixelwright.errors import UserError

POWER = "power-"
WIDEST = 12**-0.5  # sigma_rel of gamma = 0, the mean of all steps; wider ones would favour the oldest weights


def power_exponent(sigma_rel: float) -> float:
    """gamma of the power-function average whose profile has the relative width `sigma_rel`.

    EDM2 (arXiv 2312.02696), section 3.1: sigma_rel² = (gamma + 1) / ((gamma + 2)²·(gamma + 3)), here as a
    polynomial of gamma.
    """
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def read_rule(rule: float | str) -> float:
    """A rule of averaging as a number: a decay in [0, 1), or −sigma_rel of a power-function average. Raises
    UserError: neither a decay such as 0.9999 nor "power-" and a relative width such as power-0.05."""
    text = str(rule)
    try:
        number = float(text.removeprefix(POWER))
    except ValueError:
        number = math.nan
    if text.startswith(POWER) and 0 < number < WIDEST:
        return -number
    if not text.startswith(POWER) and 0 <= number < 1:
        return number
    raise UserError(
        f"{rule!r} is no average: give a decay in [0, 1) such as 0.9999, or power-WIDTH with a relative "
        f"width above 0 and below {WIDEST:.3f}, such as power-0.05"
    )


class EMA:
    """Averages of weights under their names; sharded weights have sharded averages.

    A decay warms up, min(decay, (1 + n) / (10 + n)) at step n, so that the first random weights are soon
    forgotten, unless they are trained ones; a power-function average keeps 1 − (1 − 1/n)^(gamma + 1) of the
    newest. Both are functions of the step alone, so nothing but the weights has to be saved.
    """

    def __init__(
        self,
        current: Mapping[str, Tensor],
        rule: float | str,
        more: Sequence[float | str] = (),
        warm_up: bool = True,
    ) -> None:
        """`current` are the weights, by reference. `rule` makes `weights`, each of `more` one of `others`
        under its own text; see `read_rule`. Without `warm_up`, for a model that starts from trained weights,
        decays are the full ones from step 1."""
        self._current = [local(tensor) for tensor in current.values()]
        self._rules, self._warm_up = [read_rule(each) for each in (rule, *more)], warm_up
        self._gammas = [power_exponent(-number) if number < 0 else 0.0 for number in self._rules]
        copies = [{name: tensor.clone() for name, tensor in current.items()} for _ in self._rules]
        self._averages = [[local(tensor) for tensor in copy.values()] for copy in copies]
        self.weights: dict[str, Tensor] = copies[0]
        self.others: dict[str, dict[str, Tensor]] = dict(zip(map(str, more), copies[1:], strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the model after optimiser step `step` (counted from 1)."""
        for decay, gamma, average in zip(self._rules, self._gammas, self._averages, strict=True):
            if decay < 0:  # a power-function average
                kept = (1 - 1 / step) ** (gamma + 1)
            else:
                kept = min(decay, (1 + step) / (10 + step)) if self._warm_up else decay
            torch._foreach_lerp_(average, self._current, 1 - kept)
