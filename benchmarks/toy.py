"""What a small network learns in a minute on a CPU, over several seeds: the flow of a Gaussian, and the flat torus.

    python benchmarks/toy.py --json toy.json

Gaussian: rms(u − u*) / rms(u*) against the closed form u*. Torus: mean distance of one-step samples to it, and the smaller
p-value of the Kolmogorov-Smirnov tests of both angles against the uniform law. Seconds are of CPU time, on one thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from neuromf.flow import sample
from neuromf.tables import write_json
from neuromf.training import toy


def gaussian(prediction: toy.Prediction, seed: int) -> dict[str, float]:
    return {"relative rms": toy.gaussian_error(prediction, seed=seed)}


def torus(prediction: toy.Prediction, seed: int) -> dict[str, float]:
    velocity, _ = toy.learn_torus(prediction, seed=seed)
    noise = torch.randn(toy.SAMPLES, 4, generator=torch.Generator().manual_seed(seed + 1))
    judged = toy.judge_torus(sample(velocity, noise))
    return {"distance": judged["distance"], "p": min(judged["p_values"])}


DATA = {"gaussian": gaussian, "torus": torus}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for data in arguments.data:
            for prediction in toy.PREDICTIONS:
                started = time.process_time()
                figures = DATA[data](prediction, seed)
                row = {"data": data, "prediction": prediction, "seed": seed, **figures}
                rows.append(row | {"seconds": round(time.process_time() - started, 1)})
                print(
                    "\t".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()),
                    flush=True,
                )
    if arguments.json:
        write_json(arguments.json, {"torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
