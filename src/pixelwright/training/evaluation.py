"""Metrics of a run on the way: samples of the averaged weights, drawn and measured by all its processes.

Nothing here draws from a random stream of the training, so that a run ends with the same weights with and
without it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from pixelwright.acceleration import AcceleratedDenoiser, accelerate
from pixelwright.device import name_precision
from pixelwright.diffusion.labels import balanced_labels
from pixelwright.diffusion.solvers import StepCallback
from pixelwright.distributed.parallel import Layout
from pixelwright.evaluation.features import open_extractor
from pixelwright.evaluation.features.extractor import Activations
from pixelwright.evaluation.generate import Generation, draw
from pixelwright.evaluation.images import ImageBatch
from pixelwright.evaluation.measure import Collected, check_comparable, collect, compare
from pixelwright.evaluation.references import read_reference
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.training.callbacks import Callback
from pixelwright.training.config import EvaluationConfig, LoopConfig, sampler_of
from pixelwright.training.trainer import Trainer


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
