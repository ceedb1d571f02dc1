"""Where the numbers and pictures of a run go. A logger of your own is a subclass of `Logger` with `log`.

Loggers live in the main process alone. `{type: wandb, project: mine}` in `loggers` of a config is one by the
name it is registered under.
"""

import json
import math
import os
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor
from tqdm import tqdm

from pixelwright.config import Config
from pixelwright.errors import UserError
from pixelwright.files import write_text
from pixelwright.registry import Registry

LONG = 2 * 86400.0  # seconds of training that nobody expects
FORECAST = 60.0  # seconds of training after which it is told
SECONDS = 30.0  # between two progress lines where there is no terminal
SMOOTHING = 0.8  # of the loss curve and the progress bar, per log line, which is a mean already
LOG = "log.jsonl"


def say(text: str) -> None:
    """Print a line on stderr without breaking a progress bar."""
    tqdm.write(text, file=sys.stderr)


class Run(NamedTuple):
    """What loggers are opened with."""

    folder: Path
    step: int  # the run goes on from here; what was logged of later steps will come again
    steps: int
    settings: dict[str, Any]


class Logger:
    """Takes numbers and pictures. Every method but `log` may be left as it is."""

    def open(self, run: Run) -> None:
        """Begin to log, or go on: when a run starts, continues or goes back to an earlier step."""

    def advance(self, step: int) -> None:
        """Step `step`, counted from 1, is done."""

    def record(self, step: int, values: Mapping[str, Any]) -> None:
        """The values of a line of the log: numbers, groups of them, events. Hands the numbers to `log`."""
        self.log(step, numbers(values))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, such as "loss" or "evaluation/fid"."""

    def image(self, step: int, name: str, image: Tensor) -> None:
        """A picture, uint8 [H,W,3]."""

    def close(self) -> None:
        """Flush and close."""


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line of the log by name; those of a group or a list as "group/part"."""
    found: dict[str, float] = {}
    for name, value in values.items():
        parts: Iterable[tuple[Any, Any]] = [("", value)]
        if isinstance(value, Mapping):
            parts = value.items()
        elif isinstance(value, (list, tuple)):
            parts = enumerate(value)
        for part, number in parts:
            if isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number):
                found[f"{name}/{part}" if part != "" else name] = number
    return found


LOGGERS: Registry[Logger] = Registry("logger")


register_logger = LOGGERS.register
"""`@register_logger(name, Config)`: the class is built as `(config)` where a run lists it."""


# ---------------------------------------------------------------- log.jsonl
class JsonLines(Logger):
    """RUN/log.jsonl, a line each; lines of steps that will come again are cut off."""

    def open(self, run: Run) -> None:
        lines = read_log(run.folder / LOG, run.step)
        write_text(run.folder / LOG, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = (run.folder / LOG).open("a", encoding="utf-8")

    def record(self, step: int, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_log(path: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """A record for each step of a log up to `last_step`; a line that was cut off by a kill ends it."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if last_step is not None and line["step"] > last_step:
            break
        if lines and lines[-1]["step"] == line["step"]:  # metrics have a line of their own
            lines[-1].update(line)
        else:
            lines.append(line)
    return lines


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential average without the bias of its start."""
    total = weight = 0.0
    result = []
    for value in values:
        total, weight = total * SMOOTHING + value, weight * SMOOTHING + 1
        result.append(total / weight)
    return result


# ---------------------------------------------------------------- the progress bar
@dataclass(frozen=True)
class ProgressConfig(Config):
    """A bar on a terminal; elsewhere a line every 30 seconds. A run of more than two days is told of once."""


@register_logger("progress", ProgressConfig)
class Progress(Logger):
    """The progress bar, or plain lines where there is no terminal."""

    def __init__(self, config: ProgressConfig | None = None) -> None:
        self._losses: list[float] = []
        self._forecast = False

    def open(self, run: Run) -> None:
        self._run, self._begun, self._last = run, time.perf_counter(), -SECONDS
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            settings: dict[str, Any] = {"unit": "step", "dynamic_ncols": True, "smoothing": 0.05}
            self._bar = tqdm(total=run.steps, initial=run.step, **settings)

    def advance(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update()
        now, done = time.perf_counter(), step - self._run.step
        if done == 1:  # which compiles and fills caches
            self._first = now
        elif not self._forecast and now - self._first > FORECAST:
            self._forecast = True
            each = (now - self._first) / (done - 1)
            if (left := each * (self._run.steps - step)) > LONG:
                days = f"the rest of this run takes {left / 86400:.0f} days on this machine"
                smaller = "a smaller model.preset or fewer steps (configs/photos-cpu.yaml is made for a CPU)"
                say(f"at {each:.3g} s a step {days}: take {smaller}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if "images_per_second" not in values:
            return
        self._losses = [*self._losses[-200:], *([values["loss"]] if "loss" in values else [])]
        loss = smooth(self._losses)[-1] if self._losses else math.nan
        rate = f"{values['images_per_second']:.0f} images/s"
        now, steps, done = time.perf_counter(), self._run.steps, step - self._run.step
        left = (now - self._begun) / max(1, done) * (steps - step)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rate}", refresh=False)
            return
        if now - self._last >= SECONDS or step >= steps:
            say(f"step {step}/{steps}  loss {loss:.4f}  {rate}  {tqdm.format_interval(left)} left")
            self._last = now

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


# ---------------------------------------------------------------- TensorBoard
@dataclass(frozen=True)
class TensorBoardConfig(Config):
    """RUN/tensorboard, with the sample grids; needs the extra `train`."""


@register_logger("tensorboard", TensorBoardConfig)
class TensorBoard(Logger):
    """Numbers and pictures for TensorBoard; off, with a message, where it is not installed."""

    def __init__(self, config: TensorBoardConfig | None = None) -> None:
        self._writer: Any = None
        self._warned = False

    def open(self, run: Run) -> None:
        try:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            if not self._warned:
                say('TensorBoard is off: pip install "pixelwright[train]"')
            self._warned = True
            return
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items() if self._writer is not None else ():
            self._writer.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def image(self, step: int, name: str, image: Tensor) -> None:
        if self._writer is not None:
            self._writer.add_image(name, image.numpy(), step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


# ---------------------------------------------------------------- Weights & Biases
@dataclass(frozen=True)
class WandbConfig(Config, where="wandb"):
    """Weights & Biases; needs the extra `wandb`."""

    project: str = "pixelwright"
    entity: str | None = None
    """The team; None: your default."""
    name: str | None = None
    """What the run is called there; None: as its folder is."""
    mode: Literal["online", "offline", "disabled"] = "online"


@register_logger("wandb", WandbConfig)
class Wandb(Logger):
    """Numbers and pictures for Weights & Biases. A continued run goes on under the same identity there, which
    RUN/wandb-id.txt keeps."""

    def __init__(self, config: WandbConfig | None = None) -> None:
        self.config = config or WandbConfig()
        try:
            import wandb
        except ImportError:
            raise UserError('the logger wandb needs: pip install "pixelwright[wandb]"') from None
        self._wandb: Any = wandb

    def open(self, run: Run) -> None:
        config, identity = self.config, run.folder / "wandb-id.txt"
        if not identity.exists():
            write_text(identity, uuid.uuid4().hex[:12])
        self._session = self._wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.name or run.folder.resolve().name,
            id=identity.read_text(),
            resume="allow",
            mode=config.mode,
            dir=str(run.folder),
            config=run.settings,
        )
        self._session.define_metric("*", step_metric="step")  # steps may come again, which its own may not

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._session.log({"step": step, **values})

    def image(self, step: int, name: str, image: Tensor) -> None:
        self._session.log({"step": step, name: self._wandb.Image(image.numpy())})

    def close(self) -> None:
        self._session.finish()
