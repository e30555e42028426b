"""Whose fault a failure is: a scan's own, which stays until scan, settings or code change, or the machine's, which passes.

A disk that does not answer, a file that may not be read today, a process killed for want of memory say nothing of the scan.
Its row fails with the figure ``transient``, and the next call of the workflow tries it again.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from neuromf.tables import ManifestRow

TRANSIENT = "transient"  # figure of a failed row
_AGAIN = "; no fault of the scan: the next call tries it again"
_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        # the disk or its network
        "EIO", "ESTALE", "ETIMEDOUT", "ENXIO", "ENODEV", "EREMOTEIO", "ENOLINK", "ENOLCK", "ECOMM", "EPROTO", "EBADMSG",
        "EUCLEAN", "ENOMEDIUM", "ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH", "ECONNABORTED",
        "ECONNRESET", "ECONNREFUSED", "ENOTCONN", "ESHUTDOWN", "EKEYEXPIRED", "EKEYREVOKED", "ENOKEY",
        # rights, which somebody gives
        "EACCES", "EPERM",
        # what other processes take
        "ENOMEM", "EMFILE", "ENFILE", "EAGAIN", "EBUSY", "EINTR", "ETXTBSY", "EDEADLK",
    )
    if hasattr(errno, name)
)  # fmt: skip
_NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "cannot allocate memory",
    "failed to allocate",
    "bad_alloc",
    "bad allocation",
)


class ShardError(RuntimeError):
    """A shard or cohort that cannot go on: too many scans failed, a finished file was altered, the scans' disk is not there.

    The message names them.
    """


@dataclass(frozen=True)
class Failure:
    """Why a scan failed.

    Attributes:
        reason: in words.
        transient: it is no fault of the scan.
        final: a scan's own fault that its content, the settings and the code decide; there is no use in trying again.
        died: its process ended under it.
    """

    reason: str
    transient: bool = False
    final: bool = False
    died: bool = False

    def row(self, scan_id: str, key: str) -> ManifestRow:
        """Return the scan's row in a manifest."""
        reason = " ".join(self.reason.split()) + (_AGAIN if self.transient else "")
        return ManifestRow(scan_id, "failed", reason, key=key, figures={TRANSIENT: "yes"} if self.transient else {})


def failure(error: BaseException) -> Failure:
    """Return what an exception says of its scan.

    A reader's own error (`VolumeError`: a ValueError) hides what it met, so all that came before the exception is looked at.
    """
    own = isinstance(error, ValueError)  # the message is meant for the user
    reason = str(error) if own else f"{type(error).__name__}: {error}"
    transient = any(map(is_transient, _chain(error)))
    return Failure(reason, transient, final=own and not transient)


def is_transient(error: BaseException) -> bool:
    """Return whether an error says nothing of the file or the work that met it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    if isinstance(error, MemoryError | TimeoutError | ConnectionError | BrokenProcessPool):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those it was raised from or while handling, ``from None`` or not."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        this = waiting.pop()
        if this is not None and id(this) not in seen:
            seen.add(id(this))
            yield this
            waiting += [this.__cause__, this.__context__]
