"""Seconds per volume: the network at 1 and more evaluations, the decoding beside it, and on a GPU larger batches.

    python benchmarks/sample.py --n 4 --threads 1 --json sample.json

Figures are medians over the volumes of what `neuromf generate` times: the network's part of a volume's seconds and the
decoding of its latent, without reading the models or writing files, after a warm-up. A CPU takes one latent at a time
whatever --batch says. On a GPU the batch sizes follow. Joules per volume are the network's, where the device tells them
(neuromf.generation.energy).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from neuromf.codec.maisi import load_codec
from neuromf.device import choose_device
from neuromf.generation.energy import Cost
from neuromf.generation.generate import SampledLatents, decode_latents, sample_latents
from neuromf.tables import write_json
from neuromf.training.checkpoint import TrainedModel, load_model


def decode_seconds(model: TrainedModel, sampled: SampledLatents, codec: str | None) -> float:
    """Return the median seconds of decoding one latent."""
    settings = model.config.codec if codec is None else model.config.codec.model_copy(update={"weights": codec})
    frozen = load_codec(settings, device=model.device)
    frozen.decode(sampled.latents[:1].to(model.device))  # warm-up
    with tempfile.TemporaryDirectory() as scratch:
        decode_latents(frozen, sampled, Path(scratch))
        timing = json.loads((Path(scratch) / "sample_timing.json").read_text(encoding="utf-8"))
    return statistics.median(timing["decode"])


def batch_row(model: TrainedModel, batch: int, n: int) -> dict[str, Any]:
    """Return volumes per second and joules per volume of one evaluation at one batch size."""
    sampled = sample_latents(model, range(max(n, 4 * batch) // batch * batch), seed=0, batch_size=batch)
    return {"batch": batch, "volumes/s": round(1 / median(sampled, "seconds"), 2)} | joules_of(sampled.costs)


def median(sampled: SampledLatents, figure: str) -> float:
    return statistics.median(getattr(cost, figure) for cost in sampled.costs)


def joules_of(costs: Sequence[Cost]) -> dict[str, float | None]:
    """Return the mean joules: the counters step by some milliseconds' energy, which a mean over volumes evens out."""
    told = [cost.joules for cost in costs if cost.joules is not None]
    return {"joules/volume": round(statistics.mean(told), 3) if told else None}


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
    network = {nfe: median(one, "seconds") for nfe, one in sampled.items()}
    rows = [
        {
            "nfe": nfe,
            "network, s": round(seconds, 4),
            "decode, s": round(decode, 4),
            "volume, s": round(seconds + decode, 4),
            "times the first": round((seconds + decode) / (network[arguments.nfe[0]] + decode), 2),
        }
        | joules_of(sampled[nfe].costs)
        for nfe, seconds in network.items()
    ]
    print(sampled[arguments.nfe[0]].hardware)
    show(rows)
    batches = []
    if model.device.type == "cuda":
        batches = [batch_row(model, batch, arguments.n) for batch in arguments.batches]
        show(batches)
    if arguments.json:
        about = {
            "hardware": dict(sampled[arguments.nfe[0]].hardware),
            "torch": torch.__version__,
            "latent": list(model.latent_shape),
        }
        about |= {key: vars(arguments)[key] for key in ("model", "codec", "n", "batch", "threads")}
        write_json(arguments.json, {"about": about, "rows": rows, "batches": batches})


if __name__ == "__main__":
    main()
