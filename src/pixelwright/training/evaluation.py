"""Metrics of a run on the way, of samples of the averaged weights.

Nothing here draws from a random stream of the training, so that a run ends with the same weights with and
without it.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pixelwright.acceleration import AcceleratedDenoiser, accelerate
from pixelwright.data.transforms import cover
from pixelwright.device import name_precision
from pixelwright.diffusion.labels import balanced_labels
from pixelwright.diffusion.solvers import StepCallback
from pixelwright.distributed.parallel import Layout
from pixelwright.evaluation.features import open_extractor
from pixelwright.evaluation.features.extractor import Activations
from pixelwright.evaluation.generate import Generation, draw
from pixelwright.evaluation.images import ImageBatch
from pixelwright.evaluation.measure import Collected, check_comparable, collect, compare
from pixelwright.evaluation.metrics import kid
from pixelwright.evaluation.neighbours import memorisation
from pixelwright.evaluation.references import read_reference
from pixelwright.hub.checkpoint import load
from pixelwright.images import save_grid
from pixelwright.models.conditions import Condition
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.text import FeatureCache
from pixelwright.training.callbacks import Callback
from pixelwright.training.callbacks import draw as draw_as_run
from pixelwright.training.config import EvaluationConfig, LoopConfig, TrainConfig, sampler_of
from pixelwright.training.report import NEAREST
from pixelwright.training.subject import Pictures, readable, subject_condition
from pixelwright.training.trainer import Trainer

MOST_PICTURES = 500  # that samples are compared with


class Evaluation(Callback):
    """Draws and measures samples of the averaged weights; opened once, before a run begins. Raises UserError:
    features or reference that are not there, or do not belong together."""

    def __init__(self, settings: EvaluationConfig, config: LoopConfig, name: str, layout: Layout) -> None:
        """`name`: what the model is called in the record of the samples."""
        self.every, self._settings = settings.every, settings
        self._layout = layout
        self._extractor = open_extractor(settings.features, layout.device)
        self._reference = read_reference(settings.reference)
        check_comparable(self._extractor, self._reference)
        self._batch_size = max(1, min(config.batch_size, settings.sample.count // layout.world))
        self._precision, self._name = name_precision(config.precision, layout.device), name
        self._compile, self._attention = config.compile, config.attention
        self._fast: AcceleratedDenoiser | None = None  # compiled once, with the weights of each time

    def on_step(self, trainer: Trainer) -> None:
        model = trainer.averaged(everywhere=True)
        assert model is not None
        if self._compile and self._fast is None:
            self._fast = accelerate(model, self._precision, compile=True, attention=self._attention)
        elif self._fast is not None:
            self._fast.load(model)
        # One of many processes must not leave the others waiting: alone it may stop on the way.
        callback = trainer.stop_if_asked if self._layout.world == 1 else None
        own: list[Collected] = []
        share, patches = self._share(model, callback), model.config.patch_size
        self._layout.each(lambda: own.append(collect(share, self._extractor, patch_size=patches)))
        if parts := self._gather(own[0]):
            measured = compare(_joined(parts), self._reference, self._extractor)
            trainer.log({"evaluation": {name: found.value for name, found in measured.metrics.items()}})

    def _share(self, model: PixelDenoiser, callback: StepCallback | None) -> Iterator[ImageBatch]:
        """The images of this process, batch by batch."""
        sample, size = self._settings.sample, model.config.image_size
        assert size is not None
        same: dict[str, Any] = {"batch_size": self._batch_size, "precision": self._precision}
        same |= {"seed": sample.seed, "num_samples": sample.count, "size": size, **sampler_of(sample)}
        generation = Generation(model=self._name, weights="", labels="balanced", **same)
        labels = balanced_labels(generation.num_samples, model.config.num_classes)
        for k in range(self._layout.rank, generation.batches, self._layout.world):
            numbers = torch.tensor(generation.indices(k))
            drawn = draw(self._fast or model, generation, labels, k, callback, self._attention)
            yield ImageBatch(drawn, numbers, labels[numbers])

    def _gather(self, own: Collected) -> list[Collected]:
        """Those of all processes, in the main one."""
        if self._layout.world == 1:
            return [own]
        parts: list[Any] | None = [None] * self._layout.world if self._layout.main else None
        dist.gather_object(own, parts, dst=0, group=self._layout.group)
        return parts or []


def _joined(parts: list[Collected]) -> Collected:
    """The images of all processes, in their order."""
    numbers = torch.cat([part.numbers for part in parts])
    order = numbers.argsort()

    def rows(tensors: Iterable[Any]) -> Any:
        there = list(tensors)
        return None if any(tensor is None for tensor in there) else torch.cat(there)[order]

    activations = Activations(*map(rows, zip(*(p.activations for p in parts), strict=True)))
    labels, steps = rows(p.labels for p in parts), rows(p.steps for p in parts)
    return Collected(activations, labels, numbers[order], "", parts[0].image_size, steps=steps)


class Learning(Callback):
    """What a fine-tuning learns and forgets, of samples of the averaged weights; in several processes the
    main one alone measures it. In the log and the report it is `finetuning`.

    - `learned`: KID between samples of the subject and its pictures; falls as they become alike.
    - `forgotten`: KID between what the model of init draws beside the subject and what the run's does, of the
      same classes or prompts and other noise; rises from about 0, what two draws of one model have.
    - `memorised`: share of the samples nearer to a picture than any other picture is to it. About a half is
      what new pictures of the same kind have, copies have 1. `samples/nearest.png` shows pairs.

    Raises UserError: features that are not there.
    """

    def __init__(
        self, config: TrainConfig, pictures: Pictures, text: FeatureCache | None, device: torch.device
    ) -> None:
        """`pictures` are those of the subject."""
        assert config.subject is not None and config.init is not None
        self.every, self.config = config.sample_every, config
        self.subject, self.init = config.subject, config.init
        self._extract = open_extractor(self.subject.features, device)
        self._pictures, self._text = pictures, text
        self._before: Tensor | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Measure the model of init, and in a new run what the numbers are before the first step."""
        if trainer.layout.main:
            self._shown = self._images(trainer.model.config.image_size or (self.config.data.size,) * 2)
            base = load(self.init).to(trainer.device)
            self._classes = base.config.num_classes
            if (kept := self._kept()) is not None:
                self._before = self._features(self._draw(base, kept, 1, trainer))
        if trainer.step == 0:
            self.on_step(trainer)

    def on_step(self, trainer: Trainer) -> None:
        model = trainer.averaged()
        if model is None:
            return
        count = self.subject.samples
        drawn = self._draw(model, subject_condition(self._pictures, self._text, count), 2, trainer)
        found, real = self._features(drawn), self._features(self._shown)
        line: dict[str, float | None] = {}
        if len(real) > 1:  # KID of all images at once: there are few
            line["learned"] = kid(real, found, 1, max(len(real), count)).value
            near = memorisation(found, torch.arange(count), real, torch.arange(len(real)))
            line["memorised"] = near.share
            pairs = [image for pair in near.pairs for image in (drawn[pair.sample], self._shown[pair.image])]
            side = drawn.shape[1]
            path = trainer.folder / "samples" / NEAREST
            save_grid(torch.stack(pairs), path, columns=2, scale=max(1, 96 // side))
        if self._before is not None and (kept := self._kept()) is not None:
            after = self._features(self._draw(model, kept, 3, trainer))
            line["forgotten"] = kid(self._before, after, 1, count).value
        trainer.log({"finetuning": line})

    def _kept(self) -> Condition | None:
        """What is drawn that is not the subject: the classes of init, or prior prompts; None without any."""
        count, prompts = self.subject.samples, self.subject.prior_prompts
        if self._text is None:
            return balanced_labels(count, self._classes)
        return self._text.encode([prompts[i % len(prompts)] for i in range(count)]) if prompts else None

    def _draw(self, model: PixelDenoiser, condition: Condition, number: int, trainer: Trainer) -> Tensor:
        """Images [B,H,W,3] in uint8; other numbers are of other noise."""
        settings = self.config.sample
        return draw_as_run(trainer, model, condition, settings, settings.seed + number)

    def _images(self, size: tuple[int, int]) -> Tensor:
        """The pictures as they are trained on, [N,H,W,3]."""
        shown = islice(readable(self._pictures), MOST_PICTURES)
        found = [np.asarray(cover(picture.image, *size)) for picture in shown]
        return torch.from_numpy(np.stack(found))

    def _features(self, images: Tensor) -> Tensor:
        return torch.cat([self._extract(part).features for part in images.split(64)])
