"""Mistakes a user can mend, told in one line."""

from collections.abc import Iterable
from difflib import SequenceMatcher

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
    known = sorted(choices)
    likeness = {choice: SequenceMatcher(None, choice, name).ratio() for choice in known}
    close = [c for c in sorted(known, key=lambda c: -likeness[c]) if likeness[c] >= CLOSE]
    if close:
        alike = [c for c in close[:3] if likeness[c] >= likeness[close[0]] - 0.1]
        near = [c for c in close if c.startswith(name)] or alike
        return ", did you mean " + " or ".join(f'"{c}"' for c in near) + "?"
    return f" (one of: {', '.join(known)})" if 0 < len(known) <= MOST_CHOICES else ""
