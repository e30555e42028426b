"""A small network on data that is understood: what shows, in a minute on a CPU, that the objective learns the flow."""

from __future__ import annotations

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

from neuromf.flow import (
    AverageVelocity,
    FlatTorus,
    GaussianOracle,
    MeanFlowObjective,
    TimeSampler,
    interpolate,
    sample,
    tangent,
)
from neuromf.flow.tangent import Pair
from neuromf.tables import atomic_path, write_json

Prediction = Literal["x", "u"]
PREDICTIONS: tuple[Prediction, ...] = ("x", "u")
T_MIN = {"x": 0.05, "u": 0.0}  # the division by t needs a floor, u itself none
STEPS = (1, 5)
SAMPLES = 2000
UPDATES = 5000
HALF_LIFE = 0.1  # of the moving average of the weights, as a share of the updates


class SmallNetwork(nn.Module):
    """A multilayer perceptron (z, r, t) → (B, dimensions); t and t − r enter as sines and cosines."""

    frequencies: Tensor

    def __init__(self, dimensions: int, width: int = 64, layers: int = 4) -> None:
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
        """Return the output with its graph and the derivative of its first rows along (dz, dr, dt) without one."""
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
        sine, cosine = self._waves(t[: len(dt)])
        turning = dt[:, None] * self.frequencies
        return cosine * turning, -sine * turning


def train_small(
    draw: Callable[[int, torch.Generator], Tensor],
    objective: MeanFlowObjective,
    times: TimeSampler,
    *,
    updates: int = UPDATES,
    batch_size: int = 2048,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> tuple[AverageVelocity, pd.DataFrame]:
    """Train a `SmallNetwork` with AdamW, a cosine rate and a moving average of its weights.

    Every draw of data and times stands in the batch twice, with noise ε and −ε. Each row keeps its law, and where the
    data decide (small t) the errors v_c − v of the two cancel, so that the mean gradient is less noisy.

    Args:
        draw: (n, generator) -> data (n, dimensions).
        objective: whose prediction the returned velocity has.
        times: sampler of (r, t); near t = 1, where one-step samples start, it must not be scarce.
        batch_size: rows of a batch, an even number.

    Returns:
        The average velocity of the averaged weights, and the raw losses (columns update, raw_fm, raw_mf).
    """
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmallNetwork(draw(1, random).shape[1])
    weights: list[Tensor] = list(network.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimiser = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    losses = []
    for update in trange(updates, desc=f"{objective.prediction}-prediction", unit="update", mininterval=1):
        rate = learning_rate * min(1.0, (update + 1) / 100) * 0.5 * (1 + math.cos(math.pi * update / updates))
        optimiser.param_groups[0]["lr"] = rate
        output = objective(network, *mirrored_batch(draw, times, batch_size, update, random))
        optimiser.zero_grad()
        output.loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        kept = min(0.5 ** (1 / (HALF_LIFE * updates)), (1 + update) / (10 + update))  # (17)
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - kept)
        losses.append(torch.stack([output.raw_fm, output.raw_mf]))
    network.requires_grad_(False)
    torch._foreach_copy_(weights, average)
    velocity = AverageVelocity(network, objective.prediction, objective.t_min)
    history = pd.DataFrame(torch.stack(losses).numpy(), columns=["raw_fm", "raw_mf"])
    history.insert(0, "update", range(1, updates + 1))
    return velocity, history


def mirrored_batch(
    draw: Callable[[int, torch.Generator], Tensor], times: TimeSampler, rows: int, number: int, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (z0, ε, r, t) of ``rows`` rows, the second half with the data and times of the first and its −ε.

    The times are spread over the training's batches, of which this is the ``number``-th (equation 31).
    """
    z0 = draw(rows // 2, random)
    noise = torch.randn(z0.shape, generator=random)
    r, t = times.spread(rows // 2, number, torch.Generator().manual_seed(random.initial_seed()))
    return z0.repeat(2, 1), torch.cat([noise, -noise]), r.repeat(2), t.repeat(2)


def learn_torus(
    prediction: Prediction, *, updates: int = UPDATES, seed: int = 0
) -> tuple[AverageVelocity, pd.DataFrame]:
    """Train on the flat torus; the flow-matching term sees every row, so no row needs r = t."""
    objective = MeanFlowObjective(prediction, t_min=T_MIN[prediction], norm_p=0.5)
    times = TimeSampler("uniform", t_min=T_MIN[prediction], r_equals_t=0.0)
    return train_small(FlatTorus().sample, objective, times, updates=updates, seed=seed)


def gaussian_error(prediction: Prediction, *, updates: int = 7_000, seed: int = 0) -> float:
    """Train on N(0.5, 0.7²) and return rms(u − u*) / rms(u*) of the trained u and the closed form u*, equation (15).

    The loss has no adaptive weight: v_c given z is Gaussian with nearly the same variance everywhere, so the plain mean
    square is the best estimator. The rms is over 50,000 rows (z, r, t) drawn as in the training.
    """
    oracle = GaussianOracle(0.5, 0.7)
    objective = MeanFlowObjective(prediction, t_min=T_MIN[prediction], adaptive=False)
    times = TimeSampler("uniform", t_min=T_MIN[prediction])
    velocity, _ = train_small(oracle.sample, objective, times, updates=updates, seed=seed)
    random = torch.Generator().manual_seed(seed + 1)
    z0 = oracle.sample(50_000, random)
    r, t = times.sample(len(z0), random)
    z = interpolate(z0, torch.randn(z0.shape, generator=random), t)
    exact = oracle.average_velocity(z, r, t)
    return float((velocity(z, r, t) - exact).norm() / exact.norm())


def torus_experiment(folder: Path, *, updates: int, seed: int) -> dict[str, Any]:
    """Learn the flat torus with x- and u-prediction and judge samples of 1 and 5 steps.

    Writes losses.parquet (prediction, update, raw losses), samples.parquet (prediction, steps, x1 … x4) and torus.json: for
    each prediction and number of steps the mean distance to the torus and the p-values of a Kolmogorov-Smirnov test of
    each angle against the uniform law.

    Returns:
        The rows of torus.json.
    """
    rows, losses, samples = [], [], []
    for prediction in PREDICTIONS:
        velocity, history = learn_torus(prediction, updates=updates, seed=seed)
        losses.append(history.assign(prediction=prediction))
        noise = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(seed + 1))
        for steps in STEPS:
            x = sample(velocity, noise, steps)
            rows.append({"prediction": prediction, "steps": steps, **judge_torus(x)})
            frame = pd.DataFrame(x.numpy(), columns=["x1", "x2", "x3", "x4"])
            samples.append(frame.assign(prediction=prediction, steps=steps))
    for name, frames in (("losses", losses), ("samples", samples)):
        with atomic_path(folder / f"{name}.parquet") as path:
            pd.concat(frames, ignore_index=True).to_parquet(path, write_page_checksum=True)
    write_json(folder / "torus.json", {"updates": updates, "seed": seed, "n": SAMPLES, "rows": rows})
    return {"rows": rows}


def judge_torus(x: Tensor) -> dict[str, Any]:
    """Return the mean distance of samples (n, 4) to the torus, and the p-value of each angle's uniformity."""
    torus = FlatTorus()
    p_values = [float(stats.kstest(angle.numpy(), "uniform").pvalue) for angle in torus.angles(x).unbind(1)]
    return {"distance": float(torus.distance(x).mean()), "p_values": p_values}
