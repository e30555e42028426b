"""Tissue volumes of a preprocessed T1-weighted brain, without weights and in milliseconds.

The brain's intensities are described by three Gaussians (cerebrospinal fluid < grey < white matter in T1w), fitted by
expectation maximisation on their histogram. Meant for comparing distributions of real and generated volumes that went
the same way, not for the volumes of one patient.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from neuromf.config import Evaluate
from neuromf.evaluation.inference import Estimate, percentile_interval, resample_counts

Array = NDArray[np.float64]
BACKGROUND = 0.15  # of the [0, 1] range: near half the border's brightness, so that blur hardly moves the border
DEEP_MM = 20.0  # ventricles lie deeper than this below the brain's surface, sulci mostly do not
_BINS = 200
_KMEANS_STEPS = 100


@dataclass(frozen=True)
class TissueVolumes:
    """Volumes in ml. ``deep_csf`` is fluid more than 20 mm below the brain's surface: a stand-in for the ventricles."""

    brain: float
    csf: float
    grey: float
    white: float
    deep_csf: float

    def as_array(self) -> Array:
        """Return the volumes as (5,), in the order of `TISSUES`."""
        return np.array(astuple(self))


TISSUES = tuple(field.name for field in fields(TissueVolumes))


def brain_mask(volume: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return the largest component of what is brighter than the background, its holes filled; (X, Y, Z) as the input."""
    components, count = ndimage.label(volume > BACKGROUND)
    if count == 0:
        return np.zeros(volume.shape, dtype=bool)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return ndimage.binary_fill_holes(components == sizes.argmax())


def tissue_volumes(volume: NDArray[np.floating], voxel_mm: float) -> TissueVolumes:
    """Return the tissue volumes of a skull-stripped T1w brain (X, Y, Z) with intensities in [0, 1] and isotropic voxels.

    A volume without a brain has zero volumes.
    """
    mask = brain_mask(volume)
    voxel_ml = voxel_mm**3 / 1000
    if mask.sum() < 3:
        return TissueVolumes(0.0, 0.0, 0.0, 0.0, 0.0)
    intensities = np.clip(volume[mask].astype(np.float64), 0, 1)
    bins = np.minimum((intensities * _BINS).astype(int), _BINS - 1)
    csf, grey, white = _tissue_shares(np.bincount(bins, minlength=_BINS).astype(np.float64))[:, bins]
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=voxel_mm)[1:-1, 1:-1, 1:-1][mask]
    totals = [mask.sum(), csf.sum(), grey.sum(), white.sum(), csf[depth > DEEP_MM].sum()]
    return TissueVolumes(*(float(total * voxel_ml) for total in totals))


def _tissue_shares(histogram: Array) -> Array:
    """Return each intensity bin's shares of the three tissues, (3, bins), by rising intensity; columns sum to one."""
    centres = (np.arange(_BINS) + 0.5) / _BINS
    cumulative = np.cumsum(histogram) / histogram.sum()
    means = np.interp([0.1, 0.45, 0.8], cumulative, centres)
    for _ in range(_KMEANS_STEPS):
        nearest = np.abs(centres - means[:, None]).argmin(axis=0)
        mass = np.where(nearest == np.arange(3)[:, None], histogram, 0.0)
        updated = np.where(mass.sum(axis=1) > 0, (mass @ centres) / np.maximum(mass.sum(axis=1), 1.0), means)
        if np.allclose(updated, means, atol=1e-6):
            break
        means = updated
    # a voxel between two centres holds both tissues, in proportion to how near it is to each
    return np.stack([np.interp(centres, means, unit) for unit in np.eye(3)])


def compare_volumes(synthetic: ArrayLike, real: ArrayLike, settings: Evaluate) -> dict[str, Estimate]:
    """Return Cohen's d (synthetic minus real), the Kolmogorov-Smirnov statistic and the Wasserstein distance (ml).

    ``synthetic`` (n,) and ``real`` (m,) are volumes of one tissue in ml; both sets' scans are resampled. Fewer than two
    of either have no value, and two constant sets no Cohen's d.
    """
    x, y = np.asarray(synthetic, dtype=np.float64), np.asarray(real, dtype=np.float64)
    n = len(x)
    if min(n, len(y)) < 2:
        return dict.fromkeys(_COMPARISONS, Estimate(None, None, None, n))
    values = _compare(x, y, np.ones((1, n)), np.ones((1, len(y))))
    draws = _compare(x, y, resample_counts(n, settings, 0), resample_counts(len(y), settings, 1))
    estimates = {}
    for name, distance in _COMPARISONS.items():
        value = float(values[name][0])
        if np.isfinite(value):
            estimates[name] = percentile_interval(value, draws[name], n, settings, distance=distance)
        else:
            estimates[name] = Estimate(None, None, None, n)
    return estimates


_COMPARISONS = {"cohens_d": False, "kolmogorov_smirnov": True, "wasserstein_ml": True}  # name: cannot be negative


def _compare(x: Array, y: Array, w: Array, v: Array) -> dict[str, Array]:
    """Return each comparison, (B,), of x (n,) weighted by counts w (B, n) with y (m,) weighted by v (B, m)."""
    n, m = len(x), len(y)
    mean_x, mean_y = w @ x / n, v @ y / m
    squares = (w * (x - mean_x[:, None]) ** 2).sum(1) + (v * (y - mean_y[:, None]) ** 2).sum(1)
    pooled = np.sqrt(squares / (n + m - 2))
    effect = np.divide(mean_x - mean_y, pooled, out=np.full(len(w), np.nan), where=pooled > 0)
    values = np.concatenate([x, y])
    order = np.argsort(values)
    gap = np.abs(np.cumsum(np.concatenate([w / n, -v / m], axis=1)[:, order], axis=1))  # |F_x − F_y| after each value
    steps = np.diff(values[order])
    tied = np.append(steps == 0, False)  # between equal values neither distribution function is defined
    return {
        "cohens_d": effect,
        "kolmogorov_smirnov": np.where(tied, 0.0, gap).max(axis=1),
        "wasserstein_ml": (gap[:, :-1] * steps).sum(axis=1),
    }
