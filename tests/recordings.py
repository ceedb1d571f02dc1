"""The recorded inputs and outputs of the public code, in tests/data."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

DATA = Path(__file__).parent / "data"
NETWORKS = ("pixeldit_c2i", "pixeldit_c2i_postmod", "dip")
RELATIVES: dict[str, dict[str, Any]] = {"pixnerd": {}, "deco": {}, "flattendit": {}, "ddt": {"depth": 3}}
"""Networks of other papers, and the settings that their files do not tell."""


@cache
def recording(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata (JSON values decoded) of one recording."""
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        metadata = {k: json.loads(v) if v[:1] in "[{" else v for k, v in file.metadata().items()}
        return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118


def weights(name: str) -> dict[str, Tensor]:
    """The recorded weights under their public names."""
    tensors, _ = recording(name)
    if name == "dip":  # stored as int8 codes times one scale a tensor
        return {
            k[6:]: v.float() * tensors[f"scale.{k[6:]}"] for k, v in tensors.items() if k.startswith("codes.")
        }
    return {k[8:]: v for k, v in tensors.items() if k.startswith("weights.")}


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference as a share of the largest value of `theirs`."""
    return float((ours - theirs).abs().max() / theirs.abs().max())
