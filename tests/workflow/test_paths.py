"""A checkout, its Python and a study may lie in folders of awkward names."""

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from builders import REPOSITORY, Project, write_scan

from neuromf import tables

STRIPPED = "results/cohorts/study/preprocessed/manifests/skull_strip/shard-0000.tsv"


def snakemake(project: Project, python: Path, sources: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the checkout's workflow with a Python that has this Python's packages."""
    return subprocess.run(
        [python, "-m", "snakemake", "--snakefile", project.repository / "Snakefile", "--cores", "1", *arguments],
        cwd=project.folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(sources), *site.getsitepackages()])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["my group", "it's (100%) ünusual & odd"])
def test_jobs_run_from_a_checkout_and_in_a_study_of_an_awkward_name(tmp_path, name):
    project = Project(tmp_path / f"study of {name}: 2024").with_checkout(tmp_path / name)
    project.folder.mkdir()
    venv.create(project.repository / ".venv", symlinks=True)
    root = tmp_path / f"scans of {name}"
    for index in range(4):
        write_scan(root, f"p{index}", index)
    indexed = project.neuromf("index", str(root), "--cohort", "study", "--skull-stripped")
    assert indexed.returncode == 0, indexed.stderr
    released = project.neuromf("release", "create", "first", "--cohort", "study", "--fractions", "0.5", "0.25", "0.25")
    assert released.returncode == 0, released.stderr
    project.configure(preset="smoke", release="first")
    python = project.repository / ".venv" / "bin" / "python"
    done = snakemake(project, python, project.repository / "src", "--", STRIPPED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(row.ok for row in tables.read_manifest(project.folder / STRIPPED))


def test_a_checkout_that_cannot_run_says_so_at_once(tmp_path):
    project = Project(tmp_path / "study").with_checkout(tmp_path / "12:30")
    project.folder.mkdir()
    project.configure(preset="smoke", release="first")
    done = snakemake(project, Path(sys.executable), REPOSITORY / "src", "--dry-run")
    assert done.returncode == 1
    assert f"{project.repository}: NeuroMF does not run from a folder with : in its path" in done.stdout + done.stderr
