"""Faults of a whole run, on three scans as far as their preprocessing; those of single stages: tests/unit/test_faults.py."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import nibabel as nib
import pytest
from builders import Project, small_brain
from disks import Disk, small_disk

from neuromf import tables
from neuromf.shards import finished_scans

NAMES = ("$(touch pwned)_T1w.nii.gz", "a b;touch pwned;&_T1w.nii.gz", "<img src=x onerror=alert(1)>'\"`id`_T1w.nii.gz")
STAGES = ("skull_strip", "bias_correct", "conform")
MANIFESTS = "results/cohorts/study/preprocessed/manifests"
DONE = "results/cohorts/study/preprocessed/failed.tsv"


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> Iterator[tuple[Project, Disk]]:
    """A project of three scans whose names are commands and HTML; its results lie on a small disk."""
    project = Project(tmp_path_factory.mktemp("project"))
    (project.folder / "scans").mkdir()
    for number, name in enumerate(NAMES):
        nib.save(small_brain(number), project.folder / "scans" / name)
    indexed = project.neuromf("index", "scans", "--cohort", "study", "--skull-stripped")
    assert indexed.returncode == 0, indexed.stderr
    scans = tables.read_cohort(project.folder / "config/cohorts/study.tsv").scans
    rows = [
        tables.ReleaseRow(scan.participant_id, None, "T1w", "study", split)
        for scan, split in zip(scans, tables.SPLITS, strict=True)
    ]
    tables.write_release(project.folder / "config/releases/first.tsv", rows)
    project.configure(preset="smoke", release="first")
    with small_disk(project.folder / "results", 16) as disk:
        yield project, disk


def preprocess(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return project.snakemake("preprocess", "--cores", "1", *arguments, check=False)


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def made(project: Project) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (project.folder / "results/cohorts").rglob("*_T1w*.nii.gz")}


def finished(project: Project) -> dict[str, int]:
    """The files of scans that a stage was done with, and when they were written."""
    manifests = [project.folder / MANIFESTS / stage / "shard-0000.tsv" for stage in STAGES]
    files = [path for manifest in manifests for path in finished_scans(manifest).values()]
    return {path.name: path.stat().st_mtime_ns for path in files}


# The tests follow one another on the same project, as the faults would.


def test_a_full_disk_stops_the_run_with_the_remedy_and_the_next_goes_on(started):
    project, disk = started
    if not disk.mounted:
        pytest.skip(
            "a limit on the size of files would stop Snakemake's own too; the stages are tested under tests/unit"
        )
    with disk.full(leave=2**18):
        done = preprocess(project)
        assert done.returncode != 0
        assert "cannot be written: No space left on device" in said(
            done
        ) and "free some space there and run again" in said(done)
    assert not (project.folder / DONE).exists()
    half = finished(project)
    done = preprocess(project)
    assert done.returncode == 0, said(done)
    rows = tables.read_manifest(project.folder / MANIFESTS / "conform/shard-0000.tsv")
    assert [row.status for row in rows] == ["ok"] * 3
    assert half and half.items() <= finished(project).items(), "what was done is not done again"


def test_names_that_are_commands_or_html_are_data(started):
    project, disk = started
    if not disk.mounted:
        assert preprocess(project).returncode == 0
    assert not list(project.folder.rglob("pwned"))
    scans = tables.read_cohort(project.folder / "config/cohorts/study.tsv").scans
    assert sorted(scan.image for scan in scans) == sorted(NAMES)
    assert all(scan.participant_id.isalnum() for scan in scans)


def test_of_two_runs_in_one_folder_the_second_is_refused_and_the_first_finishes(started):
    project, _ = started
    first = subprocess.Popen(
        [*project._command(), "preprocess", "--cores", "1", "--forcerun", "conform"], cwd=project.folder,
        env=project._environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    while not list((project.folder / ".snakemake" / "locks").glob("*.lock")):
        assert first.poll() is None
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGSTOP)  # alive, and busy for as long as the second one needs to start
    try:
        second = preprocess(project, "--forcerun", "conform")
    finally:
        os.killpg(first.pid, signal.SIGCONT)
    told, _ = first.communicate()
    assert second.returncode != 0 and "Directory cannot be locked" in said(second)
    assert first.returncode == 0, told
    assert not list((project.folder / ".snakemake" / "locks").glob("*.lock"))


def test_read_only_results_are_told_and_stay(started):
    project, disk = started
    before = made(project)
    with disk.read_only():
        done = preprocess(project, "--forcerun", "conform")
        assert done.returncode != 0
        assert "Write-protected output files" in said(done) and "conform/shard-0000.tsv" in said(
            done
        )  # Snakemake words it
    assert made(project) == before
    assert preprocess(project, "--forcerun", "conform").returncode == 0
    assert made(project) == before  # nothing was done twice: the journal knew


def test_a_flipped_bit_is_refused_where_it_is_read_and_removing_the_file_repairs_it(started):
    project, _ = started
    scan = tables.read_cohort(project.folder / "config/cohorts/study.tsv").scans[1]
    (path,) = (project.folder / "results/cohorts").rglob(scan.volume_name("n4"))
    whole = path.read_bytes()
    content = bytearray(whole)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done = preprocess(project, "--forcerun", "conform")
    assert done.returncode != 0 and f"{path.name} has sha256" in said(done) and "Remove it" in said(done)
    path.unlink()
    before = made(project)
    done = preprocess(project, "--forcerun", "conform")
    assert done.returncode == 0, said(done)
    after = made(project)
    assert path.read_bytes() == whole
    assert {name for name in after if after[name] != before.get(name)} == {path.name}


def test_a_clock_that_jumped_back_costs_no_scan(started):
    project, _ = started
    tomorrow = time.time() + 86400
    for path in [*(project.folder / "scans").iterdir(), *(project.folder / "results/cohorts").rglob("*")]:
        os.utime(path, (tomorrow, tomorrow))
    os.utime(project.folder / MANIFESTS / "skull_strip/shard-0000.tsv", (tomorrow + 60, tomorrow + 60))
    before = made(project)
    done = preprocess(project)
    assert done.returncode == 0, said(done)
    assert made(project) == before


def test_a_table_that_leads_out_of_the_cohort_stops_the_run_before_it_starts(started):
    project, _ = started
    path = project.folder / "config/cohorts/study.tsv"
    path.write_text(path.read_text() + "new\tn/a\t../../etc/passwd\tT1w\tn/a\ttrue\n")
    done = preprocess(project)
    assert done.returncode != 0
    assert "study.tsv, row 5: image '../../etc/passwd' leaves the cohort's root" in said(done)
