"""One training run, in one process or in many (see `distributed.parallel`), built from objects.

Every random number is a function of (seed, step, place in the batch), so the state of a run is its weights,
averaged weights, optimiser and step number, and a run that was killed and continued ends with the same bits
as one that was not. Another number of processes changes the order of sums, and nothing else.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixelwright.acceleration.convolutions import use_products
from pixelwright.acceleration.kernels import kernels
from pixelwright.config import to_dict
from pixelwright.data import DataConfig, Source
from pixelwright.device import resolve_precision
from pixelwright.diffusion.solvers import Step
from pixelwright.distributed import checkpoint as checkpoints
from pixelwright.distributed import parallel
from pixelwright.distributed.checkpoint import Saver, State
from pixelwright.errors import UserError
from pixelwright.files import make_folder, remove_abandoned, write_text
from pixelwright.hub import runs
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.layers import has_dropout
from pixelwright.rng import seeded
from pixelwright.text import FeatureCache
from pixelwright.training.callbacks import Callback
from pixelwright.training.config import LoopConfig
from pixelwright.training.config_file import save_config
from pixelwright.training.control import Clock, Interrupted, Meter, StopRequested, stop_signals
from pixelwright.training.ema import EMA
from pixelwright.training.health import (
    Detector,
    Health,
    Rollbacks,
    by_time,
    describe_rollback,
    describe_spike,
    go_back,
)
from pixelwright.training.inputs import Batched, Inputs, Preparation, batches_of
from pixelwright.training.loggers import JsonLines, Logger, Progress, Run, say
from pixelwright.training.objectives import FlowMatching, Losses, Objective
from pixelwright.training.optim import build_optimizer, learning_rate, optimizer_state, peak_note, update
from pixelwright.training.start import CLASSES, ORIGIN, find_start, join, lock
from pixelwright.training.weights import Weights

OPTIONAL = ("health", "rollbacks")  # groups of the state that runs with other settings did not save
logger = logging.getLogger(__name__)


class Trainer:
    """Model, optimiser and averaged weights of a run, and the loop.

    model = pw.create("dip-ti-4", num_classes=10)
    data = partial(Batches, Shapes(32), DataConfig(size=32, flip=True), 32, 0)
    config = LoopConfig(run="runs/mine", steps=2000, optim=OptimConfig(lr=1e-3))
    Trainer(model, data, config, callbacks=[SampleGrid(torch.arange(10), every=500)]).run()
    """

    _next_look, _looked = 0, (0, 0.0)  # the step of the next look at the stop flag; step and time of the last
    _stop_asked, _saved = False, -1  # the step of the last checkpoint

    def __init__(
        self,
        model: PixelDenoiser,
        data: Batched | Source,
        config: LoopConfig,
        objectives: Sequence[Objective] | None = None,
        *,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[Logger] | None = None,
        text: FeatureCache | None = None,
        resume: str | os.PathLike[str] | None = None,
        pretrained: bool = False,
        weights: Weights | None = None,
        layout: parallel.Layout | None = None,
    ) -> None:
        """Nothing is written before `run`. A run folder with checkpoints is continued from the newest.

        Args:
            model: trained in place, in float32.
            data: a `Source`, whose images are cropped to the model's size; or a function that gives the
                batches from a step on, such as `functools.partial(Batches, source, settings, 32, 0)`.
            objectives: flow matching by default. The loss of the first is logged and watched for spikes.
            loggers: by default log.jsonl and a progress bar.
            resume: another run or checkpoint to start a new run folder from.
            pretrained: the model's weights are trained ones: their averages do not warm up.
            weights: what of the model is averaged, saved and exported; by default all of it.

        Raises:
            UserError: the run folder belongs to something else or to other settings, `resume` is not there,
                or the processes do not fit the settings.
        """
        self.config, self.folder, self.resume = config, Path(config.run), resume
        self.layout = layout or join(config)
        self.device = self.layout.device
        start = self.layout.first(lambda: find_start(config, resume, model.config.class_names))
        self.autocast = resolve_precision(config.precision, self.device)
        if not callable(data):
            size, *_ = model.config.image_size or (DataConfig.size,)
            data = batches_of(data, DataConfig(size=size), config, self.layout, text is not None)
        self.data, self.text, self.callbacks = data, text, callbacks
        self.model, self.weights = model.train(), weights or Weights(model)
        self.losses = Losses(model, objectives := objectives or [FlowMatching()])
        self.prepare = Preparation(config, model.config, text, self.layout, objectives)
        use_products(model)
        for unit in model.units():
            parallel.prepare(unit, config.parallel.checkpointing, config.compile)
        self.forward = self.layout.wrap(self.losses, model.units(), self.autocast)
        self.parameters = [p for _, p in self.losses.named()]
        self.optimizer = build_optimizer(self.losses.named(), config.optim, self.autocast)
        self.ema = EMA(self.weights.tensors(), config.ema_decay, config.ema_more, warm_up=not pretrained)
        self.meter = Meter(self.device, self.losses.logged)
        self.health = Health(config.health, model, self.device)
        self.detector, self.rollbacks = Detector(config.health, self.device), Rollbacks(config.health)
        self.loggers = ((JsonLines(), Progress()) if loggers is None else loggers) if self.layout.main else ()
        self.step, self.clock, self._printed = 0, Clock(), set[str]()
        counted_every = config.checkpoint_every if config.health.on_spike == "rollback" else 1
        self.saver = Saver(self.folder, self.layout, config.keep, config.keep_every, counted_every)
        if start is not None:
            checkpoints.load(start.path, self.state(), OPTIONAL)
            self.step, self.clock = start.step, Clock(start.seconds)

    def state(self) -> State:
        """Every tensor that a later step depends on, by reference."""
        objectives = self.losses.objectives.state_dict()
        return {
            "model": self.weights.tensors(),
            "ema": self.ema.weights,
            **{runs.group(name): weights for name, weights in self.ema.others.items()},
            "optimizer": optimizer_state(self.optimizer, self.losses.named()),
            "meter": self.meter.tensors(),
            "health": {**self.health.tensors(), **self.detector.tensors()},
            "rollbacks": self.rollbacks.tensors(),
            **({"objectives": objectives} if objectives else {}),
        }

    # ------------------------------------------------------------ the loop
    def run(self) -> Path:
        """Train to the end and return the run folder, whose `model/` holds the averaged weights.

        Raises:
            UserError: the loss is not finite for too long, or the disk refuses a checkpoint.
            Interrupted: SIGINT or SIGTERM came, or `request_stop`; the state is saved.
        """
        config = self.config
        if self.step >= config.steps:
            if self.layout.main:
                print(f"{self.folder} is complete at step {self.step}; give more --steps to train on")
            return self.folder
        self._open()
        try:
            with stop_signals(self.request_stop):
                self._call("on_start", self.callbacks)
                inputs = self._inputs()
                while self.step < config.steps:
                    self.train_step(next(inputs))
                    self._each_logger("advance", self.step)
                    before = self.detector.persisting(self.step)
                    if before is not None and self._roll_back(before):
                        inputs = self._inputs()
                        continue
                    if self._due(config.log_every):
                        self._log()
                    if self._due(config.checkpoint_every):
                        self.save()
                    # After the checkpoint: pictures, metrics, reports.
                    self._call("on_step", [c for c in self.callbacks if self._due(c.every)])
                    self._stop_if_needed()
                self._call("on_end", self.callbacks)
                self.saver.wait()
        finally:
            self.saver.close()
            self._each_logger("close")
            if self.layout.main:
                self._lock.close()
        return self.folder

    def _due(self, every: int) -> bool:
        return self.step >= self.config.steps or (every > 0 and self.step % every == 0)

    def _open(self) -> None:
        """Make the run folder, write down what it is a run of, and begin to log."""
        config = self.config

        def write() -> None:
            make_folder(self.folder)
            self._lock = lock(self.folder)
            for folder in (self.folder, self.folder / "samples"):
                remove_abandoned(folder)
            save_config(config, self.folder / "config.yaml")
            if self.resume is not None:
                write_text(self.folder / ORIGIN, str(Path(self.resume).resolve()))

        self.layout.first(write)
        self.clock, self._looked = Clock(self.clock.seconds()), (self.step, 0.0)
        self._start_logging()
        if note := peak_note(config.optim, config.steps):
            self.say(note)

    def _start_logging(self) -> None:
        """Log from here on; what was logged of later steps is cut off."""
        self._each_logger("open", Run(self.folder, self.step, self.config.steps, to_dict(self.config)))
        self._logged = (self.step, self.clock.seconds(), self.clock.wall())

    def _each_logger(self, method: str, *arguments: Any) -> None:
        for each in self.loggers:
            getattr(each, method)(*arguments)

    def _inputs(self) -> Iterator[Inputs]:
        """The inputs of the steps to come. The batch of step k, counted from 0, has the number k, and a
        higher one after a rollback."""
        start = self.step + self.rollbacks.shift
        batches = iter(self.data(start))
        if self.device.type == "cpu":
            return map(self.prepare, batches, count(start))
        return self.prepare.ahead(batches, start)

    def train_step(self, inputs: Inputs) -> None:
        """One optimiser step on a batch. Without effect on the weights if loss or gradient is not finite, or
        a spike that is to be skipped."""
        how = self.config.precision, self.config.attention
        with kernels(self.device, *how), self.health.activations(self.step + 1):
            losses, logs = self.gradients(inputs)
            self.saver.hold()  # nothing of the state has changed until here
            self.losses.update()
        totals = parallel.mean(by_time(losses, inputs.t))  # the processes have equal numbers of samples
        loss = totals[0].sum() / totals[1].sum()
        norm = parallel.norm([p.grad for p in self.parameters if p.grad is not None])
        # All that decides is of the whole batch and all weights: the processes agree.
        taken, limit = self.detector.check(self.step + 1, norm, loss, self.config.optim.clip)
        if limit is not None:  # it may be on the device, and has to stay there
            nn.utils.clip_grads_with_norm_(self.parameters, 1.0, norm / limit)
        with self.health.updates(self.step + 1):
            update(self.optimizer, self._learning_rate(self.step), taken)
        self.step += 1
        self.ema.update(self.step)  # after a skipped step: towards the weights that stayed
        self.meter.add(loss, norm, finite := torch.isfinite(loss + norm), logs)
        self.health.add(totals, finite)

    def _learning_rate(self, step: int) -> float:
        """That of `step`, counted from 0."""
        return learning_rate(self.config.optim, step, self.config.steps) * self.rollbacks.lr_factor

    def gradients(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Leave the gradient of the batch's mean loss in the parameters, micro-batch by micro-batch.

        The parts of the processes are equal, so the mean of their gradients is that of the batch.

        Returns:
            the losses of the samples of this process, [b], and the means over the whole batch of what the
            objectives logged, each [].
        """
        losses, logs = [], defaultdict(list)
        size = len(inputs.images) // self.config.accumulate
        for number, part in enumerate(inputs.split(size), start=1):
            seeds = self.config.seed, "dropout", self.step, self.layout.rank, number
            dropout = seeded(self.device, *seeds) if has_dropout(self.model) else nullcontext()
            with self.layout.summing(self.forward, last=number == self.config.accumulate), dropout:
                with torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext():
                    found = self.forward(*part[:4], self.step, part.targets)
                (found.total.sum() / len(inputs.images)).backward()
            losses.append(found.loss.detach())
            for name, values in found.logs.items():
                logs[name].append(values.detach())
        if not logs:
            return torch.cat(losses), {}
        means = parallel.mean(torch.stack([torch.cat(values).float().mean() for values in logs.values()]))
        return torch.cat(losses), dict(zip(logs, means.unbind(), strict=True))

    # ------------------------------------------------------------ at intervals
    def _roll_back(self, before: int) -> bool:
        """Go back to a checkpoint of step `before` or earlier; False if there is none. See `rollback`."""
        self.saver.wait()
        last, earlier = self.step, self.rollbacks.rows.clone()
        start = self.layout.first(lambda: go_back(self.config, self.rollbacks.count, last, before))
        if start is None:
            self.say("spikes persist, and no checkpoint to go back to is there yet")
            return False
        checkpoints.load(start.path, self.state(), OPTIONAL)
        self.step = start.step
        self._each_logger("close")
        self._start_logging()
        self.rollbacks.rows.copy_(earlier)
        self.rollbacks.rows[self.rollbacks.count] = torch.tensor([last, start.step])
        self.say(describe_rollback(last, start.step))
        return True

    def _log(self) -> None:
        """Log the means over the steps since the last time."""
        means, seconds, wall = self.meter.read(), self.clock.seconds(), self.clock.wall()
        step_before, seconds_before, wall_before = self._logged
        self._logged = (self.step, seconds, wall)
        images = self.config.batch_size * (self.step - step_before)
        if event := self.detector.read():
            self.say(describe_spike(event))
        line = {
            "loss": means.loss,
            "grad_norm": means.grad_norm,
            "lr": self._learning_rate(self.step - 1),
            "images_per_second": round(images / max(seconds - seconds_before, 1e-9), 1),
            "images_per_second_wall": round(images / max(wall - wall_before, 1e-9), 1),
            "seconds": round(seconds, 2),
            "skipped": means.skipped,
        }
        more = {"event": event} if event else {}
        self.log(line | self.health.read() | means.logs | more | self.rollbacks.read())
        if means.skipped_in_a_row >= self.config.max_skipped:
            self.saver.wait()
            saved = checkpoints.checkpoint_folders(self.folder)
            raise UserError(
                f"training stopped at step {self.step}: loss or gradient was not finite in the last "
                f"{means.skipped_in_a_row} steps (max_skipped is {self.config.max_skipped}); "
                f"{f'{saved[-1]} is good' if saved else 'nothing was saved yet'}: "
                "try a lower --optim.lr or --optim.clip, or --precision fp32"
            )

    def save(self) -> None:
        """Begin to write a checkpoint and to export the averaged weights; see `Saver.start`."""
        with self.clock.paused():
            if self.text is not None:
                self.text.flush()
            settings = to_dict(self.config) | {CLASSES: self.model.config.class_names}
            export = partial(self.weights.export, run=self.folder)
            self.saver.start(self.step, self.state(), settings, self.clock.seconds(), export)
        self._saved = self.step
        self._call("on_checkpoint", self.callbacks, checkpoints.folder_of(self.folder, self.step))

    def _stop_if_needed(self) -> None:
        """Save and leave if any process was asked to stop, or if a checkpoint failed. Many processes ask each
        other about once a second, at steps that all agree on."""
        if self.step < self._next_look:
            return
        (step, then), now = self._looked, self.clock.wall()
        seconds = max(1e-9, now - then) / max(1, self.step - step)
        stop, failed, seconds = self.layout.highest(self._stop_asked, self.saver.failed, seconds)
        self._looked = (self.step, now)
        self._next_look = self.step + (1 if self.layout.world == 1 else round(min(100, max(1, 1 / seconds))))
        if failed:
            self.saver.wait()
        if stop and self.step < self.config.steps:
            if self._saved != self.step:
                self.save()
            self.saver.wait()
            self.say(f"saved at step {self.step}; the same command continues from there")
            raise Interrupted(f"{self.folder} stopped at step {self.step}")

    # ------------------------------------------------------------ for callbacks
    def request_stop(self) -> None:
        """Save and leave after this step."""
        self._stop_asked = True

    def stop_if_asked(self, step: Step | None = None) -> None:
        """Give up drawing if the run was asked to stop; a callback for `sample`. Raises StopRequested."""
        if self._stop_asked and self.step < self.config.steps:
            raise StopRequested

    def averaged(self, everywhere: bool = False) -> PixelDenoiser | None:
        """A model with the averaged weights, in the main process or everywhere; all processes must call it.
        The checkpoint in the making is finished first."""
        self.saver.settle()
        weights = self.layout.gather(self.ema.weights, everywhere=everywhere)
        return self.weights.plain(weights) if everywhere or self.layout.main else None

    def log(self, values: Mapping[str, Any]) -> None:
        """Log numbers, or groups of them, of this step."""
        self._each_logger("record", self.step, values)

    def image(self, name: str, image: Tensor) -> None:
        """Log a picture of this step, uint8 [H,W,3]."""
        self._each_logger("image", self.step, name, image)

    def _call(self, hook: str, callbacks: Iterable[Callback], *more: Any) -> None:
        """Call a hook of callbacks. What they raise is logged; training goes on."""
        with self.clock.paused():
            for callback in callbacks:
                try:
                    getattr(callback, hook)(self, *more)
                except StopRequested:
                    pass
                except Exception:
                    name = f"{type(callback).__name__}.{hook}"
                    logger.exception("%s failed at step %d; training goes on", name, self.step)

    def say(self, text: str) -> None:
        """Print a line in the main process, once."""
        if self.layout.main and text not in self._printed:
            say(text)
        self._printed.add(text)
