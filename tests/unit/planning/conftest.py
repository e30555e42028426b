"""A project with results, written by hand: two shards preprocessed, one release trained and sampled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from neuromf.config import Config, validate
from neuromf.shards import Task, run_shard
from neuromf.tables import (
    Cohort,
    ManifestRow,
    ReleaseRow,
    Scan,
    write_cohort,
    write_json,
    write_manifest,
    write_release,
    write_text,
)

SETTINGS: dict[str, Any] = {
    "release": "first",
    "shard_size": 4,
    "runs": {"meanflow": {}},
    "codec": {"name": "small", "weights": "demo"},
    "preprocess": {"conform": {"shape": [32, 32, 32]}},
    "train": {"updates": 1000},
    "sample": {"n": 10, "nfe": [1]},
}
ENDED = 1_700_000_000.0  # seconds since 1970, when all jobs ended


def benchmark(results: Path, rule: str, stem: str, seconds: float) -> None:
    path = results / "benchmarks" / rule / f"{stem}.tsv"
    write_text(path, f"s\th:m:s\tmax_rss\n{seconds}\t0:00:01\t100\n")
    os.utime(path, (ENDED, ENDED))


def copy(inputs: Any, outputs: Any) -> dict[str, float | str]:
    write_text(outputs[0], "x" * 100)
    return {}


@pytest.fixture
def config() -> Config:
    return validate(SETTINGS)


@pytest.fixture
def project(tmp_path: Path, config: Config) -> Path:
    """Six of eight scans conformed, four encoded, one model, one folder of five samples.

    The first shard took 2 s a scan; the second shard's last job did one of its two scans, in 5 s.
    """
    results = tmp_path / "results"
    scans = tuple(Scan(f"p{i}", None, f"p{i}.nii.gz", "T1w") for i in range(8))
    write_cohort(tmp_path / "config/cohorts/study.tsv", Cohort("study", tmp_path, scans))
    rows = [ReleaseRow(scan.participant_id, None, "T1w", "study", "train") for scan in scans[:4]]
    write_release(tmp_path / "config/releases/first.tsv", rows)
    for shard, seconds in ((0, 8.0), (1, 5.0)):
        manifest = results / f"cohorts/study/preprocessed/manifests/conform/shard-{shard:04d}.tsv"
        done = scans[4 * shard : 4 * shard + (4 if shard == 0 else 2)]
        outputs = [results / f"cohorts/study/preprocessed/{scan.scan_id}.nii.gz" for scan in done]
        tasks = [Task(scan.scan_id, (), (path,)) for scan, path in zip(done, outputs, strict=True)]
        run_shard(tasks, copy, manifest, settings={}, code="", workers=1, label="")
        for number, path in enumerate(outputs):
            written = ENDED - 1 if shard == 0 or number == 0 else ENDED - 1000  # an earlier job's
            os.utime(path, (written, written))
        benchmark(results, "conform", f"study-{shard:04d}", seconds)
    encoded = [ManifestRow(scan.scan_id, "ok", file="shard-0000.safetensors", bytes=50) for scan in scans[:4]]
    write_manifest(results / "cohorts/study/latents/small/shard-0000.tsv", encoded)
    benchmark(results, "encode", "study-small-0000", 40.0)
    dumped = config.for_run("meanflow").model_dump(mode="json")
    about = {"config": dumped, "training": {"updates": 500, "seconds": 100.0, "seed": 0}}
    write_json(results / "releases/first/runs/meanflow/seed-0/model.json", about)
    write_text(results / "releases/first/checkpoints/meanflow-0/update.safetensors", "x" * 5000)
    samples = results / "releases/first/samples/meanflow/seed-0/nfe-1"
    write_text(samples / "participants.tsv", "participant_id\n" + "sub-synth\n" * 5)
    benchmark(results, "decode", "first-meanflow-0-1", 10.0)
    benchmark(results, "report", "first", 7.0)
    benchmark(results, "evaluate_reference", "first", 8.0)
    benchmark(results, "check_failures", "study", 1.0)
    return tmp_path
