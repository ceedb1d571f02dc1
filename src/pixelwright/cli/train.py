"""`pixelwright train`: train a model as a configuration says, or go on with an interrupted run."""

from __future__ import annotations

import dataclasses

from jsonargparse import ArgumentParser, Namespace

from pixelwright.cli.parsing import new_parser
from pixelwright.device import keep_memory
from pixelwright.training import Interrupted, TrainConfig, train

DESCRIPTION = """Train a model as a YAML configuration says; single settings override it.

The run folder holds the configuration, logs (log.jsonl, tensorboard/), sample grids, a loss plot, checkpoints
and the averaged weights (model/), which `pixelwright sample` reads. Ctrl-C saves and leaves; the same command
again goes on where it stopped, with the same result as a run without a stop."""

EXAMPLES = """  pixelwright train --config configs/cifar10-dip-ti.yaml
  pixelwright train --config configs/cifar10-dip-ti.yaml --run runs/mine --optim.lr 2e-4 --data.path my.zip
  pixelwright train --run runs/shapes --model.preset dip-ti-4 --data.path shapes --steps 2000"""


def parser() -> ArgumentParser:
    """The settings of a run: the fields of `TrainConfig`, from a file or one by one."""
    parser = new_parser("train", DESCRIPTION, EXAMPLES)
    parser.add_argument("--config", action="config", help="YAML file with the settings below")
    parser.add_argument(
        "--resume",
        type=str | None,
        metavar="PATH",
        help="another run, or a checkpoint of one, to start from (--run itself is continued without it)",
    )
    parser.add_class_arguments(TrainConfig, None)
    # Their defaults depend on optim.name: the parser would take them from a default config, which has filled
    # in those of adamw.
    parser.set_defaults({"optim.betas": None, "optim.eps": None})
    return parser


def config_of(options: Namespace) -> TrainConfig:
    """The settings of a run among the parsed options."""
    return TrainConfig(**{field.name: options[field.name] for field in dataclasses.fields(TrainConfig)})


def run(options: Namespace) -> int:
    """Train; 0 when the run is complete, 130 when it was interrupted (the trainer says how to go on)."""
    keep_memory()
    try:
        train(config_of(options), resume=options.resume)
    except Interrupted:
        return 130
    return 0
