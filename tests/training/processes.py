"""What the processes of test_parallel.py do; `torchrun` starts this file.

processes.py RUNS     train each run of the JSON file RUNS: [name, config, checkpoint to begin with or null,
                      step at which rank 1 fails (or, of a run called "stopped", is asked to stop) or null];
                      write what each rank saw as NAME-RANK.json
processes.py CONFIG STEP   `pixelwright train --config CONFIG`, but rank 1 is killed at STEP, once
"""

import hashlib
import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pixelwright.cli import main as cli
from pixelwright.distributed import parallel
from pixelwright.errors import UserError
from pixelwright.models.layers import RMSNorm
from pixelwright.training import Interrupted, Logger, Trainer, build_trainer, load_config
from pixelwright.training.inputs import Inputs

TIMEOUT = 60.0


def digests(inputs: Inputs) -> list[str]:
    """For each sample the hash of its image, time, noise and label."""
    inputs = inputs._replace(condition=getattr(inputs.condition, "features", inputs.condition))
    rows = zip(*(x.flatten(1) if x.ndim > 1 else x[:, None] for x in inputs[:4]), strict=True)
    return [hashlib.blake2b(b"".join(x.numpy().tobytes() for x in row)).hexdigest() for row in rows]


def record(trainer: Trainer, fail_at: int | None = None) -> list[list[str]]:
    """The digests of each step to come, filled in while the trainer runs. `fail_at`: rank 1 raises there."""
    seen: list[list[str]] = []
    train_step = trainer.train_step

    def recorded(inputs: Inputs) -> None:
        if trainer.step + 1 == fail_at and trainer.layout.rank == 1:
            raise UserError("the images of rank 1 are gone")
        seen.append(digests(inputs))
        train_step(inputs)

    trainer.train_step = recorded  # type: ignore[method-assign]
    return seen


def digest_of(trainer: Trainer) -> str:
    """The hash of all weights; all processes must call it."""
    whole = trainer.layout.gather(dict(trainer.losses.named_parameters()), everywhere=True)
    return hashlib.blake2b(b"".join(x.numpy().tobytes() for x in whole.values())).hexdigest()


def norms_of(trainer: Trainer) -> dict[str, list[str]]:
    """The dtypes that go into and come out of each RMSNorm, filled in while the trainer runs."""
    found: dict[str, list[str]] = {}
    for name, module in trainer.model.named_modules():
        if isinstance(module, RMSNorm):
            module.register_forward_hook(
                lambda _, x, y, name=name: found.update({name: [str(x[0].dtype), str(y.dtype)]})
            )
    return found


class Asked(Logger):
    """Asks a trainer to stop after a step."""

    def __init__(self, trainer: Trainer, step: int) -> None:
        self.trainer, self.step = trainer, step

    def advance(self, step: int) -> None:
        if step == self.step:
            self.trainer.request_stop()


def train_all(runs: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    rank = dist.get_rank()
    drawn: list[bool] = []
    wrap = parallel.Layout.wrap

    def noted(layout: parallel.Layout, module: nn.Module, *more: Any) -> nn.Module:
        drawn.append(not any(p.is_meta for p in module.parameters()))
        return wrap(layout, module, *more)

    parallel.Layout.wrap = noted  # type: ignore[method-assign]
    for name, config, resume, event in json.loads(runs.read_text()):
        trainer = build_trainer(load_config(Path(config)), resume)
        stopped = name == "stopped"
        seen = record(trainer, None if stopped else event)
        found: dict[str, Any] = {"seen": seen, "drawn": drawn.pop(), "initial": digest_of(trainer)}
        found["norms"] = norms_of(trainer)
        begun = time.perf_counter()
        if stopped and rank == 1:
            trainer.loggers = [Asked(trainer, event)]
        try:
            trainer.run()
        except Interrupted:
            found |= {"stopped": trainer.step, "seconds": time.perf_counter() - begun}
        found["held"] = sum(
            p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in trainer.parameters
        )
        found["weights"] = sum(p.numel() for p in trainer.parameters)
        (runs.parent / f"{name}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def killed_once(config: str, step: int) -> int:
    train_step = Trainer.train_step

    def deadly(trainer: Trainer, inputs: Inputs) -> None:
        train_step(trainer, inputs)
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if trainer.step == step and trainer.layout.rank == 1 and first:
            Path(config).with_name("killed.txt").write_text(f"at step {step}")
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer.train_step = deadly  # type: ignore[method-assign]
    return cli.main(["train", "--config", config])


if __name__ == "__main__":
    for extra in ("matplotlib.figure", "torch.utils.tensorboard"):  # as if not installed: quicker
        sys.modules[extra] = None  # type: ignore[assignment]
    torch.set_num_threads(1)
    if len(sys.argv) == 2:
        train_all(Path(sys.argv[1]))
    else:
        sys.exit(killed_once(sys.argv[1], int(sys.argv[2])))
