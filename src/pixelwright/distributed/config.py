"""How several processes share the work."""

from dataclasses import dataclass
from typing import Literal

from pixelwright.config import Config, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class ParallelConfig(Config, where="parallel"):
    """How a run under `torchrun` shares the work among its processes; it does not change what is computed."""

    mode: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: every process holds all weights; fsdp: each holds a part; auto: ddp where there are several."""
    replicas: PositiveInt | None = None
    """fsdp only: whole copies of the weights, each over processes / replicas processes (HSDP); None: one."""
    checkpointing: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them: less memory."""
    timeout: PositiveFloat = 1800.0
    """Seconds that a process waits for the others before the run ends with an error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode != "fsdp":
            why = f"but parallel.mode is {self.mode}: leave one out, or give mode fsdp"
            self.unused("replicas", why=why)
