"""Disks that fill up or turn read-only, for the tests of faults."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LIMIT = 2**16  # bytes of a file, where no file system can be mounted: pytest's own files stay below


@dataclass(frozen=True)
class Disk:
    """A folder on a small file system of its own; without the right to mount one it stands in a folder of the disk there is,
    where "full" is a limit on the size of files (EFBIG instead of ENOSPC) and "read-only" the mode of the folders."""

    folder: Path
    mounted: bool

    @contextmanager
    def full(self, leave: int = 0) -> Iterator[None]:
        """Leave no more than ``leave`` bytes free."""
        if self.mounted:
            ballast = self.folder / "ballast"
            with ballast.open("wb") as stream:
                stream.write(bytes(max(0, shutil.disk_usage(self.folder).free - leave)))
            yield
            ballast.unlink()
        else:
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (max(leave, LIMIT), before[1]))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Allow no writing."""
        folders = [self.folder, *(path for path in self.folder.rglob("*") if path.is_dir())]
        if self.mounted:
            _mount("-o", "remount,ro", str(self.folder))
        else:
            for path in folders:
                path.chmod(0o555)
        try:
            yield
        finally:
            if self.mounted:
                _mount("-o", "remount,rw", str(self.folder))
            else:
                for path in folders:
                    path.chmod(0o755)


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Disk]:
    """A disk of some size at ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = os.geteuid() == 0 and _mount("-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder))
    try:
        yield Disk(folder, mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
