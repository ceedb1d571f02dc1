"""How several processes share the work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pixelwright.errors import UserError, nearest


@dataclass(frozen=True)
class ParallelConfig:
    """How a run under `torchrun` shares the work among its processes; it does not change what is computed."""

    mode: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: every process holds all weights; fsdp: each holds a part; auto: ddp where there are several."""
    replicas: int | None = None
    """fsdp only: whole copies of the weights, each over processes / replicas processes (HSDP); None: one."""
    checkpointing: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them: less memory."""
    timeout: float = 1800.0
    """Seconds that a process waits for the others before the run ends with an error."""

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "ddp", "fsdp"):
            raise UserError(f"parallel.mode is {self.mode!r}{nearest(self.mode, ('auto', 'ddp', 'fsdp'))}")
        if self.replicas is not None:
            if isinstance(self.replicas, bool) or not isinstance(self.replicas, int) or self.replicas < 1:
                raise UserError(
                    f"parallel.replicas is {self.replicas!r}: it must be a whole number, at least 1"
                )
            if self.mode != "fsdp":
                raise UserError(
                    f"parallel.replicas is {self.replicas}, but parallel.mode is {self.mode}: "
                    "leave one out, or give mode fsdp"
                )
        if not (isinstance(self.timeout, (int, float)) and 0 < self.timeout < math.inf):
            raise UserError(f"parallel.timeout is {self.timeout!r}: it must be a finite number, above 0")
