"""Signals and the wall-time budget: a training saves and ends with a code that asks for another attempt."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from neuromf.tables import read_json, write_json

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # of a cancelled or preempted job, and of one that is near its limit
ATTEMPT = "attempt.json"


class Interrupted(SystemExit):
    """The training saved its state before it was done; run again, it goes on. Exit code 75 (sysexits: try again)."""

    def __init__(self, reason: str) -> None:
        super().__init__(os.EX_TEMPFAIL)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class NoProgressError(RuntimeError):
    """Attempts of the same job follow each other and none comes further."""


@dataclass
class Watch:
    """Says whether the training has to end; ``reason`` is None while it has not."""

    max_hours: float | None
    started: float
    received: str | None = None

    def listen(self) -> None:
        """Note SIGTERM and SIGUSR1 from now on instead of ending at once."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    @property
    def reason(self) -> str | None:
        if self.received:
            return f"signal {self.received}"
        if self.max_hours is not None and time.monotonic() - self.started >= self.max_hours * 3600:
            return f"train.max_hours = {self.max_hours:g} are over"
        return None


@contextmanager
def watching(max_hours: float | None) -> Iterator[Watch]:
    """Note SIGTERM and SIGUSR1 within the block instead of ending at once."""
    watch, before = Watch(max_hours, time.monotonic()), {number: signal.getsignal(number) for number in SIGNALS}
    watch.listen()
    try:
        yield watch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def begin_attempt(folder: Path, update: int, *, retry: bool) -> None:
    """Note at which update this attempt begins.

    Args:
        folder: of the checkpoints.
        update: of the last checkpoint.
        retry: whether the workflow runs the job again by itself, after it failed.

    Raises:
        NoProgressError: a retry that begins where the attempt before it began.
    """
    path = folder / ATTEMPT
    if retry and path.is_file() and read_json(path, "began")["began"] == update:
        raise NoProgressError(
            f"the attempt before this one began at update {update} too and saved no checkpoint after it, so more of them"
            " will not help: give the job more time or memory, or lower train.checkpoint_every"
        )
    write_json(path, {"began": update})
