"""Squared maximum mean discrepancies between two sets of features: KID's polynomial kernel and a Gaussian one.

Both estimates leave out each row's pair with itself, which makes them unbiased, and may be negative. Pairs of slices of
one scan count, as in torch-fidelity; only the resamples know which slices belong together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuromf.config import Evaluate
from neuromf.evaluation.features import Rows, one_row_each
from neuromf.evaluation.inference import Bootstrap, resample_counts

Array = NDArray[np.float64]
Kernel = Callable[[Array, Array], Array]
_CHUNK_ENTRIES = 4_000_000  # of a kernel matrix that exist at once: bounds the memory
_BANDWIDTH_ROWS = 1000  # of the reference that the median distance is taken over


def kernel_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Return the unbiased squared MMD with the kernel (x·y / F + 1)³ of features x (n, F) and y (m, F).

    This is KID with torch-fidelity's constants (degree 3, gamma 1/F, coef 1) on all rows at once (Bińkowski et al.
    2018). It may be negative; its expectation for two samples of one distribution is 0.

    Raises:
        ValueError: fewer than two rows or different numbers of features.
    """
    return _value(_sums(polynomial, *_pair(one_row_each(x), one_row_each(y))))


def kernel_bootstrap(x: Rows, y: Rows, settings: Evaluate) -> Bootstrap:
    """Return the kernel distance (KID's estimator) of x to y and its resamples, of both sets' scans."""
    return _bootstrap(polynomial, *_pair(x, y), settings)


def gaussian_bootstrap(x: Rows, y: Rows, settings: Evaluate) -> Bootstrap:
    """Return the squared MMD of x to y with a Gaussian kernel and its resamples, of both sets' scans.

    The kernel is exp(−|a − b|² / 2σ²) with σ the median distance of the reference's (y's) rows of different scans, so it
    does not depend on what is compared with the reference (Gretton et al. 2012).
    """
    x, y = _pair(x, y)
    return _bootstrap(gaussian(median_distance(y)), x, y, settings)


def polynomial(x: Array, y: Array) -> Array:
    """Return (x·y / F + 1)³, (n, m)."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def gaussian(sigma: float) -> Kernel:
    """Return the kernel exp(−|a − b|² / 2σ²)."""

    def kernel(x: Array, y: Array) -> Array:
        return np.exp(-_squared_distances(x, y) / (2 * sigma**2))

    return kernel


def median_distance(rows: Rows) -> float:
    """Return the median distance of rows of different scans (of at most 1,000 rows, evenly taken); 1 when it is 0."""
    scan = np.repeat(np.arange(len(rows)), rows.counts)
    chosen = np.unique(np.linspace(0, len(scan) - 1, min(len(scan), _BANDWIDTH_ROWS)).round().astype(int))
    values = rows.values[chosen].astype(np.float64)
    apart = scan[chosen][:, None] < scan[chosen][None]
    return float(np.median(np.sqrt(_squared_distances(values, values)[apart]))) or 1.0


def _pair(x: Rows, y: Rows) -> tuple[Rows, Rows]:
    if x.values.shape[1] != y.values.shape[1]:
        raise ValueError(f"features must be (n, F) and (m, F) with one F; got {x.values.shape} and {y.values.shape}")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a distance between distributions needs two scans of each; got {len(x)} and {len(y)}")
    return x, y


def _squared_distances(x: Array, y: Array) -> Array:
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T, 0.0)


class _Within:
    """Sums of a kernel over the pairs of rows of each two scans of one set, (n, n), without rows' pairs with themselves."""

    def __init__(self, kernel: Kernel, rows: Rows) -> None:
        self.counts = rows.counts.astype(np.float64)
        sums = block_sums(kernel, rows, rows)
        values = rows.values.astype(np.float64)
        itself = np.concatenate([np.diagonal(kernel(v, v)) for v in np.array_split(values, len(rows))])
        self.own = np.diagonal(sums) - np.add.reduceat(itself, rows.starts)
        self.sums = sums - np.diag(np.diagonal(sums))

    def mean(self, w: Array) -> Array:
        """Return the mean over pairs, (B,), of scans drawn w (B, n) times; a scan never meets another copy of itself."""
        total = ((w @ self.sums) * w).sum(1) + w @ self.own
        different = (w @ self.counts) ** 2 - (w**2) @ self.counts**2
        pairs = different + w @ (self.counts * (self.counts - 1))
        return np.divide(total, pairs, out=np.full(len(w), np.nan), where=pairs > 0)


def block_sums(kernel: Kernel, x: Rows, y: Rows) -> Array:
    """Return the sums of a kernel over the rows of each scan of x and each of y, (n, m), a few scans at a time."""
    right = y.values.astype(np.float64)
    at_once = max(1, int(_CHUNK_ENTRIES // (len(right) * x.counts.max())))
    sums = []
    for first in range(0, len(x), at_once):
        part = x.of_scans(np.arange(first, min(first + at_once, len(x))))
        matrix = kernel(part.values.astype(np.float64), right)
        sums.append(np.add.reduceat(np.add.reduceat(matrix, part.starts, axis=0), y.starts, axis=1))
    return np.concatenate(sums)


def _sums(kernel: Kernel, x: Rows, y: Rows) -> tuple[_Within, _Within, Array]:
    return _Within(kernel, x), _Within(kernel, y), block_sums(kernel, x, y)


def _weighted(sums: tuple[_Within, _Within, Array], w: Array, v: Array) -> Array:
    """Return the unbiased MMD² values, (B,), of scans drawn w (B, n) and v (B, m) times."""
    within_x, within_y, between = sums
    rows = (w @ within_x.counts) * (v @ within_y.counts)
    return within_x.mean(w) + within_y.mean(v) - 2 * ((w @ between) * v).sum(1) / rows


def _value(sums: tuple[_Within, _Within, Array]) -> float:
    n, m = sums[2].shape
    return float(_weighted(sums, np.ones((1, n)), np.ones((1, m)))[0])


def _bootstrap(kernel: Kernel, x: Rows, y: Rows, settings: Evaluate) -> Bootstrap:
    sums = _sums(kernel, x, y)
    draws = _weighted(sums, resample_counts(len(x), settings, 0), resample_counts(len(y), settings, 1))
    return Bootstrap(_value(sums), draws, len(x), against=len(y))
