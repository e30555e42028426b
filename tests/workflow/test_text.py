"""Names, mistakes and edited tables, as Snakemake, `neuromf plan` and `neuromf doctor` meet them."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import Project

from neuromf import tables
from neuromf.planning.plan import ask

NOISE = ("Using profile", "Using workflow specific profile", "Config file ")
COHORT, RELEASE = "2024-01-02", "2024_01"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A project whose scans are no images, with names that YAML takes for a date and a number."""
    project = Project(tmp_path_factory.mktemp("text"))
    (project.folder / "bids").mkdir()
    for index in range(8):
        (project.folder / "bids" / f"sub-p{index}_T1w.nii").write_text("no image")
    made = project.neuromf("index", "bids", "--cohort", COHORT)
    assert made.returncode == 0, made.stderr
    made = project.neuromf("release", "create", RELEASE, "--cohort", COHORT, "--fractions", "0.5", "0", "0.5")
    assert made.returncode == 0, made.stderr
    project.configure(preset="smoke", release="demo", max_failed_fraction=1.0)
    return project


def said(done) -> list[str]:
    """The lines of a call that failed, but for what Snakemake says of every one."""
    assert done.returncode == 1, done.stdout + done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if line.strip() and not line.startswith(NOISE)]


def test_a_release_whose_name_is_a_number_runs_and_its_jobs_too(project):
    project.snakemake("preprocess", "--config", f"release={RELEASE}")
    failed = project.folder / f"results/cohorts/{COHORT}/preprocessed/failed.tsv"
    assert len(failed.read_text().splitlines()) == 9
    plan = project.neuromf(
        "plan", "preprocess", "--snakefile", str(project.repository / "Snakefile"), "--config", f"release={RELEASE}"
    )
    assert plan.returncode == 0 and f"Release {RELEASE}: 8 scans" in plan.stdout and "Nothing to do" in plan.stdout
    project.configure(preset="smoke", max_failed_fraction=1.0)
    config = project.folder / "config" / "config.yaml"
    config.write_text(f"{config.read_text()}release: {RELEASE}\nruns: {{1e5: {{}}}}\n")
    try:
        assert project.planned("preprocess") == {}
    finally:
        project.configure(preset="smoke", release="demo", max_failed_fraction=1.0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("release=2024_02", "release '2024_02': config/releases/2024_02.tsv does not exist; `neuromf release create 2024_02"
         f" --cohort {COHORT}` makes it; did you mean '{RELEASE}'?"),
        ("release=../x", "release = '../x': use letters, digits, _ and -, beginning with a letter or digit, at most 100"),
        ("preset=smokee", "preset: no preset 'smokee'"),
        ("relaese=demo", "relaese: unknown key; did you mean 'release'?"),
        ("codec={name: a b}", "codec.name = 'a b': use letters"),
    ],
)  # fmt: skip
def test_a_plain_mistake_is_one_line(project, setting, message):
    (line,) = said(project.snakemake("--dry-run", "--config", setting, check=False))
    assert line.startswith(f"Error: {message}")


def test_plan_and_doctor_say_the_same(project):
    setting = "release=2024_02"
    (line,) = said(project.snakemake("--dry-run", "--config", setting, check=False))
    snakefile = str(project.repository / "Snakefile")
    (planned,) = said(project.neuromf("plan", "--snakefile", snakefile, "--config", setting))
    assert planned == line
    found = project.neuromf("doctor", "--workflow", str(project.repository), setting)
    assert found.returncode == 1 and line.removeprefix("Error: ") in found.stdout and "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config/config.yaml", None, "config/config.yaml cannot be read: No such file or directory; run in the folder"),
        ("config/config.yaml", b"release: [\n", "config/config.yaml is no valid YAML: line 2:"),
        ("config/config.yaml", b"a\t: \xe9\n", "config/config.yaml is no valid YAML: 'utf-8' codec can't decode"),
        ("config/config.yaml", b"release: 2024-13-45\n", "config/config.yaml is no valid YAML: month must be in 1..12; a"),
        (f"config/cohorts/{COHORT}.tsv", None, f"config/releases/{RELEASE}.tsv draws on the cohort '{COHORT}'"),
        (f"config/cohorts/{COHORT}.json", None, f"config/cohorts/{COHORT}.json is missing"),
        (f"config/cohorts/{COHORT}.json", b"{", f"config/cohorts/{COHORT}.json is damaged or no JSON"),
        (f"config/releases/{RELEASE}.tsv", b"x\ty\n", f"config/releases/{RELEASE}.tsv: missing column participant_id"),
    ],
)  # fmt: skip
def test_a_file_that_is_gone_or_damaged_is_one_line(project, file, content, message):
    path: Path = project.folder / file
    before = path.read_bytes()
    try:
        path.write_bytes(content) if content is not None else path.unlink()
        (line,) = said(project.snakemake("--dry-run", "--config", f"release={RELEASE}", check=False))
    finally:
        path.write_bytes(before)
    assert line.startswith(f"Error: {message}")


def test_an_editors_spelling_of_the_release_trains_nothing_again(project, monkeypatch):
    """What decides whether a finished model stays is each job's `upstream`."""
    monkeypatch.chdir(project.folder)
    arguments = ("--snakefile", str(project.repository / "Snakefile"), "--config", f"release={RELEASE}")
    table = project.folder / f"config/releases/{RELEASE}.tsv"
    text = table.read_text()
    before = {job.output: job.upstream for job in ask(arguments).jobs}
    assert any(before.values())
    try:
        table.write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
        assert {job.output: job.upstream for job in ask(arguments).jobs} == before
        tables.write_release(table, tables.read_release(table)[::-1])
        assert {job.output: job.upstream for job in ask(arguments).jobs} != before
    finally:
        table.write_text(text)
