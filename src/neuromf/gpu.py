"""The GPUs of a workstation, dealt out to jobs: each gets its own, also those of another workflow on the same machine.

A job holds a lock of the operating system on one file per GPU for as long as its process lives, so a job that is killed
gives its GPU back. Slurm deals GPUs out itself, and whoever sets CUDA_VISIBLE_DEVICES has decided: nothing is done then.
"""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

VISIBLE = "CUDA_VISIBLE_DEVICES"
HIDDEN = ("", "-1")  # its values that leave no GPU
LOCKS = Path("/tmp/neuromf-gpus")  # one folder for all users of the machine, whatever their TMPDIR
_QUERY = ["nvidia-smi", "--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits"]
_SECONDS_BETWEEN_TRIES = 2.0
_held: list[IO[str]] = []  # open files keep their locks until this process ends, however it ends
log = logging.getLogger(__name__)


class GpuError(RuntimeError):
    """More GPUs are asked for than the machine has."""


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine; ``uuid`` is what CUDA_VISIBLE_DEVICES takes, whatever order the driver counts in."""

    uuid: str
    name: str
    memory_bytes: int


def installed_gpus() -> tuple[Gpu, ...]:
    """Return the machine's NVIDIA GPUs, none where there is no driver or all are hidden; PyTorch is not loaded."""
    if os.environ.get(VISIBLE) in HIDDEN:
        return ()
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 2]
    return tuple(Gpu(uuid, name, _bytes(mebibytes)) for uuid, name, mebibytes in rows)


def _bytes(mebibytes: str) -> int:
    """Return a GPU's memory; the machine's, where they share it and the driver says [N/A]."""
    return int(mebibytes) * 2**20 if mebibytes.isdigit() else psutil.virtual_memory().total


def dealt_elsewhere() -> str:
    """Return the variable that says somebody else deals out the GPUs; empty where nobody does."""
    return next((name for name in ("SLURM_JOB_ID", VISIBLE) if name in os.environ), "")


def shared_gpus() -> int:
    """Return how many GPU jobs a workflow may run here at once, for the profile of a workstation: at least one.

    Without a GPU it is one too, since networks then compute on the CPU and take all of its cores.
    """
    return 1 if dealt_elsewhere() else max(1, len(installed_gpus()))


def claim(count: int, uuids: Sequence[str] | None = None, folder: Path = LOCKS) -> tuple[str, ...]:
    """Take GPUs for this process and its children, and let it see no others; wait while other jobs hold them.

    Must be called before PyTorch looks at the GPUs.

    Args:
        count: wanted; 0: nothing is done.
        uuids: of the machine's GPUs; default: what the driver names.
        folder: of the locks.

    Returns:
        The GPUs' UUIDs; none where nobody is to deal them out here or the machine has no GPU.

    Raises:
        GpuError: more are wanted than there are.
    """
    if count < 1 or dealt_elsewhere():
        return ()
    if uuids is None:
        uuids = [gpu.uuid for gpu in installed_gpus()]
    if not uuids:
        return ()
    if count > len(uuids):
        raise GpuError(f"{count} GPUs are asked for and the machine has {len(uuids)}; lower train.devices")
    waiting = False
    while len(locks := _free(uuids, count, folder)) < count:
        for lock in locks.values():
            lock.close()  # all or none: two jobs that each wait for the other's GPU would wait for ever
        if not waiting:
            log.info("waiting for %d of %d GPUs, which other jobs hold (%s)", count, len(uuids), folder)
        waiting = True
        time.sleep(_SECONDS_BETWEEN_TRIES)
    _held.extend(locks.values())
    os.environ[VISIBLE] = ",".join(locks)
    log.info("GPU %s", os.environ[VISIBLE])
    return tuple(locks)


def _free(uuids: Sequence[str], count: int, folder: Path) -> dict[str, IO[str]]:
    """Return up to ``count`` GPUs that nobody holds, with their locks."""
    locks: dict[str, IO[str]] = {}
    for uuid in uuids:
        if len(locks) == count:
            break
        lock = _open(folder / f"{uuid}.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
        else:
            locks[uuid] = lock
    return locks


def _open(path: Path) -> IO[str]:
    """Open a lock file that any user may have made: a lock needs no more than the right to read."""
    if not path.parent.is_dir():
        path.parent.mkdir(exist_ok=True)
        path.parent.chmod(0o1777)
    if not path.is_file():
        with suppress(PermissionError):  # another user was faster
            path.touch()
            path.chmod(0o644)
    return path.open(encoding="ascii")
