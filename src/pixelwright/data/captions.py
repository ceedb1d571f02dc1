"""What is said of an image: one caption, or several of which each epoch draws one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pixelwright.errors import UserError

KEYS = ("caption", "text", "prompt", "captions")
METADATA = "metadata.jsonl"


class Captions(NamedTuple):
    """The captions of an image, with weights that add up to 1."""

    texts: tuple[str, ...]
    weights: tuple[float, ...]

    def pick(self, number: float) -> str:
        """The caption for a uniform number in [0, 1)."""
        for text, weight in zip(self.texts, self.weights, strict=True):
            number -= weight
            if number < 0:
                return text
        return self.texts[-1]


def from_meta(meta: Mapping[str, Any], place: str) -> Captions | None:
    """The captions in a JSON object, None if there are none.

    {"caption": "..."} (or text, prompt), or {"captions": ["...", "..."]} with or without "weights": [2, 1].
    What is neither a text nor a list of texts is passed over: it means something else.

    Raises:
        UserError: weights that do not fit.
    """
    texts = next((texts for key in KEYS if (texts := _texts(meta.get(key)))), None)
    if texts is None:
        return None
    weights = [1] * len(texts) if meta.get("weights") is None else meta["weights"]
    good = isinstance(weights, list) and len(weights) == len(texts) and all(map(_is_weight, weights))
    if not good or not sum(weights) > 0:
        raise UserError(
            f"the weights of {place} are {str(weights)[:60]}: give {len(texts)} numbers, one for each caption"
        )
    kept = [(text, w / sum(weights)) for text, w in zip(texts, weights, strict=True) if w]
    return Captions(tuple(text for text, _ in kept), tuple(weight for _, weight in kept))


def _texts(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return []
    cleaned = [" ".join(text.split()) for text in texts]
    return cleaned if all(cleaned) else []


def _is_weight(value: object) -> bool:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return real and math.isfinite(value) and value >= 0  # type: ignore[operator, arg-type]


def from_text(text: str) -> Captions | None:
    """The one caption that a text file holds; None if it is empty."""
    text = " ".join(text.split())
    return Captions((text,), (1.0,)) if text else None


def read_folder(folder: Path) -> dict[str, Captions]:
    """Captions by the name of the image: of `metadata.jsonl`, a line for each image with its "file_name".

    Raises:
        UserError: a line that is no such object.
    """
    path = folder / METADATA
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        place = f'line {number} of "{path}"'
        try:
            meta = json.loads(line)
            name = meta["file_name"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{place} is malformed ({type(error).__name__}): "
                'write {"file_name": "...", "caption": "..."}'
            ) from None
        if (captions := from_meta(meta, place)) is not None:
            found[str(name)] = captions
    return found
