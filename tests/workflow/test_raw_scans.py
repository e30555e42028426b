"""Raw scans that are mended, overwritten, touched or archived after a run: what is made again, what stays, what is told."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from builders import Project, write_scan

from neuromf import tables

COHORT = "results/cohorts/study/preprocessed"
MODEL = Path("results/releases/first/runs/meanflow/seed-0/model.safetensors")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Project:
    """Six stripped scans, one of them cut, preprocessed."""
    project = Project(tmp_path_factory.mktemp("project"))
    for number in range(6):
        write_scan(project.folder / "bids", f"p{number}", number)
    kept = project.folder / "good"
    shutil.copy(raw(project, "p3"), kept)
    raw(project, "p3").write_bytes(kept.read_bytes()[:2000])
    index(project)
    rows = [tables.ReleaseRow(f"p{i}", None, "T1w", "study", "train" if i < 4 else "test") for i in range(6)]
    tables.write_release(project.folder / "config/releases/first.tsv", rows)
    project.configure(preset="smoke", release="first", max_failed_fraction=0.5, runs={"meanflow": {}})
    project.snakemake("preprocess")
    assert failed(project) == ["sub-p3_T1w"]
    return project


def index(project: Project) -> None:
    done = project.neuromf("index", str(project.folder / "bids"), "--cohort", "study", "--skull-stripped")
    assert done.returncode == 0, done.stderr


def raw(project: Project, name: str) -> Path:
    return project.folder / f"bids/sub-{name}/anat/sub-{name}_T1w.nii.gz"


def failed(project: Project) -> list[str]:
    return [row.scan_id for row in tables.read_manifest(project.folder / COHORT / "failed.tsv")]


def made(project: Project) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (project.folder / COHORT).rglob("*_T1w*.nii.gz")}


def scans_of(names: set[str]) -> set[str]:
    return {name.split("_")[0] for name in names}


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def plan(project: Project, *arguments: str) -> str:
    return said(project.neuromf("plan", *arguments, "--snakefile", str(project.repository / "Snakefile")))


# The tests of `study` follow one another on the same project.


def test_a_repaired_scan_is_made_again_by_the_next_call(study):
    assert study.planned("preprocess") == {}, "a scan's own fault is not tried again"
    before = made(study)
    shutil.copyfile(study.folder / "good", raw(study, "p3"))
    assert "changed scan: sub-p3_T1w" in plan(study, "preprocess")
    done = study.snakemake("preprocess")
    assert "the raw file of sub-p3_T1w (cohort study) has changed" in said(done)
    assert failed(study) == []
    after = made(study)
    assert scans_of(set(after) - set(before)) == {"sub-p3"} and before.items() <= after.items()
    assert study.planned("preprocess") == {}


def test_touched_scans_cost_no_job(study):
    for number in range(6):
        os.utime(raw(study, f"p{number}"), (1e9, 1e9))
    assert study.planned("preprocess") == {}


def test_a_changed_scan_of_a_finished_release_is_guarded(project):
    good = raw(project, "p01").read_bytes()
    raw(project, "p01").write_bytes(raw(project, "p02").read_bytes())
    told = plan(project)
    assert "changed scan: sub-p01_T1w" in told and "Snakemake refuses this call" in told
    before = made(project)
    done = project.snakemake(check=False)
    assert done.returncode != 0 and "would train again what is trained already" in said(done)
    assert "the raw file of sub-p01_T1w has changed" in said(done) and "retrain=[" in said(done)
    assert made(project) == before and (project.folder / MODEL).is_file()
    project.snakemake("preprocess")
    after = made(project)
    assert scans_of({name for name in after if after[name] != before[name]}) == {"sub-p01"}
    assert "train" in project.planned(), "until somebody decides"
    raw(project, "p01").write_bytes(good)
    project.snakemake("preprocess")
    assert "train" not in project.planned(), "undone: the models are of these scans"
    raw(project, "p02").rename(project.folder / "archived")
    assert "train" not in project.planned(), "what was made of an absent scan stays"


def test_archived_scans_stay_when_one_is_added(study):
    archive = study.folder / "archive"
    archive.mkdir()
    for number in range(5):
        raw(study, f"p{number}").rename(archive / f"p{number}")
    table = study.folder / "config/cohorts/study.tsv"
    write_scan(study.folder / "bids", "p6", 6)
    table.write_text(table.read_text() + "p6\tn/a\tsub-p6/anat/sub-p6_T1w.nii.gz\tT1w\tn/a\ttrue\n")
    before = made(study)
    done = study.snakemake("preprocess")
    after = made(study)
    assert before.items() <= after.items() and scans_of(set(after) - set(before)) == {"sub-p6"} and failed(study) == []
    (row,) = (
        row
        for row in tables.read_manifest(study.folder / COHORT / "manifests/skull_strip/shard-0000.tsv")
        if row.scan_id == "sub-p0_T1w"
    )
    assert "what was made of it stays" in str(row.figures["warning"]) and "what was made of it stays" in said(done)


def test_a_failure_that_passes_is_tried_again_by_the_next_call(study):
    """A process that may open two files only, as on a machine whose limit others have used up."""
    manifest = study.folder / COHORT / "manifests/skull_strip/shard-0000.tsv"
    rows = tables.read_manifest(manifest)
    assert all(row.ok for row in rows)
    tables.write_manifest(
        manifest, [*rows[:-1], tables.ManifestRow(rows[-1].scan_id, "failed", "EIO", figures={"transient": "yes"})]
    )
    assert "tried again: sub-p6_T1w" in plan(study, "preprocess")
    study.snakemake("preprocess")
    assert all(row.ok for row in tables.read_manifest(manifest)) and study.planned("preprocess") == {}
