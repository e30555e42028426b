"""A real run of the whole workflow on a user's own BIDS folder, in the order of the README."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pandas as pd
from builders import BROKEN, REDONE, RUNS, write_scan

from neuromf import tables


def test_a_killed_run_goes_on_without_clean_up_and_redoes_no_finished_shard(project):
    told = json.loads((project.folder / REDONE).read_text())
    assert len(told["finished"]) == 3 * 12, "three stages of twelve scans"
    assert told["redone"] == []


def test_broken_scans_are_rows_with_distinct_reasons(project):
    failed = tables.read_manifest(project.folder / "results/cohorts/study/preprocessed/failed.tsv")
    assert {row.scan_id for row in failed} == {f"sub-{name}_T1w" for name in BROKEN}
    assert len({row.reason for row in failed}) == len(failed)


def test_every_good_scan_is_preprocessed_and_encoded(project):
    folder = project.folder / "results/cohorts/study"
    rows = [row for path in sorted(folder.glob("latents/smoke/*.tsv")) for row in tables.read_manifest(path)]
    assert sum(row.ok for row in rows) == 12
    volume = nib.load(next(folder.glob("preprocessed/sub-p00/anat/*_desc-preproc_T1w.nii.gz")))
    assert volume.shape == (32, 32, 32)
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")


def test_models_and_samples_are_there(project):
    release = project.folder / "results/releases/first"
    for run, settings in RUNS.items():
        about = json.loads((release / f"runs/{run}/seed-0/model.json").read_text())
        assert about["release"]["name"] == "first"
        assert list((release / f"checkpoints/{run}-0").iterdir()), "each run has a checkpoint folder of its own"
        assert (release / f"runs/{run}/seed-0/model.safetensors").stat().st_size > 0
        assert sorted(path.name for path in (release / f"runs/{run}/seed-0/progress").iterdir()) == [
            "update-000002.png",
            "update-000004.png",
        ]
        for nfe in settings["sample"]["nfe"]:
            samples = sorted((release / f"samples/{run}/seed-0/nfe-{nfe}").glob("sub-*_T1w.nii.gz"))
            assert len(samples) == 4
            volume = nib.load(samples[0])
            assert volume.shape == (32, 32, 32)
            assert np.isfinite(volume.get_fdata()).all()
            assert (
                json.loads((samples[0].parent / samples[0].name.replace(".nii.gz", ".json")).read_text())["nfe"] == nfe
            )


def test_metrics_are_tidy(project):
    metrics = pd.read_parquet(project.folder / "results/releases/first/evaluation/metrics.parquet")
    columns = ["release", "run", "seed", "nfe", "metric", "region", "extractor", "value", "ci_low", "ci_high", "n"]
    assert list(metrics.columns) == columns
    assert {"meanflow", "rectified_flow", "noise", "real"} <= set(metrics["run"])
    assert (metrics["n"] > 0).all()


def test_the_report_is_one_page_that_names_the_failures(project):
    page = (project.folder / "results/releases/first/report/index.html").read_text()
    assert "sub-zero" in page
    assert 'src="http' not in page and 'href="http' not in page


def test_a_second_run_has_nothing_to_do(project):
    assert project.planned() == {}


def test_what_changes_re_runs_what_depends_on_it_and_nothing_else(project):
    settings = {"preset": "smoke", "release": "first", "runs": RUNS, "max_failed_fraction": 0.5}
    try:
        project.configure(**settings, device="cpu")
        assert project.planned() == {}, "the device changes no result"
        project.configure(**settings, evaluate={"bootstrap": 200})
        planned = project.planned()
        assert "evaluate_samples" in planned and "train" not in planned and "encode" not in planned
        project.configure(**settings, train={"learning_rate": 0.01})
        planned = project.planned()
        assert planned["train"] == 2 and "encode" not in planned and "latent_statistics" not in planned
        gate = {"action": "warn", "ssim": 0.5}
        project.configure(**settings, codec_gate=gate)
        planned = project.planned()
        assert planned["codec_gate"] == 1
        assert not {"train", "validate_codec", "sample", "evaluate_samples"} & set(planned)
        project.configure(**settings, codec_gate=gate, train={"learning_rate": 0.01})
        assert project.planned()["train"] == 2, "a setting of the training that is edited together with the gate"
    finally:
        project.configure(**settings)


def test_too_many_failures_stop_the_run(project):
    settings = {"preset": "smoke", "release": "first", "runs": RUNS}
    try:
        project.configure(**settings, max_failed_fraction=0.05)
        done = project.snakemake(check=False)
        assert done.returncode == 1
        assert "max_failed_fraction" in done.stderr
        assert "sub-zero_T1w" in done.stderr
    finally:
        project.configure(**settings, max_failed_fraction=0.5)
        project.snakemake("--until", "check_failures")


def test_a_codec_that_misses_its_thresholds_stops_the_run_with_a_table(project):
    settings = {"preset": "smoke", "release": "first", "runs": RUNS, "max_failed_fraction": 0.5}
    models = sorted((project.folder / "results/releases/first/runs").rglob("model.safetensors"))
    before = [path.stat().st_mtime_ns for path in models]
    try:
        project.configure(**settings, codec_gate={"action": "stop"})
        done = project.snakemake(check=False)
        assert done.returncode == 1
        assert "No flow is trained" in done.stderr and "psnr_brain" in done.stderr and "failed" in done.stderr
        assert [path.stat().st_mtime_ns for path in models] == before
    finally:
        project.configure(**settings)
        project.snakemake("--until", "codec_gate")
    assert "train" not in project.planned(), "with the table back, nothing is trained again"
    table = (project.folder / "results/releases/first/evaluation/codec_gate.tsv").read_text()
    assert "failed" in table and "not measured" in table


def test_what_stands_before_training_is_pictured(project):
    release = project.folder / "results/releases/first"
    for name in ("codec_worst", "latents", "spectrum", "copies"):
        assert (release / f"paper/{name}.png").read_bytes().startswith(b"\x89PNG")
    latents = json.loads((release / "evaluation/latents.json").read_text())
    statistics = json.loads((release / "latent_statistics.json").read_text())
    assert latents["n"] == statistics["n"] > 0 and len(latents["density"]) == len(statistics["mean"])
    spectra = pd.read_parquet(release / "evaluation/spectra.parquet")
    assert {"real", "reconstruction", "noise", "meanflow", "rectified_flow"} == set(spectra["run"])


def test_runs_are_compared(project):
    release = project.folder / "results/releases/first"
    table = pd.read_parquet(release / "evaluation/differences.parquet")
    compared = set(zip(table["run"], table["other_run"], strict=True))
    assert ("meanflow", "rectified_flow") in compared and table["difference"].notna().any()
    tests = pd.read_parquet(release / "evaluation/seed_tests.parquet")
    assert tests["note"].str.contains("one seed").all() and tests["p"].isna().all()
    for name in ("differences", "seeds", "seed_tests"):
        assert (release / f"paper/{name}.tex").read_text().startswith(r"\begin{tabular}")
    timing = json.loads(next(release.rglob("sample_timing.json")).read_text())
    assert timing["hardware"]["network"]["name"] and timing["hardware"]["decode"]["threads"] >= 1


def test_snakemakes_own_report_after_a_fresh_run_and_a_second_one(project):
    for name in ("fresh.html", "second.html"):
        project.snakemake("--report", name)
        assert (project.folder / name).stat().st_size > 100_000
        project.snakemake()


def test_new_scans_cost_only_themselves(project, bids):
    """The last test of the module: it grows the cohort."""
    write_scan(project.folder / "bids", "new1", 50)
    assert (
        project.neuromf("index", str(project.folder / "bids"), "--cohort", "study", "--skull-stripped").returncode == 0
    )
    planned = project.planned("encode_all")
    assert planned["encode"] <= 2 and planned["skull_strip"] <= 2
    assert "train" not in project.planned()
    assert "latent_statistics" not in project.planned()
