"""One training run, in one process or in many (see `parallel`).

Every random number is a function of (seed, step, place in the batch), so the state of a run is its weights,
averaged weights, optimiser and step number, and a run that was killed and continued ends with the same bits
as one that was not. Another number of processes changes the order of sums, and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from pixelwright.config import to_dict
from pixelwright.data import Batch, Batches, Source, UnreadableImage, open_source
from pixelwright.device import check_compiler, resolve_precision
from pixelwright.diffusion import flow
from pixelwright.diffusion import sample as sampling
from pixelwright.distributed import checkpoint as checkpoints
from pixelwright.distributed import parallel
from pixelwright.distributed.checkpoint import Saver, State
from pixelwright.errors import UserError
from pixelwright.files import make_folder
from pixelwright.images import save_grid
from pixelwright.models.conditions import Condition
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import save as save_model
from pixelwright.models.folder import skeleton
from pixelwright.text import FeatureCache, note_of, open_encoder
from pixelwright.training.averages import group
from pixelwright.training.config import EvaluationConfig, TrainConfig
from pixelwright.training.config_file import save_config
from pixelwright.training.control import Clock, Meter, Silent, ahead, stop_signals
from pixelwright.training.ema import EMA
from pixelwright.training.files import write_text
from pixelwright.training.health import Detector, Health, by_time, in_words
from pixelwright.training.optim import build_optimizer, learning_rate, optimizer_state, update
from pixelwright.training.repa import Alignment
from pixelwright.training.report import Report
from pixelwright.training.rollback import Rollbacks, go_back
from pixelwright.training.start import ORIGIN, find_start, initial_weights

if TYPE_CHECKING:
    from pixelwright.training.evaluation import Evaluator

OPTIONAL = ("health", "rollbacks")  # groups of the state that older versions did not save
PROMPTS = "prompts.txt"  # beside the pictures: a line for each of a grid
GRID_PIXELS = 96  # small pictures are enlarged to about this side in sample grids


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; it has saved and can be continued. The command line exits with 130."""


class _StopDrawing(Exception):
    """Stop was asked for while pictures were being drawn."""


class Inputs(NamedTuple):
    """What this process computes the loss of a step from, on its device: b images of the batch."""

    images: Tensor  # [b,3,H,W]
    t: Tensor  # [b]
    noise: Tensor  # [b,3,H,W]
    condition: Condition  # labels [b] or captions of b images, some of them null


def train(config: TrainConfig, resume: str | os.PathLike[str] | None = None) -> Path:
    """Train until `config.steps` and return the run folder, whose `model/` holds the averaged weights.

    A run folder with checkpoints is continued from the newest. `resume` names another run or checkpoint to
    start a new run folder from: weights, optimiser and step are taken over; everything but the model may be
    changed. Under `torchrun` all its processes call this alike, and share the work.

    Raises:
        UserError: the run folder belongs to something else or to other settings, `resume` is not there, the
            processes do not fit the settings, or the loss is not finite for too long.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    with parallel.joined(config) as layout:
        return Trainer(config, resume, layout=layout).run()


class Trainer:
    """Model, optimiser and averaged weights of a run, and the loop. See `train`."""

    def __init__(
        self,
        config: TrainConfig,
        resume: str | os.PathLike[str] | None = None,
        source: Source | None = None,
        layout: parallel.Layout | None = None,
    ) -> None:
        """Nothing is written before `run`. `source` replaces the images that `config.data` names; `layout`
        tells which process this is and is found out by default."""
        self.config, self.folder, self.resume = config, Path(config.run), resume
        self.layout = layout or parallel.join(config)
        start = self.layout.first(lambda: find_start(config, resume))
        self.device = self.layout.device
        self.autocast = resolve_precision(config.precision, self.device)
        self.source = source or open_source(config.data)
        self.text = open_text(config, self.device)
        self.model = build_model(config, self.source, self.text).train()
        if start is None and config.init is not None:
            self.model.load_state_dict(initial_weights(config.init, self.model.config))
        self.model.to(self.device)
        self.repa = config.repa and Alignment(config.repa, self.model, config.seed, self.layout)
        self.forward = self._distribute(self.repa.student if self.repa else self.model)
        self.parameters = [p for _, p in self._named() if p.requires_grad]
        self.optimizer = build_optimizer(self.parameters, config.optim)
        self.ema = EMA(self.model, config.ema_decay, config.ema_more)
        self.meter = Meter(self.device)
        self.health = Health(config.health, self.model, self.layout)
        self.detector = Detector(config.health, self.device)
        self.rollbacks = Rollbacks(config.health)
        self.evaluator = None if config.evaluation is None else self._open_evaluator(config.evaluation)
        self.step, self.clock = 0, Clock()
        if start is not None:
            checkpoints.load(start, self.state(), OPTIONAL)
            self.step, self.clock = start.step, Clock(start.seconds)
        self._stop_asked = False

    def _open_evaluator(self, settings: EvaluationConfig) -> Evaluator:
        from pixelwright.training.evaluation import Evaluator  # late: few runs need all this

        return Evaluator(self.config, settings, self.layout)

    def _distribute(self, whole: nn.Module) -> nn.Module:
        """Recompute, compile and share out the model (in `whole`: with its projector), block by block.
        Returns what is called in its place."""
        if self.config.compile:
            check_compiler()
        units = self.model.units()
        for unit in units:
            parallel.prepare(unit, self.config.parallel.checkpointing, self.config.compile)
        return self.layout.wrap(whole, units, self.autocast)

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        """What is trained, by name: the model, and REPA's projector."""
        projector = self.repa.student.projector if self.repa else nn.Module()
        return [*self.model.named_parameters(), *projector.named_parameters("projector")]

    def state(self) -> State:
        """Every tensor that a later step depends on, by reference."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.weights,
            **{group(name): weights for name, weights in self.ema.others.items()},
            "optimizer": optimizer_state(self.optimizer, self._named()),
            "meter": {"sums": self.meter.sums},
            "health": {**self.health.tensors(), **self.detector.tensors()},
            "rollbacks": self.rollbacks.tensors(),
            **(self.repa.state() if self.repa else {}),
        }

    # ------------------------------------------------------------ the loop
    def run(self) -> Path:
        """Train to the end. Returns the run folder."""
        config = self.config
        if self.step >= config.steps:
            if self.layout.main:
                print(f"{self.folder} is complete at step {self.step}; give more --steps to train on")
            return self.folder
        self.layout.first(self._open_folder)
        counted_every = config.checkpoint_every if config.health.answer == "rollback" else 1
        self.saver = Saver(self.folder, self.layout, config.keep, config.keep_every, counted_every)
        self.clock = Clock(self.clock.seconds())
        self._open_report()
        try:
            with stop_signals(self._ask_to_stop):
                while self.step < config.steps:
                    self._train_on()
                self.saver.wait()
        finally:
            self.saver.close()
            self.report.close()
        return self.folder

    def _train_on(self) -> None:
        """Train from where the run stands to its end, or until it goes back to an earlier step."""
        for inputs in self._inputs():
            self.train_step(inputs)
            self.report.advance()
            if (spikes := self.detector.persisting(self.step)) and self._roll_back(spikes):
                return
            self._at_interval()
            if self.step >= self.config.steps:
                return

    def _open_report(self) -> None:
        """Log from here on; lines of later steps are cut off."""
        self.report: Any = Silent()
        if self.layout.main:
            self.report = Report(self.folder, self.step, self.config.steps)
        self._logged = (self.step, self.clock.seconds())

    def _open_folder(self) -> None:
        """Make the run folder and write down what it is a run of."""
        make_folder(self.folder)
        save_config(self.config, self.folder / "config.yaml")
        if self.resume is not None:
            write_text(self.folder / ORIGIN, str(Path(self.resume).resolve()))

    def _inputs(self) -> Iterator[Inputs]:
        """The inputs of the steps to come; with an accelerator they are made one step ahead, in a thread."""
        config, layout = self.config, self.layout
        start = self.step + self.rollbacks.shift
        batches = iter(
            Batches(
                self.source,
                config.data,
                config.batch_size,
                config.seed,
                start_step=start,
                rank=layout.rank,
                world=layout.world,
                captions=self.text is not None,
            )
        )
        inputs = (self.prepare(batch, number) for number, batch in enumerate(batches, start=start))
        return inputs if self.device.type == "cpu" else ahead(inputs)

    def prepare(self, batch: Batch, number: int) -> Inputs:
        """This process's part of a batch on its device: times, noise and dropped conditions are drawn here.

        The batch of step k, counted from 0, has the number k, and a higher one after a rollback.
        """
        classes, first = self.model.config.num_classes, self.layout.rank * len(batch.images)
        condition: Any = batch.labels if self.text is None else self.text.encode(batch.captions)
        t, noise, condition = flow.draw(
            self.config.flow, batch.images, condition, classes, self.config.seed, number, first
        )
        return Inputs(*(x.to(self.device, non_blocking=True) for x in (batch.images, t, noise, condition)))

    def train_step(self, inputs: Inputs) -> None:
        """One optimiser step on a batch.

        Without effect on the weights if loss or gradient is not finite, or a spike that is to be skipped.
        """
        with self.health.activations(self.step + 1):
            losses = self.gradients(inputs)
        totals = self.layout.mean(by_time(losses, inputs.t))  # the processes have equal numbers of samples
        loss = totals[0].sum() / totals[1].sum()
        norm = parallel.norm([p.grad for p in self.parameters if p.grad is not None])
        # All that decides is of the whole batch and all weights: the processes agree.
        taken, limit = self.detector.answer(self.step + 1, norm, loss, self.config.optim.clip)
        if limit is not None:  # it may be on the device, and has to stay there
            nn.utils.clip_grads_with_norm_(self.parameters, 1.0, norm / limit)
        with self.health.updates(self.step + 1):
            update(self.optimizer, self._learning_rate(self.step), taken)
        self.step += 1
        self.ema.update(self.step)  # after a skipped step: towards the weights that stayed
        finite = torch.isfinite(loss + norm)
        self.meter.add(loss, norm, finite)
        self.health.add(totals, finite)
        if self.repa:
            self.repa.add(finite)

    def _learning_rate(self, step: int) -> float:
        """That of `step`, counted from 0."""
        return learning_rate(self.config.optim, step, self.config.steps) * self.rollbacks.lr_factor

    def gradients(self, inputs: Inputs) -> Tensor:
        """Leave the gradient of the batch's mean loss in the parameters, micro-batch by micro-batch.

        The parts of the processes are equal, so the mean of their gradients is that of the batch. Returns
        the losses of the samples of this process, [b].
        """
        losses = []
        size = len(inputs.images) // self.config.accumulate
        for number, part in enumerate(zip(*(x.split(size) for x in inputs), strict=True), start=1):
            with self.layout.summing(self.forward, last=number == self.config.accumulate):
                with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                    loss, objective = self._losses(*part)
                (objective.sum() / len(inputs.images)).backward()
            losses.append(loss.detach())
        return torch.cat(losses)

    def _losses(self, *part: Any) -> tuple[Tensor, Tensor]:
        """(flow-matching loss, what is minimised) of each sample, [b]; the same without REPA."""
        if self.repa:
            return self.repa.losses(self.step, self.forward, *part)
        loss = flow.loss(self.forward, *part)
        return loss, loss

    # ------------------------------------------------------------ at intervals
    def _roll_back(self, spikes: int) -> bool:
        """Go back to a checkpoint before the last `spikes` steps; False if there is none. See `rollback`."""
        self.saver.wait()
        last, earlier = self.step, self.rollbacks.rows.clone()
        start = self.layout.first(lambda: go_back(self.config, self.rollbacks.count, last, last - spikes))
        if start is None:
            self.report.say("spikes persist, and no checkpoint to go back to is there yet", once=True)
            return False
        checkpoints.load(start, self.state(), OPTIONAL)
        self.step = start.step
        self.report.close()
        self._open_report()
        self.report.say(self.rollbacks.add(last, start.step, earlier))
        return True

    def _at_interval(self) -> None:
        """Log, save and draw where it is due."""
        config, complete = self.config, self.step >= self.config.steps
        due: Callable[[int], bool] = lambda every: complete or (every > 0 and self.step % every == 0)  # noqa: E731
        evaluated = self.evaluator is not None and due(self.evaluator.every)
        metrics = self._evaluate() if evaluated else None
        if due(config.log_every) or evaluated:
            self._log(metrics)
        if due(config.sample_every):
            self._draw()
        stop, failed = self.layout.any(self._stop_asked, self.saver.failed)
        if failed:
            self.saver.wait()
        if stop and not complete:
            self._save_and_stop()
        if due(config.checkpoint_every):
            self.save()

    def _log(self, metrics: dict[str, float] | None) -> None:
        """Write one line: means over the steps since the last line, and metrics where they were measured."""
        means, seconds = self.meter.read(), self.clock.seconds()
        steps, duration = self.step - self._logged[0], seconds - self._logged[1]
        self._logged = (self.step, seconds)
        event = self.detector.read()
        if event is not None:
            self.report.say(in_words(event))
        self.report.write(
            {
                "step": self.step,
                "loss": means.loss,
                "grad_norm": means.grad_norm,
                "lr": self._learning_rate(self.step - 1),
                "images_per_second": round(self.config.batch_size * steps / max(duration, 1e-9), 1),
                "seconds": round(seconds, 2),
                "skipped": means.skipped,
                **self.health.read(),
                **(self.repa.read() if self.repa else {}),
                **({} if event is None else {"event": event}),
                **self.rollbacks.read(self.step),
                **({"evaluation": metrics} if metrics else {}),
            }
        )
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
        """Begin to write the averaged weights to `model/` and a checkpoint; see `Saver.start`."""
        with self.clock.paused():
            if self.text is not None:
                self.text.flush()
            weights = self.layout.gather(self.ema.weights, copy_to="cpu")
            seconds, settings = self.clock.seconds(), to_dict(self.config)
            self.saver.start(self.step, self.state(), settings, seconds, lambda: self._export(weights))

    def _export(self, weights: dict[str, Tensor]) -> None:
        try:
            save_model(self._averaged(weights), self.folder / "model")
        except OSError as error:
            raise UserError(f"{self.folder / 'model'} could not be written ({error})") from error

    def _averaged(self, weights: dict[str, Tensor]) -> PixelDenoiser:
        """A plain model that holds these very tensors."""
        model = skeleton(self.model.config)
        model.load_state_dict(weights, assign=True)
        return model.requires_grad_(False).eval()

    def _save_and_stop(self) -> None:
        self.save()
        self.saver.wait()
        self.report.say(f"saved at step {self.step}; the same command continues from there")
        raise Interrupted(f"{self.folder} stopped at step {self.step}")

    def _ask_to_stop(self) -> None:
        self._stop_asked = True

    def _draw(self) -> None:
        """The sample grid of this step, and the loss plot; rank 0 draws, the others wait for it."""
        with self.clock.paused():
            weights = self.layout.gather(self.ema.weights)
            if not self.layout.main:
                return
            try:
                model = self._averaged(weights)
                condition = sample_condition(self.config, model, self.source, self.text)
                draw_samples(model, condition, self.config, self.folder, self.step, self._while_drawing)
            except _StopDrawing:
                return
            self.report.plot()

    def _evaluate(self) -> dict[str, float] | None:
        """The metrics of this step, in the main process; all draw and measure a part of the samples."""
        assert self.evaluator is not None
        with self.clock.paused():
            model = self._averaged(self.layout.gather(self.ema.weights, everywhere=True))
            alone = self.layout.world == 1  # one of many must not leave the others waiting
            try:
                return self.evaluator(model, self._while_drawing if alone else None)
            except _StopDrawing:
                return None

    def _while_drawing(self, step: sampling.Step) -> None:
        if self._stop_asked and self.step < self.config.steps:
            raise _StopDrawing


def open_text(config: TrainConfig, device: torch.device) -> FeatureCache | None:
    """The text encoder of a run, None for a model of classes."""
    if config.text is None:
        return None
    return FeatureCache(open_encoder(config.text, config.model.denoiser(), device), config.text.cache)


def build_model(config: TrainConfig, source: Source, text: FeatureCache | None = None) -> PixelDenoiser:
    """The model of a run for the classes of its images, or for the text encoder of their captions, with
    weights drawn from the run's seed."""
    side = config.data.size
    more: dict[str, Any] = {"image_size": (side, side)}
    if text is None:
        more |= {"num_classes": source.num_classes, "class_names": source.class_names}
    else:
        assert config.text is not None
        more |= {"text_size": text.encoder.width, "text": note_of(config.text, text.encoder)}
    denoiser = config.model.denoiser(**more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return PixelDenoiser(denoiser)


def sample_condition(
    config: TrainConfig, model: PixelDenoiser, source: Source, text: FeatureCache | None
) -> Condition:
    """What the pictures on the way are of: classes spread evenly, or the prompts in turn, which are written
    beside the pictures."""
    count, classes = config.sample.count, model.config.num_classes
    if text is None:
        return sampling.balanced_labels(count, classes)
    prompts = config.sample.read_prompts() or list(_first_captions(source, count))
    shown = [prompts[i % len(prompts)] for i in range(count)]
    write_text(Path(config.run) / "samples" / PROMPTS, "\n".join(shown) + "\n")
    return text.encode(shown)


def _first_captions(source: Source, count: int) -> Iterator[str]:
    """The captions of the first images that have one; one empty caption where none has."""
    found = 0
    for index in range(len(source)):
        try:
            captions = source[index].all_captions
        except UnreadableImage:
            continue
        if captions is not None:
            yield captions.texts[0]
            found += 1
        if found == count:
            return
    if not found:
        yield ""


def draw_samples(
    model: PixelDenoiser,
    condition: Condition,
    config: TrainConfig,
    folder: Path,
    step: int,
    callback: sampling.Callback | None = None,
) -> Path:
    """Write `folder/samples/step-XXXXXXX.png`: fixed noise, fixed labels or captions."""
    settings, classes, side = config.sample, model.config.num_classes, config.data.size
    images = sampling.sample(
        model,
        condition,
        size=(side, side),
        seed=settings.seed,
        steps=settings.steps,
        solver=settings.solver,
        guidance_scale=settings.guidance_scale,
        guidance_interval=settings.guidance_interval,
        time_shift=settings.time_shift,
        callback=callback,
        batch_size=config.batch_size,
        autocast=resolve_precision(config.precision, next(model.parameters()).device),
    )
    path = folder / "samples" / f"step-{step:07d}.png"
    around = classes or len(settings.read_prompts())  # labels or prompts before the first comes again
    columns = around if settings.count >= around and 0 < around <= 16 else None
    save_grid(images, path, columns=columns, scale=max(1, GRID_PIXELS // side))
    return path
