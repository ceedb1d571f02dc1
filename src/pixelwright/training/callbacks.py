"""What happens beside training: hooks, and the pictures and the report drawn at them.

Callbacks run after the checkpoint of their step. What they raise is logged with its traceback and training
goes on, so whatever a callback does in several processes, all must come to the same end of it.
"""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm import tqdm

from pixelwright.data import Source
from pixelwright.diffusion.sample import sample
from pixelwright.evaluation.metrics import look
from pixelwright.images import load_png, save_grid
from pixelwright.models.conditions import Condition
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.training.config import SampleConfig
from pixelwright.training.loggers import say
from pixelwright.training.report import write_report

if TYPE_CHECKING:
    from pixelwright.training.trainer import Trainer

GRID_PIXELS = 96  # small pictures are enlarged to about this side in sample grids


class Callback:
    """Hooks into a run; each does nothing by default. All processes call them alike."""

    every: int = 1
    """`on_step` is called after steps that are multiples of it, and after the last; 0: after that alone."""

    def on_start(self, trainer: "Trainer") -> None:
        """Before the first step, or the first after the run was continued."""

    def on_step(self, trainer: "Trainer") -> None:
        """After step `trainer.step`, and after its checkpoint. May call `trainer.log`, `trainer.image`,
        `trainer.averaged` and `trainer.request_stop`."""

    def on_checkpoint(self, trainer: "Trainer", folder: Path) -> None:
        """A checkpoint was begun: it is being written, and appears as `folder`."""

    def on_end(self, trainer: "Trainer") -> None:
        """After the last step."""


class Banner(Callback):
    """What is trained on what, before the first step; what came out and what to type next, after the last."""

    every = 0

    def __init__(self, source: Source, place: str) -> None:
        """`place`: what the source was opened from."""
        self.source, self.place, self._first = source, place, 0

    def on_start(self, trainer: "Trainer") -> None:
        self._first = trainer.step
        if not trainer.layout.main:
            return
        source, config, model = self.source, trainer.config, trainer.model
        names = source.class_names or ()
        classes = f" of {source.num_classes} classes" if model.config.num_classes else ""
        classes += f" ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" if names else ""
        side = "x".join(map(str, model.config.image_size or ()))
        count = sum(p.numel() for p in model.parameters())
        many = f", {trainer.layout.world} processes" if trainer.layout.world > 1 else ""
        precision = "fp32" if trainer.autocast is None else str(trainer.autocast).removeprefix("torch.")
        say(f"images  {len(source):,}{classes} from {self.place}, at {side}")
        machine = f"{trainer.device}{many}, {precision}"
        steps = f"steps {trainer.step:,} to {config.steps:,}, {config.batch_size} images each"
        say(f"model   {model.config.name}, {count:,} parameters, on {machine}")
        say(f"run     {trainer.folder}: {steps}")
        if config.compile:
            say("compiling: the first step takes about a minute, once")

    def on_end(self, trainer: "Trainer") -> None:
        if trainer.layout.main:
            time, folder = tqdm.format_interval(trainer.clock.wall()), trainer.folder
            subject = getattr(trainer.config, "subject", None)
            shown = subject and (subject.class_name or subject.prompt)
            takes_text = trainer.model.config.takes_text
            option = f" {'--prompt' if takes_text else '--labels'} {shlex.quote(shown or '...')}"
            what = f"{trainer.weights.named(folder)}{option if shown or takes_text else ''}"
            net = tqdm.format_interval(trainer.clock.seconds())
            total = f" (all {trainer.step:,}: {net} without drawing and saving)" if self._first else ""
            done = f"{trainer.step - self._first:,} steps in {time}{total}"
            say(f"{done}; samples and report.html are in {folder}")
            say(f"draw more: pixelwright sample {what} --out drawn")


def draw(
    trainer: "Trainer",
    model: PixelDenoiser,
    condition: Condition,
    settings: SampleConfig,
    seed: int,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Images [B,H,W,3] in uint8, on the device and in the precision of a run; given up if it is to stop."""
    how: dict[str, Any] = {"size": size or model.config.image_size, "callback": trainer.stop_if_asked}
    how |= {name: getattr(trainer.config, name) for name in ("batch_size", "precision", "attention")}
    return sample(model, condition, settings, seed=seed, **how)


class SampleGrid(Callback):
    """RUN/samples/step-0001000.png and so on: pictures of the averaged weights, always of the same noise."""

    def __init__(
        self,
        condition: Condition | Callable[[], Condition],
        config: SampleConfig | None = None,
        every: int = 1000,
        size: tuple[int, int] | None = None,
        columns: int | None = None,
    ) -> None:
        """`condition`: labels [B] or captions, or what makes them when the first grid is drawn. `size`:
        (height, width) of the pictures, by default that of the model."""
        self._condition, self.config, self.every = condition, config or SampleConfig(), every
        self.size, self.columns = size, columns

    def on_step(self, trainer: "Trainer") -> None:
        model = trainer.averaged()
        if model is not None:
            path = self.draw(model, trainer.folder, trainer.step, trainer)
            trainer.image("samples", load_png(path))

    def draw(self, model: PixelDenoiser, folder: Path, step: int, trainer: "Trainer") -> Path:
        """Draw the grid of `step`, with what it shows as its notes, and return its path."""
        if callable(self._condition):
            self._condition = self._condition()
        images = draw(trainer, model, self._condition, self.config, self.config.seed, self.size)
        path, captions = folder / "samples" / f"step-{step:07d}.png", None
        if (names := model.config.class_names) and isinstance(self._condition, Tensor):
            captions = [(*names, "no class")[label] for label in self._condition.tolist()]
        scale = max(1, GRID_PIXELS // images.shape[1])
        notes = {name: str(value) for name, value in look(images, model.config.patch_size).items()}
        save_grid(images, path, self.columns, scale, captions=captions, notes=notes)
        return path


class Report(Callback):
    """RUN/report.html, if matplotlib is installed."""

    def __init__(self, every: int = 1000) -> None:
        self.every = every

    def on_step(self, trainer: "Trainer") -> None:
        try:
            if trainer.layout.main:
                write_report(trainer.folder)
        except ImportError:
            trainer.say('report.html is off: pip install "pixelwright[train]"')
