"""What is done of a shard: a journal beside the manifest, ``.<shard>.journal``, one line per scan.

The manifest is a declared output, which Snakemake deletes before it runs a job again; the journal is not, so neither a
killed job nor a job that is run again for one new scan repeats what is done. It also says what each raw file was when it was
read, so that the workflow sees which of them have changed since (`neuromf.planning.raw`).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from neuromf.tables import ManifestRow, file_sha256, write_text, writing

ABSENT = "none"  # SHA-256 of a file that is not there


@dataclass(frozen=True)
class Source:
    """A file as it was when it was read. Times are in ns, as its file system gives them."""

    bytes: int
    mtime_ns: int
    ctime_ns: int
    sha256: str

    def looks_like(self, other: Source, closely: bool) -> bool:
        """Return whether size and time agree, so that the content need not be read.

        Args:
            closely: also the time of its inode, which no copy keeps; a change of its rights changes it too.
        """
        same = (self.bytes, self.mtime_ns) == (other.bytes, other.mtime_ns)
        return same and (not closely or self.ctime_ns == other.ctime_ns)


NOWHERE = Source(-1, 0, 0, ABSENT)


@dataclass(frozen=True)
class Entry:
    """A scan's row and what its raw file was.

    Attributes:
        row: as in the manifest, without warnings of one call.
        source: None where the input is another stage's, or was never read.
        final: it failed, and would with the same key fail again.
    """

    row: ManifestRow
    source: Source | None = None
    final: bool = False


def look(path: Path | str) -> Source:
    """Return a file's size and times, without its hash; `NOWHERE` where no regular file is.

    Raises:
        OSError: whether it is there cannot be said (a disk that does not answer, no right to look).
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path for each of 60,000 would cost more than the look
    except (FileNotFoundError, NotADirectoryError):
        return NOWHERE
    if not stat.S_ISREG(found.st_mode):
        return NOWHERE
    return Source(found.st_size, found.st_mtime_ns, found.st_ctime_ns, "")


def read_source(path: Path) -> Source:
    """Return what a file is; `NOWHERE` where no regular file is. A change while it is read shows at the next look.

    Raises:
        OSError: it is there and cannot be read.
    """
    found = look(path)
    return found if found is NOWHERE else replace(found, sha256=file_sha256(path))


class Journal:
    """The journal of the shard whose manifest is given.

    Attributes:
        last: scan → what came of it when it was last worked on.
        made: scan → its last result. It stays when the scan is worked on again in vain for a reason that is not its own:
            with the old input and settings back, it is found done.
    """

    def __init__(self, manifest: Path) -> None:
        self.path = manifest.with_name(f".{manifest.stem}.journal")
        self.last: dict[str, Entry] = {}
        self.made: dict[str, Entry] = {}
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                self._note(line)

    def append(self, entry: Entry) -> None:
        """Write an entry down at once; a torn line before it cannot swallow it.

        Raises:
            StorageError: the disk is full or cannot be written.
        """
        with writing(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write("\n" + _line(entry))
            stream.flush()
            os.fsync(stream.fileno())

    def make_writable(self) -> None:
        """Put a file of our own in the place of another user's that can be read alone, as in the folder of a group."""
        if self.path.is_file() and not os.access(self.path, os.W_OK):
            write_text(self.path, self.path.read_text(encoding="utf-8", errors="replace"))

    def write(self, entries: Iterable[Entry]) -> None:
        """Write all entries anew.

        Raises:
            StorageError: the disk is full or cannot be written.
        """
        write_text(self.path, "".join(_line(entry) + "\n" for entry in entries))

    def _note(self, line: str) -> None:
        try:
            content = json.loads(line)
            source = content.pop("source", None)
            final = content.pop("final", False)
            entry = Entry(ManifestRow(**content), Source(*source) if source else None, final)
        except (ValueError, TypeError, AttributeError):  # the line that was being written when the job was killed
            return
        self.last[entry.row.scan_id] = entry
        if entry.row.ok:
            self.made[entry.row.scan_id] = entry


def finished_scans(manifest: Path) -> dict[str, Path]:
    """Return the scans that a shard's job would find done, if their inputs, settings and code are as before: ID → file.

    Also for a job that was killed or whose manifest is gone: it goes by the journal.
    """
    rows = [entry.row for entry in Journal(manifest).last.values() if entry.row.ok]
    files = {row.scan_id: (manifest.parent / row.file, row.bytes) for row in rows}
    return {scan: path for scan, (path, size) in files.items() if path.is_file() and path.stat().st_size == size}


def _line(entry: Entry) -> str:
    content: dict[str, Any] = asdict(entry.row)
    if entry.source is not None:
        content["source"] = list(asdict(entry.source).values())
    if entry.final:
        content["final"] = True
    return json.dumps(content)
