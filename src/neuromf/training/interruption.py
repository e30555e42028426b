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
IDLE_ATTEMPTS = 2  # the second has more memory


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


def begin_attempt(folder: Path, *, retry: bool) -> None:
    """Note that an attempt begins.

    Args:
        folder: of the checkpoints.
        retry: whether the workflow runs the job again by itself, after it failed.

    Raises:
        NoProgressError: a retry after `IDLE_ATTEMPTS` attempts in a row that saved no checkpoint.
    """
    idle = idle_attempts(folder) if retry else 0
    if idle >= IDLE_ATTEMPTS:
        raise NoProgressError(
            f"{idle} attempts in a row saved no checkpoint, the last with more memory than the first, so more of them will"
            " not help: give the job more time or memory, or lower train.checkpoint_every"
        )
    write_json(folder / ATTEMPT, {"idle": idle + 1})


def note_progress(folder: Path) -> None:
    """Note that this attempt saved a checkpoint."""
    write_json(folder / ATTEMPT, {"idle": 0})


def idle_attempts(folder: Path) -> int:
    """Return how many attempts in a row, the last one included, ended without a checkpoint, as those without memory do."""
    path = folder / ATTEMPT
    return int(read_json(path, "idle")["idle"]) if path.is_file() else 0
