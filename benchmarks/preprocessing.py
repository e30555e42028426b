"""What preprocessing costs a scan: one job for a shard of scans and a stage, beside one job for each scan and stage.

    python benchmarks/preprocessing.py --scans ../shared/data/ds000011 --n 4 --json preprocessing.json

Processor seconds of whole processes, start-up of Python and of the libraries included, one process of one thread at a
time; both ways do the same scans one after the other, alternating. Snakemake's own time is left out (benchmarks/dag.py). The
settings are those of a preset; without a network the backend of skull stripping is the template.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from neuromf import config
from neuromf.cohort.index import index
from neuromf.tables import read_cohort, read_manifest, write_json

STAGES = ("skull_strip", "bias_correct", "conform")
COHORT = "benchmark"
PRESETS = Path(__file__).parents[1] / "config" / "presets"


def run_stage(stage: str, folder: Path, preset: str, first: int, count: int) -> None:
    """Do one stage of some scans in this process, as its workflow script does."""
    preprocess = config.load(yaml.safe_load((PRESETS / f"{preset}.yaml").read_text()), PRESETS).preprocess
    cohort = read_cohort(folder / f"{COHORT}.tsv")
    scans = cohort.scans[first : first + count]
    results = folder / "preprocessed"
    manifest = results / "manifests" / stage / f"shard-{first:04d}.tsv"
    upstream = results / "manifests" / STAGES[STAGES.index(stage) - 1] / manifest.name
    if stage == "skull_strip":
        from neuromf.preprocess.skull_strip import skull_strip_shard

        skull_strip_shard(scans, cohort.root, results, manifest, preprocess.skull_strip, code="", workers=1)
    elif stage == "bias_correct":
        from neuromf.preprocess.bias_field import bias_correct_shard

        bias_correct_shard(scans, upstream, results, manifest, preprocess.bias_field, code="", workers=1)
    else:
        from neuromf.preprocess.conform import conform_shard

        conform_shard(scans, upstream, results, manifest, preprocess.conform, code="", workers=1)
    if failed := [row for row in read_manifest(manifest) if not row.ok]:
        raise SystemExit(f"{failed[0].scan_id}: {failed[0].reason}")


def seconds(stage: str, folder: Path, preset: str, first: int, count: int) -> float:
    """Return the processor seconds of a process that does one stage of some scans."""
    environment = os.environ | dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    job = [sys.executable, __file__, "--job", stage, str(folder), preset, str(first), str(count)]
    subprocess.run(job, env=environment, check=True, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(scans: Path, n: int, preset: str, repeats: int) -> list[dict[str, Any]]:
    """Return one row per stage: processor seconds a scan both ways, their ratio, and bytes a scan."""
    found: dict[str, list[tuple[float, float]]] = {stage: [] for stage in STAGES}
    sizes: dict[str, float] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            folders = Path(one), Path(other)
            for folder in folders:
                index(scans, COHORT, folder)
            for stage in STAGES:
                shard = seconds(stage, folders[0], preset, 0, n) / n
                single = sum(seconds(stage, folders[1], preset, scan, 1) for scan in range(n)) / n
                found[stage].append((shard, single))
                rows = read_manifest(folders[0] / "preprocessed" / "manifests" / stage / "shard-0000.tsv")
                sizes[stage] = sum(row.bytes for row in rows) / n
    table = []
    for stage in STAGES:
        shard, single = (statistics.median(values) for values in zip(*found[stage], strict=True))
        table.append({
            "stage": stage, "shard, CPU s a scan": round(shard, 2), "a job a scan, CPU s": round(single, 2),
            "ratio": round(single / shard, 2), "MB a scan": round(sizes[stage] / 1e6, 2),
        })  # fmt: skip
    return table


def main() -> None:
    shared = Path(os.environ.get("NEUROMF_SHARED", "../shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, default=shared / "data/ds000011")
    parser.add_argument("--n", type=int, default=4, help="scans")
    parser.add_argument("--preset", default="methodology", choices=["methodology", "methodology_192", "demo"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--job", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        stage, folder, preset, first, count = arguments.job
        run_stage(stage, Path(folder), preset, int(first), int(count))
        return
    rows = measure(arguments.scans, arguments.n, arguments.preset, arguments.repeats)
    print("\t".join(rows[0]))
    for row in rows:
        print("\t".join(map(str, row.values())))
    if arguments.json:
        write_json(arguments.json, {"n": arguments.n, "preset": arguments.preset, "rows": rows})


if __name__ == "__main__":
    main()
