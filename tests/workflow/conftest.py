"""Fixtures of the workflow tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import BROKEN, REDONE, RUNS, SCANS, Project, Removed, Written, write_scan

from neuromf.shards import finished_scans

COHORT, RELEASE = "results/cohorts/study", "results/releases/first"
BIAS_CORRECTED = f"{COHORT}/preprocessed/manifests/bias_correct/shard-000[01].tsv"  # 2: broken scans only
AGAIN = ("--forcerun", "bias_correct")  # the jobs of the shards that are finished too
KILLED_AT = (  # one after another, on the run's own way; every second time with the jobs, else these outlive the workflow
    (Written(f"{COHORT}/preprocessed/sub-*/anat/*desc-brain_T1w.nii.gz", 2), ()),  # amid a shard
    (Written(f"{COHORT}/preprocessed/sub-*/anat/*desc-n4_T1w.nii.gz", 2), ()),
    (Written(BIAS_CORRECTED), ()),  # whole, and its job is not done yet for Snakemake
    (Removed(BIAS_CORRECTED), AGAIN),
    (Written(f"{COHORT}/preprocessed/sub-*/anat/*desc-preproc_T1w.nii.gz", 3), ()),
    (Written("results/codecs/smoke/checkpoints/checkpoint.safetensors"), ()),  # amid the codec's training
    (Written(f"{COHORT}/latents/smoke/.shard-*.parts/*"), ()),  # amid encoding
    (Written(f"{RELEASE}/checkpoints/*/update-*"), ()),  # amid a training
    (Written(f"{RELEASE}/runs/*/seed-0/model.json"), ()),
    (Written(f"{RELEASE}/samples/*/seed-0/nfe-*/latents.safetensors"), ()),
    (Written(f"{RELEASE}/samples/*/seed-0/nfe-*/*_T1w.nii.gz"), ()),  # amid decoding
    (Written(f"{RELEASE}/evaluation/parts/*.json", 2), ()),
)


@pytest.fixture(scope="session")
def bids(tmp_path_factory) -> Path:
    """A BIDS folder of stripped brains."""
    root = tmp_path_factory.mktemp("bids")
    (root / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.9.0"}')
    for index in range(SCANS):
        write_scan(root, f"p{index:02d}", index)
    return root


def add_broken_scans(root) -> None:
    """Seven scans that cannot be used, each for another reason."""
    whole = (root / "sub-p00" / "anat" / "sub-p00_T1w.nii.gz").read_bytes()
    volumes = {
        "fourdim": np.ones((20, 20, 20, 3), np.float32),
        "zero": np.zeros((20, 20, 20), np.float32),
        "nan": np.full((20, 20, 20), np.nan, np.float32),
        "tiny": np.ones((10, 10, 10), np.float32),
    }
    for name in BROKEN:
        path = root / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        if name == "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        elif name == "text":
            path.write_text("this is no image")
        elif name == "folder":
            path.mkdir()
        else:
            nib.save(nib.Nifti1Image(volumes[name], np.eye(4)), path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, bids) -> Project:
    """A finished smoke run on good and broken scans, killed in every stage on the way. Tests work on copies of it."""
    project = Project(tmp_path_factory.mktemp("project"))
    root = project.folder / "bids"
    shutil.copytree(bids, root)
    add_broken_scans(root)
    indexed = project.neuromf("index", str(root), "--cohort", "study", "--skull-stripped")
    assert indexed.returncode == 0, indexed.stderr
    released = project.neuromf("release", "create", "first", "--cohort", "study", "--fractions", "0.5", "0.25", "0.25")
    assert released.returncode == 0, released.stderr
    project.configure(preset="smoke", release="first", runs=RUNS, max_failed_fraction=0.5)
    seen: dict[str, int] = {}
    redone: list[str] = []
    for number, (moment, arguments) in enumerate(KILLED_AT):
        project.snakemake_killed(moment, *arguments, with_jobs=number % 2 == 0)
        redone += note_finished(project, seen)
    project.snakemake()
    redone += note_finished(project, seen)
    (project.folder / REDONE).write_text(json.dumps({"finished": sorted(seen), "redone": redone}))
    return project


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory) -> Project:
    """A copy of the finished run for the tests of one file."""
    return finished.copy(tmp_path_factory.mktemp("copy") / "project")


def note_finished(project: Project, seen: dict[str, int]) -> list[str]:
    """Add the files of finished scans to ``seen``; return those that were there and have been written again or are gone.

    It goes by the journals: a manifest may be gone, since Snakemake removes it before its job runs again, and a job
    that finds its scans done writes none of them.
    """
    results = project.folder / "results"
    now = {name: (results / name).stat().st_mtime_ns if (results / name).is_file() else None for name in seen}
    again = [name for name, before in seen.items() if now[name] != before]
    for journal in results.glob("cohorts/*/preprocessed/manifests/*/.shard-*.journal"):
        manifest = journal.with_name(f"{journal.stem.removeprefix('.')}.tsv")
        for file in finished_scans(manifest).values():
            seen[str(file.resolve().relative_to(results.resolve()))] = file.stat().st_mtime_ns
    return again
