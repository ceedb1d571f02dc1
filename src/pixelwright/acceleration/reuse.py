"""A backbone that runs in one of N evaluations. Approximate."""

from typing import Any

from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.models.conditions import Condition
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.detailers.linear import LinearConfig


def check_reuse(reuse: int, config: DenoiserConfig | None = None) -> None:
    """Raise UserError unless the tokens of the backbone can serve `reuse` evaluations (of this model)."""
    if isinstance(reuse, bool) or not isinstance(reuse, int) or reuse < 1:
        raise UserError(f"reuse is {reuse!r}; it must be a whole number of at least 1 (1 = exact)")
    if reuse == 1 or config is None:
        return
    if config.placement != "post-hoc" or isinstance(config.detailer, LinearConfig):
        raise UserError(
            f"reuse is {reuse}, but in {config.name} the pixels of each step must pass through the backbone; "
            "leave it at 1"
        )


class Reused:
    """A denoiser whose backbone runs in one of `reuse` evaluations.

    Between, its tokens go on in the straight line of the last two passes, or stay as they are where there was
    but one; the detailer sees the pixels and the time of each evaluation. Where guidance begins or ends, and
    where time goes back to an earlier one, the backbone runs and a new line begins.
    """

    def __init__(self, model: Any, reuse: int) -> None:
        self.model, self.reuse = model, reuse
        self.passes: list[tuple[Tensor, Tensor]] = []  # times [B] and tokens [B, L, D] of the last two
        self.left = 0  # evaluations until the next one
        self.batch, self.first, self.last = 0, -1.0, 2.0  # size, first and last time of the trajectory
        self.config, self.device = model.config, model.device

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        now = float(t[0])
        begins = now < self.last or now == self.first
        if begins or len(x) != self.batch:
            self.passes, self.left = [], 0
        self.first = now if begins else self.first
        self.batch, self.last = len(x), now
        if self.left:
            state = self.model.backbone.embed(x.to(self.model.dtype), t, condition)
            state = state._replace(tokens=self._tokens(t))
        else:
            state, _ = self.model.global_stage(x, t, condition)
            self.passes, self.left = [*self.passes[-1:], (t, state.tokens)], self.reuse
        self.left -= 1
        return self.model.local_stage(x, t, state)

    def _tokens(self, t: Tensor) -> Tensor:
        (before, older), (then, newer) = self.passes[0], self.passes[-1]
        if len(self.passes) == 1:
            return newer
        weight = ((t - before) / (then - before))[:, None, None]
        return older.float().lerp(newer.float(), weight).to(newer.dtype)
