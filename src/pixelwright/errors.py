"""Mistakes a user can mend, told in one line."""

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

CLOSE = 0.5  # likeness from which a choice may have been meant
MOST_CHOICES = 60  # an error message lists no more choices than these


class UserError(ValueError):
    """Something the user can put right. The message is one line that holds the offending value, where it
    stands and what to do instead. The command line prints it without a traceback and exits with code 2."""

    exit_code = 2


class NotFinite(UserError):
    """A model that draws NaN or infinite pixels. The command line exits with code 3."""

    exit_code = 3


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error message about an unknown `name`: the closest choices, or all of few."""
    known, name = sorted(choices), str(name)
    if close := get_close_matches(name, known, n=MOST_CHOICES, cutoff=CLOSE):
        likeness = [SequenceMatcher(None, choice, name).ratio() for choice in close]
        alike = [
            choice for choice, ratio in zip(close[:3], likeness, strict=False) if ratio >= likeness[0] - 0.1
        ]
        near = [choice for choice in close if choice.startswith(name)] or alike
        return ", did you mean " + " or ".join(f'"{choice}"' for choice in near) + "?"
    return f" (one of: {', '.join(known)})" if 0 < len(known) <= MOST_CHOICES else ""
