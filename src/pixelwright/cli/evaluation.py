"""`pixelwright evaluation train-features`: the in-domain classifier whose features `evaluate` compares."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import Namespace
from tqdm import tqdm

from pixelwright.cli.fields import settings
from pixelwright.cli.parsing import Command, Parser, add_device
from pixelwright.config import PositiveInt
from pixelwright.data.config import DataConfig
from pixelwright.data.open import open_source
from pixelwright.data.sources import Source
from pixelwright.device import resolve_device, resolve_precision
from pixelwright.errors import UserError
from pixelwright.evaluation.features.classifier import (
    CONFIG,
    ClassifierConfig,
    Labelled,
    Training,
    held_out,
    read_labelled,
    train,
)
from pixelwright.files import make_folder
from pixelwright.rng import generator

DESCRIPTION = "Features to evaluate with."

EXAMPLES = """  pixelwright evaluation train-features cifar/train.zip features/cifar --test cifar/test.zip
  pixelwright evaluation train-features shapes features/shapes --epochs 2

`pixelwright evaluation train-features --help` lists its settings."""

TRAIN = """Train a small classifier on labelled images, in minutes on a CPU: its features, class probabilities
and a feature map are what `pixelwright evaluate --features OUT` compares.

Numbers are comparable where the classifier is the same file: keep it."""


def parser() -> Parser:
    """That of `pixelwright evaluation` alone."""
    return Parser("evaluation", DESCRIPTION, EXAMPLES)


def train_parser() -> Parser:
    """Images, folder and the settings of the training."""
    parser = Parser("evaluation train-features", TRAIN, EXAMPLES.rpartition("\n\n")[0])
    add = parser.add_argument
    add("source", metavar="SRC", help="labelled images: what data.path can be")
    add("out", metavar="OUT", help="folder for the classifier; made if it does not exist")
    add("--test", type=str | None, metavar="PATH", help="images to test on (default: a tenth of SRC)")
    add("--images", type=PositiveInt | None, help="use N images of SRC (default: all)")
    for name, hint, text in settings(Training):
        add(f"--{name.replace('_', '-')}", type=hint, default=getattr(Training, name), help=text)
    add("--overwrite", action="store_true", help="replace a classifier that is in OUT")
    add_device(add)
    help_text = "auto is bf16 where the device computes in it"
    add("--precision", type=Literal["auto", "bf16", "fp32"], default="auto", help=help_text)
    return parser


def train_features(options: Namespace) -> int:
    """Read, train, test, save."""
    out = Path(options.out).expanduser()
    if (out / CONFIG).exists() and not options.overwrite:
        raise UserError(f"{out} holds a classifier already: give another folder, or --overwrite")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a folder")
    how = Training(**{name: options[name] for name, *_ in settings(Training)})
    device = resolve_device(options.device)
    source = _open(options.source, how.size)
    test_source = None if options.test is None else _open(options.test, how.size)
    classes, tested = source.num_classes, options.test or "a tenth of it"
    config = ClassifierConfig(classes, how.size, source=options.source, tested_on=tested)
    if test_source is not None and test_source.num_classes > classes:
        more = f'"{options.test}" has {test_source.num_classes} classes'
        raise UserError(f'{more}, "{options.source}" {classes}')
    train_set = _read(source, how.size, options.images)
    if test_source is None:
        train_set, test_set = held_out(train_set)
    else:
        test_set = _read(test_source, how.size)
    make_folder(out)
    total = how.epochs * len(train_set.labels)
    with tqdm(total=total, unit="image", desc="training", disable=None) as bar:

        def advance(images: int, loss: float) -> None:
            bar.update(images)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

        autocast = resolve_precision(options.precision, device)
        done = train(config, how, train_set, test_set, out, device, autocast, advance)
    assert done.accuracy is not None
    print(f"{out}: {100 * done.accuracy:.2f} % of {len(test_set.labels)} test images are named rightly")
    return 0


def _open(path: str, size: int) -> Source:
    source = open_source(DataConfig(path=path, size=size))
    if source.num_classes < 2:
        raise UserError(f'"{path}" has no classes: give images in a folder for each, or with labels')
    return source


def _read(source: Source, size: int, count: int | None = None) -> Labelled:
    """All images, or `count` of them, drawn evenly at random and in their order."""
    picks: Sequence[int] = range(len(source))
    if count is not None:
        if not 2 <= count <= len(source):
            raise UserError(f"--images is {count}; there are {len(source)}, of which at least two are needed")
        picks = torch.randperm(len(source), generator=generator(0, "images"))[:count].sort().values.tolist()
    with tqdm(total=len(picks), unit="image", desc="reading", disable=None) as bar:
        return read_labelled(source, picks, size, bar.update)


SUBCOMMANDS = {"train-features": Command(train_parser, train_features)}
