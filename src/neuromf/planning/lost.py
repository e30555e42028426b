"""Results that are gone: noted before a call is planned, so that their own jobs run again and nothing that follows.

A note is a hidden file beside the table of the jobs that made the results, and a param of those jobs: Snakemake runs them
again when it changes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from neuromf.tables import read_tsv, write_text


def note_lost_files(manifests: Iterable[Path]) -> list[Path]:
    """Leave a note beside each manifest that names files which are gone or of another size; return those files.

    The note (`lost_note`) is a param of the shard's jobs: a new one has them run again, and they make the lost files alone,
    since what their journal knows to be intact is skipped. The manifest itself stays: were it missing, Snakemake
    would run all that follows, `ancient()` or not. Names and sizes are looked at only, some 10 µs a file; a flipped bit is
    found where the file is read.
    """
    lost = []
    for manifest in manifests:
        gone = sorted(path for path, size in _claimed(manifest) if not path.is_file() or path.stat().st_size != size)
        lost += gone
        note = _note(manifest)
        if gone and not (note.is_file() and note.stat().st_mtime_ns >= manifest.stat().st_mtime_ns):
            write_text(note, f"{time.time_ns()}\n" + "".join(f"{path.name}\n" for path in gone))
    return lost


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


def _claimed(manifest: Path) -> set[tuple[Path, int]]:
    """Return the files that a manifest says are there, with their sizes."""
    if not manifest.is_file():
        return set()
    rows = read_tsv(manifest, ("status", "file", "bytes"))
    return {(manifest.parent / (row["file"] or ""), int(row["bytes"] or 0)) for row in rows if row["status"] == "ok"}
