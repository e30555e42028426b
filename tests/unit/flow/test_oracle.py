from __future__ import annotations

import pytest
import torch

from neuromf.flow import GaussianOracle, interpolate

CASES = [(0.5, 0.7, 0.2, 0.6), (-1.0, 2.0, 0.1, 0.9)]  # m, s, r, t


def times(value: float, n: int) -> torch.Tensor:
    return torch.full((n,), value, dtype=torch.float64)


@pytest.mark.parametrize(("m", "s", "r", "t"), CASES)
def test_velocity_is_the_conditional_mean(m: float, s: float, r: float, t: float) -> None:
    """v_c − v(z_t) has mean 0, is uncorrelated with z_t and has variance s²/σ_t²."""
    n, random = 400_000, torch.Generator().manual_seed(0)
    oracle = GaussianOracle(torch.tensor([m], dtype=torch.float64), s)
    z0 = oracle.sample(n, random)
    noise = torch.randn(n, 1, generator=random, dtype=torch.float64)
    z_t = interpolate(z0, noise, times(t, n))
    rest = noise - z0 - oracle.velocity(z_t, times(t, n))
    floor = s**2 / ((1 - t) ** 2 * s**2 + t**2)
    assert abs(rest.mean()) < 5 * (floor / n) ** 0.5
    assert abs((rest * (z_t - z_t.mean())).mean()) < 5 * (floor * z_t.var() / n) ** 0.5
    assert rest.var() == pytest.approx(floor, rel=0.01)


@pytest.mark.parametrize(("m", "s", "r", "t"), CASES)
def test_average_velocity_is_the_mean_along_the_flow(m: float, s: float, r: float, t: float) -> None:
    oracle = GaussianOracle(m, s)
    z = start = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    steps = 2000
    h = (t - r) / steps
    for step in range(steps):  # midpoint rule from t down to r
        now = t - step * h
        half = z - h / 2 * oracle.velocity(z, times(now, 9))
        z = z - h * oracle.velocity(half, times(now - h / 2, 9))
    u = oracle.average_velocity(start, times(r, 9), times(t, 9))
    assert torch.allclose((start - z) / (t - r), u, atol=1e-6)


def test_average_over_nothing_is_the_velocity() -> None:
    oracle, z = GaussianOracle(0.5, 0.7), torch.randn(5, 2, 3, dtype=torch.float64)
    t = torch.tensor([0.05, 0.3, 0.5, 0.9, 1.0], dtype=torch.float64)
    assert torch.allclose(oracle.average_velocity(z, t, t), oracle.velocity(z, t))


def test_samples_have_mean_and_std() -> None:
    x = GaussianOracle(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])).sample(
        50_000, torch.Generator().manual_seed(0)
    )
    assert x.shape == (50_000, 2)
    assert torch.allclose(x.mean(0), torch.tensor([1.0, -2.0]), atol=0.05) and torch.allclose(
        x.std(0), torch.tensor([0.5, 3.0]), rtol=0.02
    )


def test_std_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        GaussianOracle(0.0, 0.0)
