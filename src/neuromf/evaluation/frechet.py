"""Distances between two sets of features: Fréchet distance and kernel distance (KID), with bootstrap over scans.

Neither is called FID: that name belongs to Inception features of slices. A Fréchet distance here always carries its
extractor's name.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuromf.config import Evaluate
from neuromf.evaluation.inference import Estimate, percentile_interval, resample_counts

Array = NDArray[np.float64]
_CHUNK_ENTRIES = 4_000_000  # of the matrices whose singular values are taken at once: bounds the memory


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Return |μ_x − μ_y|² + tr Σ_x + tr Σ_y − 2 tr (Σ_x Σ_y)^½ of features x (n, F) and y (m, F).

    With centred, scaled features A (n, F) and B (m, F), Σ_x = AᵀA and Σ_y = BᵀB, the eigenvalues of Σ_x Σ_y are the squared
    singular values of A Bᵀ, so the last trace is their sum: exact for singular covariances (fewer scans than
    features) and without a matrix square root (Dowson & Landau 1982; covariances divide by n − 1 as in FID).

    Raises:
        ValueError: fewer than two rows or different numbers of features.
    """
    left, right = _pair(x, y)
    return float(_weighted_frechet(left, right, np.ones((1, len(left))), np.ones((1, len(right))))[0])


def kernel_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Return the unbiased squared MMD with the kernel (x·y / F + 1)³ of features x (n, F) and y (m, F).

    This is KID with torch-fidelity's constants (degree 3, gamma 1/F, coef 1) on all rows at once (Bińkowski et al.
    2018). It may be negative; its expectation for two samples of one distribution is 0.

    Raises:
        ValueError: fewer than two rows or different numbers of features.
    """
    left, right = _pair(x, y)
    return float(_weighted_kernel_distance(left, right, np.ones((1, len(left))), np.ones((1, len(right))))[0])


def frechet_estimate(x: ArrayLike, y: ArrayLike, settings: Evaluate) -> Estimate:
    """Return the Fréchet distance of x (n, F) to y (m, F) with its interval; both sets' scans are resampled."""
    left, right = _pair(x, y)
    counts = resample_counts(len(left), settings, 0), resample_counts(len(right), settings, 1)
    value = frechet_distance(left, right)
    return percentile_interval(value, _weighted_frechet(left, right, *counts), len(left), settings, distance=True)


def kernel_estimate(x: ArrayLike, y: ArrayLike, settings: Evaluate) -> Estimate:
    """Return the kernel distance of x (n, F) to y (m, F) with its interval; both sets' scans are resampled."""
    left, right = _pair(x, y)
    counts = resample_counts(len(left), settings, 0), resample_counts(len(right), settings, 1)
    draws = _weighted_kernel_distance(left, right, *counts)
    return percentile_interval(kernel_distance(left, right), draws, len(left), settings)


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    left, right = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise ValueError(f"features must be (n, F) and (m, F) with one F; got {left.shape} and {right.shape}")
    if min(len(left), len(right)) < 2:
        raise ValueError(f"a distance between distributions needs two scans of each; got {len(left)} and {len(right)}")
    return left, right


def _weighted_frechet(x: Array, y: Array, w: Array, v: Array) -> Array:
    """Return the Fréchet distances, (B,), of x (n, F) weighted by counts w (B, n) to y (m, F) weighted by v (B, m)."""
    origin = np.concatenate([x, y]).mean(axis=0)  # distances do not depend on it; small numbers cancel less
    x, y = x - origin, y - origin
    n, m = len(x), len(y)
    xx, yy, xy = x @ x.T, y @ y.T, x @ y.T
    p, q = w / n, v / m
    # |μ|² of each side and μ_x·μ_y, then tr Σ = (Σ_i w_i |x_i|² − n |μ|²) / (n − 1)
    mean_xx, mean_yy, mean_xy = ((p @ xx) * p).sum(1), ((q @ yy) * q).sum(1), ((p @ xy) * q).sum(1)
    trace_x = (w @ np.diag(xx) - n * mean_xx) / (n - 1)
    trace_y = (v @ np.diag(yy) - m * mean_yy) / (m - 1)
    chunk = max(1, _CHUNK_ENTRIES // (n * m))
    cross = np.concatenate([_cross_trace(xy, w[i : i + chunk], v[i : i + chunk]) for i in range(0, len(w), chunk)])
    distance = mean_xx + mean_yy - 2 * mean_xy + trace_x + trace_y - 2 * cross
    return np.maximum(distance, 0.0)


def _cross_trace(xy: Array, w: Array, v: Array) -> Array:
    """Return tr (Σ_x Σ_y)^½, (B,), from the inner products xy (n, m): the sum of the singular values of A Bᵀ."""
    n, m = xy.shape
    p, q = w / n, v / m
    to_mean_y = (q @ xy.T)[:, :, None]  # x_i · μ_y
    to_mean_x = (p @ xy)[:, None, :]  # μ_x · y_j
    means = ((p @ xy) * q).sum(1)[:, None, None]
    centred = xy[None] - to_mean_y - to_mean_x + means
    product = np.sqrt(w)[:, :, None] * centred * np.sqrt(v)[:, None, :] / np.sqrt((n - 1) * (m - 1))
    return np.linalg.svd(product, compute_uv=False).sum(axis=1)


def _weighted_kernel_distance(x: Array, y: Array, w: Array, v: Array) -> Array:
    """Return the unbiased MMD² values, (B,).

    A pair of one scan with its own copy never counts, so that resamples stay unbiased.
    """
    within_x, within_y, between = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    np.fill_diagonal(within_x, 0.0)
    np.fill_diagonal(within_y, 0.0)
    mean_between = ((w @ between) * v).sum(1) / (w.sum(1) * v.sum(1))
    return _mean_of_pairs(within_x, w) + _mean_of_pairs(within_y, v) - 2 * mean_between


def _mean_of_pairs(kernel: Array, w: Array) -> Array:
    pairs = w.sum(1) ** 2 - (w**2).sum(1)  # zero when a resample is one scan only: NaN, which the interval leaves out
    return np.divide(((w @ kernel) * w).sum(1), pairs, out=np.full(len(w), np.nan), where=pairs > 0)


def _kernel(x: Array, y: Array) -> Array:
    return (x @ y.T / x.shape[1] + 1.0) ** 3
