"""How fast the time embedding may turn: MeanFlow trained with several highest frequencies, on a finished demo's latents.

    make demo
    python benchmarks/time_embedding.py --turns 1 2 8

Each starts from random weights, since the shipped ones were trained with our frequencies, and makes FM_UPDATES of flow
matching, then MF_UPDATES of MeanFlow. Measured on the validation and test scans, with fixed noise and evenly spread times:
raw losses, the raw MeanFlow loss of rows far apart (t > 0.8, r < 0.4: where one-step samples are made) and of the others,
and the energy distance of 64 one-step samples to the cohort's latents.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

import torch

from neuromf import tables
from neuromf.config import Config, load, overlay
from neuromf.flow import network, sample
from neuromf.latents.statistics import LatentStatistics
from neuromf.latents.store import LatentStore
from neuromf.training.checkpoint import TrainedModel, load_model
from neuromf.training.module import build_objective, build_time_sampler, generator_for
from neuromf.training.run import train_run
from neuromf.training.validation import energy_distance

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "results/releases/demo"
FM_UPDATES, MF_UPDATES = 400, 400
QUIET = {"validate_every": 1000, "checkpoint_every": 1000, "samples_every": None, "log_every": 50, "warmup_updates": 10}
BATCHES = 20  # that the losses are measured on
CPU = torch.device("cpu")


def train(turns: float, stores: dict[str, LatentStore], statistics: LatentStatistics, seed: int) -> TrainedModel:
    """Return MeanFlow's model with frequencies up to so many turns over [0, 1]."""
    network.HIGHEST_FREQUENCY = 2 * math.pi * turns
    codec = json.loads((DEMO / "runs/meanflow/seed-0/model.json").read_text())["codec"]
    flow_matching = {"variant": "rectified_flow", "times": {"mean": 0.4, "std": 1.0}}
    with tempfile.TemporaryDirectory() as temporary:
        start = None
        for name, flow, updates in (("fm", flow_matching, FM_UPDATES), ("mf", {}, MF_UPDATES)):
            settings = {"flow": flow, "train": {**QUIET, "updates": updates, "warm_start": start}}
            start = str(Path(temporary, name))
            train_run(
                configuration(settings),
                stores["train"],
                stores["val"],
                statistics,
                Path(start),
                seed=seed,
                release={"name": "demo", "sha256": ""},
                codec=codec,
                device=CPU,
                checkpoint_folder=Path(temporary, f"{name}_checkpoints"),
            )
        return load_model(start)


def configuration(settings: dict[str, object]) -> Config:
    return load(overlay({"preset": "demo", "release": "demo"}, settings), ROOT / "config/presets")


@torch.no_grad()
def measure(model: TrainedModel, held_out: torch.Tensor, cohort: torch.Tensor) -> dict[str, float]:
    """Return raw losses and sample distance; latents (n, C, D, H, W) normalised."""
    flow = configuration({}).flow
    objective, times = build_objective(flow), build_time_sampler(flow.times)
    random, fm, mf, apart = generator_for(CPU, "noise"), [], [], []
    for number in range(BATCHES):
        noise = torch.randn(held_out.shape, generator=random)
        r, t = times.spread(len(noise), number, generator_for(CPU, "times"))
        output = objective(model.network, held_out, noise, r, t)
        fm.append(output.raw_fm)
        mf.append(output.mf_rows.sum(1))
        apart.append((t > 0.8) & (r < 0.4))
    rows, far = torch.cat(mf), torch.cat(apart)
    samples = sample(model.velocity, torch.randn((64, *cohort.shape[1:]), generator=random))
    return {
        "raw_fm": torch.stack(fm).mean().item(),
        "raw_mf": rows.mean().item(),
        "raw_mf, t > 0.8, r < 0.4": rows[far].mean().item(),
        "raw_mf, others": rows[~far].mean().item(),
        "sample distance": energy_distance(samples, cohort),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=float, nargs="+", default=[1, 2, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = tables.read_release(ROOT / "config/releases/demo.tsv")
    stores = {
        split: LatentStore.of_release([row for row in rows if row.split == split], ROOT / "results/cohorts", "demo")
        for split in tables.SPLITS
    }
    statistics = LatentStatistics.read(DEMO / "latent_statistics.json")
    for turns in arguments.turns:
        for seed in arguments.seeds:
            model = train(turns, stores, statistics, seed)
            latents = {split: torch.stack([store[i] for i in range(len(store))]) for split, store in stores.items()}
            held_out = model.normalise(torch.cat([latents["val"], latents["test"]]))
            cohort = model.normalise(torch.cat(list(latents.values())))
            figures = {name: round(value, 3) for name, value in measure(model, held_out, cohort).items()}
            print(turns, seed, *(f"{name} {value}" for name, value in figures.items()), sep="\t", flush=True)


if __name__ == "__main__":
    main()
