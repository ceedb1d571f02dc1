"""Mistakes a user can mend, told in one line."""

from collections.abc import Iterable
from difflib import get_close_matches

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
    close = get_close_matches(str(name), known, n=3, cutoff=0.5)
    if close:
        return ", did you mean " + " or ".join(f'"{c}"' for c in close) + "?"
    return f" (one of: {', '.join(known)})" if 0 < len(known) <= MOST_CHOICES else ""
