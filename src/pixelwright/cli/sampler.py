"""Options of every command that draws images: the settings of the sampler, and what it runs on."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jsonargparse import Namespace

from pixelwright.acceleration import AcceleratedDenoiser, accelerate
from pixelwright.cli.fields import settings
from pixelwright.cli.parsing import WEIGHTS, Add, Parser, adapters_of, add_adapter, add_device, add_imports
from pixelwright.config import NonNegativeInt, PositiveInt, convert
from pixelwright.device import keep_memory, name_precision, resolve_device
from pixelwright.diffusion.guidance import interval_words
from pixelwright.diffusion.solvers import check_solver
from pixelwright.distributed.checkpoint import checkpoint_folders, folder_of, step_of
from pixelwright.errors import UserError
from pixelwright.hub.checkpoint import load, load_config
from pixelwright.hub.presets import SAMPLER_PRESETS, sampler_preset
from pixelwright.hub.runs import is_checkpoint
from pixelwright.models.config import DenoiserConfig, SamplerSettings
from pixelwright.models.denoiser import PixelDenoiser

FIELDS = {setting.key: setting for setting in settings(SamplerSettings)}


class Chosen(NamedTuple):
    """The settings that a command draws with."""

    sampler: SamplerSettings
    text: str  # what is used, and where it comes from, in one line

    def as_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return dataclasses.asdict(self.sampler)


class Named:
    """The model that a command names, by its config: so a mistake is found before the weights are read.
    Raises UserError: the model, the device or the precision is not there."""

    def __init__(self, options: Namespace, model: str) -> None:
        self.options, self.device = options, resolve_device(options.device)
        self.precision = name_precision(options.precision, self.device)
        self.source, self.adapter = source_of(model, options.step), adapters_of(options.adapter)
        self.config = load_config(self.source, self.adapter)

    def load(self) -> PixelDenoiser:
        """The model, on its device."""
        keep_memory()
        return load(self.source, self.options.weights, self.adapter).to(self.device)

    def accelerated(self) -> AcceleratedDenoiser:
        """The model as the options of the machine want it."""
        return accelerate(self.load(), self.precision, self.options.compile, None, self.options.attention)


def add_arguments(parser: Parser, batch_size: int) -> None:
    """The options."""
    text = "Settings that are not given are those of the model's own preset, where it has one."
    add_weights(parser.section("which weights"))
    add = parser.section("sampler", text)
    help_text = f"settings to start from: {', '.join(SAMPLER_PRESETS)} (default: the model's own preset)"
    add("--sampler", type=str | None, metavar="PRESET|none", help=help_text)
    for name, (_, hint, help_text) in FIELDS.items():
        pair: dict[str, Any] = {"nargs": "+", "type": str, "metavar": ("LO", "HI")}
        more = pair if name == "guidance_interval" else {"type": hint}
        add(f"--{name.replace('_', '-')}", default=None, help=help_text, **more)
    add = parser.section("machine", advanced=True)
    add("--batch-size", type=PositiveInt, default=batch_size, help="images drawn together")
    add_device(add)
    help_text = "auto: bf16 where the device computes in it; fp32: in full, without TF32; int8: approximate, "
    help_text += "for CPUs"
    add("--precision", type=Literal["auto", "bf16", "fp32", "int8"], default="auto", help=help_text)
    help_text = "kernel of attention; math where the others give NaN"
    add("--attention", type=Literal["auto", "sdpa", "flash", "math"], default="auto", help=help_text)
    help_text = "compile the network: needs a C++ compiler, and a minute the first time"
    add("--compile", action="store_true", help=help_text)
    add_imports(add)


def add_weights(add: Add) -> None:
    """Which weights of a model."""
    add("--step", type=NonNegativeInt | None, metavar="N", help="of a run: the checkpoint of step N")
    add("--weights", type=str | None, metavar="NAME", help=WEIGHTS)
    add_adapter(add)


def source_of(model: str, step: int | None) -> str:
    """The model, or where `--step` is given the folder of its checkpoint. Raises UserError: it is not there,
    naming those that are."""
    if step is None:
        return model
    folder = folder_of(Path(model), step)
    if not is_checkpoint(folder):
        steps = ", ".join(str(step_of(each)) for each in checkpoint_folders(Path(model))) or "none"
        raise UserError(f"--step {step}: {folder} is no checkpoint; those of {model} are of step {steps}")
    return str(folder)


def choose(options: Namespace, config: DenoiserConfig) -> Chosen:
    """The settings on the command line, else those of the preset of `--sampler` or the model, else the
    defaults. Raises UserError for an unknown preset or solver, or a value that does not fit."""
    preset = config.sampler if options.sampler is None else sampler_preset(options.sampler)
    given = {name: options[name] for name in FIELDS if options[name] is not None}
    if words := given.get("guidance_interval"):
        value = None if words == ["all"] else ",".join(words)
        hint = FIELDS["guidance_interval"].hint
        given["guidance_interval"] = convert(value, hint, "--guidance-interval")
    start = {} if preset is None else {name: getattr(preset, name) for name in FIELDS}
    sampler = SamplerSettings(**{**start, **given})
    check_solver(sampler.solver)
    source = "no preset" if preset is None else f"preset {preset.name}: {preset.origin}"
    source += f"; given: {', '.join(given)}" if given else ""
    text = f"{sampler.solver}, {sampler.steps} steps, guidance {sampler.guidance_scale:g} "
    text += f"{interval_words(sampler)}, time shift "
    text += f"{sampler.time_shift:g}{f' from t = {sampler.time_start:g}' if sampler.time_start else ''}"
    text += f", last step {sampler.last_step:g}" if sampler.last_step else ""
    return Chosen(sampler, f"{text}, seed {options.seed} ({source})")
