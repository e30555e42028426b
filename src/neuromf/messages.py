"""An expected error is a message for people and no traceback."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXPECTED = (ValueError, OSError, RuntimeError, MemoryError)
MARK = "Error: "  # what a message begins with


@contextmanager
def plain_errors(*, traceback: bool = False) -> Iterator[None]:
    """End the program with the message of an expected error and exit code 1.

    Args:
        traceback: raise the error as it is.
    """
    try:
        yield
    except EXPECTED as error:
        if traceback:
            raise
        print(f"{MARK}{error}", file=sys.stderr)
        raise SystemExit(1) from None


def message_in(output: str) -> str:
    """Return what a program whose output this is ended with: the message of `plain_errors`, else the last error's.

    What Snakemake says of a mistake on its command line is a traceback, whose last line is the error.
    """
    if found := re.search(rf"^{MARK}(.*)", output, re.MULTILINE | re.DOTALL):
        return found[1].strip()
    if "Traceback (most recent call last)" in output:
        return re.sub(r"^[\w.]*Error: ", "", output.strip().splitlines()[-1])
    return output.strip()
