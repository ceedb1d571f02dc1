"""LoRA adapters in the layout of peft: `adapter_config.json` and `adapter_model.safetensors`.

Beside them, `model_config.json` is the config of the model with the adapter, whose classes may be others than
those of the model it was made on. An adapter is merged where it is used: W + weight · (W' − W), in float32,
W' being the weight with the adapter as peft merges it. Needs the extra `finetune`.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pixelwright.errors import UserError, nearest
from pixelwright.files import read_json, sha256, write_safetensors, write_text
from pixelwright.hub.files import open_safetensors
from pixelwright.hub.remote import SCHEME, fetch
from pixelwright.models.config import DenoiserConfig, Provenance, from_dict, to_dict
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import LARGEST_CONFIG, check_finite, check_weights, skeleton
from pixelwright.models.transfer import for_classes

SETTINGS, WEIGHTS, MODEL = "adapter_config.json", "adapter_model.safetensors", "model_config.json"
FOLDER = "adapter"  # in the folder of a run
NAME = "default"  # what peft calls the one adapter in a model
PREFIX = "base_model.model."  # of the names in an adapter's file, as peft writes them
MAGNITUDE = ".lora_magnitude_vector"  # of DoRA, which peft saves without ".weight"
UNDERSTOOD = {
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "modules_to_save",
    "use_dora",
    "use_rslora",
}
UNDERSTOOD |= {"rank_pattern", "alpha_pattern", "exclude_modules", "layers_to_transform", "layers_pattern"}
NOTES = {"peft_type", "task_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
NOTES |= {"auto_mapping", "init_lora_weights", "megatron_core"}  # no say in the numbers once it is trained

Adapters = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[Any, float]
"""An adapter's folder, several, or folders with the weight of each."""


def peft() -> Any:
    """The package. Raises UserError: it is not installed."""
    try:
        import peft as package  # 4 seconds, which only adapters need
    except ImportError:
        raise UserError('adapters need peft: pip install "pixelwright[finetune]"') from None
    return package


@dataclasses.dataclass(frozen=True)
class Adapter:
    """LoRA matrices, and modules trained as a whole, of one model."""

    place: str  # what error messages call it
    config: DenoiserConfig | None  # of the model with it; None: as without it
    lora: Any  # peft's LoraConfig
    weights: Mapping[str, Tensor]  # by their names in a model that `inject` has changed
    digest: str = ""  # SHA-256 of the file, where it is from one


def inject(model: PixelDenoiser, lora: Any, empty: bool = False) -> None:
    """Put the matrices of an adapter into a model, in place; they alone are trained. With `empty` they have
    no storage."""
    # Modules to save are trained in place: peft would keep a copy of each.
    matrices = dataclasses.replace(lora, modules_to_save=None)
    peft().inject_adapter_in_model(matrices, model, NAME, low_cpu_mem_usage=empty)


# ---------------------------------------------------------------- files
def save_adapter(adapter: Adapter, folder: Path) -> None:
    """Write an adapter's folder; each file appears only when it is whole."""
    tensors = {_outer(name): tensor.detach() for name, tensor in adapter.weights.items()}
    write_safetensors(folder / WEIGHTS, tensors, tensors.__getitem__, {"format": "pt"})
    settings = {k: sorted(v) if isinstance(v, set) else v for k, v in adapter.lora.to_dict().items()}
    write_text(folder / SETTINGS, json.dumps({**settings, "inference_mode": True}, indent=2) + "\n")
    if adapter.config is not None:
        text = json.dumps(to_dict(adapter.config), indent=2, ensure_ascii=False)
        write_text(folder / MODEL, text + "\n")


def find_adapter(folder: Path) -> Path | None:
    """The adapter's folder in the folder of a run, or that itself; None where there is no adapter."""
    return next((each for each in (folder, folder / FOLDER) if (each / SETTINGS).is_file()), None)


def read_adapter(source: str | os.PathLike[str]) -> Adapter:
    """The adapter in a folder, in the folder of the run that made it or at hf://OWNER/NAME. Raises UserError:
    none, a damaged one, or one with what is not known here."""
    on_hub = str(source).startswith(SCHEME)
    given = fetch(str(source), (SETTINGS, MODEL)).parent if on_hub else Path(source).expanduser()
    if (folder := find_adapter(given)) is None:
        raise UserError(f"{given} holds no adapter: give a folder with {SETTINGS} and {WEIGHTS}, or its run")
    lora = _settings(folder / SETTINGS)
    config, model, file = None, folder / MODEL, folder / WEIGHTS
    if model.is_file():
        config = from_dict(read_json(model, LARGEST_CONFIG), str(model))
    if not file.is_file():
        raise UserError(f"{file} does not exist, but {SETTINGS} does: copy the whole folder")
    opened = open_safetensors(file)
    tensors = {name: opened.read(name).clone() for name in opened.specs}
    for name, tensor in tensors.items():
        check_finite(name, tensor, str(file))
    return Adapter(str(folder), config, lora, {_inner(name): x for name, x in tensors.items()}, sha256(file))


def _settings(file: Path) -> Any:
    """peft's settings in a file, of which all that is not known must be as peft has it by default."""
    values = read_json(file, LARGEST_CONFIG)
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise UserError(f"{file} is no LoRA adapter's: peft_type must be LORA")
    usual = peft().LoraConfig().to_dict()
    others = [key for key in values.keys() - UNDERSTOOD - NOTES if values[key] != usual.get(key)]
    if others:
        raise UserError(f"{file} uses {', '.join(sorted(others))}, which is not supported: train it without")
    known = {key: values[key] for key in UNDERSTOOD | {"base_model_name_or_path"} if key in values}
    return peft().LoraConfig(**known)


def _outer(name: str) -> str:
    """The name of a tensor in an adapter's file."""
    name = name.replace(f".{NAME}.", ".").replace(f"{MAGNITUDE}.weight", MAGNITUDE)
    return PREFIX + name


def _inner(name: str) -> str:
    """The name in a model of a tensor in an adapter's file."""
    name = name.removeprefix(PREFIX)
    if name.endswith(MAGNITUDE):
        return f"{name}.{NAME}.weight"
    for kind in (".lora_A.", ".lora_B."):
        name = name.replace(kind, f"{kind}{NAME}.")
    return name


# ---------------------------------------------------------------- merging
def with_adapters(model: PixelDenoiser, adapters: Adapters) -> PixelDenoiser:
    """A model with adapters merged into it, each with its weight, which is 1 where none is given.

    Raises UserError: adapters of another model, or of different classes; a weight that is no finite number.
    """
    return merge(model, read_adapters(adapters))


def config_with(config: DenoiserConfig, adapters: Adapters) -> DenoiserConfig:
    """The config that `with_adapters` gives a model. Raises UserError: as it does."""
    return _config_with(config, [adapter for adapter, _ in read_adapters(adapters)])


def read_adapters(adapters: Adapters) -> list[tuple[Adapter, float]]:
    """Adapters, each with its weight, by default 1. Raises UserError: see `with_adapters`."""
    places = [adapters] if isinstance(adapters, (str, os.PathLike)) else list(adapters)
    weights = adapters if isinstance(adapters, Mapping) else dict.fromkeys(places, 1.0)
    for place, weight in weights.items():
        if not isinstance(weight, (int, float)) or not -1e3 < weight < 1e3:
            raise UserError(f"the weight of adapter {place} is {weight!r}: give a number such as 0.7")
    found = [read_adapter(place) for place in places]
    for number, adapter in enumerate(found):
        if adapter.digest in [other.digest for other in found[:number]]:
            raise UserError(f"adapter {adapter.place} is given twice: give it once, with a weight")
    return [(adapter, weights[place]) for adapter, place in zip(found, places, strict=True)]


def merge(model: PixelDenoiser, adapters: Sequence[tuple[Adapter, float]]) -> PixelDenoiser:
    """See `with_adapters`; `model` itself stays as it is."""
    merged = _for_classes_of(model, [adapter for adapter, _ in adapters])
    whole, sums = merged.state_dict(), dict[str, Tensor]()
    alone = [weight for _, weight in adapters if weight] == [1]  # then W' to the bit
    for adapter, weight in adapters:
        for name, before, after in _merged(merged, adapter):
            if weight:
                change = after if alone else weight * (after - before)
                sums[name] = sums[name] + change if name in sums else change
    for name, change in sums.items():
        whole[name].copy_(change if alone else whole[name].float() + change)
    return merged


def _config_with(old: DenoiserConfig, adapters: Sequence[Adapter]) -> DenoiserConfig:
    """The config of a model with the classes that adapters have, and a note of them."""
    config = old
    for adapter in adapters:
        if adapter.digest:
            config = dataclasses.replace(config, provenance=_noted(config.provenance, adapter))
        if (new := adapter.config) is None:
            continue
        if changed := differing(config, new):
            raise UserError(f"{adapter.place} is an adapter of another model ({'; '.join(changed)})")
        if old.class_names != config.class_names != new.class_names:
            raise UserError(f"{adapter.place} has other classes than {adapters[0].place}: use one at a time")
        own: dict[str, Any] = {"backbone": new.backbone, "class_names": new.class_names}
        own |= {"sampler": new.sampler or config.sampler, "image_size": new.image_size or config.image_size}
        config = dataclasses.replace(config, **own)
    return config


def _noted(old: Provenance | None, adapter: Adapter) -> Provenance:
    """Where weights come from that an adapter is merged into. Raises UserError: it is in there already."""
    note = f"adapter {adapter.digest[:12]}"
    if old is None:
        return Provenance((WEIGHTS,), (adapter.digest,), f"a model with {note}")
    if note in old.read:
        raise UserError(f"{adapter.place} is merged into this model already: leave it out")
    digests = (*old.sha256, adapter.digest) if old.sha256 else ()
    return dataclasses.replace(old, files=(*old.files, WEIGHTS), sha256=digests, read=f"{old.read}, {note}")


def _for_classes_of(model: PixelDenoiser, adapters: Sequence[Adapter]) -> PixelDenoiser:
    """A copy of a model for the classes that adapters have."""
    config = _config_with(model.config, adapters)
    weights, _ = for_classes(model, config)
    copy = skeleton(config)
    copy.load_state_dict({name: value.detach().clone() for name, value in weights.items()}, assign=True)
    return copy.requires_grad_(False).eval()


def differing(old: DenoiserConfig, new: DenoiserConfig) -> list[str]:
    """The parts of two models that differ beyond classes and notes, in words."""
    found = []
    for part in ("backbone", "detailer", "placement", "prediction"):
        was, now = getattr(old, part), getattr(new, part)
        if part == "backbone" and type(was) is type(now) and not old.takes_text:
            now = dataclasses.replace(now, num_classes=was.num_classes)
        if was != now:
            found.append(f"{part}: {was} -> {now}")
    return found


def _merged(model: PixelDenoiser, adapter: Adapter) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each weight of a model that an adapter changes: its name, and in float32 what it is and would be. The
    model stays as it is."""
    whole = dict(model.named_parameters())
    adapted = skeleton(model.config)
    adapted.load_state_dict(model.state_dict(), assign=True)  # tensors shared
    saved = adapter.lora.modules_to_save or ()
    try:
        inject(adapted, adapter.lora, empty=True)
        whole_ones = {n for n in whole for part in saved if f".{part}." in f".{n}"}
        needed = {n: p for n, p in adapted.named_parameters() if p.is_meta or n in whole_ones}
        check_weights({name: p.shape for name, p in needed.items()}, adapter.weights, adapter.place)
    except ValueError as error:  # peft's, or a UserError
        raise UserError(f"{error}: is it an adapter of another model?") from None
    adapted.load_state_dict(dict(adapter.weights), assign=True, strict=False)
    for name in needed.keys() & whole.keys():
        yield name, whole[name].detach().float(), adapter.weights[name].float()
    for name, layer in adapted.named_modules():
        base = getattr(layer, "base_layer", None)
        if isinstance(base, nn.Module):
            before = base.weight.detach().float()  # type: ignore[operator]
            base.weight = nn.Parameter(before.clone(), requires_grad=False)
            layer.merge(adapter_names=[NAME])
            yield f"{name}.weight", before, base.weight.detach()
            base.weight = None  # type: ignore[assignment]  # one at a time in float32


# ---------------------------------------------------------------- in the diffusers pipeline
class LoraPipeline:
    """Adapters of a pipeline. They are merged into its weights, so that all that makes a plain model fast
    works as before; the weights without them are kept beside."""

    transformer: Any
    _bare: PixelDenoiser | None = None
    _adapters: dict[str, str | os.PathLike[str]]
    _active: dict[str, float]

    def load_lora_weights(
        self, pretrained_model_name_or_path: str | os.PathLike[str], adapter_name: str | None = None
    ) -> None:
        """Add an adapter, with the weight 1, beside those that are active. Raises UserError: an adapter of
        another model, or a name that is taken.

        Args:
            pretrained_model_name_or_path: the folder of an adapter, or of the run that made it.
            adapter_name: what `set_adapters` calls it; default_0, default_1, ... otherwise.
        """
        known = self._adapters if self._bare is not None else {}
        name = adapter_name or f"default_{len(known)}"
        if name in known:
            raise UserError(
                f'adapter_name is "{name}", which is taken: give another, or unload_lora_weights()'
            )
        active = self._active if known else {}
        self._merge(known | {name: pretrained_model_name_or_path}, active | {name: 1.0})

    def set_adapters(
        self, adapter_names: Sequence[str] | str, adapter_weights: Sequence[float] | float | None = None
    ) -> None:
        """Use these adapters alone, each with its weight, by default 1. Raises UserError: unknown names, or
        another number of weights."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        known = self._adapters if self._bare is not None else {}
        for name in names:
            if name not in known:
                raise UserError(f'no adapter "{name}" is loaded{nearest(name, known)}')
        given = 1.0 if adapter_weights is None else adapter_weights
        weights = [float(given)] * len(names) if isinstance(given, (int, float)) else list(given)
        if len(weights) != len(names):
            raise UserError(f"{len(weights)} weights are given for {len(names)} adapters: give one each")
        self._merge(known, dict(zip(names, weights, strict=True)))

    def get_active_adapters(self) -> list[str]:
        """The names of the adapters in use."""
        return list(self._active) if self._bare is not None else []

    def get_list_adapters(self) -> dict[str, list[str]]:
        """The names of all adapters, in use or not."""
        return {"transformer": list(self._adapters)} if self._bare is not None else {}

    def unload_lora_weights(self) -> None:
        """Back to the weights without adapters."""
        if self._bare is not None:
            self._replace(self._bare)
            self._bare = None

    def _merge(self, known: dict[str, str | os.PathLike[str]], active: dict[str, float]) -> None:
        bare = self.transformer.denoiser if self._bare is None else self._bare
        used = {known[name]: weight for name, weight in active.items()}
        self._replace(with_adapters(bare, used))
        self._bare, self._adapters, self._active = bare, known, active

    def _replace(self, denoiser: PixelDenoiser) -> None:
        old = self.transformer.denoiser
        self.transformer.denoiser = denoiser.to(old.device)
        self.transformer.register_to_config(architecture=to_dict(denoiser.config))
