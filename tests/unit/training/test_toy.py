from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from scipy import stats

from neuromf.flow import FlatTorus, TimeSampler, sample
from neuromf.training.toy import (
    PREDICTIONS,
    Prediction,
    SmallNetwork,
    gaussian_error,
    judge_torus,
    learn_torus,
    mirrored_batch,
    torus_experiment,
)


def test_tangent_equals_func_jvp() -> None:
    torch.manual_seed(0)
    network = SmallNetwork(3).double()
    z, dz = torch.randn(2, 5, 3, dtype=torch.float64)
    r, t, dr, dt = torch.rand(4, 5, dtype=torch.float64)
    value, slope = torch.func.jvp(network, (z, r, t), (dz, dr, dt))
    ours, derivative = network.with_tangent(z, r, t, dz, dr, dt)
    torch.testing.assert_close(ours, value)
    torch.testing.assert_close(derivative, slope)
    _, first = network.with_tangent(z, r, t, dz[:2], dr[:2], dt[:2])
    torch.testing.assert_close(first, slope[:2])


def test_the_torus_is_at_distance_zero_and_its_angles_are_uniform() -> None:
    torus = FlatTorus()
    x = torus.sample(2000, torch.Generator().manual_seed(0))
    assert float(torus.distance(x).max()) < 1e-6
    assert all(stats.kstest(angle.numpy(), "uniform").pvalue > 0.01 for angle in torus.angles(x).unbind(1))
    assert float(torus.distance(2 * x).mean()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("rows", [2, 8])
def test_a_batch_has_each_draw_with_its_noise_and_the_opposite(rows: int) -> None:
    z0, noise, r, t = mirrored_batch(FlatTorus().sample, TimeSampler(), rows, 3, torch.Generator().manual_seed(0))
    assert len(z0) == len(noise) == len(r) == len(t) == rows
    for value, sign in ((z0, 1), (noise, -1), (r, 1), (t, 1)):
        first, second = value.chunk(2)
        torch.testing.assert_close(second, sign * first)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_gaussian_flow_is_learnt_to_two_per_cent(prediction: Prediction) -> None:
    assert gaussian_error(prediction) < 0.02


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_step_samples_lie_on_the_torus(prediction: Prediction) -> None:
    velocity, losses = learn_torus(prediction)
    judged = judge_torus(sample(velocity, torch.randn(2000, 4, generator=torch.Generator().manual_seed(1))))
    assert judged["distance"] < 0.1
    assert min(judged["p_values"]) > 0.01
    assert losses["raw_mf"].tail(500).mean() < losses["raw_mf"].head(500).mean()


def test_the_experiment_writes_what_the_figure_needs(tmp_path: Path) -> None:
    torus_experiment(tmp_path, updates=3, seed=0)
    rows = json.loads((tmp_path / "torus.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["prediction"], row["steps"]) for row in rows] == [("x", 1), ("x", 5), ("u", 1), ("u", 5)]
    assert len(pd.read_parquet(tmp_path / "samples.parquet")) == 4 * 2000
    assert set(pd.read_parquet(tmp_path / "losses.parquet")["prediction"]) == {"x", "u"}
