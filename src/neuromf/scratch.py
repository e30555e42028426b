"""The folder for temporary files (TMPDIR), where registration and other people's programs write."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from neuromf.tables import StorageError

_PROBE = 2**20  # bytes that must be written where little is known of what was wanted


@contextmanager
def temporary_folder(mebibytes: float = 1) -> Iterator[Path]:
    """Yield an empty folder in TMPDIR, which is removed afterwards.

    Args:
        mebibytes: that will be written into it, at most.

    Raises:
        StorageError: there is no such folder, or it holds less; also where the block failed and no more can be written
            there, whichever error a library made of it.
    """
    size = max(_PROBE, round(mebibytes * 2**20))
    try:
        folder = Path(tempfile.mkdtemp())
    except OSError as error:  # FileNotFoundError: no usable folder among TMPDIR, /tmp and the current one
        raise _storage_error(str(error.strerror or error), size) from error
    try:
        if shutil.disk_usage(folder).free < size:
            raise _storage_error("it is too small", size)
        yield folder
    except StorageError:
        raise
    except Exception as error:
        try:
            _write(folder / "probe", size)
        except OSError as full:
            raise _storage_error(full.strerror or str(full), size) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, size: int) -> None:
    """Write as many bytes and remove them: free space alone knows no quota."""
    try:
        with path.open("wb") as stream:
            for _ in range(-(-size // _PROBE)):
                stream.write(bytes(_PROBE))
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        with suppress(OSError):
            path.unlink()


def _storage_error(reason: str, size: int) -> StorageError:
    said = os.environ.get("TMPDIR")
    where, free = said or "/tmp", ""
    with suppress(OSError):
        where = tempfile.gettempdir()
    with suppress(OSError):
        free = f"; {shutil.disk_usage(where).free / 2**20:,.1f} MiB are free there"
    return StorageError(
        f"temporary files cannot be written to {where} (TMPDIR is {said or 'not set'}): {reason}{free}, {size / 2**20:,.0f}"
        " MiB are needed for each scan that is worked on. Free space there, or set TMPDIR to a folder on a larger disk,"
        " and run again: what is finished is kept"
    )
