"""Intervals of every figure: bootstrap over scans (never slices) and Wilson's interval for shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from neuromf.config import Evaluate

Array = NDArray[np.float64]
FLOOR_DRAWS = 5  # groups of real scans that a floor is the mean of


@dataclass(frozen=True)
class Estimate:
    """A figure, its interval and the number of scans behind it; None where too few scans allow none."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Bootstrap:
    """A figure and its values in the bootstrap resamples, (B,); no value or no draws where too few scans allow none.

    Two figures over the same scans in the same order have the same resamples, so their draws can be subtracted one by one.
    ``distance`` is what `percentile_interval` says; ``against`` is the number of scans of the second group, where one is
    resampled too. ``share_of`` is the number of scans that a figure is a share of: its
    interval is no narrower than Wilson's, since resamples of a share of 0 or 1 are all alike.
    """

    value: float | None
    draws: Array | None
    n: int
    distance: bool = False
    share_of: int | None = None
    against: int | None = None

    def estimate(self, settings: Evaluate) -> Estimate:
        """Return the figure with its percentile interval."""
        if self.value is None or self.draws is None:
            return Estimate(self.value, None, None, self.n)
        found = percentile_interval(
            self.value, self.draws, self.n, settings, distance=self.distance, against=self.against
        )
        if self.share_of is None or found.low is None or found.high is None:
            return found
        low, high = wilson_interval(self.value, self.share_of, settings)
        return Estimate(self.value, min(low, found.low), max(high, found.high), self.n)


def pooled(found: Sequence[Bootstrap]) -> Bootstrap:
    """Return the mean of a figure over several draws of scans, with the resamples of all of them behind its interval.

    Draws without a value are left out; the number of scans is that of a draw.
    """
    known = [one for one in found if one.value is not None and one.draws is not None]
    if len(known) < 2:
        return known[0] if known else found[0]
    value, draws = np.mean([one.value for one in known]), np.concatenate([one.draws for one in known])
    return replace(known[0], value=float(value), draws=draws)


def floor_draws(scans: int, n: int, settings: Evaluate) -> list[NDArray[np.int64]]:
    """Return which of the scans stand for ``n`` generated ones in a floor: several draws without repetition, each sorted.

    A distance of distributions depends on how many scans are compared, so a floor has as many as the runs beside it. Where
    there are no more than that there is one draw, all of them.
    """
    if scans <= n:
        return [np.arange(scans)]
    random = np.random.default_rng([settings.seed, 6])
    return [np.sort(random.choice(scans, n, replace=False)) for _ in range(FLOOR_DRAWS)]


def floor_parts(scans: int, n: int, settings: Evaluate) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return `floor_draws`, at most half of the scans each, beside the scans that each one leaves."""
    every = np.arange(scans)
    return [(drawn, np.setdiff1d(every, drawn)) for drawn in floor_draws(scans, min(n, scans // 2), settings)]


def resample_counts(n: int, settings: Evaluate, stream: int = 0) -> Array:
    """Return how often each of ``n`` scans is drawn in each bootstrap resample, (resamples, n); rows sum to n.

    ``stream`` separates independent groups that are resampled for the same figure.
    """
    generator = np.random.default_rng([settings.seed, stream])
    return generator.multinomial(n, np.full(n, 1 / n), size=settings.bootstrap).astype(np.float64)


def percentile_interval(
    value: float, draws: Array, n: int, settings: Evaluate, *, distance: bool = False, against: int | None = None
) -> Estimate:
    """Return ``value`` with the bootstrap percentile interval of ``draws``, expanded for small ``n``.

    The percentiles lie as far out as Student's t with n − 1 degrees of freedom and the resamples' missing n / (n − 1)
    ask for, which plain percentiles of few scans do not (the expanded percentile interval; Hesterberg 2015, Am Stat 69:371).
    Where two groups are resampled, ``n`` and ``against`` scans, it is the smaller one whose draws spread too little.
    ``distance`` is for figures that cannot be negative and are biased upwards by few distinct scans, such as a Fréchet
    distance: resampling adds that bias a second time, so the draws are shifted to have ``value`` as their mean, and the
    interval is cut at zero.
    """
    draws = draws[np.isfinite(draws)]
    if draws.size == 0:
        return Estimate(value, None, None, n)
    tail = 100 * expanded((1 - settings.confidence) / 2, n if against is None else min(n, against))
    low, high = (float(q) for q in np.percentile(draws, [tail, 100 - tail]))
    if distance:
        shift = value - float(draws.mean())
        low, high = max(0.0, low + shift), max(0.0, high + shift)
    return Estimate(value, low, high, n)


def expanded(tail: float, n: int) -> float:
    """Return which tail of the draws of ``n`` scans holds what ``tail`` of Student's t does; one scan has no other."""
    return float(stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf(tail, n - 1))) if n > 1 else tail


def tail_of(share: float, n: int) -> float:
    """Return the tail whose `expanded` one is a share of the draws: the p-value that belongs to the intervals."""
    return float(stats.t.cdf(math.sqrt((n - 1) / n) * stats.norm.ppf(share), n - 1)) if n > 1 else share


def mean_estimate(values: ArrayLike, settings: Evaluate) -> Estimate:
    """Return the mean over scans with its bootstrap interval; one scan has no interval, no scan no value."""
    return mean_bootstrap(values, settings).estimate(settings)


def mean_bootstrap(values: ArrayLike, settings: Evaluate) -> Bootstrap:
    """Return the mean over scans and its resamples; one scan has no resamples, no scan no value."""
    data = np.asarray(values, dtype=np.float64)
    n = len(data)
    if n == 0:
        return Bootstrap(None, None, 0)
    return Bootstrap(float(data.mean()), resample_counts(n, settings) @ data / n if n > 1 else None, n)


def ratio_estimate(x: ArrayLike, y: ArrayLike, settings: Evaluate, *, paired: bool = False) -> Estimate:
    """Return mean(x) / mean(y) with its interval; the scans of both are resampled, together where ``paired``.

    One scan of either has no interval, none or a mean of zero in ``y`` no value. n is the number of scans of x.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n = len(a)
    if min(n, len(b)) == 0 or b.mean() == 0:
        return Estimate(None, None, None, n)
    value = float(a.mean() / b.mean())
    if min(n, len(b)) == 1:
        return Estimate(value, None, None, n)
    above = resample_counts(n, settings) @ a / n
    below = resample_counts(len(b), settings, 0 if paired else 1) @ b / len(b)
    draws = np.divide(above, below, out=np.full(len(above), np.nan), where=below != 0)
    return percentile_interval(value, draws, n, settings, against=len(b))


def share_estimate(flags: ArrayLike, settings: Evaluate) -> Estimate:
    """Return the share of true flags with Wilson's score interval, which stays honest at 0 and 1 (Wilson 1927)."""
    data = np.asarray(flags, dtype=bool)
    n = len(data)
    if n == 0:
        return Estimate(None, None, None, 0)
    share = float(data.mean())
    return Estimate(share, *wilson_interval(share, n, settings), n)


def wilson_interval(share: float, n: int, settings: Evaluate) -> tuple[float, float]:
    """Return Wilson's score interval of a share of ``n`` scans."""
    z = float(stats.norm.ppf((1 + settings.confidence) / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return (max(0.0, centre - half) if share > 0 else 0.0), (min(1.0, centre + half) if share < 1 else 1.0)
