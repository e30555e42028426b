"""Seconds and memory of what an evaluation does with a large cohort once its volumes are described: no file is read.

    python benchmarks/large_cohort.py --scans 1000 10000 --samples 1000 --json large_cohort.json

The scans are made up (thumbnails of ellipsoids with noise, 256 normal features): 80 % train, 10 % validation, 10 % test.
Each size is a process of its own; the peak is its largest resident memory. Reading and encoding the volumes comes on top, as
many seconds a scan as the codec takes, and is kept in the cache.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuromf.config import Evaluate
from neuromf.evaluation.copies import add_search, search_others, search_real, search_training
from neuromf.evaluation.distances import compare_rows
from neuromf.evaluation.features import one_row_each
from neuromf.evaluation.measure import add_scans, add_volume_comparison, add_volumes
from neuromf.evaluation.morphometry import TISSUES
from neuromf.evaluation.rows import Part
from neuromf.evaluation.scans import ScanSet, join
from neuromf.tables import write_json

FEATURES, SIDE, BINS = 256, 32, 64


def make_scans(name: str, n: int, seed: int) -> ScanSet:
    """Return n described scans that were never there."""
    random = np.random.default_rng(seed)
    axes = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIDE, dtype=np.float32)] * 3, indexing="ij"))
    thumbnails = np.empty((n, SIDE, SIDE, SIDE), dtype=np.float16)
    for row in thumbnails:
        inside = ((axes / random.uniform(0.6, 0.75, (3, 1, 1, 1)).astype(np.float32)) ** 2).sum(axis=0) < 1
        row[...] = inside * (0.5 + 0.1 * random.standard_normal(inside.shape, dtype=np.float32))
    features, mirrored = random.standard_normal((2, n, FEATURES), dtype=np.float32)
    tissues = random.uniform(500, 700, (n, len(TISSUES)))
    ids = tuple(f"{name}-{row:05d}" for row in range(n))
    return ScanSet(ids, ids, features, mirrored, thumbnails, tissues, random.uniform(1, 2, (n, BINS)))


def measure(scans: int, samples: int, threads: int) -> dict[str, Any]:
    """Return the seconds of each step, and the peak in MiB."""
    torch.set_num_threads(threads)
    settings, part, seconds = Evaluate(), Part("large", "samples"), {}
    train, val, test = (
        make_scans(name, n, seed)
        for seed, (name, n) in enumerate({"train": scans * 8 // 10, "val": scans // 10, "test": scans // 10}.items())
    )
    generated, every = make_scans("sample", samples, 3), join([train, val, test])

    def timed(step: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        found = work()
        seconds[step] = time.perf_counter() - started
        return found

    fake, held_out, known = (one_row_each(one.features[: settings.compared]) for one in (generated, test, train))
    timed("distances", lambda: compare_rows(fake, held_out, settings))
    timed("the floor's distances", lambda: compare_rows(known, held_out, settings))
    training = timed("copies of training scans", lambda: search_training(generated, train, join([val, test])))
    others = timed("duplicates", lambda: search_others(generated, every, settings))
    real = timed("real among real", lambda: search_real(every, every))

    def tables() -> None:
        for search in (training, others, real):
            add_search(part, search, settings)
        add_volumes(part, every, settings)
        add_volume_comparison(part, generated, every, settings)
        add_scans(part, generated, "generated", (training, others), settings)
        add_scans(part, every, "train", (real,), settings)

    timed("tables", tables)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"scans": scans, "samples": samples, "seconds": seconds, "mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # in the process of one size
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.scans[0], arguments.samples, arguments.threads)))
        return
    rows = []
    for scans in arguments.scans:
        options = ["--one", f"--samples={arguments.samples}", f"--threads={arguments.threads}", f"--scans={scans}"]
        said = subprocess.run(
            [sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        rows.append(json.loads(said))
    print("\t".join(["scans", *rows[0]["seconds"], "peak, MiB"]))
    for row in rows:
        seconds = "\t".join(f"{value:.1f} s" for value in row["seconds"].values())
        print(f"{row['scans']}\t{seconds}\t{row['mib']:.0f}")
    if arguments.json:
        write_json(arguments.json, {"threads": arguments.threads, "rows": rows})


if __name__ == "__main__":
    main()
