"""Fréchet distance between two sets of features, with bootstrap over scans and extrapolation to infinitely many.

It is FID only for Inception features of slices; any other always carries its extractor's name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from neuromf.config import Evaluate
from neuromf.evaluation.features import Rows
from neuromf.evaluation.inference import Bootstrap, resample_counts

Array = NDArray[np.float64]
Moments = tuple[Array, Array, Array]  # what `_scan_moments` returns
LEADING = 64  # principal components that resamples of slices are compared in
_SPLITS = 4  # into random halves, for the extrapolation
_EXACT_ROWS = 128
_CHUNK_ENTRIES = 4_000_000  # of the matrices whose singular values are taken at once: bounds the memory
_RESAMPLES_AT_ONCE = 100


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Return |μ_x − μ_y|² + tr Σ_x + tr Σ_y − 2 tr (Σ_x Σ_y)^½ of features x (n, F) and y (m, F).

    With centred, scaled features A (n, F) and B (m, F), Σ_x = AᵀA and Σ_y = BᵀB, the eigenvalues of Σ_x Σ_y are the squared
    singular values of A Bᵀ, so the last trace is their sum: exact for singular covariances (fewer scans than
    features) and without a matrix square root (Dowson & Landau 1982; covariances divide by n − 1 as in FID).

    Raises:
        ValueError: fewer than two rows or different numbers of features.
    """
    left, right = _pair(x, y)
    difference = left.mean(axis=0) - right.mean(axis=0)
    factors = [_covariance_factor(rows) for rows in (left, right)]
    cross = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    distance = difference @ difference + sum((factor**2).sum() for factor in factors) - 2 * cross
    return max(float(distance), 0.0)


def frechet_bootstraps(x: Rows, y: Rows, settings: Evaluate) -> tuple[Bootstrap, Bootstrap]:
    """Return the Fréchet distance of x to y and that extrapolated to infinitely many scans, with their resamples.

    Resamples draw scans of both sets, slices with their scan. With more than 128 scans, or slices, they are taken in the
    `LEADING` principal components of both sets' rows, which hold nearly all of what differs between resamples; the values
    themselves are always those of all features.

    The bias of the distance falls with one over the number of scans. So it is also measured on random halves of both
    sets, and the line through the distances of halves and of all scans against one over the share is read at 0 (Chong &
    Forsyth 2020, who fit a line through more shares of the generated set alone). Each resample is extrapolated from two
    halves of its own, which its repeated scans bias upwards like any distance: the draws are shifted to the value. It may be
    negative; fewer than four scans of either have none.
    """
    value, draw = frechet_distance(x.values, y.values), _drawn(x, y)
    counts = [resample_counts(len(rows), settings, stream) for stream, rows in enumerate((x, y))]
    draws = draw(*counts)
    plain = Bootstrap(value, draws, len(x), distance=True, against=len(y))
    if min(len(x), len(y)) < 4:
        return plain, Bootstrap(None, None, len(x))

    random = np.random.default_rng([settings.seed, 2])
    splits = zip(*(_halves(np.ones((_SPLITS, len(rows))), random) for rows in (x, y)), strict=True)
    of_halves = [
        frechet_distance(x.of_scans(np.flatnonzero(w)).values, y.of_scans(np.flatnonzero(v)).values)
        for halves in splits
        for w, v in zip(*halves, strict=True)
    ]
    drawn_halves = zip(*(_halves(one, random) for one in counts), strict=True)
    draws_of_halves = np.mean([draw(*halves) for halves in drawn_halves], axis=0)
    inverse = float(np.mean([n / part for n in (len(x), len(y)) for part in (n // 2, n - n // 2)]))  # of the share
    extrapolated = _at_zero(value, np.mean(of_halves), inverse)
    spread = _at_zero(draws, draws_of_halves, inverse)
    return plain, Bootstrap(float(extrapolated), spread + (extrapolated - spread.mean()), len(x), against=len(y))


def _at_zero(whole: Any, halves: Any, inverse: float) -> Any:
    """Return at 0 the line through (1, whole) and (inverse, halves)."""
    return whole - (halves - whole) / (inverse - 1)


def _halves(counts: Array, random: np.random.Generator) -> tuple[Array, Array]:
    """Deal each row of counts (B, n), which sums to n, into two random halves of the scans that it draws."""
    b, n = counts.shape
    drawn = np.repeat(np.tile(np.arange(n), b), counts.astype(int).ravel()).reshape(b, n)
    chosen = random.permuted(drawn, axis=1)[:, : n // 2] + n * np.arange(b)[:, None]
    half = np.bincount(chosen.ravel(), minlength=b * n).reshape(b, n).astype(np.float64)
    return half, counts - half


def _drawn(x: Rows, y: Rows) -> Callable[[Array, Array], Array]:
    """Return the Fréchet distances, (B,), as a function of how often each scan of x and of y is drawn, (B, n) and (B, m)."""
    if max(len(x.values), len(y.values)) <= _EXACT_ROWS and (x.counts == 1).all() and (y.counts == 1).all():
        return partial(_weighted_frechet, *_pair(x.values, y.values))
    project = _leading_components(x.values, y.values)
    return partial(_frechet_of_moments, _scan_moments(x, project(x.values)), _scan_moments(y, project(y.values)))


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    left, right = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise ValueError(f"features must be (n, F) and (m, F) with one F; got {left.shape} and {right.shape}")
    if min(len(left), len(right)) < 2:
        raise ValueError(f"a distance between distributions needs two scans of each; got {len(left)} and {len(right)}")
    return left, right


def _covariance_factor(rows: Array) -> Array:
    """Return R (min(n, F), F) with RᵀR the covariance of rows (n, F): of more rows than features the triangle of a QR
    decomposition, so that nothing grows with the square of the rows; otherwise the scaled rows themselves."""
    factor: Array = (rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1)
    return scipy.linalg.qr(factor, mode="r")[0][: rows.shape[1]] if len(rows) > rows.shape[1] else factor


def _weighted_frechet(x: Array, y: Array, w: Array, v: Array) -> Array:
    """Return the Fréchet distances, (B,), of x (n, F) weighted by counts w (B, n) to y (m, F) weighted by v (B, m)."""
    origin = np.concatenate([x, y]).mean(axis=0)  # distances do not depend on it; small numbers cancel less
    x, y = x - origin, y - origin
    xx, yy, xy = x @ x.T, y @ y.T, x @ y.T
    n, m = w.sum(1), v.sum(1)
    p, q = w / n[:, None], v / m[:, None]
    # |μ|² of each side and μ_x·μ_y, then tr Σ = (Σ_i w_i |x_i|² − n |μ|²) / (n − 1)
    mean_xx, mean_yy, mean_xy = ((p @ xx) * p).sum(1), ((q @ yy) * q).sum(1), ((p @ xy) * q).sum(1)
    trace_x = (w @ np.diag(xx) - n * mean_xx) / (n - 1)
    trace_y = (v @ np.diag(yy) - m * mean_yy) / (m - 1)
    chunk = max(1, _CHUNK_ENTRIES // xy.size)
    cross = np.concatenate([_cross_trace(xy, w[i : i + chunk], v[i : i + chunk]) for i in range(0, len(w), chunk)])
    distance = mean_xx + mean_yy - 2 * mean_xy + trace_x + trace_y - 2 * cross
    return np.maximum(distance, 0.0)


def _cross_trace(xy: Array, w: Array, v: Array) -> Array:
    """Return tr (Σ_x Σ_y)^½, (B,), from the inner products xy (n, m): the sum of the singular values of A Bᵀ."""
    n, m = w.sum(1, keepdims=True), v.sum(1, keepdims=True)
    p, q = w / n, v / m
    to_mean_y = (q @ xy.T)[:, :, None]  # x_i · μ_y
    to_mean_x = (p @ xy)[:, None, :]  # μ_x · y_j
    means = ((p @ xy) * q).sum(1)[:, None, None]
    centred = xy[None] - to_mean_y - to_mean_x + means
    product = np.sqrt(w / (n - 1))[:, :, None] * centred * np.sqrt(v / (m - 1))[:, None, :]
    return np.linalg.svd(product, compute_uv=False).sum(axis=1)


def _frechet_of_moments(x: Moments, y: Moments, w: Array, v: Array) -> Array:
    """Return the Fréchet distances, (B,), of scans drawn w (B, n) and v (B, m) times."""
    draws = []
    for first in range(0, len(w), _RESAMPLES_AT_ONCE):
        chosen = slice(first, first + _RESAMPLES_AT_ONCE)
        (mean_x, cov_x), (mean_y, cov_y) = (_weighted_moments(*one, counts[chosen]) for one, counts in ((x, w), (y, v)))
        values, vectors = np.linalg.eigh(cov_x)
        root = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
        cross = np.linalg.eigvalsh(root.transpose(0, 2, 1) @ cov_y @ root)
        traces = np.trace(cov_x, axis1=1, axis2=2) + np.trace(cov_y, axis1=1, axis2=2)
        distance = ((mean_x - mean_y) ** 2).sum(1) + traces - 2 * np.sqrt(np.maximum(cross, 0)).sum(1)
        draws.append(np.maximum(distance, 0.0))
    return np.concatenate(draws)


def _leading_components(x: NDArray[np.floating], y: NDArray[np.floating]) -> Callable[[NDArray[np.floating]], Array]:
    """Return the projection of rows (R, F) to the leading principal components (R, K) of two sets' rows."""
    rows = np.concatenate([x, y]).astype(np.float64)
    mean = rows.mean(axis=0)
    rows -= mean
    if len(rows) < rows.shape[1]:
        _, vectors = np.linalg.eigh(rows @ rows.T)
        axes, _ = np.linalg.qr(rows.T @ vectors[:, -LEADING:])
    else:
        _, vectors = np.linalg.eigh(rows.T @ rows)
        axes = vectors[:, -LEADING:]
    return lambda values: (values.astype(np.float64) - mean) @ axes


def _scan_moments(rows: Rows, values: Array) -> Moments:
    """Return each scan's number of rows (n,), their sum (n, K) and the sum of their outer products (n, K, K)."""
    parts = np.split(values, rows.starts[1:])
    return rows.counts.astype(np.float64), np.stack([p.sum(0) for p in parts]), np.stack([p.T @ p for p in parts])


def _weighted_moments(counts: Array, sums: Array, products: Array, w: Array) -> tuple[Array, Array]:
    """Return the means (B, K) and covariances (B, K, K) of scans drawn w (B, n) times."""
    total = w @ counts
    mean = w @ sums / total[:, None]
    second = np.tensordot(w, products, axes=1) - total[:, None, None] * mean[:, :, None] * mean[:, None, :]
    return mean, second / (total - 1)[:, None, None]
