"""Going back to an earlier checkpoint when spikes persist, and past the batches that led to them.

Steps go back, batches do not: after a rollback from step s to step c, step c + 1 takes the batch that step
s + 1 would have had, so that no batch is seen again, and the learning rate is multiplied by
`health.rollback_lr`. The rollbacks so far are part of a checkpoint, and nothing else has to be kept of one: a
run that is killed after it continues from a checkpoint before the spikes, meets them again at the same step
and goes back to the same checkpoint.
"""

from pathlib import Path

import torch
from torch import Tensor

from pixelwright.distributed.checkpoint import Checkpoint, checkpoint_folders, newest, remove_after, step_of
from pixelwright.errors import UserError
from pixelwright.training.config import MOST_ROLLBACKS, HealthConfig, LoopConfig


class Rollbacks:
    """The rollbacks of a run so far."""

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        # One row each: the step it went back from, the step it went to, and that of the log line with it.
        self.rows = torch.zeros(MOST_ROLLBACKS, 3, dtype=torch.int64)

    def tensors(self) -> dict[str, Tensor]:
        """What belongs into a checkpoint, by reference."""
        return {"rows": self.rows}

    @property
    def count(self) -> int:
        """How many there were."""
        return int((self.rows[:, 0] > 0).sum())

    @property
    def shift(self) -> int:
        """How far the batches are ahead of the steps."""
        return int((self.rows[:, 0] - self.rows[:, 1]).sum())

    @property
    def lr_factor(self) -> float:
        """What the learning rate is multiplied by."""
        return self.config.rollback_lr**self.count

    def add(self, last: int, step: int, earlier: Tensor) -> str:
        """Note that a run with the rows `earlier` went back from step `last` to `step`, in words."""
        self.rows.copy_(earlier)
        self.rows[self.count] = torch.tensor([last, step, 0])
        logged = self.rows[:, 2]
        logged[logged > step] = 0  # those lines are cut off the log
        return describe_rollback(last, step)

    def read(self, step: int) -> dict[str, list[list[int]]]:
        """The rollbacks that no line of the log has yet, each [from, to], as an entry of the next one."""
        new = (self.rows[:, 0] > 0) & (self.rows[:, 2] == 0)
        found: list[list[int]] = self.rows[new, :2].tolist()
        self.rows[new, 2] = step
        return {"rollbacks": found} if found else {}


def describe_rollback(last: int, step: int) -> str:
    """A rollback in a line for a person."""
    back = f"rolled back to the checkpoint of step {step} and to a lower learning rate"
    return f"spikes persisted at step {last}: {back}; what steps {step + 1} to {last} saw is not seen again"


def go_back(config: LoopConfig, count: int, last: int, before: int) -> Checkpoint | None:
    """The checkpoint to go back to from step `last`, once later ones are removed; None if there is none.

    It is the newest that was saved half a window before the spikes, which began after step `before`, or else
    the oldest. Only those at multiples of `checkpoint_every` count, which do not depend on interruptions.

    Raises UserError: there were `max_rollbacks` rollbacks, `count`, already.
    """
    run, health = Path(config.run), config.health
    there = [f for f in checkpoint_folders(run) if step_of(f) % config.checkpoint_every == 0]
    early = [f for f in there if step_of(f) <= before - health.window // 2] or there[:1]
    found = newest(run, early)
    if found is None:
        return None
    if count >= health.max_rollbacks:
        raise UserError(
            f"training stopped at step {last}: spikes persist after {count} rollbacks "
            f"(health.max_rollbacks); {found.path} is good: try a lower --optim.lr or --optim.clip"
        )
    remove_after(run, found.step)
    return found
