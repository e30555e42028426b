"""How long Snakemake takes to see that a large cohort needs nothing, and how much memory.

    python benchmarks/dag.py --scans 1000 10000 60000 --json dag.json

A project is made with a table of so many scans that are there, a release of all of them, and every output in place:
manifests and journals that name files which are there (of one byte), and empty files elsewhere, recorded as made by
`snakemake --touch`. Timed is `snakemake --dry-run`, the median of several; the memory is the largest of its process.
Nothing is computed.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from neuromf.shards.journal import Entry, Journal, read_source
from neuromf.tables import (
    Cohort,
    ManifestRow,
    Scan,
    file_sha256,
    read_cohort,
    write_cohort,
    write_json,
    write_manifest,
)

REPOSITORY = Path(__file__).parents[1]
COHORT, SHARD_SIZE = "large", 64
STAGES = {"skull_strip": "brain", "bias_correct": "n4", "conform": "preproc"}


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this environment's Snakemake on the project, and stop where it fails."""
    command = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(REPOSITORY / "Snakefile")]
    done = subprocess.run(
        [*command, "--directory", str(folder), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    return done


def make_project(folder: Path, scans: int) -> None:
    """Write the tables and settings of a project of so many scans, and the per-scan outputs of its preprocessing."""
    (folder / "config" / "cohorts").mkdir(parents=True)
    table = folder / "config" / "cohorts" / f"{COHORT}.tsv"
    rows = tuple(Scan(f"{i:06d}", None, f"sub-{i:06d}_T1w.nii.gz", "T1w", None, True) for i in range(scans))
    write_cohort(table, Cohort(COHORT, folder / "raw", rows))
    settings = {"preset": "smoke", "release": COHORT, "shard_size": SHARD_SIZE}
    (folder / "config" / "config.yaml").write_text(yaml.safe_dump(settings))
    neuromf = str(Path(sys.executable).with_name("neuromf"))
    subprocess.run(
        [neuromf, "release", "create", COHORT, "--cohort", COHORT], cwd=folder, check=True, capture_output=True
    )
    cohort, preprocessed = read_cohort(table), folder / "results" / "cohorts" / COHORT / "preprocessed"
    cohort.root.mkdir()
    for scan in cohort.scans:
        (cohort.root / scan.image).write_text("1")
    one = folder / "one"
    one.write_text("1")
    for number in range(cohort.shard_count(SHARD_SIZE)):
        for stage, description in STAGES.items():
            manifest = preprocessed / "manifests" / stage / f"shard-{number:04d}.tsv"
            done = []
            for scan in cohort.shard(number, SHARD_SIZE):
                path = preprocessed / f"sub-{scan.participant_id}" / "anat" / scan.volume_name(description)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("1")
                file = os.path.relpath(path, manifest.parent)
                done.append(ManifestRow(scan.scan_id, "ok", file=file, bytes=1, sha256=file_sha256(one), key="0" * 64))
            write_manifest(manifest, tuple(done))
            if stage == "skull_strip":  # the journal says what the raw files were
                scans = cohort.shard(number, SHARD_SIZE)
                sources = [read_source(cohort.root / scan.image) for scan in scans]
                Journal(manifest).write(Entry(row, source) for row, source in zip(done, sources, strict=True))


def finish(folder: Path) -> None:
    """Put every other output in place and have Snakemake record all of them as made."""
    for line in snakemake(folder, "--summary").stdout.splitlines()[1:]:
        name = line.split("\t")[0]
        path = folder / name
        if path.exists() or not name:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".tsv" and "latents" in path.parts:
            write_manifest(path, ())
        else:
            path.touch() if path.suffix else path.mkdir()
    snakemake(folder, "--touch", "--cores", "all")


def measure(folder: Path, scans: int, repeats: int) -> dict[str, Any]:
    """Return one row of the table."""
    make_project(folder, scans)
    finish(folder)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        done = snakemake(folder, "--dry-run")
        seconds.append(time.perf_counter() - started)
    return {
        "scans": scans,
        "shards": -(-scans // SHARD_SIZE),
        "dry-run, s": round(statistics.median(seconds), 2),
        "peak memory of any run, MiB": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        "up to date": "Nothing to be done" in done.stdout + done.stderr,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, nargs="+", default=[1000, 10_000, 60_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the projects are made for the time of the run")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    rows = []
    for scans in sorted(arguments.scans):  # the memory is the largest so far
        with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
            rows.append(measure(Path(scratch), scans, arguments.repeats))
            print(rows[-1], flush=True)
    if arguments.json:
        write_json(arguments.json, {"rows": rows})


if __name__ == "__main__":
    main()
