"""A run from its config: model, data, objectives, callbacks and loggers, put into a `Trainer`."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelwright.data import DataConfig, Source, open_source
from pixelwright.data.loader import as_floats
from pixelwright.data.sources import StoredImages
from pixelwright.device import resolve_precision
from pixelwright.diffusion.labels import balanced_labels
from pixelwright.distributed import parallel
from pixelwright.distributed.checkpoint import checkpoint_folders
from pixelwright.errors import UserError
from pixelwright.files import write_text
from pixelwright.images import columns_of
from pixelwright.models.conditions import Condition
from pixelwright.models.config import SamplerPreset
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.layers import patchify
from pixelwright.models.prediction import principal_patches
from pixelwright.models.transfer import class_tables
from pixelwright.text import FeatureCache, note_of, open_encoder
from pixelwright.training.adapters import trained_weights
from pixelwright.training.callbacks import Banner, Callback, Report, SampleGrid
from pixelwright.training.config import TrainConfig, sampler_of
from pixelwright.training.inputs import Batched, batches_of
from pixelwright.training.loggers import LOGGERS, JsonLines, Logger, say
from pixelwright.training.objectives import build_objectives
from pixelwright.training.start import initial_weights, join
from pixelwright.training.subject import Pictures, captions_of, subject_condition, subject_source
from pixelwright.training.trainer import Trainer
from pixelwright.training.weights import Weights

SEED_RULE = "image i is drawn from the noise of (seed, i)"
PCA_IMAGES = 1024  # in which the subspace of the asymmetric prediction is found
PROMPTS = "prompts.txt"  # beside the pictures: a line for each of a grid


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
    with parallel.together(partial(join, config)) as layout:
        return build_trainer(config, resume, layout=layout).run()


def build_trainer(
    config: TrainConfig,
    resume: str | os.PathLike[str] | None = None,
    *,
    source: Source | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    layout: parallel.Layout | None = None,
) -> Trainer:
    """The trainer of a run; see `train`.

    Args:
        source: replaces the images that `config.data` names.
        callbacks, loggers: added to those of the config.
    """
    layout, source, text = layout or join(config), source or open_source(config.data), None
    pictures: Source = source
    if config.subject is not None:
        source, pictures = subject_source(source, config, config.subject, layout)
    if config.text is not None:
        encoder = open_encoder(config.text, config.model.denoiser(), layout.device)
        text = FeatureCache(encoder, config.text.cache)
        check_captions(source, config.data, layout)
    # Where weights are sharded, rank 0 alone draws or reads them, on the CPU; see `Layout.wrap`.
    model = build_model(config, source, text, "meta" if layout.sharded and not layout.main else "cpu")
    begun = resume is not None or bool(checkpoint_folders(Path(config.run)))
    weights = _start(config, model, layout, begun)
    batches = partial(batches_of, source, config.data, config, captions=text is not None)
    if model.subspace is not None and not begun and config.init is None and model.device.type != "meta":
        alone = replace(layout, rank=0, world=1)  # the same images, however many processes there are
        model.subspace.data.copy_(find_subspace(model, batches(layout=alone)))
    return Trainer(
        model,
        batches(layout=layout),
        config,
        build_objectives(config.objectives, model, config.seed),
        callbacks=(*_callbacks(config, model.config.num_classes, pictures, text, layout), *callbacks),
        loggers=(JsonLines(), *(LOGGERS.build(each) for each in config.loggers if layout.main), *loggers),
        text=text,
        resume=resume,
        pretrained=config.init is not None,
        weights=weights,
        layout=layout,
    )


def find_subspace(model: PixelDenoiser, batches: Batched) -> Tensor:
    """The subspace [rank, 3·P²] of the asymmetric prediction, in the patches of the first training images.
    Other processes take it over from the first."""
    assert model.subspace is not None
    found: list[Tensor] = []
    for batch in batches(0):
        found += as_floats(batch.images, batch.flipped)
        if len(found) >= PCA_IMAGES:
            break
    patches = patchify(torch.stack(found[:PCA_IMAGES]), model.config.patch_size).flatten(0, 1)  # [N, 3·P²]
    return principal_patches(patches, len(model.subspace))


def _start(config: TrainConfig, model: PixelDenoiser, layout: parallel.Layout, begun: bool) -> Weights:
    """Read the weights of `init`, where they are needed, and freeze what is not trained. `begun`: there are
    checkpoints, which hold all that is trained."""

    def read(init: str) -> bool:
        weights, note = initial_weights(init, model.config)
        model.load_state_dict(weights)
        if note and not begun:
            say(f"init    {note}")
        return note is not None

    new_classes = False
    if config.init is not None and (config.adapter is not None or not begun):
        new_classes = layout.first(lambda: read(str(config.init)))
    if (
        config.adapter is not None
        and config.adapter.frozen_dtype == "bf16"
        and resolve_precision(config.precision, layout.device) is None
    ):
        raise UserError(f"adapter.frozen_dtype is bf16, which {layout.device} computes in fp32: leave it out")
    return trained_weights(model, config, class_tables(model) if new_classes else ())


def check_captions(source: Source, settings: DataConfig, layout: parallel.Layout) -> None:
    """Say how many images have no caption, and what can be done. Raises UserError: none has one."""
    missing = 0 if settings.class_captions or not isinstance(source, StoredImages) else source.uncaptioned()
    if not missing:
        return
    text = f"{missing:,} of {len(source):,} images of {settings.path} have no caption"
    remedy = "give each one (cat.txt beside cat.jpg, a column caption)"
    if source.class_names is not None:
        remedy += ", or give --data.class-captions true, and the name of its folder is the caption of each"
    if missing == len(source):
        raise UserError(f"{text}: {remedy}")
    if layout.main:
        say(f"{text} and are passed over: {remedy}")


def build_model(
    config: TrainConfig, source: Source, text: FeatureCache | None = None, device: str = "cpu"
) -> PixelDenoiser:
    """The model of a run for the classes of its images, or for the text encoder of their captions, with
    weights drawn from the run's seed."""
    more: dict[str, Any] = {"num_classes": source.num_classes, "class_names": source.class_names}
    if text is not None:
        assert config.text is not None
        more = {"text_size": text.encoder.width, "text": note_of(config.text, text.encoder)}
    # `sample` then draws as the run does.
    how = {**sampler_of(config.sample), "origin": "what its training run drew samples with"}
    sampler = SamplerPreset(**how, name="run", seed_rule=SEED_RULE)
    denoiser = config.model.denoiser(image_size=(config.data.size,) * 2, sampler=sampler, **more)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(config.seed)
        return PixelDenoiser(denoiser)


def _callbacks(
    config: TrainConfig, classes: int, source: Source, text: FeatureCache | None, layout: parallel.Layout
) -> list[Callback]:
    around = classes or len(config.sample.read_prompts())
    columns = columns_of(config.sample.count, around)
    condition = partial(sample_condition, config, classes, source, text)
    found: list[Callback] = [SampleGrid(condition, config.sample, config.sample_every, columns=columns)]
    if config.evaluation is not None:
        from pixelwright.training.evaluation import Evaluation  # late: few runs need all this

        found.append(Evaluation(config.evaluation, config, config.model.preset, layout))
    if isinstance(source, Pictures) and config.subject is not None and config.subject.samples:
        from pixelwright.training.evaluation import Learning  # late, as before

        found.append(Learning(config, source, text, layout.device))
    return [Banner(source, config.data.path), *found, Report(config.sample_every)]


def sample_condition(
    config: TrainConfig, num_classes: int, source: Source, text: FeatureCache | None
) -> Condition:
    """What the sample grids are of: classes spread evenly, or the prompts in turn, which are written beside
    the pictures."""
    count = config.sample.count
    if isinstance(source, Pictures) and config.sample.prompts is None:
        return subject_condition(source, text, count)
    if text is None:
        return balanced_labels(count, num_classes)
    prompts = config.sample.read_prompts() or [*islice(captions_of(source), count)] or [""]
    shown = [*islice(cycle(prompts), count)]
    write_text(Path(config.run) / "samples" / PROMPTS, "\n".join(shown) + "\n")
    return text.encode(shown)
