"""Names of releases, cohorts, runs and codecs, which become names of files and folders."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from neuromf.tables import TableError

LONGEST = 100  # characters: two names and what is added must fit into the 255 bytes of a file's name
NAME_PATTERN = rf"^[A-Za-z0-9][A-Za-z0-9_-]{{0,{LONGEST - 1}}}$"
NAME_RULE = f"use letters, digits, _ and -, beginning with a letter or digit, at most {LONGEST}"
_LISTED = 20  # of the known names


def check_name(what: str, name: str, taken: Iterable[str] = ()) -> None:
    """Refuse a name that cannot be a file's, or that is another one's but for upper and lower case.

    Args:
        what: is named, e.g. ``release name``.
        taken: the names that are there; the name itself may be among them.

    Raises:
        TableError: with the rule.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise TableError(f"{what} {name!r}: {NAME_RULE}")
    there = set(taken)
    lower = {one.lower(): one for one in there}
    if name not in there and name.lower() in lower:
        raise TableError(
            f"{what} {name!r}: {lower[name.lower()]!r} is there, and some file systems do not tell upper from lower case;"
            " choose another name"
        )


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of a message on an unknown name: the nearest known one, or the first of them."""
    names = sorted(known)
    if close := difflib.get_close_matches(word, names, n=1, cutoff=0.5):
        return f"; did you mean {close[0]!r}?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; known: {', '.join(names[:_LISTED])}{more}" if names else "; there is none yet"
