"""Results that are gone: noted before a call is planned, so that their own jobs run again and nothing that follows.

A note is a hidden file beside the table of the jobs that made the results, and a param of those jobs: Snakemake runs them
again when it changes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from neuromf.shards import TRANSIENT
from neuromf.tables import read_tsv, write_text

AGAIN = "again "  # before a scan in a note; other lines are files


def note_lost_files(manifests: Iterable[Path]) -> list[Path]:
    """Leave a note beside each manifest that names files which are gone or of another size; return those files.

    So is one that has scans which failed for no fault of their own (`neuromf.shards.faults`).

    The note (`lost_note`) is a param of the shard's jobs: a new one has them run again, and they make the lost files alone,
    since what their journal knows to be intact is skipped. The manifest itself stays: were it missing, Snakemake
    would run all that follows, `ancient()` or not. Names and sizes are looked at only, some 10 µs a file; a flipped bit is
    found where the file is read.
    """
    lost = []
    for manifest in manifests:
        rows = _rows(manifest)
        claimed = {
            (manifest.parent / (row["file"] or ""), int(row["bytes"] or 0)) for row in rows if row["status"] == "ok"
        }
        gone = sorted(path for path, size in claimed if not path.is_file() or path.stat().st_size != size)
        lost += gone
        _leave_note(manifest, [path.name for path in gone] + _again(rows))
    return lost


def note_failures_that_pass(manifests: Iterable[Path]) -> None:
    """Leave a note as `note_lost_files` does, but for scans that are to be tried again only; for manifests whose rows name
    files that others may take away."""
    for manifest in manifests:
        _leave_note(manifest, _again(_rows(manifest)))


def lost_note(manifest: Path) -> str:
    """Return the last note of lost files that was left beside a manifest, or nothing."""
    note = _note(manifest)
    return note.read_text(encoding="utf-8") if note.is_file() else ""


def keep_table(table: Path) -> None:
    """Keep a hidden copy of a gate's table, which stays when Snakemake deletes the table (`bring_back_table`)."""
    if table.is_file():
        write_text(_copy(table), table.read_text(encoding="utf-8"))


def bring_back_table(table: Path) -> None:
    """Bring a gate's table back whose job failed, with a note (`lost_note`) that has the job run again.

    Snakemake deletes it, and ancient() holds for files that exist only: once the job succeeds, all that follows would run.
    """
    if _copy(table).is_file() and not table.is_file():
        write_text(_note(table), f"{time.time_ns()}\n{table.name}\n")
        write_text(table, _copy(table).read_text(encoding="utf-8"))


def _copy(table: Path) -> Path:
    return table.with_name(f".{table.name}")


def _note(manifest: Path) -> Path:
    return manifest.with_name(f".{manifest.stem}.lost")


def _leave_note(manifest: Path, lines: list[str]) -> None:
    """Write what is to be done into the note, unless it stands there since the manifest was written."""
    note = _note(manifest)
    if lines and not (note.is_file() and note.stat().st_mtime_ns >= manifest.stat().st_mtime_ns):
        write_text(note, f"{time.time_ns()}\n" + "".join(f"{line}\n" for line in lines))


def _rows(manifest: Path) -> list[dict[str, str | None]]:
    return read_tsv(manifest, ("scan_id", "status", "file", "bytes")) if manifest.is_file() else []


def _again(rows: list[dict[str, str | None]]) -> list[str]:
    """Return the lines of a note for the scans that failed for no fault of their own."""
    return [f"{AGAIN}{row['scan_id']}" for row in rows if row["status"] == "failed" and row.get(TRANSIENT)]
