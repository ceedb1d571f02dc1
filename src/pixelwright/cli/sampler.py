"""The settings of the sampler on the command line, alike for every command that draws images."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from jsonargparse import Namespace

from pixelwright.cli.parsing import Parser
from pixelwright.diffusion.solvers import SOLVERS
from pixelwright.hub.presets import SAMPLER_PRESETS, sampler_preset
from pixelwright.models.config import DenoiserConfig, SamplerPreset, SamplerSettings

Precision = Literal["auto", "bf16", "fp32", "int8"]
DEFAULTS: dict[str, Any] = {
    **{field.name: field.default for field in fields(SamplerSettings)},
    "reuse": 1,
}
"""Where neither the command line nor a preset says otherwise."""


def _otherwise(name: str) -> str:
    return f" (default: the preset's, else {DEFAULTS[name]})"


def add_arguments(parser: Parser) -> None:
    """`--sampler` and the settings it may give, each without a default of its own."""
    add = parser.add_argument
    add(
        "--sampler",
        type=str | None,
        metavar="NAME|none",
        help=f"the sampler preset to start from: {', '.join(SAMPLER_PRESETS)} (default: the model's own)",
    )
    add("--steps", type=int, help=f"steps of the solver{_otherwise('steps')}")
    add("--solver", type=str, help=f"one of {', '.join(SOLVERS)}{_otherwise('solver')}")
    add(
        "--guidance-scale",
        type=float,
        help=f"classifier-free guidance; 1 is without{_otherwise('guidance_scale')}",
    )
    add(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("LO", "HI"),
        help=f"times between which guidance is on; 0 is noise, 1 data{_otherwise('guidance_interval')}",
    )
    add(
        "--time-shift",
        type=float,
        help=f"above 1 spends more steps near the noise{_otherwise('time_shift')}",
    )
    add(
        "--reuse",
        type=int,
        metavar="N",
        help="approximate: the backbone runs in one of N evaluations only (default: 1, exact)",
    )


def add_machine_arguments(parser: Parser, batch_size: int, images_too: bool = False) -> None:
    """`--batch-size`, `--device` and `--precision`.

    A command that takes images in place of a model must know what was given: there, that is None otherwise.
    """
    add = parser.add_argument
    add(
        "--batch-size",
        type=int | None if images_too else int,
        default=None if images_too else batch_size,
        help="images drawn together" + (f" (default: {batch_size})" if images_too else ""),
    )
    add("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add(
        "--precision",
        type=Precision | None if images_too else Precision,
        default=None if images_too else "auto",
        help="auto is bf16 where the device computes in it; int8 is approximate, and for CPUs",
    )


def choose_preset(options: Namespace, config: DenoiserConfig) -> SamplerPreset | None:
    """The preset that `--sampler` names, else the model's own. Raises UserError for an unknown name."""
    return config.sampler if options.sampler is None else sampler_preset(options.sampler)


def settings(options: Namespace, preset: SamplerPreset | None) -> dict[str, Any]:
    """Arguments for `pixelwright.sample`: the command line's before the preset's before the defaults."""
    start = {name: getattr(preset, name, default) for name, default in DEFAULTS.items()}
    given = {name: options[name] for name in DEFAULTS if options[name] is not None}
    chosen = {**start, **given}
    if chosen["reuse"] == 1:
        del chosen["reuse"]  # folders from before there was this setting can be gone on with
    interval = chosen["guidance_interval"]
    return {**chosen, "guidance_interval": None if interval is None else tuple(interval)}


def in_words(chosen: dict[str, Any], options: Namespace, preset: SamplerPreset | None) -> str:
    """What is used, and where it comes from, in one line."""
    interval = chosen["guidance_interval"]
    where = "everywhere" if interval is None else f"where {interval[0]:g} < t < {interval[1]:g}"
    given = [name for name in DEFAULTS if options[name] is not None]
    source = f"preset {preset.name}: {preset.origin}" if preset is not None else "no preset"
    changed = f"; given: {', '.join(given)}" if given else ""
    reuse = chosen.get("reuse", 1)
    reused = f", backbone in 1 of {reuse} evaluations" if reuse > 1 else ""
    return (
        f"{chosen['solver']}, {chosen['steps']} steps, guidance {chosen['guidance_scale']:g} "
        f"{where}, time shift {chosen['time_shift']:g}{reused}, seed {options.seed or 0} "
        f"({source}{changed})"
    )
