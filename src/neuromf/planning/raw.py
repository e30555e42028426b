"""Raw scans whose file has changed since it was read: seen by size and time, then by hash; their shards run again.

What a raw file was when it was read stands in the shard's journal (`neuromf.shards.journal`). What it is now, where that
differs, stands in a note beside it, ``.<shard>.raw``: a file that was touched and is otherwise the same costs its hash once
and nothing more. Scans whose content has changed are a param of the shard's job, and of what a release is made from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from neuromf.shards import TRANSIENT
from neuromf.shards.journal import NOWHERE, Journal, Source, look
from neuromf.tables import Cohort, Scan, file_sha256, leads_out, write_text

_THREADS = 16  # that look at files: on a network disk each look waits for its server


@dataclass(frozen=True)
class Seen:
    """A raw file as it was last seen, and the SHA-256 that it had when it was first read."""

    now: Source
    first: str


@dataclass(frozen=True)
class _Suspect:
    """A raw file of another size or time than when it was read."""

    scan_id: str
    path: str
    now: Source  # without a hash
    before: Seen


def note_changed_scans(
    cohort: Cohort, shard_size: int, manifest: Callable[[int], Path], tell: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Look at the raw files of a cohort and note those that have changed; return the scans that are to be made again.

    A look is one question to the file system for each scan, by several threads. Only what differs is read. Absent files and
    such as cannot be read today change nothing.

    Args:
        manifest: shard → the manifest of the stage that reads raw files.
        tell: is given a line where many bytes are to be read.
    """
    numbers = range(cohort.shard_count(shard_size))
    with ThreadPoolExecutor(_THREADS) as threads:
        parts = threads.map(lambda k: _suspects(cohort.shard(k, shard_size), cohort.root, manifest(k)), numbers)
        suspects = {k: found for k, found in zip(numbers, parts, strict=True) if found}
        size = sum(one.now.bytes for found in suspects.values() for one in found)
        if size >= 2**30:
            count = sum(map(len, suspects.values()))
            tell(
                f"{count} raw files of cohort {cohort.name} have another time or size: {size / 2**30:.0f} GiB are compared"
            )
        for k, found in suspects.items():
            seen = dict(zip((one.scan_id for one in found), threads.map(_read, found), strict=True))
            _write_note(manifest(k), _read_note(manifest(k)) | {scan: one for scan, one in seen.items() if one})
    return [scan for k in numbers for scan in waiting_scans(manifest(k))]


def changed_scans(manifest: Path) -> dict[str, str]:
    """Return the scans of a shard whose raw file is another than when it was first read, with the SHA-256 of now."""
    return {scan: one.now.sha256 for scan, one in _read_note(manifest).items() if one.now.sha256 != one.first}


def changed_note(manifest: Path) -> str:
    """Return `changed_scans` as text, the param of the shard's job; nothing where no scan has changed."""
    return "".join(f"{scan} {sha256}\n" for scan, sha256 in sorted(changed_scans(manifest).items()))


def waiting_scans(manifest: Path) -> list[str]:
    """Return the scans of a shard whose raw file is another than the one that its row was made of."""
    if not (note := _read_note(manifest)):
        return []
    last = Journal(manifest).last
    made = {scan: entry.source.sha256 for scan, entry in last.items() if entry.source}
    return [scan for scan, one in note.items() if made.get(scan, one.now.sha256) != one.now.sha256]


def _suspects(scans: Iterable[Scan], root: Path, manifest: Path) -> list[_Suspect]:
    """Return the scans of a shard whose raw file is to be compared."""
    last, note = Journal(manifest).last, _read_note(manifest)
    folder, found = os.fspath(root), []
    for scan in scans:
        entry = last.get(scan.scan_id)
        if entry is None or entry.source is None or entry.row.figures.get(TRANSIENT):
            continue  # never read, or tried again anyway
        path = os.path.join(folder, scan.image)  # noqa: PTH118 - as in `look`
        try:
            now = look(path)
        except OSError:
            continue
        before = note.get(scan.scan_id) or Seen(entry.source, entry.source.sha256)
        closely = not entry.row.ok  # a scan that is repaired may come with the size and the time it had
        if now != NOWHERE and not before.now.looks_like(now, closely) and not leads_out(root, scan.image):
            found.append(_Suspect(scan.scan_id, path, now, before))
    return found


def _read(suspect: _Suspect) -> Seen | None:
    try:
        return Seen(replace(suspect.now, sha256=file_sha256(Path(suspect.path))), suspect.before.first)
    except OSError:
        return None


def _note(manifest: Path) -> Path:
    return manifest.with_name(f".{manifest.stem}.raw")


def _read_note(manifest: Path) -> dict[str, Seen]:
    try:
        lines = _note(manifest).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    rows = (json.loads(line) for line in lines)
    return {row["scan"]: Seen(Source(*row["now"]), row["first"]) for row in rows}


def _write_note(manifest: Path, note: dict[str, Seen]) -> None:
    rows = [{"scan": scan, "now": list(asdict(one.now).values()), "first": one.first} for scan, one in note.items()]
    write_text(_note(manifest), "".join(json.dumps(row) + "\n" for row in rows))
