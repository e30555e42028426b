"""How the training latents are distributed, beside the standard normal noise that the flow starts from.

Everything is taken of z = (latent − mean_c) / std_c with the statistics that training normalises with, in one more pass
over the latents. What is kept of a scan is its histogram and its first moments, so that every figure can be resampled
over scans: voxels of one latent are neighbours and no independent draws.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from tqdm import tqdm

from neuromf.config import Evaluate
from neuromf.evaluation.inference import Estimate, percentile_interval, resample_counts
from neuromf.latents.statistics import Latents, LatentStatistics
from neuromf.tables import write_json

Array = NDArray[np.float64]
EDGES = np.linspace(-6.0, 6.0, 241)  # of the histograms, in units of σ; what lies beyond is counted in two open bins
PCA_SCANS = 256  # of larger train splits this many, evenly spaced, enter the PCA over scans
_MOMENTS = ("mean", "std", "skewness", "kurtosis")


@dataclass(frozen=True)
class Summary:
    """What is kept of N latents z (C, D, H, W): per scan, in units of σ."""

    counts: Array  # (N, C, bins + 2): shares of voxels below, in each bin of, and above `EDGES`
    powers: Array  # (N, C, 4): means of z, z², z³, z⁴
    products: Array  # (N, C, C): means of z_i z_j


@dataclass(frozen=True)
class ScanComponents:
    """Principal components of whole latents over scans."""

    scans: int
    explained: list[float]  # share of the variance of each component, largest first
    effective_dimension: Estimate


def describe_latents(store: Latents, statistics: LatentStatistics, settings: Evaluate, out: Path) -> dict[str, Any]:
    """Measure the train split's latents against N(0, 1) and write the figures to ``out`` (JSON).

    Args:
        store: the train split, items (C, D, H, W).
        statistics: of the same latents.
        settings: of the intervals.

    Returns:
        What the JSON holds: ``figures`` (rows of figure, channel, value, ci_low, ci_high, n), ``edges`` and ``density``
        (per σ) of the histograms, ``outside`` (shares below and above the edges), ``correlation`` (C, C) and the lower and
        upper ends of its intervals (2, C, C), ``channel_pca`` (shares of variance) and ``scan_pca``.
    """
    summary = summarise(store, statistics)
    rows = []
    for name, estimates in {
        **moments(summary, statistics, settings),
        "kolmogorov_smirnov": ks(summary, settings),
    }.items():
        rows += [{"figure": name, "channel": channel} | _interval(one) for channel, one in enumerate(estimates)]
    channels = channel_dimension(summary, statistics, settings)
    components = scan_components(store, statistics, settings)
    rows.append({"figure": "effective_dimension_channels", "channel": None} | _interval(channels))
    rows.append({"figure": "effective_dimension_scans", "channel": None} | _interval(components.effective_dimension))
    shares = summary.counts.mean(axis=0)
    spectrum = np.array(statistics.pca_spectrum)
    result = {
        "n": len(store),
        "release_sha256": statistics.release_sha256,
        "confidence": settings.confidence,
        "figures": rows,
        "edges": EDGES.tolist(),
        "density": (shares[:, 1:-1] / np.diff(EDGES)).tolist(),
        "outside": shares[:, [0, -1]].tolist(),
        "correlation": statistics.correlation,
        "correlation_interval": correlation_interval(summary, settings),
        "channel_pca": (spectrum / spectrum.sum()).tolist(),
        "scan_pca": {"scans": components.scans, "explained": components.explained},
    }
    write_json(out, result)
    return result


def summarise(store: Latents, statistics: LatentStatistics) -> Summary:
    """Return what is kept of each latent, in one pass."""
    counts, powers, products = [], [], []
    for index in tqdm(range(len(store)), desc="latent distribution", unit="scan"):
        z = _normalised(store, index, statistics)
        bins = np.searchsorted(EDGES, z, side="right")
        counts.append(np.stack([np.bincount(row, minlength=len(EDGES) + 1) for row in bins]) / z.shape[1])
        powers.append(np.stack([(z**k).mean(axis=1) for k in (1, 2, 3, 4)], axis=1))
        products.append(z @ z.T / z.shape[1])
    return Summary(np.stack(counts), np.stack(powers), np.stack(products))


def moments(summary: Summary, statistics: LatentStatistics, settings: Evaluate) -> dict[str, list[Estimate]]:
    """Return mean, std, skewness and excess kurtosis of each channel, in the latents' own units, with intervals."""
    n = len(summary.powers)
    mean, std = np.array(statistics.mean), np.array(statistics.std)
    values = _moments(summary.powers.mean(axis=0)[None], mean, std)
    weights = resample_counts(n, settings) / n
    draws = _moments(np.einsum("bn,nck->bck", weights, summary.powers), mean, std)
    return {
        name: [_estimate(float(values[name][0, c]), draws[name][:, c], n, settings) for c in range(len(mean))]
        for name in _MOMENTS
    }


def _moments(powers: Array, mean: Array, std: Array) -> dict[str, Array]:
    """Return moments about the mean, (B, C) each, of raw moments (B, C, 4) in units of σ."""
    m1, m2, m3, m4 = np.moveaxis(powers, 2, 0)
    variance = m2 - m1**2
    return {
        "mean": mean + std * m1,
        "std": std * np.sqrt(variance),
        "skewness": (m3 - 3 * m1 * m2 + 2 * m1**3) / variance**1.5,
        "kurtosis": (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2 - 3,
    }


def ks(summary: Summary, settings: Evaluate) -> list[Estimate]:
    """Return each channel's Kolmogorov-Smirnov distance to N(0, 1), taken at the histogram's edges.

    Between two edges a distribution function can differ from its ends by the bin's share at most, 0.02 for a normal one.
    """
    n, channels, _ = summary.counts.shape
    weights = resample_counts(n, settings) / n
    estimates = []
    for channel in range(channels):
        below = np.cumsum(summary.counts[:, channel, :-1], axis=1)  # of each scan: the share below each edge
        draws = np.abs(weights @ below - norm.cdf(EDGES)).max(axis=1)
        value = float(np.abs(below.mean(axis=0) - norm.cdf(EDGES)).max())
        estimates.append(_estimate(value, draws, n, settings, distance=True))
    return estimates


def channel_dimension(summary: Summary, statistics: LatentStatistics, settings: Evaluate) -> Estimate:
    """Return the effective dimension of the C channels at one place: 1 (all alike) to C (independent, equal variances)."""
    n = len(summary.products)
    std = np.array(statistics.std)
    weights = np.concatenate([np.full((1, n), 1 / n), resample_counts(n, settings) / n])
    found = participation(_covariances(summary, weights) * np.outer(std, std))
    return _estimate(float(found[0]), found[1:], n, settings)


def correlation_interval(summary: Summary, settings: Evaluate) -> list[list[list[float]]] | None:
    """Return the lower and upper ends of the intervals of the channels' correlation, (2, C, C); one scan has none."""
    n = len(summary.products)
    if n < 2:
        return None
    covariance = _covariances(summary, resample_counts(n, settings) / n)
    std = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    tail = 50 * (1 - settings.confidence)
    ends: Array = np.percentile(covariance / (std[:, :, None] * std[:, None, :]), [tail, 100 - tail], axis=0)
    return ends.clip(-1, 1).tolist()


def _covariances(summary: Summary, weights: Array) -> Array:
    """Return the channels' covariances in units of σ, (B, C, C), of scans weighted by (B, N), rows of which sum to 1."""
    means = np.einsum("bn,nc->bc", weights, summary.powers[:, :, 0])
    return np.einsum("bn,ncd->bcd", weights, summary.products) - means[:, :, None] * means[:, None, :]


def scan_components(store: Latents, statistics: LatentStatistics, settings: Evaluate) -> ScanComponents:
    """Return the principal components of whole latents z over scans, from the scans' matrix of inner products.

    N scans span N − 1 dimensions, so the effective dimension is smaller than that whatever the latents are, and grows
    with N until there are many more scans than dimensions. Its interval is the jackknife's: a bootstrap draws scans
    twice, which lie in one dimension less.
    """
    n = len(store)
    chosen = np.unique(np.linspace(0, n - 1, min(n, PCA_SCANS)).round().astype(int))
    flat = np.stack([_normalised(store, int(index), statistics).astype(np.float32).ravel() for index in chosen])
    inner = (flat @ flat.T).astype(np.float64) / flat.shape[1]
    if len(chosen) < 3:
        return ScanComponents(len(chosen), [], Estimate(None, None, None, len(chosen)))
    spectrum = np.linalg.eigvalsh(_centred(inner))[::-1].clip(min=0)
    value = float(participation(_centred(inner)[None])[0])
    left_out = [np.delete(np.delete(inner, i, 0), i, 1) for i in range(len(chosen))]
    without = np.array([participation(_centred(part)[None])[0] for part in left_out])
    error = np.sqrt((len(chosen) - 1) * without.var())
    half = float(NormalDist().inv_cdf((1 + settings.confidence) / 2) * error)
    explained = (spectrum / spectrum.sum())[:-1]
    return ScanComponents(len(chosen), explained.tolist(), Estimate(value, value - half, value + half, len(chosen)))


def participation(covariance: Array) -> Array:
    """Return the participation ratio (Σλ)² / Σλ² of the eigenvalues λ of symmetric matrices (B, C, C), as (B,).

    The number of equal eigenvalues that would be as spread out (Gao et al. 2017); no eigenvalue has to be computed, since
    Σλ is the trace and Σλ² the sum of the squared entries.
    """
    return np.trace(covariance, axis1=1, axis2=2) ** 2 / (covariance**2).sum(axis=(1, 2))


def _centred(inner: Array) -> Array:
    """Return the inner products (N, N) of vectors as those of their deviations from the mean."""
    rows = inner.mean(axis=0)
    return inner - rows - rows[:, None] + rows.mean()


def _normalised(store: Latents, index: int, statistics: LatentStatistics) -> Array:
    """Return a latent in units of σ, (C, voxels)."""
    flat = store[index].flatten(1).double().numpy()
    return (flat - np.array(statistics.mean)[:, None]) / np.array(statistics.std)[:, None]


def _estimate(value: float, draws: Array, n: int, settings: Evaluate, *, distance: bool = False) -> Estimate:
    """Return a figure with its interval; one scan has none."""
    if n < 2:
        return Estimate(value, None, None, n)
    return percentile_interval(value, draws, n, settings, distance=distance)


def _interval(estimate: Estimate) -> dict[str, Any]:
    found = asdict(estimate)
    return {"value": found["value"], "ci_low": found["low"], "ci_high": found["high"], "n": found["n"]}
