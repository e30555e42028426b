"""Small real projects that the workflow tests run Snakemake on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml
from nilearn.datasets import load_mni152_template
from nilearn.image import resample_img

REPOSITORY = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SCANS = 12
RUNS = {
    "meanflow": {"sample": {"nfe": [1, 2]}},
    "rectified_flow": {"flow": {"variant": "rectified_flow"}, "sample": {"nfe": [1]}},
}
REDONE = "redone_after_a_kill.json"
BROKEN = ("truncated", "fourdim", "zero", "nan", "tiny", "text", "folder")


WORKFLOW = ("Snakefile", "rules", "workflow_scripts", "profiles", "envs", "config", "src", "pyproject.toml")


def interpreter(version: str) -> str | None:
    """Return a Python of a version, as "3.12": on the PATH or one of pyenv's, whose names on the PATH may not run."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))]
    for one in filter(None, found):
        asked = [one, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == version:
            return one
    return None


@dataclass(frozen=True)
class Written:
    """The moment at which ``number`` files of a glob pattern have appeared, or been written again, since the start."""

    pattern: str
    number: int = 1

    def __call__(self, folder: Path) -> Callable[[], bool]:
        before = _stamps(folder, self.pattern)
        return lambda: len(_stamps(folder, self.pattern).items() - before.items()) >= self.number


@dataclass(frozen=True)
class Removed:
    """The moment at which a file of a glob pattern is gone: Snakemake removes what a job made before it does it again."""

    pattern: str

    def __call__(self, folder: Path) -> Callable[[], bool]:
        before = _stamps(folder, self.pattern)
        assert before, f"{self.pattern} is not there yet"
        return lambda: bool(before.keys() - _stamps(folder, self.pattern).keys())


def _stamps(folder: Path, pattern: str) -> dict[Path, int]:
    stamps = {}
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):  # removed meanwhile
            stamps[path] = path.stat().st_mtime_ns
    return stamps


Moment = Written | Removed


@dataclass(frozen=True)
class Project:
    """A user's folder: their scans, tables and configuration; the workflow runs in it from a repository's Snakefile."""

    folder: Path
    repository: Path = REPOSITORY

    def copy(self, folder: Path) -> Project:
        """Return a copy in another folder, scans and times of files included."""
        shutil.copytree(self.folder, folder, symlinks=True)
        for sidecar in (folder / "config" / "cohorts").glob("*.json"):
            sidecar.write_text(sidecar.read_text().replace(str(self.folder), str(folder)))
        return Project(folder, self.repository)

    def with_checkout(self, folder: Path) -> Project:
        """Return the same project with a checkout of the repository of its own, whose files are all new."""
        folder.mkdir()
        for name in WORKFLOW:
            copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copyfile
            copy(REPOSITORY / name, folder / name)
        for path in folder.rglob("*"):
            path.touch()
        return Project(self.folder, folder)

    def neuromf(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run([str(BIN / "neuromf"), *arguments])

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = self._run([*self._command(), *arguments])
        if check:
            assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
        return done

    def snakemake_killed(self, moment: Moment, *arguments: str, with_jobs: bool = False) -> None:
        """Start the workflow and SIGKILL it (its jobs too) at a moment of its own progress."""
        log = self.folder / "killed.log"
        reached = moment(self.folder)
        process = self.started(log, *arguments)
        while not reached():
            assert process.poll() is None, f"it ended before {moment}: {log.read_text()[-8000:]}"
            time.sleep(0.02)
        if with_jobs:
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()

    def started(self, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the workflow, in a process group of its own, and do not wait for it."""
        with log.open("w") as file:
            return subprocess.Popen(
                [*self._command(), *arguments],
                cwd=self.folder,
                env=self._environment(),
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def planned(self, *arguments: str) -> dict[str, int]:
        """Return how many jobs of each rule would run."""
        done = self.snakemake(*arguments, "--dry-run", "--quiet", "reason")
        lines = (line.split() for line in done.stdout.splitlines() + done.stderr.splitlines())
        return {
            words[0]: int(words[1])
            for words in lines
            if len(words) == 2 and words[0].isidentifier() and words[1].isdigit() and words[0] != "total"
        }

    def configure(self, **settings: object) -> None:
        (self.folder / "config").mkdir(exist_ok=True)
        (self.folder / "config" / "config.yaml").write_text(yaml.safe_dump(settings))

    def _command(self) -> list[str]:
        return [
            str(BIN / "snakemake"), "--snakefile", str(self.repository / "Snakefile"), "--directory", str(self.folder)
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.repository / "src"),
        }

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self._environment(), capture_output=True, text=True, check=False
        )


def small_brain(index: int) -> nib.Nifti1Image:
    """A skull-stripped brain at 4 mm, scaled and shaded a little differently for every index."""
    rng = np.random.default_rng(index)
    scale = np.diag([*(4.0 * rng.uniform(0.92, 1.08, 3)), 1.0])
    template = load_mni152_template(resolution=2)
    shape = (48, 56, 48)
    scale[:3, 3] = template.affine[:3, :3] @ np.array(template.shape) / 2 + template.affine[:3, 3]
    scale[:3, 3] -= scale[:3, :3] @ np.array(shape) / 2
    brain = resample_img(template, scale, shape, copy_header=True, force_resample=True).get_fdata()
    shade = 1 + 0.1 * rng.normal() * np.linspace(-1, 1, shape[0])[:, None, None]
    brain = np.clip(brain, 0, None) * shade * rng.uniform(200, 800)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    return nib.Nifti1Image(brain.astype(np.int16), affine)


def write_scan(root: Path, participant: str, index: int) -> None:
    folder = root / f"sub-{participant}" / "anat"
    folder.mkdir(parents=True)
    nib.save(small_brain(index), folder / f"sub-{participant}_T1w.nii.gz")
