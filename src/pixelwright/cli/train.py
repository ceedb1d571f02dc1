"""`pixelwright train`: train a model as a configuration says, or continue an interrupted run."""

import argparse
import inspect
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from pixelwright.cli.fields import Setting, nested, settings
from pixelwright.cli.parsing import Add, Parser, add_imports
from pixelwright.config import group_of, hints, to_dict
from pixelwright.device import keep_memory
from pixelwright.training import Interrupted, TrainConfig, load_config, train

DESCRIPTION = """Train a model as YAML files say; settings on the command line override them.

The run folder gets the configuration, logs (log.jsonl, tensorboard/), sample grids, a report, checkpoints
and the averaged weights (model/), which `pixelwright sample` reads. Ctrl-C saves and leaves; the same command
continues the run, with the same result as one without a stop. --help=advanced shows all settings."""

EXAMPLES = """  pixelwright train --config configs/cifar10-dip-ti.yaml
  pixelwright train --config configs/cifar10-dip-ti.yaml --run runs/mine --optim.lr 2e-4 --data.path my.zip
  pixelwright train --run runs/shapes --model.preset dip-ti-4 --data.path shapes --steps 2000
  pixelwright train --run runs/shapes --steps 3000      # goes on with the settings of that folder"""

USAGE = "pixelwright train [--config FILE ...] [--SETTING VALUE ...]"
BASIC = """
run model.preset data.path data.size init steps batch_size optim.lr optim.warmup seed device
precision checkpoint_every sample_every log_every
""".split()  # noqa: SIM905
"""The settings of the short help."""


def parser() -> Parser:
    """Configuration files, and the fields of `TrainConfig` one by one."""
    parser = Parser("train", DESCRIPTION, EXAMPLES, USAGE)
    add = parser.add_argument
    about = "YAML file; later ones override"
    add("--config", type=str, action="append", default=[], metavar="FILE", help=about)
    about = "another run, or a checkpoint of one, to start from"
    add("--resume", type=str | None, metavar="PATH", help=about)
    add("--print-config", action="store_true", help="print the settings as YAML and exit")
    add_imports(add)
    found = {setting.key: setting for setting in settings(TrainConfig) if setting.key != "imports"}
    add = parser.section("main settings")
    for key in BASIC:
        _add(add, found.pop(key))
    sections = {"": parser.section("further settings of the run", advanced=True)}
    for setting in found.values():
        group = setting.key.rpartition(".")[0]
        if group not in sections:
            sections[group] = parser.section(group, _about(group), advanced=True)
        _add(sections[group], setting)
    return parser


def _add(add: Add, setting: Setting) -> None:
    add(f"--{setting.key.replace('_', '-')}", type=setting.hint, default=argparse.SUPPRESS, help=setting.help)


def _about(group: str) -> str:
    """The first line of the docstring of a group's dataclass."""
    cls: Any = TrainConfig
    for name in group.split("."):
        cls = group_of(hints(cls)[name])
    return (inspect.getdoc(cls) or "").split("\n")[0]


def config_of(options: Namespace) -> TrainConfig:
    """The settings of a run among the parsed options and in the files they name; without such files, those of
    the run folder, where it is there."""
    files, own = options.config, Path(options.get("run") or "") / "config.yaml"
    if not files and options.get("run") and own.is_file():
        files = [own]
        if os.environ.get("RANK", "0") == "0":  # of the processes under torchrun, one
            print(f"with the settings of {own}", file=sys.stderr)
    return load_config(*files, changes=nested(options.as_dict(), TrainConfig), imports=True)


def run(options: Namespace) -> int:
    """Train; 0 when the run is complete, 130 when it was interrupted (the trainer says how to continue)."""
    config = config_of(options)
    if options.print_config:
        print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
        return 0
    keep_memory()
    try:
        train(config, resume=options.resume)
    except Interrupted:
        return 130
    return 0
