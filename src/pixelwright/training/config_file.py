"""Configs of runs as YAML files, and what a resumed run may change in them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pixelwright.config import check_keys, convert, join, merge, read, read_yaml, to_dict
from pixelwright.errors import UserError
from pixelwright.files import write_text
from pixelwright.registry import import_parts
from pixelwright.training.config import LoopConfig, TrainConfig
from pixelwright.training.objectives import OBJECTIVES


def save_config(config: LoopConfig, path: Path) -> None:
    """Write a config as YAML, atomically."""
    write_text(path, yaml.safe_dump(to_dict(config), sort_keys=False))


def load_config(
    *files: str | Path, changes: Mapping[str, Any] | None = None, imports: bool = False
) -> TrainConfig:
    """The config in YAML files, as `pixelwright train --config FILE` reads it.

    Args:
        files: later ones change single settings of earlier ones.
        changes: nested settings that go before those of all files.
        imports: import the Python files and modules that the setting `imports` lists, which may do anything.

    Raises:
        UserError: a file that cannot be read, a key that is unknown or missing, or a value that does not fit.
    """
    sources = []
    for file in files:
        values = read_yaml(file)
        try:
            check_keys(TrainConfig, values)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        sources.append(values)
    settings = merge(*sources, changes or {})
    if settings.get("init") is not None:  # whose architecture it is, unless another is named
        settings = merge({"model": {"preset": settings["init"]}}, settings)
    if imports:
        import_parts(convert(settings.get("imports", ()), tuple[str, ...], "imports"))
    place = str(files[0]) if len(files) == 1 and not changes else ""
    return read(TrainConfig, settings, place)


def read_settings(path: Path) -> LoopConfig:
    """The settings in a run folder: a `TrainConfig`, or those of a run that was built from objects."""
    values = read_yaml(path)
    from_file = isinstance(values, dict) and "model" in values
    return load_config(path) if from_file else read(LoopConfig, values, str(path))


# ---------------------------------------------------------------- what a resumed run may change
# Where the run lives, how long, on what, and what it reports: beyond rounding they do not change what is
# computed.
FREE = {
    "run",
    "imports",
    "steps",
    "accumulate",
    "device",
    "compile",
    "attention",
    "max_skipped",
    "evaluation",
    "loggers",
}
FREE |= {"log_every", "checkpoint_every", "keep", "keep_every", "sample_every", "sample", "parallel"}
FREE |= {"data.workers", "data.cache", "data.stall_seconds", "text.cache", "text.offload"}
FREE |= {"health.measure_every", "health.max_rollbacks"}


def _fixed(part: dict[str, Any]) -> dict[str, Any]:
    """The settings of an objective without those that its config names as FREE."""
    free = getattr(OBJECTIVES.config_type(part["type"], "objectives"), "FREE", ())
    return {key: value for key, value in part.items() if key not in (*free, "type")}


def differences(old: dict[str, Any], new: dict[str, Any], only: str = "") -> list[str]:
    """The settings that change the result and differ between two configs in their `to_dict` form, as
    "key: old -> new". `only` limits them to the groups under one key."""

    def flat(values: dict[str, Any], where: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            name = join(where, key)
            if name in FREE:
                continue
            if key == "objectives":
                value = {part["type"]: _fixed(part) for part in value}
            found.update(flat(value, name) if isinstance(value, dict) else {name: value})
        return found

    before, after = flat(old), flat(new)
    pairs = {key: (before.get(key), after.get(key)) for key in after | before if key.startswith(only)}
    return [f"{key}: {was!r} -> {now!r}" for key, (was, now) in pairs.items() if was != now]
