"""Files of prompts."""

from __future__ import annotations

from pathlib import Path

from pixelwright.errors import UserError


def read_prompts(path: Path, what: str) -> tuple[str, ...]:
    """The lines of a text file that are not empty; `what` is the setting that names it.

    Raises:
        UserError: it is not there, not text, or empty.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"{what}: {path} cannot be read ({reason}); give a text file, a prompt a line"
        ) from None
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise UserError(f"{what}: {path} holds no prompt; write one a line")
    return prompts
