"""One workflow at a time in a folder, without a lock that outlives a killed one."""

from __future__ import annotations

import fcntl
from contextlib import suppress
from pathlib import Path
from typing import IO

_held: list[IO[str]] = []  # open files keep their locks until this process ends, however it ends


def remove_stale_locks(folder: Path) -> bool:
    """Remove the lock files in ``folder``/locks that a killed workflow left, unless another one is alive.

    Snakemake's own locks are files that stay when its process is killed. The one taken here is of the operating system
    and goes with the process. Every workflow shares it for as long as it lives, a dry run too, and to get it for oneself
    proves that no other one runs in this folder.

    Returns:
        Whether no other workflow is alive; False too where the file system has no such locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "neuromf.lock"
    try:
        file = path.open(
            "a+", encoding="utf-8"
        )  # over NFS a shared lock needs the right to read, an exclusive one to write
    except PermissionError:  # another user's, of a group whose umask lets nobody else write
        file = path.open(encoding="utf-8")
    _held.append(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        alone = False
    else:
        alone = True
        for lock in (folder / "locks").glob("*.lock"):
            lock.unlink(missing_ok=True)
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH)
    return alone
