"""Raw scans that have changed since they were read: seen by size and time, then by hash, told until they are made again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from neuromf.planning import raw
from neuromf.planning.lost import lost_note, note_failures_that_pass
from neuromf.planning.raw import changed_note, changed_scans, note_changed_scans
from neuromf.shards import Task, run_shard
from neuromf.tables import Cohort, ManifestRow, Scan, file_sha256, leads_out, write_manifest, write_text


def number(inputs: Any, outputs: Any) -> dict[str, float | str]:
    write_text(outputs[0], str(int(inputs[0].read_text())))
    return {}


class Study:
    """A cohort of two shards whose stage copies numbers."""

    def __init__(self, folder: Path) -> None:
        scans = tuple(Scan(name, None, f"{name}.txt", "T1w") for name in "abcd")
        self.folder, self.cohort = folder, Cohort("study", folder / "raw", scans)
        self.cohort.root.mkdir()
        for place, scan in enumerate(scans):
            self.file(scan.participant_id).write_text(str(place))

    def file(self, name: str) -> Path:
        return self.cohort.root / f"{name}.txt"

    def manifest(self, shard: int) -> Path:
        return self.folder / "out" / f"shard-{shard:04d}.tsv"

    def look(self) -> list[str]:
        return note_changed_scans(self.cohort, 2, self.manifest)

    def note(self) -> str:
        return changed_note(self.manifest(0)) + changed_note(self.manifest(1))

    def run(self, code: str = "") -> tuple[ManifestRow, ...]:
        rows: tuple[ManifestRow, ...] = ()
        for shard in (0, 1):
            tasks = [
                Task(
                    scan.scan_id,
                    (self.cohort.root / scan.image,),
                    (self.folder / "out" / scan.image,),
                    failed_upstream=leads_out(self.cohort.root, scan.image),
                )
                for scan in self.cohort.shard(shard, 2)
            ]
            rows += run_shard(tasks, number, self.manifest(shard), settings={}, code=code, workers=1, label="t")
        return rows


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def test_a_changed_scan_is_told_until_it_is_made_again_and_noted_for_good(study: Study) -> None:
    assert study.look() == [] and study.note() == "", "nothing was made yet"
    study.run()
    assert study.look() == [] and study.note() == ""
    study.file("b").write_text("77")
    assert study.look() == study.look() == ["sub-b_T1w"]
    noted = study.note()
    assert noted == f"sub-b_T1w {file_sha256(study.file('b'))}\n" and changed_note(study.manifest(1)) == ""
    assert study.run()[1].ok and study.look() == [] and study.note() == noted, "the shard's job ran with this note"
    study.file("b").write_text("1")
    assert study.look() == ["sub-b_T1w"] and study.note() == "", "as it was first"
    study.run()
    assert study.look() == []


def test_a_scan_that_failed_and_is_repaired_is_seen_even_with_the_size_and_time_it_had(study: Study) -> None:
    bad = study.file("c")
    bad.write_text("x")
    times = bad.stat()
    assert not study.run()[2].ok and study.look() == []
    bad.write_text("5")
    os.utime(bad, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert study.look() == ["sub-c_T1w"]
    assert study.run()[2].ok and study.look() == []


def test_touched_files_cost_their_hash_once(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    study.run()
    read: list[str] = []
    monkeypatch.setattr(raw, "file_sha256", lambda path: read.append(path.name) or file_sha256(path))
    for name in "abcd":
        os.utime(study.file(name), (1e9, 1e9))
    assert study.look() == [] and study.note() == "" and sorted(read) == ["a.txt", "b.txt", "c.txt", "d.txt"]
    assert study.look() == [] and len(read) == 4


def test_absent_files_and_links_out_of_the_root_change_nothing(study: Study, tmp_path: Path) -> None:
    before = study.run()
    (tmp_path / "archive").mkdir()
    for name in "ab":
        study.file(name).rename(tmp_path / "archive" / name)
    study.file("b").symlink_to(tmp_path / "archive" / "b")
    assert study.look() == [] and study.note() == ""
    rows = study.run()
    assert [row.sha256 for row in rows] == [row.sha256 for row in before] and all(row.ok for row in rows)
    study.file("b").unlink()
    for name in "ab":
        (tmp_path / "archive" / name).rename(study.file(name))
    os.utime(study.file("a"), (5, 5))
    assert study.look() == [] and study.run() == before, "back from the archive"


def test_a_scan_that_failed_is_archived_and_comes_back_as_it_was(study: Study, tmp_path: Path) -> None:
    study.file("a").write_text("x")
    before = study.run()
    study.file("a").rename(tmp_path / "kept")
    assert study.look() == [] and study.run() == before, "its own fault is known"
    (tmp_path / "kept").rename(study.file("a"))
    assert study.look() == [] and study.note() == ""


def test_a_file_that_was_absent_and_comes_is_seen(study: Study) -> None:
    content = study.file("d").read_text()
    study.file("d").unlink()
    assert "does not exist" in study.run()[3].reason and study.look() == []
    study.file("d").write_text(content)
    assert study.look() == ["sub-d_T1w"] and study.run()[3].ok and study.look() == []


def test_a_failure_that_passes_is_no_changed_file(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(inputs: Any, outputs: Any) -> dict[str, float | str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setitem(globals(), "number", fail)
    assert not study.run()[0].ok
    os.utime(study.file("a"), (5, 5))
    assert study.look() == [] and changed_scans(study.manifest(0)) == {}


def test_a_file_changed_back_before_its_job_ran_is_no_reason(study: Study) -> None:
    study.run()
    study.file("a").write_text("10")
    assert study.look() == ["sub-a_T1w"]
    study.file("a").write_text("0")
    assert study.look() == [] and study.note() == ""


def test_manifests_of_before_are_taken_over_quietly(study: Study) -> None:
    """Their journals do not say what the raw files were."""
    study.run()
    for shard in (0, 1):
        journal = study.manifest(shard).with_name(f".shard-{shard:04d}.journal")
        lines = [line.split(', "source"')[0] + "}" for line in journal.read_text().splitlines()]
        journal.write_text("\n".join(lines) + "\n")
    os.utime(study.file("a"), (5, 5))
    assert study.look() == [] and study.note() == ""
    study.run()
    study.file("a").write_text("8")
    assert study.look() == ["sub-a_T1w"]


def test_failures_that_pass_are_noted_and_their_manifests_files_are_not_looked_for(tmp_path: Path) -> None:
    manifest = tmp_path / "shard-0000.tsv"
    rows = [ManifestRow("sub-a_T1w", "ok", file="gone", bytes=3), ManifestRow("sub-b_T1w", "failed", "zero")]
    write_manifest(manifest, rows)
    note_failures_that_pass([manifest, tmp_path / "none.tsv"])
    assert lost_note(manifest) == ""
    write_manifest(manifest, [*rows, ManifestRow("sub-c_T1w", "failed", "EIO", figures={"transient": "yes"})])
    note_failures_that_pass([manifest])
    noted = lost_note(manifest)
    assert noted.splitlines()[1:] == ["again sub-c_T1w"]
    note_failures_that_pass([manifest])
    assert lost_note(manifest) == noted, "whoever asks again"
