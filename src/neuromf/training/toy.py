"""A small network on data that is understood: what shows, in a minute on a CPU, that the objective learns the flow."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
from tqdm import trange

from neuromf.flow import AverageVelocity, FlatTorus, MeanFlowObjective, TimeSampler, sample, tangent
from neuromf.flow.tangent import Pair
from neuromf.tables import atomic_path, write_json

PREDICTIONS: tuple[Literal["x", "u"], ...] = ("x", "u")
STEPS = (1, 5)
SAMPLES = 2000
AVERAGING = 0.01  # share of the new weights in the moving average


class SmallNetwork(nn.Module):
    """A multilayer perceptron (z, r, t) → (B, dimensions); t and t − r enter as sines and cosines."""

    frequencies: Tensor

    def __init__(self, dimensions: int, width: int = 128, layers: int = 3) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi / 2 * torch.arange(1, 5))
        widths = [dimensions + 4 * len(self.frequencies), *[width] * layers]
        hidden = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, dimensions))

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([z, *self._waves(t), *self._waves(t - r)], dim=1))  # type: ignore[no-any-return]

    def with_tangent(
        self, z: Tensor, r: Tensor, t: Tensor, dz: Tensor, dr: Tensor, dt: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the output with its graph and its derivative along (dz, dr, dt) without one."""
        with tangent.plain(z):
            rates = [*self._rates(t, dt), *self._rates(t - r, dt - dr)]
            x = Pair(torch.cat([z, *self._waves(t), *self._waves(t - r)], dim=1), torch.cat([dz, *rates], dim=1))
        for layer in self.layers:
            x = tangent.silu(x) if isinstance(layer, nn.SiLU) else tangent.linear(layer, x)
        return x

    def _waves(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angles = t[:, None] * self.frequencies
        return angles.sin(), angles.cos()

    def _rates(self, t: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        sine, cosine = self._waves(t)
        turning = dt[:, None] * self.frequencies
        return cosine * turning, -sine * turning


def train_small(
    draw: Callable[[int, torch.Generator], Tensor],
    objective: MeanFlowObjective,
    times: TimeSampler,
    *,
    updates: int = 10_000,
    batch_size: int = 512,
    learning_rate: float = 5e-3,
    seed: int = 0,
) -> tuple[AverageVelocity, pd.DataFrame]:
    """Train a `SmallNetwork` with AdamW, a cosine rate and a moving average of its weights.

    Args:
        draw: (n, generator) -> data (n, dimensions).
        objective: whose prediction the returned velocity has.
        times: sampler of (r, t); near t = 1, where one-step samples start, it must not be scarce.

    Returns:
        The average velocity of the averaged weights, and the raw losses (columns update, raw_fm, raw_mf).
    """
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmallNetwork(draw(1, random).shape[1])
    average = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for update in trange(updates, desc=f"{objective.prediction}-prediction", unit="update", mininterval=1):
        rate = learning_rate * min(1.0, (update + 1) / 100) * 0.5 * (1 + math.cos(math.pi * update / updates))
        optimiser.param_groups[0]["lr"] = rate
        z0 = draw(batch_size, random)
        noise = torch.randn(z0.shape, generator=random)
        output = objective(network, z0, noise, *times.sample(batch_size, random))
        optimiser.zero_grad()
        output.loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        now = network.state_dict()
        torch._foreach_lerp_(list(average.values()), [now[name] for name in average], AVERAGING)
        losses.append((update + 1, output.raw_fm.item(), output.raw_mf.item()))
    network.load_state_dict(average)
    network.requires_grad_(False)
    velocity = AverageVelocity(network, objective.prediction, objective.t_min)
    return velocity, pd.DataFrame(losses, columns=["update", "raw_fm", "raw_mf"])


def torus_experiment(folder: Path, *, updates: int, seed: int) -> dict[str, Any]:
    """Learn the flat torus with x- and u-prediction and judge samples of 1 and 5 steps.

    Writes losses.parquet (prediction, update, raw losses), samples.parquet (prediction, steps, x1 … x4) and torus.json: for
    each prediction and number of steps the mean distance to the torus and the p-values of a Kolmogorov-Smirnov test of
    each angle against the uniform law.

    Returns:
        The rows of torus.json.
    """
    torus, rows, losses, samples = FlatTorus(), [], [], []
    for prediction in PREDICTIONS:
        t_min = 0.05 if prediction == "x" else 0.0
        objective = MeanFlowObjective(prediction, t_min=t_min, norm_p=0.5)
        times = TimeSampler("uniform", t_min=t_min)
        velocity, history = train_small(torus.sample, objective, times, updates=updates, seed=seed)
        losses.append(history.assign(prediction=prediction))
        noise = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(seed + 1))
        for steps in STEPS:
            x = sample(velocity, noise, steps)
            tests = [stats.kstest(angle.numpy(), "uniform").pvalue for angle in torus.angles(x).unbind(1)]
            distance = float(torus.distance(x).mean())
            rows.append({"prediction": prediction, "steps": steps, "distance": distance, "p_values": tests})
            frame = pd.DataFrame(x.numpy(), columns=["x1", "x2", "x3", "x4"])
            samples.append(frame.assign(prediction=prediction, steps=steps))
    for name, frames in (("losses", losses), ("samples", samples)):
        with atomic_path(folder / f"{name}.parquet") as path:
            pd.concat(frames, ignore_index=True).to_parquet(path)
    write_json(
        folder / "torus.json", {"updates": updates, "seed": seed, "n": SAMPLES, "rows": json.loads(json.dumps(rows))}
    )
    return {"rows": rows}
