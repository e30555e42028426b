"""Fixtures of the workflow tests."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import BROKEN, REDONE, RUNS, SCANS, Project, write_scan

from neuromf import tables

MANIFESTS = "results/cohorts/study/preprocessed/manifests"
KILLED_AT = (  # the moment each of these appears, and a random one before it; each call goes on
    "results/cohorts/study/preprocessed/sub-p03/anat/*desc-brain_T1w.nii.gz",  # amid a shard
    f"{MANIFESTS}/bias_correct/shard-0000.tsv",
    "results/cohorts/study/latents/smoke/shard-0000.safetensors",  # written, its manifest not yet
    "results/releases/first/latent_statistics.json",
    "results/releases/first/checkpoints/*/*",  # amid a training
    "results/releases/first/runs/meanflow/seed-0/model.json",
    "results/releases/first/samples/*/seed-0/nfe-*/*",
    "results/releases/first/samples/*/seed-0/nfe-*/*_T1w.nii.gz",  # amid decoding
    "results/releases/first/evaluation/**/*.json",
    "results/releases/first/evaluation/metrics.json",
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
    """A finished smoke run on good and broken scans, killed many times on the way. Tests work on copies of it."""
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
    chance = random.Random(0)
    for number, moment in enumerate(KILLED_AT):
        for by_chance in (True, False):
            past = any(project.folder.glob(moment))
            when = chance.uniform(1, 12) if by_chance or past else moment
            project.snakemake_killed(when, with_jobs=number % 2 == 0)
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
    """Add the files of finished shards to ``seen``; return those that were there and have been written again."""
    results = project.folder / "results"
    finished = {}
    for manifest in results.glob("cohorts/*/preprocessed/manifests/*/shard-*.tsv"):
        for row in tables.read_manifest(manifest):
            if row.ok:
                file = (manifest.parent / row.file).resolve()
                finished[str(file.relative_to(results))] = file.stat().st_mtime_ns
    again = [name for name, before in seen.items() if finished.get(name) != before]
    seen.update(finished)
    return again
