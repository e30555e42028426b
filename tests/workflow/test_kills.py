"""Kills where the cohort of the other tests has nothing to do: phantom heads, which a rule makes."""

from __future__ import annotations

from builders import Project, Removed, Written

from neuromf import tables
from neuromf.cohort.phantom import phantom_cohort
from neuromf.config import Phantom

RAW = "results/cohorts/heads/raw"
MANIFEST = f"{RAW}/manifests/shard-0000.tsv"
SETTINGS = {"voxel_mm": [6.0, 6.0]}
SHARD = 3  # heads


def made(project: Project) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (project.folder / RAW).glob("sub-*/anat/*.nii.gz")}


def test_killed_while_it_makes_phantoms_a_run_makes_no_finished_head_again(tmp_path):
    project = Project(tmp_path)
    cohort = phantom_cohort("heads", SHARD, tmp_path / RAW, Phantom.model_validate(SETTINGS))
    tables.write_cohort(tmp_path / "config/cohorts/heads.tsv", cohort)
    splits = zip(cohort.scans, tables.SPLITS, strict=True)
    rows = [tables.ReleaseRow(scan.participant_id, None, "T1w", "heads", split) for scan, split in splits]
    tables.write_release(tmp_path / "config/releases/first.tsv", rows)
    project.configure(preset="smoke", release="first", phantom=SETTINGS)
    target = (MANIFEST, "--cores", "1")

    project.snakemake_killed(Written(f"{RAW}/sub-*/anat/*.nii.gz", 2), *target)  # the first of them has its row
    first, *_ = sorted(made(project).items(), key=lambda file: file[1])
    project.snakemake_killed(Written(MANIFEST), *target, with_jobs=True)
    finished = made(project)
    assert len(finished) == SHARD and first in finished.items()
    project.snakemake_killed(Removed(MANIFEST), *target, "--forcerun", "phantom")
    project.snakemake(*target)
    assert made(project) == finished
