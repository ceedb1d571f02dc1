"""The captions of an image: one, or several of which each epoch draws one."""

import logging
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pixelwright.data.layout import comparable
from pixelwright.errors import UserError
from pixelwright.files import decode_lines, decode_text, parse_json

KEYS = ("caption", "text", "prompt", "captions")
METADATA = "metadata.jsonl"
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, as a damaged JSON text may hold
logger = logging.getLogger(__name__)


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
    What is neither a text nor a list of texts is passed over: it means something else. So are empty texts.

    Raises UserError: weights that do not fit.
    """
    for key in KEYS:
        texts = _texts(meta.get(key))
        if any(texts):
            break
    else:
        return None
    weights = [1] * len(texts) if meta.get("weights") is None else meta["weights"]
    good = isinstance(weights, list) and len(weights) == len(texts) and all(map(_is_weight, weights))
    kept = [(text, w) for text, w in zip(texts, weights, strict=True) if text and w] if good else []
    if not kept:
        many = f"give {len(texts)} numbers, one for each caption"
        raise UserError(f"the weights of {place} are {str(weights)[:60]}: {many}")
    total = sum(weight for _, weight in kept)
    return Captions(tuple(text for text, _ in kept), tuple(weight / total for _, weight in kept))


def _texts(value: object) -> list[str]:
    """The texts of a value, empty ones included; [] if it is none and no list of them."""
    texts = value if isinstance(value, list) else [value]
    texts = ["" if text is None or text != text else text for text in texts]  # NaN is what pandas writes
    return list(map(_clean, texts)) if all(isinstance(text, str) for text in texts) else []


def _clean(text: str) -> str:
    """Blanks and line ends between words become one space; other characters that Unicode calls blank stay."""
    return re.sub(r"[ \t\r\n\v\f]+", " ", SURROGATE.sub("\ufffd", text)).strip()


def halves(meta: Mapping[str, Any]) -> int:
    """How many values of a JSON object hold half of a character, which `from_meta` replaces."""
    return sum(SURROGATE.search(str(value)) is not None for value in meta.values())


def _is_weight(value: object) -> bool:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return real and math.isfinite(value) and value >= 0  # type: ignore[operator, arg-type]


def from_text(data: bytes, place: str) -> Captions | None:
    """The one caption in a text file, None if it is empty. Raises UserError: in no known encoding."""
    text = _clean(decode_text(data, place))
    return Captions((text,), (1.0,)) if text else None


def read_metadata(data: bytes, place: str) -> dict[str, Captions]:
    """Captions by the name of the image: of a `metadata.jsonl`, a line for each image with its "file_name".
    Raises UserError: a line that is no such object, or an image named twice."""
    found: dict[str, Captions] = {}
    seen: set[str] = set()
    broken = labelled = 0
    for number, line in enumerate(decode_lines(data, place), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {place}"
        meta = parse_json(line, where)
        name = meta.get("file_name") if isinstance(meta, dict) else None
        if not isinstance(name, str):
            raise UserError(f'{where} is malformed: write {{"file_name": "...", "caption": "..."}}')
        if (name := comparable(name)) in seen:
            raise UserError(f'{where} names "{name}" again: keep one line, with "captions": ["...", "..."]')
        seen.add(name)
        broken, labelled = broken + halves(meta), labelled + ("label" in meta)
        if (captions := from_meta(meta, where)) is not None:
            found[name] = captions
    if broken:
        logger.warning("%s: %d texts with halves of characters, which are replaced", place, broken)
    if labelled:
        text = "%s: its %d labels are not read: classes are folders, or in a dataset.json"
        logger.warning(text, place, labelled)
    return found
