"""One workflow at a time in a folder, without a lock that outlives a killed one."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

_held: list[IO[str]] = []  # open files keep their locks until this process ends, however it ends


def remove_stale_locks(folder: Path) -> bool:
    """Remove the lock files in ``folder``/locks that a killed workflow left, unless another one is alive.

    Snakemake's own locks are files that stay when its process is killed. The one taken here is of the operating system
    and goes with the process, so holding it proves that no other workflow runs in this folder.

    Returns:
        Whether no other workflow is alive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "neuromf.lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _held.append(file)
    for lock in (folder / "locks").glob("*.lock"):
        lock.unlink(missing_ok=True)
    return True
