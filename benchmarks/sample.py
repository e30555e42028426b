"""Seconds per volume: the network at 1 and more evaluations, the decoding beside it, and on a GPU larger batches.

    python benchmarks/sample.py --n 4 --threads 1 --json sample.json

Figures are medians over the volumes of what `neuromf generate` times: the network's part of a volume's seconds and the
decoding of its latent, without reading the models or writing files, after a warm-up. A CPU takes one latent at a time
whatever --batch says. On a GPU the batch sizes follow, with the joules per volume where NVML (nvidia-ml-py) tells power.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from neuromf.codec.maisi import load_codec
from neuromf.device import choose_device
from neuromf.generation.generate import SampledLatents, decode_latents, sample_latents
from neuromf.tables import write_json
from neuromf.training.checkpoint import TrainedModel, load_model

POWER_EVERY = 0.05  # seconds between readings


def decode_seconds(model: TrainedModel, sampled: SampledLatents, codec: str | None) -> float:
    """Return the median seconds of decoding one latent."""
    settings = model.config.codec if codec is None else model.config.codec.model_copy(update={"weights": codec})
    frozen = load_codec(settings, device=model.device)
    frozen.decode(sampled.latents[:1].to(model.device))  # warm-up
    with tempfile.TemporaryDirectory() as scratch:
        decode_latents(frozen, sampled, Path(scratch))
        timing = json.loads((Path(scratch) / "sample_timing.json").read_text(encoding="utf-8"))
    return statistics.median(timing["decode"])


@contextmanager
def power_readings(device: torch.device) -> Iterator[list[float]]:
    """Collect the board's power in watts within the block; none where it cannot be told."""
    readings: list[float] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            readings.append(torch.cuda.power_draw(device) / 1000)
            done.wait(POWER_EVERY)

    try:
        torch.cuda.power_draw(device)
    except (ModuleNotFoundError, RuntimeError, AssertionError):
        yield readings
        return
    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield readings
    finally:
        done.set()
        thread.join()


def batch_row(model: TrainedModel, batch: int, n: int) -> dict[str, Any]:
    """Return volumes per second and joules per volume of one evaluation at one batch size."""
    sample_latents(model, range(batch), seed=0, batch_size=batch)  # warm-up with this shape
    with power_readings(model.device) as watts:
        sampled = sample_latents(model, range(max(n, 4 * batch)), seed=0, batch_size=batch)
    seconds = statistics.median(sampled.seconds)
    joules = round(statistics.mean(watts) * seconds, 3) if watts else None
    return {"batch": batch, "volumes/s": round(1 / seconds, 2), "joules/volume": joules}


def show(rows: list[dict[str, Any]]) -> None:
    print("\t".join(rows[0]))
    for row in rows:
        print("\t".join(map(str, row.values())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="model folder")
    parser.add_argument("--codec", help="weights of the VAE; left out: those that the model names")
    parser.add_argument("--n", type=int, default=8, help="volumes of each figure")
    parser.add_argument("--nfe", type=int, nargs="+", default=[1, 5, 30, 50], help="network evaluations")
    parser.add_argument("--batch", type=int, default=1, help="latents per forward pass on a GPU")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32], help="batch sizes on a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model, choose_device(arguments.device))
    sampled = {nfe: sample_latents(model, range(arguments.n), 0, nfe, arguments.batch) for nfe in arguments.nfe}
    decode = decode_seconds(model, sampled[arguments.nfe[0]], arguments.codec)
    network = {nfe: statistics.median(one.seconds) for nfe, one in sampled.items()}
    rows = [
        {
            "nfe": nfe,
            "network, s": round(seconds, 4),
            "decode, s": round(decode, 4),
            "volume, s": round(seconds + decode, 4),
            "times the first": round((seconds + decode) / (network[arguments.nfe[0]] + decode), 2),
        }
        for nfe, seconds in network.items()
    ]
    show(rows)
    batches = []
    if model.device.type == "cuda":
        batches = [batch_row(model, batch, arguments.n) for batch in arguments.batches]
        show(batches)
    if arguments.json:
        about = {"device": str(model.device), "torch": torch.__version__, "latent": list(model.latent_shape)}
        about |= {key: vars(arguments)[key] for key in ("model", "codec", "n", "batch", "threads")}
        write_json(arguments.json, {"about": about, "rows": rows, "batches": batches})


if __name__ == "__main__":
    main()
