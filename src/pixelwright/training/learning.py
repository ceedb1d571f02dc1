"""What a fine-tuning learns and forgets, measured while it runs; in the log and the report as `finetuning`.

- `learned`: KID between samples of the subject and its pictures; falls as they become alike.
- `forgotten`: KID between what the model of init draws beside the subject and what the run's does, of the
  same classes or prompts and other noise; rises from about 0, what two draws of one model have.
- `memorised`: share of the samples nearer to a picture than any other picture is to it. About a half is what
  new pictures of the same kind have, copies have 1. `samples/nearest.png` shows pairs.
"""

from itertools import islice

import numpy as np
import torch
from torch import Tensor

from pixelwright.data.transforms import cover
from pixelwright.diffusion.labels import balanced_labels
from pixelwright.evaluation.features import open_extractor
from pixelwright.evaluation.metrics import kid
from pixelwright.evaluation.neighbours import memorisation
from pixelwright.hub.checkpoint import load
from pixelwright.images import save_grid
from pixelwright.models.conditions import Condition
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.text import FeatureCache
from pixelwright.training.callbacks import Callback, draw
from pixelwright.training.config import TrainConfig
from pixelwright.training.report import NEAREST
from pixelwright.training.subject import Pictures, subject_condition
from pixelwright.training.trainer import Trainer

NAME = "finetuning"  # of the entries in the log
MOST_PICTURES = 500  # that samples are compared with
SUBSETS = 1  # KID of all images at once: there are few


class Learning(Callback):
    """Measures samples of the averaged weights; in several processes the main one alone. Raises UserError:
    features that are not there."""

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
        if len(real) > 1:
            line["learned"] = kid(real, found, SUBSETS, max(len(real), count)).value
            near = memorisation(found, torch.arange(count), real, torch.arange(len(real)))
            line["memorised"] = near.share
            pairs = [image for pair in near.pairs for image in (drawn[pair.sample], self._shown[pair.image])]
            side = drawn.shape[1]
            path = trainer.folder / "samples" / NEAREST
            save_grid(torch.stack(pairs), path, columns=2, scale=max(1, 96 // side))
        if self._before is not None and (kept := self._kept()) is not None:
            after = self._features(self._draw(model, kept, 3, trainer))
            line["forgotten"] = kid(self._before, after, SUBSETS, count).value
        trainer.log({NAME: line})

    def _kept(self) -> Condition | None:
        """What is drawn that is not the subject: the classes of init, or prior prompts; None without any."""
        count, prompts = self.subject.samples, self.subject.prior_prompts
        if self._text is None:
            return balanced_labels(count, self._classes)
        return self._text.encode([prompts[i % len(prompts)] for i in range(count)]) if prompts else None

    def _draw(self, model: PixelDenoiser, condition: Condition, number: int, trainer: Trainer) -> Tensor:
        """Images [B,H,W,3] in uint8; other numbers are of other noise."""
        settings = self.config.sample
        return draw(trainer, model, condition, settings, settings.seed + number)

    def _images(self, size: tuple[int, int]) -> Tensor:
        """The pictures as they are trained on, [N,H,W,3]."""
        shown = islice(self._pictures.readable(), MOST_PICTURES)
        found = [np.asarray(cover(picture.image, *size)) for picture in shown]
        return torch.from_numpy(np.stack(found))

    def _features(self, images: Tensor) -> Tensor:
        return torch.cat([self._extract(part).features for part in images.split(64)])
