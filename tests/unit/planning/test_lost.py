"""Results that are gone: noted once, and a gate's table that comes back."""

from __future__ import annotations

import os
from pathlib import Path

from neuromf.planning.lost import bring_back_table, keep_table, lost_note, note_lost_files
from neuromf.tables import ManifestRow, write_manifest


def make(manifest: Path, *names: str) -> None:
    """Write files and a manifest that is later than any note, as a job does."""
    for name in names:
        (manifest.parent / name).write_text("made")
    write_manifest(
        manifest,
        [ManifestRow(name, "ok", file=name, bytes=4) for name in names] + [ManifestRow("bad", "failed", "cut")],
    )
    later = manifest.stat().st_mtime + 1
    os.utime(manifest, (later, later))


def test_lost_and_cut_files_are_noted_once_until_they_are_made_again(tmp_path: Path) -> None:
    manifest, nowhere = tmp_path / "shard-0000.tsv", tmp_path / "no-such-shard.tsv"
    make(manifest, "a", "b")
    assert note_lost_files([manifest, nowhere]) == [] and lost_note(manifest) == lost_note(nowhere) == ""
    os.utime(manifest, (0, 0))  # the note comes after it
    (tmp_path / "b").write_text("ma")  # cut
    assert note_lost_files([manifest]) == [tmp_path / "b"]
    noted = lost_note(manifest)
    assert "b" in noted and note_lost_files([manifest]) and lost_note(manifest) == noted, "whoever asks again"
    make(manifest, "a", "b")
    assert note_lost_files([manifest]) == [] and lost_note(manifest) == noted, "no reason to run once more"
    (tmp_path / "b").unlink()
    assert note_lost_files([manifest]) and lost_note(manifest) != noted, "lost once more"


def test_a_gates_table_that_snakemake_deleted_comes_back_with_a_note(tmp_path):
    table = tmp_path / "failed.tsv"
    bring_back_table(table)
    assert not table.exists() and lost_note(table) == "", "a gate that never passed has nothing to come back"
    table.write_text("passed")
    keep_table(table)
    bring_back_table(table)
    assert lost_note(table) == "", "it is there"
    notes = set()
    for _ in range(2):
        table.unlink()
        bring_back_table(table)
        assert table.read_text() == "passed"
        notes.add(lost_note(table))
    assert len(notes) == 2 and "" not in notes, "each time its job is to run again"
