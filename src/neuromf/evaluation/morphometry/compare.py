"""How volumes of generated and real brains compare, each figure with its bootstrap interval over scans.

Cohen's d, the Kolmogorov-Smirnov statistic, Wasserstein's distance and the Kullback-Leibler divergence compare two
groups; asymmetry, Pearson's r and Dice belong to single scans or pairs of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuromf.config import Evaluate
from neuromf.evaluation.inference import Bootstrap, Estimate, percentile_interval, pooled, resample_counts

Array = NDArray[np.float64]
_SMOOTHING = 0.5  # scans added to each bin of a histogram (Jeffreys' prior), so that no bin is empty


def compare_volumes(synthetic: ArrayLike, real: ArrayLike, settings: Evaluate) -> dict[str, Estimate]:
    """Return Cohen's d (synthetic minus real), Kolmogorov-Smirnov's statistic, Wasserstein's distance (ml) and the
    Kullback-Leibler divergence of the histograms in `histogram_edges` (nats, real from synthetic).

    ``synthetic`` (n,) and ``real`` (m,) are volumes of one tissue in ml; both sets' scans are resampled. Fewer than two
    of either have no value, and two constant sets no Cohen's d.
    """
    return compare_volume_draws([(synthetic, real)], settings)


def compare_volume_draws(pairs: Sequence[tuple[ArrayLike, ArrayLike]], settings: Evaluate) -> dict[str, Estimate]:
    """Return what `compare_volumes` does as means over several pairs of groups, such as the draws of a floor."""
    found = [bootstrap_volumes(x, y, settings) for x, y in pairs]
    return {name: pooled([one[name] for one in found]).estimate(settings) for name in _COMPARISONS}


def bootstrap_volumes(synthetic: ArrayLike, real: ArrayLike, settings: Evaluate) -> dict[str, Bootstrap]:
    """Return what `compare_volumes` does with the resamples, which those of as many other synthetic scans share."""
    x, y = np.asarray(synthetic, dtype=np.float64), np.asarray(real, dtype=np.float64)
    n = len(x)
    if min(n, len(y)) < 2:
        return dict.fromkeys(_COMPARISONS, Bootstrap(None, None, n))
    values = _compare(x, y, np.ones((1, n)), np.ones((1, len(y))))
    draws = _compare(x, y, resample_counts(n, settings, 0), resample_counts(len(y), settings, 1))
    found = {}
    for name, distance in _COMPARISONS.items():
        value = float(values[name][0])
        known = np.isfinite(value)
        found[name] = Bootstrap(value if known else None, draws[name] if known else None, n, distance, against=len(y))
    return found


# name: cannot be negative
_COMPARISONS = {"cohens_d": False, "kolmogorov_smirnov": True, "wasserstein_ml": True, "kl_divergence": True}


def _compare(x: Array, y: Array, w: Array, v: Array) -> dict[str, Array]:
    """Return each comparison, (B,), of x (n,) weighted by counts w (B, n) with y (m,) weighted by v (B, m)."""
    n, m = len(x), len(y)
    mean_x, mean_y = w @ x / n, v @ y / m
    squares = (w * (x - mean_x[:, None]) ** 2).sum(1) + (v * (y - mean_y[:, None]) ** 2).sum(1)
    pooled = np.sqrt(squares / (n + m - 2))
    values = np.concatenate([x, y])
    spread = pooled > 1e-9 * np.abs(values).max()  # resamples of one scan a side have none but rounding
    effect = np.divide(mean_x - mean_y, pooled, out=np.full(len(w), np.nan), where=spread)
    order = np.argsort(values)
    gap = np.abs(np.cumsum(np.concatenate([w / n, -v / m], axis=1)[:, order], axis=1))  # |F_x − F_y| after each value
    steps = np.diff(values[order])
    tied = np.append(steps == 0, False)  # between equal values neither distribution function is defined
    return {
        "cohens_d": effect,
        "kolmogorov_smirnov": np.where(tied, 0.0, gap).max(axis=1),
        "wasserstein_ml": (gap[:, :-1] * steps).sum(axis=1),
        "kl_divergence": _divergence(x, y, w, v),
    }


def histogram_edges(real: ArrayLike) -> Array:
    """Return the inner edges of the bins that volumes (m,) are counted in: Freedman and Diaconis' of the real scans.

    The first and the last bin are open, so that volumes outside the real range are counted too. There are at most as
    many edges as scans, which outliers would exceed.
    """
    values = np.asarray(real, dtype=np.float64)
    edges = np.histogram_bin_edges(values, "fd")
    return edges if len(edges) <= len(values) else np.histogram_bin_edges(values, max(1, len(values) - 1))


def _divergence(x: Array, y: Array, w: Array, v: Array) -> Array:
    """Return Σ p ln(p/q), (B,), of y's histogram p from x's q; the bins are those of all of y, whatever the counts."""
    edges = histogram_edges(y)
    q, p = (_histogram(np.digitize(values, edges), counts, len(edges) + 1) for values, counts in ((x, w), (y, v)))
    return (p * np.log(p / q)).sum(axis=1)


def _histogram(bins: NDArray[np.intp], counts: Array, size: int) -> Array:
    """Return the smoothed shares of the bins, (B, size), of scans (n,) weighted by counts (B, n)."""
    filled = counts @ np.eye(size)[bins] + _SMOOTHING
    return filled / filled.sum(axis=1, keepdims=True)


def effect_size(pairs: Sequence[tuple[ArrayLike, ArrayLike]], settings: Evaluate) -> Estimate:
    """Return Cohen's d, synthetic minus real, of any figure that each scan has, as the mean over pairs of groups; scans
    without one (NaN) are left out."""
    finite = [tuple(a[np.isfinite(a)] for a in (np.asarray(x, float), np.asarray(y, float))) for x, y in pairs]
    return compare_volume_draws([(x, y) for x, y in finite], settings)["cohens_d"]


def asymmetry(sides: ArrayLike) -> Array:
    """Return 2 (L − R) / (L + R), (...), of left and right volumes (..., 2); NaN where a region has no volume."""
    volumes = np.asarray(sides, dtype=np.float64)
    total = volumes.sum(axis=-1)
    gap = 2 * (volumes[..., 0] - volumes[..., 1])
    return np.divide(gap, total, out=np.full(total.shape, np.nan), where=total > 0)


def correlation(x: ArrayLike, y: ArrayLike, settings: Evaluate) -> Estimate:
    """Return Pearson's r of pairs x (n,), y (n,); pairs are resampled. Fewer than three, or a constant, have no value."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n = len(a)
    if n < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Estimate(None, None, None, n)
    value = float(np.corrcoef(a, b)[0, 1])
    return percentile_interval(value, _pearson(a, b, resample_counts(n, settings)), n, settings)


def _pearson(a: Array, b: Array, w: Array) -> Array:
    """Return r, (B,), of pairs (n,) weighted by counts w (B, n); NaN where a resample draws one value only."""
    a, b = (values / np.ptp(values) for values in (a, b))
    da, db = (values - (w @ values)[:, None] / len(values) for values in (a, b))
    product, squares = (w * da * db).sum(1), (w * da**2).sum(1) * (w * db**2).sum(1)
    return np.divide(product, np.sqrt(squares), out=np.full(len(w), np.nan), where=squares > 1e-20)


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return Dice's overlap of two masks (X, Y, Z); NaN for two empty ones."""
    total = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def overlaps(
    labels: NDArray[np.integer], others: NDArray[np.integer], regions: Mapping[str, tuple[int, ...]]
) -> dict[str, float]:
    """Return Dice of each region (name → label values) in two label volumes (X, Y, Z); NaN where neither has it."""
    size = 1 + max(int(labels.max()), int(others.max()), *(label for known in regions.values() for label in known))
    pairs = np.bincount(labels.astype(np.int64).ravel() * size + others.ravel(), minlength=size**2)
    table = pairs.reshape(size, size)
    found = {}
    for region, known in regions.items():
        mine, theirs = table[list(known)], table[:, list(known)]
        total = int(mine.sum() + theirs.sum())
        found[region] = 2 * int(mine[:, list(known)].sum()) / total if total else float("nan")
    return found
