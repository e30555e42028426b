from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from neuromf.flow import AverageVelocity, GaussianOracle, sample


@pytest.mark.parametrize("nfe", [1, 2, 5, 10, 50])
@pytest.mark.parametrize("given", [False, True])
def test_exact_for_the_gaussian_at_any_number_of_steps(nfe: int, given: bool) -> None:
    oracle, noise = GaussianOracle(0.5, 0.7), torch.randn(4, 3, 2, 2, 2, dtype=torch.float64)
    grid = [(1 - k / nfe) ** 2 for k in range(nfe + 1)]
    z0 = sample(oracle.average_velocity, noise, nfe, grid if given else "uniform")
    assert torch.allclose(z0, 0.5 + 0.7 * noise, rtol=0, atol=1e-12)


@pytest.mark.parametrize("nfe", [1, 3])
def test_one_evaluation_a_step_from_one_to_zero(nfe: int) -> None:
    seen: list[tuple[float, float]] = []

    def velocity(z: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert r.shape == t.shape == (len(z),)
        seen.append((float(r[0]), float(t[0])))
        return torch.zeros_like(z)

    sample(velocity, torch.randn(2, 4), nfe)
    assert len(seen) == nfe and seen[0][1] == 1 and seen[-1][0] == 0
    assert all(late[1] == early[0] for early, late in pairwise(seen))


def test_one_step_of_an_x_prediction_is_its_output() -> None:
    noise, x = torch.randn(2, 4), torch.randn(2, 4)
    assert torch.allclose(sample(AverageVelocity(lambda z, r, t: x), noise), x, atol=1e-6)


def test_many_steps_of_the_instantaneous_velocity_approach_the_data() -> None:
    oracle, noise = GaussianOracle(0.5, 0.7), torch.randn(8, 3, dtype=torch.float64)
    errors = [
        (sample(lambda z, r, t: oracle.velocity(z, t), noise, nfe) - (0.5 + 0.7 * noise)).abs().max().item()
        for nfe in (5, 10, 100)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.05


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="nfe is 0"):
        sample(lambda z, r, t: z, torch.randn(1, 2), 0)
    with pytest.raises(ValueError, match="schedule"):
        sample(lambda z, r, t: z, torch.randn(1, 2), 1, "cosine")  # type: ignore[arg-type]
    for times in ((1.0, 0.5), (0.9, 0.0), (1.0, 0.5, 0.0), (0.0, 1.0), ()):
        with pytest.raises(ValueError, match="1 steps need 2 times that fall from 1 to 0"):
            sample(lambda z, r, t: z, torch.randn(1, 2), 1, times)


def test_the_steps_are_those_of_the_given_times() -> None:
    seen: list[tuple[float, float]] = []

    def velocity(z: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append((float(t[0]), float(r[0])))
        return torch.ones_like(z)

    z0 = sample(velocity, torch.zeros(1, 2, dtype=torch.float64), 3, (1.0, 0.75, 0.125, 0.0))
    assert seen == [(1.0, 0.75), (0.75, 0.125), (0.125, 0.0)] and torch.allclose(z0, -torch.ones_like(z0))


class _Seen:
    """A network with an output of its own at each time; it remembers what it was asked."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.outputs: list[torch.Tensor] = []

    def __call__(self, z: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.times.append(float(t[0]))
        self.outputs.append(torch.tanh(3 * z) + t.reshape(-1, 1).to(z))
        return self.outputs[-1]


@pytest.mark.parametrize("nfe", [1, 2, 20, 25, 50, 200])
def test_a_network_is_asked_at_no_time_it_was_not_trained_at_and_an_x_prediction_ends_on_its_output(nfe: int) -> None:
    """At 25 and 50 equal steps the last times were .04 and .02, and a fifth or three fifths of z were left in the sample."""
    network = _Seen()
    z0 = sample(AverageVelocity(network, "x", t_min=0.05), torch.randn(3, 4), nfe)
    assert len(network.times) == nfe and network.times[0] == 1
    assert min(network.times) >= torch.tensor(0.05).item()
    assert network.times == sorted(network.times, reverse=True) and len(set(network.times)) == nfe
    assert torch.allclose(z0, network.outputs[-1], atol=1e-5)


@pytest.mark.parametrize("nfe", [1, 2, 5, 10, 20])
def test_few_steps_are_equal_ones(nfe: int) -> None:
    network = _Seen()
    sample(AverageVelocity(network, "u"), torch.randn(1, 4, dtype=torch.float64), nfe)
    assert network.times == pytest.approx([1 - k / nfe for k in range(nfe)], abs=1e-12)


def test_given_times_below_t_min_are_refused() -> None:
    with pytest.raises(ValueError, match=r"below t_min = 0\.05"):
        sample(AverageVelocity(_Seen()), torch.randn(1, 4), 2, (1.0, 0.04, 0.0))
