"""What a run tells a person: log.jsonl, TensorBoard, the progress bar or plain lines, and loss.png."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pixelwright.errors import UserError
from pixelwright.training.files import write_text

PLAIN_SECONDS = 10.0  # between two progress lines where there is no terminal
SMOOTHING = 0.8  # of the loss curve and the progress bar, per log line, which is a mean already


def read_log(path: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """The lines of a log up to `last_step`; a line that was cut off by a kill ends it."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if last_step is not None and line["step"] > last_step:
            break
        lines.append(line)
    return lines


def smooth(values: list[float]) -> list[float]:
    """Exponential average without the bias of its start."""
    total = weight = 0.0
    result = []
    for value in values:
        total, weight = total * SMOOTHING + value, weight * SMOOTHING + 1
        result.append(total / weight)
    return result


class Report:
    """Keeps log.jsonl and TensorBoard in `run` and shows progress.

    Lines after `start_step`, left by a run that was killed past its last checkpoint, are cut off, so that
    every step is logged once.
    """

    def __init__(self, run: Path, start_step: int, steps: int) -> None:
        self.run, self.steps, self.step = run, steps, start_step
        lines = read_log(run / "log.jsonl", start_step)
        write_text(run / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        self._log = (run / "log.jsonl").open("a")
        self._told: set[str] = set()
        self._losses = [line["loss"] for line in lines if line["loss"] is not None]
        self._board = self._tensorboard(start_step)
        self._last_plain, self._first_step, self._begun = -PLAIN_SECONDS, start_step, time.perf_counter()
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=start_step, unit="step", dynamic_ncols=True, smoothing=0.05)

    def _tensorboard(self, start_step: int) -> Any:
        try:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.say('TensorBoard is off: pip install "pixelwright[train]"', once=True)
            return None
        return SummaryWriter(str(self.run / "tensorboard"), purge_step=start_step + 1)

    def advance(self) -> None:
        """One step is done."""
        self.step += 1
        if self._bar is not None:
            self._bar.update()

    def write(self, line: dict[str, Any]) -> None:
        """Log one line and show it."""
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()
        if self._board is not None:
            for name in ("loss", "grad_norm", "lr", "images_per_second", "skipped", "repa_loss"):
                if line.get(name) is not None:
                    self._board.add_scalar(f"train/{name}", line[name], line["step"])
            for group in ("loss_by_time", "activation_rms", "update_ratio", "evaluation"):
                for part, value in _named(line.get(group, {})):
                    if value is not None:
                        self._board.add_scalar(f"{group}/{part}", value, line["step"])
        if line["loss"] is not None:
            self._losses.append(line["loss"])
        self._show(line)

    def _show(self, line: dict[str, Any]) -> None:
        loss = smooth(self._losses[-200:])[-1] if self._losses else float("nan")
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {loss:.4f}, {line['images_per_second']:.0f} images/s", refresh=False
            )
            return
        now = time.perf_counter()
        if now - self._last_plain >= PLAIN_SECONDS or self.step >= self.steps:
            left = (now - self._begun) / max(1, self.step - self._first_step) * (self.steps - self.step)
            rate = f"{line['images_per_second']:.0f} images/s"
            self.say(
                f"step {self.step}/{self.steps}  loss {loss:.4f}  {rate}  {tqdm.format_interval(left)} left"
            )
            self._last_plain = now

    def say(self, text: str, once: bool = False) -> None:
        """Print a line on stderr without breaking the bar; `once` not again if it was said."""
        if not (once and text in self._told):
            tqdm.write(text, file=sys.stderr)
        self._told.add(text)

    def plot(self) -> None:
        """Draw loss.png and report.html, if matplotlib is installed. The run goes on whatever happens."""
        from pixelwright.training.page import write_report  # which reads with this module

        try:
            plot_losses(self.run / "log.jsonl", self.run / "loss.png")
            write_report(self.run)
        except ImportError:
            self.say('loss.png and report.html are off: pip install "pixelwright[train]"', once=True)
        except (OSError, UserError) as error:
            self.say(f"loss.png or report.html could not be written: {error}", once=True)

    def close(self) -> None:
        """Flush and close everything."""
        self._log.close()
        if self._board is not None:
            self._board.close()
        if self._bar is not None:
            self._bar.close()


def _named(values: dict[str, Any] | list[Any]) -> Iterable[tuple[object, Any]]:
    return values.items() if isinstance(values, dict) else enumerate(values)


def plot_losses(log: Path, target: Path) -> None:
    """Draw loss (raw and smoothed), gradient norm and learning rate over the steps. Needs matplotlib."""
    from matplotlib.figure import Figure

    lines = [line for line in read_log(log) if line["loss"] is not None]
    if not lines:
        return
    steps = [line["step"] for line in lines]
    column: Callable[[str], list[float]] = lambda name: [line[name] for line in lines]  # noqa: E731
    figure = Figure(figsize=(8, 8))
    figure.subplots_adjust(left=0.12, right=0.98, top=0.98, bottom=0.06, hspace=0.05)
    upper, middle, lower = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1.5, 1])
    upper.plot(steps, column("loss"), color="C0", alpha=0.3, label="mean of the steps between two lines")
    upper.plot(steps, smooth(column("loss")), color="C0", label="smoothed")
    upper.set(ylabel="loss", yscale="log")
    upper.legend()
    middle.plot(steps, column("grad_norm"), color="C1")
    middle.set(ylabel="gradient norm", yscale="log")
    lower.plot(steps, column("lr"), color="C2")
    lower.set(ylabel="learning rate", xlabel="step")
    for axis in (upper, middle, lower):
        axis.grid(alpha=0.3)
    part = target.with_name(target.name + ".part")
    figure.savefig(part, format="png", dpi=100)
    os.replace(part, target)
