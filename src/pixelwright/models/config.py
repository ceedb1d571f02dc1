"""What a denoiser is made of, as data: frozen dataclasses, checked once, and their JSON form."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pixelwright.errors import UserError, nearest

Placement = Literal["post-hoc", "intermediate", "hybrid"]
Prediction = Literal["velocity", "x", "noise", "reverse-velocity"]


def _positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            kind = type(config).__name__
            raise UserError(f"{kind}.{name} is {value!r}; it must be a whole number of at least 1")


def _heads_fit(kind: str, size: int, num_heads: int) -> None:
    if size % num_heads or (size // num_heads) % 4:
        raise UserError(
            f"{kind}: width {size} does not divide into {num_heads} heads of a multiple of 4 channels "
            f"({size} / {num_heads} = {size / num_heads:g}); rotary embedding needs that"
        )


@dataclass(frozen=True)
class PatchDiTConfig:
    """The class-conditional global stage: N blocks of width D over P×P patches."""

    hidden_size: int
    depth: int
    num_heads: int
    patch_size: int
    num_classes: int

    def __post_init__(self) -> None:
        _positive(self, "hidden_size", "depth", "num_heads", "patch_size", "num_classes")
        _heads_fit("PatchDiTConfig", self.hidden_size, self.num_heads)


@dataclass(frozen=True)
class MMDiTConfig:
    """The text-conditional global stage: N blocks of two streams, image and text, of width D."""

    hidden_size: int
    depth: int
    num_heads: int
    patch_size: int
    text_size: int
    """Channels of the text encoder's features."""
    text_length: int
    """Most tokens of a caption."""
    mask_padding: bool = True
    """Whether padding of captions is hidden from attention; the published network attends to it."""
    sigma_time: bool = False
    """Whether the time embedder is fed 1000·(1−t), as in the published network, instead of t."""

    def __post_init__(self) -> None:
        _positive(self, "hidden_size", "depth", "num_heads", "patch_size", "text_size", "text_length")
        _heads_fit("MMDiTConfig", self.hidden_size, self.num_heads)
        for name in ("mask_padding", "sigma_time"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"MMDiTConfig.{name} is {getattr(self, name)!r}; it must be true or false")


@dataclass(frozen=True)
class UNetConfig:
    """DiP's Patch Detailer Head: one level of convolution and pooling per entry of `channels`."""

    channels: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.channels or any(
            isinstance(c, bool) or not isinstance(c, int) or c < 1 for c in self.channels
        ):
            raise UserError(f"UNetConfig.channels is {self.channels!r}; give one positive width per level")


@dataclass(frozen=True)
class PiTConfig:
    """PixelDiT's pixel-level blocks: M blocks of width D_pix per pixel, attention of width A over patches."""

    depth: int
    pixel_size: int
    attention_size: int
    num_heads: int
    post_modulation: bool = False

    def __post_init__(self) -> None:
        _positive(self, "depth", "pixel_size", "attention_size", "num_heads")
        _heads_fit("PiTConfig", self.attention_size, self.num_heads)
        if self.pixel_size % 4:
            raise UserError(
                f"PiTConfig.pixel_size is {self.pixel_size}; the 2-D position table needs a multiple of 4"
            )
        if not isinstance(self.post_modulation, bool):
            raise UserError(
                f"PiTConfig.post_modulation is {self.post_modulation!r}; it must be true or false"
            )


@dataclass(frozen=True)
class LinearConfig:
    """The DiT-only baseline: adaLN and one linear layer from token to patch. It has no settings."""


DetailerConfig = UNetConfig | PiTConfig | LinearConfig
DETAILER_TYPES: dict[str, type[DetailerConfig]] = {
    "unet": UNetConfig,
    "pit": PiTConfig,
    "linear": LinearConfig,
}
BackboneConfig = PatchDiTConfig | MMDiTConfig
BACKBONE_TYPES: dict[str, type[BackboneConfig]] = {"patch-dit": PatchDiTConfig, "mmdit": MMDiTConfig}
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
class Recipe:
    """The settings of a published result; `pixelwright sample` uses them unless told otherwise."""

    name: str
    solver: str
    steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    time_shift: float
    seed_rule: str
    """How the noise of an image is found."""
    origin: str
    """Where these settings are published."""

    def __post_init__(self) -> None:
        _texts(self, "name", "solver", "seed_rule", "origin")
        _positive(self, "steps")
        interval = self.guidance_interval
        if not isinstance(interval, tuple) or len(interval) != 2:
            raise UserError(f"Recipe.guidance_interval is {interval!r}; give two times, such as [0.1, 1.0]")
        numbers = {"guidance_scale": self.guidance_scale, "time_shift": self.time_shift}
        for name, value in [*numbers.items(), *(("guidance_interval", end) for end in interval)]:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise UserError(f"Recipe.{name} is {value!r}; it must be a finite number")
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise UserError(f"Recipe.guidance_interval is {interval}; it needs 0 <= low <= high <= 1")
        if self.time_shift <= 0:
            raise UserError(f"Recipe.time_shift is {self.time_shift}; it must be above 0 (1 = none)")


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


NOTE_TYPES: dict[str, type[Recipe] | type[Provenance] | type[TextNote]] = {
    "recipe": Recipe,
    "provenance": Provenance,
    "text": TextNote,
}


@dataclass(frozen=True)
class DenoiserConfig:
    """One denoiser = backbone × detailer.

    `placement` is where the detailer sits (DiP section 3.4), `prediction` what the network's output means,
    `image_size` (rows, columns) the resolution it was made for, used when none is asked for. `text` is
    the encoder of its captions; `recipe` and `provenance` describe published weights. These three do not
    change the network.
    """

    backbone: BackboneConfig
    detailer: DetailerConfig
    name: str = "custom"
    placement: Placement = "post-hoc"
    prediction: Prediction = "velocity"
    image_size: tuple[int, int] | None = None
    class_names: tuple[str, ...] | None = field(default=None, repr=False)
    recipe: Recipe | None = None
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
        patch_size = self.backbone.patch_size
        if isinstance(self.detailer, UNetConfig) and patch_size % 2 ** len(self.detailer.channels):
            raise UserError(
                f"a U-Net of {len(self.detailer.channels)} levels halves the patch that often, which "
                f"patch_size {patch_size} does not allow; give fewer channels or another patch size"
            )
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
        return self.backbone.num_classes if isinstance(self.backbone, PatchDiTConfig) else 0

    @property
    def takes_text(self) -> bool:
        """Whether the condition is a `TextCondition` rather than labels."""
        return isinstance(self.backbone, MMDiTConfig)

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
    for part, types in (("backbone", BACKBONE_TYPES), ("detailer", DETAILER_TYPES)):
        value = getattr(config, part)
        kind = next(name for name, cls in types.items() if cls is type(value))
        plain[part] = {"type": kind, **dataclasses.asdict(value)}
    plain |= {part: dataclasses.asdict(plain[part]) for part in NOTE_TYPES if part in plain}
    return json.loads(json.dumps(plain))  # tuples become lists


def from_dict(data: Mapping[str, Any], place: str = "config") -> DenoiserConfig:
    """A config from its JSON form. Unknown, missing and mistyped keys raise `UserError` naming `place`."""
    data = dict(_mapping(data, place))
    for part, types in (("backbone", BACKBONE_TYPES), ("detailer", DETAILER_TYPES)):
        if part not in data:
            raise UserError(f'{place}: the key "{part}" is missing')
        section = dict(_mapping(data[part], f"{place}: {part}"))
        kind = section.pop("type", None)
        if kind not in types:
            raise UserError(f'{place}: {part}.type is "{kind}"{nearest(str(kind), types)}')
        data[part] = _build(types[kind], section, f"{place}: {part}")
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
