"""Which tensors of a file are the network's: the prefixes that training tools and repacks put before them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pixelwright.errors import UserError, nearest
from pixelwright.models.folder import shorten

Which = Literal["ema", "raw"]
SETS: dict[str, str] = {"ema": "ema_denoiser.", "raw": "denoiser."}
"""The prefixes of the two sets of weights in a published Lightning file."""

# Words before a network's names, in any order and nesting: of Lightning modules, torch.compile, data-parallel
# wrappers and repacks, and of the dicts that trainers save.
_WORD = (
    "denoiser|core|model|diffusion_model|net|network|module|transformer|student|unet|online_model|weights|params"
    "|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|state_dict|model_state_dict"
)
_RAW = re.compile(_WORD)
# Those of averages: "ema", "net_ema", "ema_denoiser", "state_dict_ema"; of "model_ema1" and "…2" the first.
_EMA = re.compile(rf"(?:(?:{_WORD})_)?ema(\d*)(?:_(?:{_WORD}))?(\d*)")
# Wrappers of a network's parts stand in the middle of names, too.
_INNER = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What stands beside the network: REPA's projector, the empty caption, text encoders, a VAE, counters.
_BESIDE = re.compile(
    r"(diffusion_trainer|_repa_projector|text_encoders?|cond_stage_model|first_stage_model|vae)\..*"
    r"|dino_conditioner\.encoder\..*"  # frozen, and read from a place of its own
    r"|y_embedder\.y_embedding|n_averaged|initted|step"
)
_TABLES = re.compile("pos_embed")  # no network has these alone


@dataclass(frozen=True)
class NetworkTensors:
    """One network's tensors among all that a file holds."""

    prefix: str
    kind: Which | None  # None where the file holds one set and does not say which
    names: dict[str, str]  # bare name -> the name in the file

    @property
    def description(self) -> str:
        """Which tensors these are, in words."""
        kinds = {"ema": " (EMA weights)", "raw": " (raw weights)", None: ""}
        return (f'"{self.prefix}"' if self.prefix else "all tensors") + kinds[self.kind]


def is_container(key: object) -> bool:
    """Whether a checkpoint keeps a network's tensors in a dict of this name."""
    return isinstance(key, str) and not split(f"{key}.")[1]


def split(name: str) -> tuple[str, str]:
    """The prefix of a name, and the name without it and without the wrappers of parts."""
    words = name.split(".")
    known = (i for i, word in enumerate(words) if not (_RAW.fullmatch(word) or _EMA.fullmatch(word)))
    bare = ".".join(words[next(known, len(words)) :])
    return name.removesuffix(bare), _INNER.sub("", bare)


def network_tensors(names: Iterable[str], which: str | None = None) -> NetworkTensors:
    """The network's tensors among the names of a file; its EMA where it has one and none is asked for. Raises
    UserError: tensors that belong to no known part of a published file, or a set that is not there."""
    if which is not None and which not in SETS:
        raise UserError(f'weights "{which}" are those of a run{nearest(which, SETS)}')
    sets: dict[str, dict[str, str]] = {}
    tables: dict[str, dict[str, str]] = {}
    for name in names:
        prefix, bare = split(name)
        if _TABLES.fullmatch(bare):
            tables.setdefault(prefix, {})[bare] = name
        elif not _BESIDE.fullmatch(bare):
            sets.setdefault(prefix, {})[bare] = name
    averages = [prefix for prefix in sets if any(map(_EMA.fullmatch, prefix.split(".")))]
    plain = [prefix for prefix in sets if prefix not in averages]
    raw = [p for p in plain if averages or "denoiser" in p.split(".")]
    averages.sort(key=_number)
    choices = {"ema": averages, "raw": raw, None: [*averages, *plain]}[which]
    if which is not None and not choices:
        asked = f"{which.upper() if which == 'ema' else which} weights are asked for"
        none = f'no key begins with "{SETS[which]}" or the like'
        raise UserError(f"{asked}, but {none}; leave the choice out to take what is there")
    if len(plain) > 1:
        known = choices[0] if choices[0] in averages else max(plain, key=lambda prefix: len(sets[prefix]))
        strange = max((p for p in plain if p != known), key=lambda prefix: prefix != SETS["raw"])
        key = shorten(next(iter(sets[strange].values())))
        raise UserError(f'"{key}" stands beside keys with the prefix "{known}"; it is not known')
    prefix = choices[0] if choices else ""
    kind: Which | None = "ema" if prefix in averages else "raw" if prefix in raw else None
    return NetworkTensors(prefix, kind, sets.get(prefix, {}) | tables.get(prefix, {}))


def _number(prefix: str) -> int:
    """That of an average, where there are several."""
    found = (match for word in prefix.split(".") if (match := _EMA.fullmatch(word)))
    return max(int(match[1] or match[2] or 0) for match in found)
