"""The settings of the sampler on the command line, alike for every command that draws images."""

from __future__ import annotations

import inspect
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from pixelwright.hub.recipes import RECIPES, named
from pixelwright.models.config import DenoiserConfig, Recipe
from pixelwright.sampling import SOLVERS, sample

DEFAULTS: dict[str, Any] = {
    name: inspect.signature(sample).parameters[name].default
    for name in ("solver", "steps", "guidance_scale", "guidance_interval", "time_shift")
}
"""Where neither the command line nor a recipe says otherwise: the defaults of `pixelwright.sample`."""


def _otherwise(name: str) -> str:
    return f" (default: the recipe's, else {DEFAULTS[name]})"


def add_arguments(parser: ArgumentParser) -> None:
    """`--recipe` and the settings it may give, each without a default of its own."""
    add = parser.add_argument
    add(
        "--recipe",
        type=str | None,
        metavar="NAME|none",
        help=f"the sampler settings to start from: {', '.join(RECIPES)} (default: the model's own)",
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


def choose_recipe(options: Namespace, config: DenoiserConfig) -> Recipe | None:
    """The recipe that `--recipe` names, else the model's own. Raises UserError for an unknown name."""
    return config.recipe if options.recipe is None else named(options.recipe)


def settings(options: Namespace, recipe: Recipe | None) -> dict[str, Any]:
    """Arguments for `pixelwright.sample`: the command line's before the recipe's before the defaults."""
    start = DEFAULTS if recipe is None else {name: getattr(recipe, name) for name in DEFAULTS}
    given = {name: options[name] for name in DEFAULTS if options[name] is not None}
    chosen = {**start, **given}
    return {**chosen, "guidance_interval": tuple(chosen["guidance_interval"])}


def in_words(chosen: dict[str, Any], options: Namespace, recipe: Recipe | None) -> str:
    """What is used, and where it comes from, in one line."""
    low, high = chosen["guidance_interval"]
    given = [name for name in DEFAULTS if options[name] is not None]
    source = f"recipe {recipe.name}: {recipe.origin}" if recipe is not None else "no recipe"
    changed = f"; given: {', '.join(given)}" if given else ""
    return (
        f"{chosen['solver']}, {chosen['steps']} steps, guidance {chosen['guidance_scale']:g} where "
        f"{low:g} < t < {high:g}, time shift {chosen['time_shift']:g}, seed {options.seed or 0} "
        f"({source}{changed})"
    )
