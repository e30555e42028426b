"""`neuromf plan` and `neuromf doctor` on a finished project, and what keeps its models when they are trained again."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from builders import RUNS, Project, write_scan

SETTINGS = {"preset": "smoke", "release": "first", "runs": RUNS, "max_failed_fraction": 0.5}
FASTER = {"learning_rate": 0.01}
MODELS = "results/releases/first/runs"


@pytest.fixture
def configured(project):
    """The project, whose settings are put back after the test."""
    yield project
    project.configure(**SETTINGS)


def plan(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return project.neuromf("plan", *arguments, "--snakefile", str(project.repository / "Snakefile"))


def lines(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The plan's lines, rule -> the rest of it."""
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if "  " in line.strip())


def weights(project: Project) -> dict[str, str]:
    """File -> hash of every model's weights."""
    paths = sorted((project.folder / MODELS).rglob("model.safetensors"))
    return {str(path.relative_to(project.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_nothing_to_do(project):
    done = plan(project)
    assert done.returncode == 0, done.stderr
    assert "Release first: 19 scans" in done.stdout and "Nothing to do" in done.stdout


def test_new_scans(configured):
    """The last shard holds three of nineteen scans."""
    table = configured.folder / "config/cohorts/study.tsv"
    before = table.read_text()
    root = configured.folder / "bids"
    write_scan(root, "late00", 70)
    try:
        assert configured.neuromf("index", str(root), "--cohort", "study", "--skull-stripped").returncode == 0
        done = plan(configured, "encode_all", "--max-gpu-hours", "0")
    finally:
        table.write_text(before)
    assert done.returncode == 0, done.stdout + done.stderr
    said = lines(done)
    assert set(said) & {"skull_strip", "bias_correct", "conform", "encode", "train"} == {
        "skull_strip", "bias_correct", "conform", "encode"
    }  # fmt: skip
    assert said["skull_strip"].endswith("new data: rows of the table")
    assert said["conform"].endswith("after bias_correct")
    jobs, scans, time, *_ = said["skull_strip"].split()
    assert jobs == "1" and 1 <= int(scans) < 8 and time != "-", "those that are there are not done again"


def test_a_setting_and_a_lost_file_and_an_edit_are_told_apart(configured, tmp_path):
    configured.configure(**SETTINGS, train=FASTER)
    said = lines(plan(configured))
    assert said["train"].endswith("setting: train.learning_rate 0.0001 → 0.01")
    assert said["sample"].endswith("after train") and "encode" not in said
    configured.configure(**SETTINGS)

    lost = next((configured.folder / "results/cohorts/study/preprocessed").rglob("sub-p03_desc-n4_T1w.nii.gz"))
    kept = lost.rename(tmp_path / lost.name)
    try:
        said = lines(plan(configured))
    finally:
        kept.rename(lost)
        for note in (configured.folder / "results").rglob(".shard-*.lost"):
            note.unlink()
    assert said["bias_correct"].split()[:2] == ["1", "4"], "one job: the lost scan, and its shard's three that failed"
    assert said["bias_correct"].endswith(f"missing file: {lost.name}")

    picture = configured.folder / "results/releases/first/paper/spectrum.png"
    content = picture.read_bytes()
    picture.unlink()
    try:
        assert lines(plan(configured))["spectrum_picture"].endswith(
            "missing file: results/releases/first/paper/spectrum.png"
        )
    finally:
        picture.write_bytes(content)

    checkout = configured.with_checkout(tmp_path / "checkout")
    conform = checkout.repository / "src/neuromf/preprocess/conform.py"
    conform.write_text(conform.read_text().replace("_MARGIN = 8 ", "_MARGIN = 9 "))
    said = lines(plan(checkout))
    assert said["conform"].endswith("code: of this rule") and "skull_strip" not in said
    jobs, scans, *_ = said["conform"].split()
    assert (jobs, scans) == ("3", "19"), "all scans, also those that are done"
    assert said["encode"].split()[:2] == ["3", "19"]


def test_a_new_release_is_new_and_its_cost_is_known(configured):
    created = configured.neuromf("release", "create", "second", "--cohort", "study", "--fractions", "0.6", "0.2", "0.2")
    assert created.returncode == 0, created.stderr
    done = plan(configured, "--config", "release=second", "device=auto", "--max-gpu-hours", "100")
    assert done.returncode == 0, done.stdout + done.stderr
    said = lines(done)
    assert said["train"].endswith("new: not made yet") and said["train"].split()[0] == "2"
    assert "-" not in said["train"].split()[1], "trainings of the first release were recorded"
    assert "conform" not in said
    done = plan(configured, "--config", "release=second", "device=auto", "--max-gpu-hours", "0.00001")
    assert done.returncode == 1
    assert "--max-gpu-hours 1e-05 allows fewer" in done.stderr and "name a target" in done.stderr
    other = "network={channels: [8, 24], attention: [false, false], head_channels: [0, 0]}"
    done = plan(configured, "--config", "release=second", "device=auto", other, "--max-gpu-hours", "100")
    assert done.returncode == 1 and "no earlier job says what" in done.stderr and "train" in done.stderr


def test_what_snakemake_refuses_is_passed_on(project):
    done = plan(project, "--config", "release=third")
    assert done.returncode == 1 and "third.tsv does not exist" in done.stderr


def test_the_doctor(project):
    arguments = ("--workflow", str(project.repository))
    done = project.neuromf("doctor", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {line.split(":")[0].split(maxsplit=1)[1] for line in done.stdout.splitlines() if not line.startswith(" ")}
    assert checks == {
        "Python", "packages", "configuration", "tables", "folders", "device", "precision", "memory", "memorisation",
        "weights", "scans", "field of view", "disk",
    }  # fmt: skip
    assert "scans conformed so far" in done.stdout
    done = project.neuromf("doctor", *arguments, "preset=methodology")
    assert done.returncode == 1
    assert "blocker  weights: codec maisi: codec.weights 'autoencoder_v1.pt': no such file" in done.stdout


def test_a_finished_model_is_trained_again_only_where_it_is_asked_for_and_kept(configured):
    """The last test of the module: it trains."""
    before = weights(configured)
    model = Path(MODELS, "meanflow/seed-0/model.safetensors")
    target = str(model)
    configured.configure(**SETTINGS, train=FASTER)

    refused = plan(configured, target)
    assert refused.returncode == 1 and "Snakemake refuses this call" in refused.stdout
    done = configured.snakemake(target, check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "would train again what is trained already" in said
    assert "run meanflow, seed 0 (setting: train.learning_rate 0.0001 → 0.01)" in said
    assert "--config 'retrain=[meanflow]'" in said and "rectified_flow" not in said.split("would train again")[1]
    assert weights(configured) == before, "nothing was touched"

    allowed = ("--config", "retrain=[meanflow]")
    assert plan(configured, target, *allowed).returncode == 0
    assert weights(configured) == before, "a plan moves nothing"
    configured.snakemake(target, *allowed)
    after = weights(configured)
    sha256 = before.pop(str(model))
    kept = Path(MODELS, "meanflow/replaced", f"seed-0-{sha256[:12]}", "model.safetensors")
    assert after.pop(str(kept)) == sha256
    assert after.pop(str(model)) != sha256
    assert after == before
    assert configured.planned(target) == {}, "the setting `retrain` itself is no reason"
    assert (configured.folder / kept).with_name("averages").is_dir()
