"""What a denoiser is made of, as data: frozen dataclasses, checked once, and their JSON form."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pixelwright.config import Config, FiniteFloat, PositiveFloat, PositiveInt, UnitInterval
from pixelwright.errors import UserError, nearest
from pixelwright.models.backbones import BACKBONES
from pixelwright.models.detailers import DETAILERS
from pixelwright.models.mmdit import MMDiTConfig  # noqa: F401 (registers the backbone)
from pixelwright.models.prediction import Prediction
from pixelwright.registry import Registry

PARTS: dict[str, Registry[Any]] = {"backbone": BACKBONES, "detailer": DETAILERS}
Placement = Literal["post-hoc", "intermediate", "hybrid"]
LONGEST_PREFIX = 20_000


def _texts(config: Any, *names: str) -> None:
    """These texts are shown on terminals, so none may hold control characters or be endless."""
    for name in names:
        value = getattr(config, name)
        for text in value if isinstance(value, tuple) else (value,):
            if not isinstance(text, str) or not text.isprintable() or len(text) > 1000:
                kind = type(config).__name__
                raise UserError(f"{kind}.{name} is {str(value)[:40]!r}; one line of plain text is needed")


@dataclass(frozen=True)
class SamplerSettings(Config, where="sampler"):
    """How images are drawn: solver, timesteps and guidance."""

    solver: str = "ab2"
    """Solver: euler, heun, ab2, ab2-fixed or dpmpp-2m."""
    steps: PositiveInt = 50
    """Steps of the solver."""
    guidance_scale: FiniteFloat = 1.0
    """Classifier-free guidance; 1 is without."""
    guidance_interval: tuple[UnitInterval, UnitInterval] | None = None
    """Guidance is on where LO < t < HI (0 is noise, 1 data); without an interval everywhere, at t = 0 too."""
    time_shift: PositiveFloat = 1.0
    """Shift of the timesteps; above 1 spends more steps near the noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        interval = self.guidance_interval
        if interval is not None and interval[0] > interval[1]:
            raise UserError(f"{self.key('guidance_interval')} is {list(interval)}: it needs LO <= HI")


@dataclass(frozen=True)
class SamplerPreset(SamplerSettings, where="sampler"):
    """The settings of a published result, and where they come from."""

    name: str = ""
    seed_rule: str = ""
    """How the noise of an image is found."""
    origin: str = ""
    """Where these settings are published."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _texts(self, "solver", "name", "seed_rule", "origin")


@dataclass(frozen=True)
class Provenance:
    """Where weights come from. No date, so that converting twice gives the same bytes."""

    files: tuple[str, ...]
    """Names of the files that were read, or their hf:// addresses."""
    sha256: tuple[str, ...]
    """Digest of each file; empty where a model was loaded without being converted."""
    read: str
    """What of the files was used, such as which of several sets of weights."""
    licence: str | None = None
    """What the source says about the use of its weights."""

    def __post_init__(self) -> None:
        for name in ("files", "sha256"):
            if not isinstance(getattr(self, name), tuple):
                raise UserError(f"Provenance.{name} is {getattr(self, name)!r}; give a list of texts")
        _texts(self, "files", "sha256", "read", *(("licence",) if self.licence is not None else ()))
        if self.sha256 and len(self.sha256) != len(self.files):
            raise UserError(f"Provenance has {len(self.sha256)} sha256 for {len(self.files)} files")


@dataclass(frozen=True)
class TextNote:
    """The text encoder whose features a model was trained with; see `pixelwright.text`."""

    encoder: str
    """Its kind, such as gemma."""
    path: str | None = None
    """The folder or hub name it was read from, where that is not the kind's own."""
    prefix: str = ""
    """What was put before each prompt, but not before the empty one."""
    checksum: str | None = None
    """Digest of its files, where a training run found it."""

    def __post_init__(self) -> None:
        _texts(self, "encoder", *(n for n in ("path", "checksum") if getattr(self, n) is not None))
        if not isinstance(self.prefix, str) or len(self.prefix) > LONGEST_PREFIX:
            raise UserError(
                f"TextNote.prefix is {str(self.prefix)[:40]!r}; give at most {LONGEST_PREFIX} characters"
            )


NOTE_TYPES: dict[str, type[SamplerPreset] | type[Provenance] | type[TextNote]] = {
    "sampler": SamplerPreset,
    "provenance": Provenance,
    "text": TextNote,
}


@dataclass(frozen=True)
class DenoiserConfig:
    """One denoiser = backbone × detailer, each the config of a registered part.

    `placement` is where the detailer sits (DiP section 3.4), `prediction` what the network's output means,
    `image_size` (rows, columns) the resolution it was made for, used when none is asked for. `text` is
    the encoder of its captions, `sampler` the settings it is best sampled with, `provenance` where its
    weights come from. These three do not change the network.
    """

    backbone: Any
    detailer: Any
    name: str = "custom"
    placement: Placement = "post-hoc"
    prediction: Prediction = "velocity"
    image_size: tuple[int, int] | None = None
    class_names: tuple[str, ...] | None = field(default=None, repr=False)
    sampler: SamplerPreset | None = None
    provenance: Provenance | None = None
    text: TextNote | None = None

    def __post_init__(self) -> None:
        for part, cls in NOTE_TYPES.items():
            if not isinstance(getattr(self, part), (cls, type(None))):
                raise UserError(f"DenoiserConfig.{part} is {getattr(self, part)!r}; give a {cls.__name__}")
        for name, kind in (("placement", Placement), ("prediction", Prediction)):
            value, choices = getattr(self, name), get_args(kind)
            if value not in choices:
                raise UserError(f'DenoiserConfig.{name} is "{value}"{nearest(str(value), choices)}')
        if self.text is not None and not self.takes_text:
            raise UserError("DenoiserConfig.text is given, but the model draws from classes; leave it out")
        BACKBONES.name_of(self.backbone), DETAILERS.name_of(self.detailer)
        if hasattr(self.detailer, "check"):
            self.detailer.check(self.patch_size)
        if self.placement != "post-hoc" and self.backbone.depth < 2:
            raise UserError(
                f'placement "{self.placement}" needs at least 2 blocks, depth is {self.backbone.depth}'
            )
        if self.image_size is not None:
            if not isinstance(self.image_size, (tuple, list)) or len(self.image_size) != 2:
                raise UserError(f"image_size is {self.image_size!r}; give (rows, columns)")
            self.check_size(*self.image_size)
        if not isinstance(self.class_names, (tuple, list, type(None))):
            raise UserError(f"class_names is {self.class_names!r}; give one name per class")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise UserError(f"{len(self.class_names)} class_names are given for {self.num_classes} classes")

    @property
    def patch_size(self) -> int:
        """P: side of the square patches of the global stage, in pixels."""
        return self.backbone.patch_size

    @property
    def num_classes(self) -> int:
        """Number of classes; label `num_classes` is the null class. 0 where the condition is text."""
        return 0 if self.takes_text else self.backbone.num_classes

    @property
    def takes_text(self) -> bool:
        """Whether the condition is a `TextCondition` rather than labels."""
        return self.backbone.takes_text

    def check_size(self, height: int, width: int) -> None:
        """Raise `UserError` unless an image of height × width cuts into whole patches."""
        for side in (height, width):
            if isinstance(side, bool) or not isinstance(side, int) or side < 1 or side % self.patch_size:
                low = max(1, int(side) // self.patch_size) * self.patch_size if math.isfinite(side) else 0
                raise UserError(
                    f"size {height}x{width} does not divide into patches of {self.patch_size}: "
                    f"give multiples of {self.patch_size}, such as {low} for {side}"
                )


def to_dict(config: DenoiserConfig) -> dict[str, Any]:
    """The JSON form of a config; `from_dict` reads it back."""
    plain = {key: value for key, value in vars(config).items() if value is not None}
    for part, registry in PARTS.items():
        plain[part] = registry.to_dict(getattr(config, part))
    plain |= {part: dataclasses.asdict(plain[part]) for part in NOTE_TYPES if part in plain}
    return json.loads(json.dumps(plain))  # tuples become lists


def from_dict(data: Mapping[str, Any], place: str = "config") -> DenoiserConfig:
    """A config from its JSON form. Unknown, missing and mistyped keys raise `UserError` naming `place`."""
    data = dict(_mapping(data, place))
    for part, registry in PARTS.items():
        if part not in data:
            raise UserError(f'{place}: the key "{part}" is missing')
        data[part] = registry.from_dict(_mapping(data[part], f"{place}: {part}"), f"{place}: {part}")
    for part, cls in NOTE_TYPES.items():
        if part in data:
            data[part] = _build(cls, dict(_mapping(data[part], f"{place}: {part}")), f"{place}: {part}")
    return _build(DenoiserConfig, data, place)


def _mapping(data: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise UserError(f"{place} is {str(data)[:40]!r}; expected an object with named settings")
    return data


def _build(cls: type[Any], data: dict[str, Any], place: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise UserError(f'{place}: unknown key "{key}"{nearest(key, fields)}')
    for name, spec in fields.items():
        if name not in data and spec.default is dataclasses.MISSING:
            raise UserError(f'{place}: the key "{name}" is missing')
    values = {key: _tuple(value, f"{place}: {key}") for key, value in data.items()}
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _tuple(value: Any, place: str) -> Any:
    if isinstance(value, list):
        if any(isinstance(item, (list, dict)) for item in value):
            raise UserError(f"{place} is nested too deeply: {str(value)[:40]!r}")
        return tuple(value)
    return value
