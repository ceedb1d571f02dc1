"""What the pictures of a fine-tuning show: a new class or caption for them, and images of the model they are
mixed with, so that it keeps what it knew (prior preservation, DreamBooth, arXiv 2208.12242, section 3.3)."""

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from pixelwright.data import Sample, Source, UnreadableImage
from pixelwright.data.captions import METADATA, Captions
from pixelwright.data.sources import FolderSource
from pixelwright.device import name_precision
from pixelwright.diffusion.labels import balanced_labels
from pixelwright.distributed.parallel import Layout
from pixelwright.errors import UserError
from pixelwright.evaluation.generate import Generation, checksum, generate
from pixelwright.evaluation.prompts.common import PromptImage, draw_missing, draw_with, record_settings
from pixelwright.files import write_text
from pixelwright.hub.checkpoint import load, load_config
from pixelwright.models.conditions import Condition
from pixelwright.models.config import DenoiserConfig, SamplerSettings
from pixelwright.text import FeatureCache
from pixelwright.training.config import TrainConfig, sampler_of
from pixelwright.training.finetune_config import SubjectConfig

PRIOR = "-prior"  # at the end of the name of the folder of a run's prior images
AT_ONCE = 16  # prior images drawn together


def readable(source: Source) -> Iterator[Sample]:
    """The images that can be read."""
    for index in range(len(source)):
        with suppress(UnreadableImage):
            yield source[index]


def captions_of(source: Source) -> Iterator[str]:
    """The first caption of each image that has one."""
    return (each.all_captions.texts[0] for each in readable(source) if each.all_captions is not None)


class Pictures:
    """A source as images of a model's classes, or with a caption each."""

    def __init__(self, source: Source, base: DenoiserConfig, subject: SubjectConfig) -> None:
        """`base` is the model that is tuned. Raises UserError: nothing says what the images show."""
        self._source, self._prompt = source, subject.prompt
        self.class_names, self.num_classes, self._labels = None, 1, [0] * max(1, source.num_classes)
        if base.takes_text:
            for sample in () if self._prompt else readable(self):
                if sample.all_captions is None:
                    raise UserError(f'"{sample.name}" has no caption: give --prompt for images without one')
            return
        own = [subject.class_name] if subject.class_name else list(source.class_names or ())
        if not own:
            raise UserError("nothing says what the images show: give --class NAME (subject.class_name)")
        known = list(base.class_names or map(str, range(base.num_classes)))
        names = [*known, *(name for name in dict.fromkeys(own) if name not in known)]
        self.class_names, self.num_classes = tuple(names), len(names)
        labels = [names.index(name) for name in own]
        self._labels = labels * len(self._labels) if subject.class_name else labels

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        """See `Source`."""
        return self._source.name(index)

    def dimensions(self, index: int) -> tuple[int, int]:
        """(width, height) of an image."""
        return self._source.dimensions(index)  # type: ignore[attr-defined]

    def __getitem__(self, index: int) -> Sample:
        sample = self._source[index]
        captions = sample.all_captions
        if captions is None and self._prompt is not None:
            captions = Captions((self._prompt,), (1.0,))
        return sample._replace(label=self._labels[sample.label], captions=captions)


class Mixed:
    """The images of one source, again and again, among those of another."""

    def __init__(self, source: Pictures, prior: Source, share: float) -> None:
        """`share`: of the prior images, about."""
        self.class_names, self.num_classes = source.class_names, source.num_classes
        again = max(1, round(len(prior) * (1 - share) / max(share, 1e-6) / len(source)))
        pictures = [(source, index) for index in range(len(source))] * again
        self._images: list[tuple[Any, int]] = [*pictures, *((prior, index) for index in range(len(prior)))]

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """See `Source`."""
        source, place = self._images[index]
        return source.name(place)

    def dimensions(self, index: int) -> tuple[int, int]:
        """(width, height) of an image."""
        source, place = self._images[index]
        return source.dimensions(place)

    def __getitem__(self, index: int) -> Sample:
        source, place = self._images[index]
        return source[place]


def subject_source(
    source: Source, config: TrainConfig, subject: SubjectConfig, layout: Layout
) -> tuple[Source, Pictures]:
    """The images that a run trains on, and of these the pictures of its subject. Prior images are drawn
    first, where they are not there yet. Raises UserError: see `Pictures` and `draw_prior`."""
    assert config.init is not None
    base = load_config(config.init)
    pictures = Pictures(source, base, subject)
    if not subject.prior_images:
        return pictures, pictures
    folder = draw_prior(config, base, subject, layout)
    return Mixed(pictures, FolderSource(folder), subject.prior_share), pictures


def draw_prior(config: TrainConfig, base: DenoiserConfig, subject: SubjectConfig, layout: Layout) -> Path:
    """Draw the prior images with the model of init, beside the run's folder, and return their folder. What is
    there already is kept, and an interrupted drawing goes on.

    Raises UserError: images made with other settings are there, or a model of captions has no prompts.
    """
    assert config.init is not None
    folder, size = Path(f"{config.run}{PRIOR}"), (config.data.size,) * 2
    drawn = sampler_of(config.sample)
    precision: Any = name_precision(config.precision, layout.device)
    model = load(config.init).to(layout.device)
    made_by: dict[str, Any] = {"weights": checksum(config.init), "size": size, "seed": config.seed}
    made_by |= {"precision": precision, "batch_size": AT_ONCE, **drawn}
    if not base.takes_text:
        count = subject.prior_images
        generation = Generation(model=base.name, num_samples=count, labels="balanced", **made_by)
        labels = balanced_labels(count, base.num_classes)
        return generate(model, generation, labels, folder, layout, attention=config.attention)
    prompts = subject.prior_prompts
    if not prompts:
        raise UserError('subject.prior_images are asked for: say of what, such as --prior-prompts "a dog"')

    def draw() -> None:
        record_settings(folder, {**made_by, "prompts": list(prompts)})
        paths = [folder / f"{i:06d}.png" for i in range(subject.prior_images)]
        images = [PromptImage(prompts[i % len(prompts)], i, path) for i, path in enumerate(paths)]
        lines = [json.dumps({"file_name": each.path.name, "caption": each.prompt}) for each in images]
        write_text(folder / METADATA, "\n".join(lines) + "\n")
        how: dict[str, Any] = {"sampler": SamplerSettings(**drawn), "size": size, "precision": precision}
        draw_missing(
            draw_with(model, prompts, config.seed, attention=config.attention, **how), images, AT_ONCE
        )

    layout.first(draw)
    return folder


def subject_condition(pictures: Pictures, text: FeatureCache | None, count: int) -> Condition:
    """What `count` images of the subject are drawn from: the labels or captions of its pictures in turn."""
    if text is not None:
        return text.encode([*islice(cycle([*islice(captions_of(pictures), count)]), count)])
    labels = [each.label for each in islice(readable(pictures), count)]
    return torch.tensor([*islice(cycle(labels), count)])
