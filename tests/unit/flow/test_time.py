from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from neuromf.flow import TimeSampler

N = 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("mean", "std"), [(0.8, 0.8), (-0.4, 1.0), (0.0, 2.0)])
def test_t_is_logit_normal_clipped_at_t_min(mean: float, std: float) -> None:
    t_min = 0.2
    _, t = TimeSampler(mean=mean, std=std, t_min=t_min).sample(N, generator())
    atom = stats.norm.cdf((math.log(t_min / (1 - t_min)) - mean) / std)
    assert (t == t_min).double().mean() == pytest.approx(atom, abs=4 * math.sqrt(atom * (1 - atom) / N) + 1e-4)
    above = torch.logit(t[t > t_min].double()).numpy()
    low = (math.log(t_min / (1 - t_min)) - mean) / std
    assert stats.kstest(above, stats.truncnorm(low, math.inf, mean, std).cdf).pvalue > 0.01


def test_uniform_t() -> None:
    _, t = TimeSampler("uniform", t_min=0.0).sample(N, generator())
    assert stats.kstest(t.numpy(), stats.uniform.cdf).pvalue > 0.01


def test_r_is_uniform_below_t() -> None:
    r, t = TimeSampler(r_equals_t=0.0).sample(N, generator())
    assert stats.kstest((r / t).numpy(), stats.uniform.cdf).pvalue > 0.01


def test_a_pair_is_two_draws_in_order() -> None:
    r, t = TimeSampler(r_equals_t=0.0, r_given_t="pair", t_min=1e-6).sample(N, generator())
    both = torch.logit(torch.cat([r, t]).double()).numpy()
    assert stats.kstest(both, stats.norm(0.8, 0.8).cdf).pvalue > 0.01


@pytest.mark.parametrize("evenly", [False, True])
def test_a_pairs_smaller_time_goes_below_t_min(evenly: bool) -> None:
    """Samplers end at r = 0: clipped as t is, 9.5 % of these r sat at t_min and none below it."""
    sampler = TimeSampler(mean=-1.2, std=1.0, r_equals_t=0.0, r_given_t="pair", t_min=0.05)
    r, t = spread(sampler, N // 8, 8) if evenly else sampler.sample(N, generator())
    clipped = stats.norm.cdf(math.log(0.05 / 0.95) + 1.2)
    below = 1 - (1 - clipped) ** 2  # the smaller of two
    assert (r < 0.05).double().mean() == pytest.approx(below, abs=0.01)
    assert (r == torch.tensor(0.05)).sum() == 0 and float(t.min()) >= torch.tensor(0.05).item()
    smaller = torch.logit(r[t > 0.05].double()).numpy()  # both clipped: t = t_min
    assert stats.kstest(smaller, lambda x: 1 - (1 - stats.norm(-1.2, 1.0).cdf(x)) ** 2).statistic < 0.02


@given(
    batch=st.integers(1, 65),
    share=st.floats(0, 1),
    t_min=st.floats(0, 0.9),
    r_given_t=st.sampled_from(["uniform", "pair"]),
    seed=st.integers(0, 2**31),
    spread=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_order_bounds_and_exact_share(
    batch: int, share: float, t_min: float, r_given_t: str, seed: int, spread: bool
) -> None:
    sampler = TimeSampler(t_min=t_min, r_equals_t=share, r_given_t=r_given_t)  # type: ignore[arg-type]
    r, t = sampler.spread(batch, seed, generator(seed)) if spread else sampler.sample(batch, generator(seed))
    assert r.shape == t.shape == (batch,)
    assert bool((r <= t).all()) and bool((r >= 0).all()) and bool((t <= 1).all())
    assert float(t.min()) >= torch.tensor(t_min, dtype=torch.float32).item()
    equal = int((r == t).sum())
    assert equal == math.floor(batch * share + 1e-9)
    assert bool((r == t)[batch - equal :].all()), "the rows with r < t come first"


def test_same_generator_same_times() -> None:
    first, second = (TimeSampler().sample(8, generator(3)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def spread(sampler: TimeSampler, batches: int, rows: int, first: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    drawn = [sampler.spread(rows, first + n, generator(seed)) for n in range(batches)]
    r, t = (torch.cat(values) for values in zip(*drawn, strict=True))
    return r, t


def test_spread_times_have_the_distribution_of_independent_ones() -> None:
    r, t = spread(TimeSampler(r_equals_t=0.0, t_min=1e-6), 500, 8)
    assert stats.kstest(torch.logit(t.double()).numpy(), stats.norm(0.8, 0.8).cdf).pvalue > 0.01
    assert stats.kstest((r / t).numpy(), stats.uniform.cdf).pvalue > 0.01
    assert abs(stats.spearmanr(t.numpy(), (r / t).numpy()).statistic) < 0.02
    pair = torch.cat(spread(TimeSampler(r_equals_t=0.0, r_given_t="pair", t_min=1e-6), 500, 8))
    assert stats.kstest(torch.logit(pair.double()).numpy(), stats.norm(0.8, 0.8).cdf).pvalue > 0.01


def test_spread_times_vary_less_than_independent_ones() -> None:
    """What the loss depends on, here the square of the interval, has a third of the spread or less in 30 batches of 8."""
    sampler = TimeSampler()

    def means(draw: Callable[[int], tuple[Tensor, Tensor]]) -> Tensor:
        return torch.stack([((t - r).square()).mean() for r, t in map(draw, range(40))])

    independent = means(lambda n: sampler.sample(240, generator(n)))
    evenly = means(lambda n: spread(sampler, 30, 8, first=30 * n))
    assert evenly.std() < independent.std() / 3
    assert evenly.mean() == pytest.approx(float(independent.mean()), rel=0.03)


def test_spread_times_are_those_of_batch_and_seed() -> None:
    late = 10**7  # the places keep their digits
    first, again, other, next_one = (
        TimeSampler().spread(8, number, generator(seed))[1]
        for number, seed in ((late, 0), (late, 0), (late, 1), (late + 1, 0))
    )
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, next_one)
    assert len(set(spread(TimeSampler(), 100, 8, first=late)[1].tolist())) == 800


@pytest.mark.parametrize(
    "wrong", [{"distribution": "normal"}, {"r_given_t": "max"}, {"r_equals_t": 1.1}, {"t_min": 1.0}, {"std": 0.0}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TimeSampler(**wrong)  # type: ignore[arg-type]
