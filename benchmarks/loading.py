"""How fast latents reach training from disk, beside how fast training asks for them.

    python benchmarks/loading.py --json loading.json

Random latents are written as shards by the writer that encoding uses, and read in random order as `train_run` reads a set
that is too large for memory: memory map, normalisation, two worker processes, batches. Warm: the files lie in the page
cache; cold: they were dropped from it (Linux). On a shared CPU wall times say little: the last row has latents per
second of processor time, read in one process. Training's demand is measured on a few rows of the 180M network, on a CPU in
processor time too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DataLoader
from train_step import make_network, make_step

from neuromf.device import choose_device
from neuromf.latents import encode
from neuromf.latents.store import LatentStore, tensor_sha256
from neuromf.tables import write_json
from neuromf.training import run
from neuromf.training.module import BatchStream

BATCH, PER_SHARD = 16, 64  # as in the default configuration
Clock = Callable[[], float]


def write_shards(folder: Path, latents: int, side: int) -> list[Path]:
    """Write random latents (4, side, side, side) float32 in shards of 64."""
    random = torch.Generator().manual_seed(0)
    codec: Any = SimpleNamespace(settings=SimpleNamespace(name="random"), sha256="0" * 64)
    paths = []
    for first in range(0, latents, PER_SHARD):
        shard = {}
        for i in range(first, min(first + PER_SHARD, latents)):
            latent = torch.randn(4, side, side, side, generator=random)
            shard[f"sub-{i:05d}_T1w"] = encode.Encoded(latent, "", tensor_sha256(latent), (1.0,) * 3)
        paths.append(folder / f"shard-{len(paths):04d}.safetensors")
        encode._write(paths[-1], shard, codec)
    return paths


def drop_from_cache(paths: list[Path]) -> None:
    """Have the next reading of the files come from the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rate(
    paths: list[Path], workers: int, device: torch.device, batches: int, clock: Clock = time.perf_counter
) -> tuple[float, float]:
    """Return latents per second on the device and the seconds until the first batch, in a new reader."""
    store = LatentStore(paths)
    started = clock()
    latents = run.NormalisedLatents(store, {"mean": [0.0] * 4, "std": [1.0] * 4})
    order = BatchStream(len(store), BATCH, seed=0, first=0, last=batches)
    first = 0.0
    for batch in DataLoader(latents, batch_sampler=order, num_workers=workers):
        batch.to(device)
        if not first:
            first, started = clock() - started, clock()
    return (batches - 1) * BATCH / (clock() - started), first


def demand(rows: int, side: int, device: torch.device, steps: int, clock: Clock) -> float:
    """Return the latents per second that training steps of the 180M network take in, after one step as warm-up."""
    step = make_step("ours", make_network("180M", device), rows, side, "bf16" if device.type == "cuda" else "32")
    times = []
    for _ in range(steps + 1):
        started = clock()
        step()
        times.append(clock() - started)
    return rows / statistics.median(times[1:])


def row(clock: str, cache: str, found: list[tuple[float, float]], item: int) -> dict[str, Any]:
    """Return one line of the table: medians over the repetitions; ``item``: bytes of a latent."""
    latents, first = (statistics.median(values) for values in zip(*found, strict=True))
    return {
        "time": clock,
        "cache": cache,
        "latents/s": round(latents, 1),
        "MB/s": round(latents * item / 1e6, 1),
        "first batch, s": round(first, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=2000)
    parser.add_argument("--side", type=int, default=32, help="of the latent: a quarter of the volume's")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2, help="of the training step that is timed; 0: no step")
    parser.add_argument("--steps", type=int, default=3, help="training steps that are timed")
    parser.add_argument("--folder", type=Path, help="where the shards are written for the time of the run")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run.IN_MEMORY_BYTES = 0  # read from disk whatever their size
    device, batches = choose_device(arguments.device), arguments.latents // BATCH
    item = 4 * arguments.side**3 * 4  # bytes
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        paths = write_shards(Path(scratch), arguments.latents, arguments.side)
        for workers in arguments.workers:
            for cache in ("warm", "cold"):
                found = []
                for _ in range(arguments.repeats):
                    if cache == "cold":
                        drop_from_cache(paths)
                    found.append(rate(paths, workers, device, batches))
                rows.append(row(f"wall, {workers} workers", cache, found, item))
        found = [rate(paths, 0, device, batches, time.process_time) for _ in range(arguments.repeats)]
        rows.append(row("processor", "warm", found, item))
    print("\t".join(rows[0]))
    for values in rows:
        print("\t".join(map(str, values.values())))
    about = {"device": str(device), "torch": torch.__version__, "latents": arguments.latents, "side": arguments.side}
    if arguments.rows:
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        asked = demand(arguments.rows, arguments.side, device, arguments.steps, clock)
        print(
            f"training asks for {asked:.3g} latents/s, {rows[-1]['latents/s'] / asked:.3g} times fewer than one core reads"
        )
        about |= {"rows": arguments.rows, "steps": arguments.steps, "latents/s of training": asked}
    if arguments.json:
        write_json(arguments.json, {"about": about, "rows": rows})


if __name__ == "__main__":
    main()
