"""Seconds and memory of `neuromf evaluate` on two folders, of a few volumes and of many.

    python benchmarks/evaluate.py --scans ../shared/data/ds002748 --volumes 16 200 --json evaluate.json

``volumes`` counts those of both folders together. The first folder has the scans in turn, the second in the opposite order;
when a scan comes round again it is noisier and brighter than before, so it is encoded anew. Each size is a call of its own
on an empty cache. The peak is the largest resident memory of a process.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from neuromf.evaluation.folders import volume_files
from neuromf.tables import write_json


def make_folder(folder: Path, scans: list[Path], n: int, seed: int) -> None:
    """Write n volumes made of the scans."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    for i in range(n):
        image = nibabel.load(scans[i % len(scans)])
        values, turn = np.asarray(image.dataobj, dtype=np.float32), i // len(scans)
        brain = values > 0
        values = values * (1 + 0.03 * turn) + brain * turn * 0.01 * values.max() * random.normal(size=values.shape)
        values = values.clip(0).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, image.affine), folder / f"volume_{i:04d}.nii.gz")


def evaluate(work: Path, scans: list[Path], n: int, options: list[str]) -> dict[str, Any]:
    """Evaluate n volumes in a process of its own; return its wall seconds, CPU seconds and peak in MiB."""
    make_folder(work / "real", scans, n - n // 2, 0)
    make_folder(work / "synthetic", scans[::-1], n // 2, 1)
    command = [str(Path(sys.executable).with_name("neuromf")), "evaluate"]
    command += [f"--{name}={work / name}" for name in ("real", "synthetic")] + [f"--out={work / 'out'}", *options]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # the largest of all children so far: sizes are measured in ascending order
    return {"volumes": n, "seconds": time.perf_counter() - started, "cpu_seconds": cpu, "mib": after.ru_maxrss / 1024}


def main() -> None:
    shared = Path(os.environ.get("NEUROMF_SHARED", "../shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, default=shared / "data/ds002748", help="folder of skull-stripped scans")
    parser.add_argument("--weights", type=Path, default=shared / "weights")
    parser.add_argument("--extractor", nargs="+", default=["squeezenet"])
    parser.add_argument("--spacing", type=float, default=2.0, help="mm")
    parser.add_argument("--volumes", type=int, nargs="+", default=[16, 200], help="of both folders together")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    scans = volume_files(arguments.scans)
    options = [f"--weights-dir={arguments.weights}", f"--spacing={arguments.spacing}", "--intensity=percentile"]
    options += [f"--extractor={name}" for name in arguments.extractor]
    rows = []
    for n in sorted(arguments.volumes):
        with tempfile.TemporaryDirectory() as work:
            rows.append(evaluate(Path(work), scans, n, options))
    print("volumes\twall, s\tCPU, s\tpeak, MiB\ttimes the first")
    for row in rows:
        ratio = row["mib"] / rows[0]["mib"]
        print(
            f"{row['volumes']}\t{row['seconds']:.0f}\t{row['cpu_seconds']:.0f}\t{row['mib']:.0f}\t{ratio:.2f}",
            flush=True,
        )
    if arguments.json:
        write_json(arguments.json, {"extractors": arguments.extractor, "rows": rows})


if __name__ == "__main__":
    main()
