"""What a run measures of itself, which changes no weight, and the spikes that it notices and may act on.

All numbers stay in tensors of fixed sizes on the device, which no step waits for, and are part of a
checkpoint: the log of a continued run holds what that of an uninterrupted one does.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.distributed import parallel
from pixelwright.distributed.checkpoint import Checkpoint, checkpoint_folders, newest, remove_after, step_of
from pixelwright.errors import UserError
from pixelwright.training.config import MOST_ROLLBACKS, HealthConfig, LoopConfig

BUCKETS = 10  # of t in [0,1]
NOT_MEASURED = -1.0
NORMAL = 1.4826  # standard deviation of a normal distribution / its median absolute deviation
STEADY = 0.01  # of the median: what varies less than this is not steadier for that


def by_time(losses: Tensor, t: Tensor) -> Tensor:
    """Sum and number of the losses in each tenth of t. losses [b], t [b] -> [2, BUCKETS]."""
    bucket = (t * BUCKETS).long().clamp(max=BUCKETS - 1)  # t = 1 belongs to the last one
    rows = torch.stack((losses, torch.ones_like(losses)), dim=1)  # [b, 2]
    return (rows[:, :, None] * F.one_hot(bucket, BUCKETS)[:, None]).sum(0)  # [b, 2, BUCKETS] -> [2, BUCKETS]


class Health:
    """Loss by time; and every `measure_every` steps, of each stage of the model (its children: backbone,
    detailer ...), the RMS of what its last block puts out and the size of its update.

    In many processes each has the numbers of the whole batch and of all weights; all must call it alike.
    """

    def __init__(self, config: HealthConfig, model: nn.Module, device: torch.device) -> None:
        self.config, self.stages = config, dict(model.named_children())
        self.by_time = torch.zeros(2, BUCKETS, device=device)
        self.measured = torch.full((2, len(self.stages)), NOT_MEASURED, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """What belongs into a checkpoint, by reference."""
        return {"by_time": self.by_time, "measured": self.measured}

    def add(self, totals: Tensor, finite: Tensor) -> None:
        """Count the losses of a step, `by_time` [2, BUCKETS], unless it is not finite."""
        self.by_time += torch.where(finite, totals, 0.0)

    def read(self) -> dict[str, Any]:
        """What was measured since the last reading, as entries of a log line; None where there is nothing."""
        if not self.config.measure_every:
            return {}
        sums, counts = self.by_time.tolist()
        by_time = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
        line: dict[str, Any] = {"loss_by_time": by_time}
        for name, row in zip(("activation_rms", "update_ratio"), self.measured.tolist(), strict=True):
            if any(value != NOT_MEASURED for value in row):
                found = (value if math.isfinite(value) else None for value in row)
                line[name] = dict(zip(self.stages, found, strict=True))
        self.by_time.zero_()
        self.measured.fill_(NOT_MEASURED)
        return line

    def _due(self, step: int) -> bool:
        return self.config.measure_every > 0 and step % self.config.measure_every == 0

    @contextmanager
    def activations(self, step: int) -> Iterator[None]:
        """Around forward and backward of `step`, counted from 1: measure the root mean square of outputs."""
        if not self._due(step):
            yield
            return
        squares: dict[str, list[Tensor]] = {name: [] for name in self.stages}
        hooks = [
            last_block(stage).register_forward_hook(
                lambda module, inputs, output, found=squares[name]: found.append(mean_square(output))
            )
            for name, stage in self.stages.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        means = torch.stack([torch.stack(found).mean() for found in squares.values()])  # over micro-batches
        self.measured[0] = parallel.mean(means).sqrt()

    @contextmanager
    def updates(self, step: int) -> Iterator[None]:
        """Around the optimiser's `step`, counted from 1: measure ‖change‖ / ‖weights‖ of what is
        trained. It copies these weights, at a time when no activations are held."""
        if not self._due(step):
            yield
            return
        trained = [[p for p in stage.parameters() if p.requires_grad] for stage in self.stages.values()]
        before = [[p.detach().clone() for p in part] for part in trained]
        yield
        for column, (part, old) in enumerate(zip(trained, before, strict=True)):
            change = [p.detach() - q for p, q in zip(part, old, strict=True)]
            self.measured[1, column] = parallel.norm(change) / parallel.norm(old)


class Later:
    """A number of the device, on its way to the CPU. By the time it is read it should be there."""

    def __init__(self, number: Tensor) -> None:
        cuda = number.device.type == "cuda"
        self._copied = torch.cuda.Event() if cuda else None
        self._number = number.to("cpu", non_blocking=cuda, copy=True)
        if self._copied is not None:
            self._copied.record()

    def value(self) -> int:
        """The number as it was."""
        if self._copied is not None:
            self._copied.synchronize()
        return int(self._number)


class Detector:
    """Notices spikes: a gradient norm or a loss far above those of the steps before, by the robust z-score

        z = (x − median) / (1.4826 · MAD),   MAD = median of |x − median| over the window.

    Both are of the whole batch, so that all processes decide alike without asking each other.
    Spikes enter the window as they are: up to half of it they move the median little, and a new level that
    lasts becomes the usual one.
    """

    def __init__(self, config: HealthConfig, device: torch.device) -> None:
        self.config = config
        # Gradient norms and losses of the last finite steps, oldest first. While more than half is infinite,
        # so is the median, and nothing is above it.
        self.window = torch.full((2, config.window), math.inf, device=device)
        # Since the last reading: number of spikes; step, gradient norm, loss and z of the highest.
        self.spikes = torch.zeros(5, device=device)
        # Number of the latest steps that were all spikes or not finite: now, and when it was last looked up.
        self.in_a_row, self.looked = torch.zeros(1, device=device), torch.zeros(1, device=device)
        self._looked: tuple[int, Later | None] = 0, None  # at which step

    def tensors(self) -> dict[str, Tensor]:
        """What belongs into a checkpoint, by reference."""
        return {name: getattr(self, name) for name in ("window", "spikes", "in_a_row", "looked")}

    def persisting(self, step: int) -> int | None:
        """The step before the spikes, if the run is to roll back after `step`; else None.

        At every multiple of `patience` the number of spikes in a row is looked up, and acted on when the next
        comes: by then it is here, and the device is not waited for.
        """
        patience = self.config.patience
        if self.config.on_spike != "rollback" or step % patience:
            return None
        begun, later = self._looked
        count = later.value() if later is not None and begun == step - patience else int(self.looked)
        self.looked.copy_(self.in_a_row)
        self._looked = step, Later(self.looked)
        return step - patience - count if count >= patience else None

    def check(
        self, step: int, norm: Tensor, loss: Tensor, clip: float | None
    ) -> tuple[Tensor, Tensor | float | None]:
        """Look for a spike at `step`, counted from 1, in its gradient norm [] and loss [].

        Returns:
            whether the step is to be taken (bool []), and the norm to clip to: `clip` unless it is a spike.
        """
        finite = torch.isfinite(loss + norm)
        if self.config.on_spike == "off":
            return finite, clip
        usual, z = self._score(torch.stack((norm, loss)), finite)
        spike = z > self.config.threshold
        self._remember(spike, torch.stack((torch.full_like(norm, step), norm, loss, z)))
        good = finite & ~spike
        self.in_a_row.copy_(torch.where(good, 0, self.in_a_row + 1))
        if self.config.on_spike in ("skip", "rollback"):
            return good, clip
        limit = math.inf if clip is None else clip
        return finite, torch.where(spike, usual.clamp(max=limit), limit)

    def _score(self, values: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
        """The median gradient norm, and the higher z of `values` [2] (no number if unknown); adds them to
        the window."""
        median = self.window.median(dim=1).values  # [2]
        deviation = (self.window - median[:, None]).abs().median(dim=1).values  # [2]
        z = (values - median) / torch.maximum(NORMAL * deviation, STEADY * median)
        later = torch.cat((self.window[:, 1:], values[:, None]), dim=1)
        self.window.copy_(torch.where(finite, later, self.window))
        return median[0], torch.where(finite, z.max(), math.nan)

    def _remember(self, spike: Tensor, record: Tensor) -> None:
        """Keep the `record` of a step (step, gradient norm, loss, z), if it is a spike."""
        worse = spike & (record[3] > self.spikes[4])
        self.spikes[1:] = torch.where(worse, record, self.spikes[1:])
        self.spikes[0] += spike

    def read(self) -> dict[str, Any] | None:
        """The spikes since the last reading, as an entry of a log line; None if there was none."""
        count, step, norm, loss, z = self.spikes.tolist()
        self.spikes.zero_()
        if not count:
            return None
        event = {"spikes": int(count), "on_spike": self.config.on_spike, "step": int(step)}
        return {**event, "grad_norm": norm, "loss": loss, "z": z}


def describe_spike(event: dict[str, Any]) -> str:
    """An event of the log in a line for a person."""
    count, clipped = event["spikes"], event["on_spike"] == "clip"
    more = f" (the highest of {count} since the last line of the log)" if count > 1 else ""
    action = "its gradient was scaled down to the usual norm" if clipped else "left out"
    return (
        f"spike at step {event['step']}{more}: gradient norm {event['grad_norm']:.4g}, loss "
        f"{event['loss']:.4g}, {event['z']:.4g} deviations above the usual; {action}"
    )


def last_block(stage: nn.Module) -> nn.Module:
    """The last block of a stage, or the stage where it has none."""
    blocks = getattr(stage, "blocks", None)
    return blocks[-1] if isinstance(blocks, nn.ModuleList) else stage


def mean_square(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Mean square of what a module puts out, in float32, []; of a block for text, of its image tokens."""
    tokens = output[0] if isinstance(output, tuple) else output
    return tokens.detach().float().square().mean()


# ---------------------------------------------------------------- going back
class Rollbacks:
    """The rollbacks of a run so far: to an earlier checkpoint when spikes persist, past the batches before.

    Steps go back, batches do not: after a rollback from step s to step c, step c + 1 takes the batch that
    step s + 1 would have had, so that no batch is seen again, and the learning rate is multiplied by
    `health.rollback_lr`. Nothing else is kept of one: a run that is killed after it continues from a
    checkpoint before the spikes, meets them again at the same step and goes back to the same checkpoint.
    """

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        self.rows = torch.zeros(MOST_ROLLBACKS, 2, dtype=torch.int64)  # steps: from, to

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

    def read(self) -> dict[str, list[list[int]]]:
        """All of them, each [from, to], as an entry of a log line: lines before may be cut off."""
        return {"rollbacks": self.rows[: self.count].tolist()} if self.count else {}


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
