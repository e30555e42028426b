"""Is a generated volume a copy? The nearest training scan of each sample against that of held-out real scans.

Similarity is Pearson's correlation of the voxels inside the brain on a coarse grid (thumbnails), and the Euclidean
distance of features; mirrored copies count as copies. Real scans that the model never saw are the null: a sample nearer
to the training set than they are is suspect.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool3d

THUMBNAIL_SIDE = 32  # voxels
BRAIN_INTENSITY = 0.05
NULL_PERCENTILE = 5.0

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Nearest:
    """The nearest training scan of each query: its row, how near it is, and whether its mirror image is meant; all (N,)."""

    index: NDArray[np.int64]
    value: NDArray[np.float64]
    mirrored: NDArray[np.bool_]


def thumbnail(volume: Array) -> NDArray[np.float16]:
    """Return block means of a volume (X, Y, Z) on a grid of at most 32 voxels a side."""
    x, y, z = (min(THUMBNAIL_SIDE, side) for side in volume.shape)
    values = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
    return adaptive_avg_pool3d(values[None], (x, y, z))[0].numpy().astype(np.float16)


def nearest_by_correlation(queries: Array, training: Array) -> Nearest:
    """Return the training thumbnail (M, X, Y, Z) with the highest correlation for each query (N, X, Y, Z).

    The voxels are those in which the training set's mean is brain, and their mirror images. A constant query
    correlates with nothing (0).
    """
    brain = training.astype(np.float32).mean(axis=0) > BRAIN_INTENSITY
    brain |= brain[::-1]
    reference = _standardise(training[:, brain])
    direct = _standardise(queries[:, brain]) @ reference.T
    mirrored = _standardise(queries[:, ::-1][:, brain]) @ reference.T
    return _nearest(direct, mirrored)


def nearest_by_features(queries: Array, mirrored: Array, training: Array) -> Nearest:
    """Return the training scan (M, F) with the smallest feature distance to each query (N, F) or its mirror image (N, F)."""
    found = _nearest(-_distances(queries, training), -_distances(mirrored, training))
    return Nearest(found.index, -found.value, found.mirrored)


def closer_than_null(values: Array, null: Array, *, larger_is_closer: bool) -> NDArray[np.bool_]:
    """Return which values are closer than the closest 5 % of the null (`NULL_PERCENTILE`)."""
    if larger_is_closer:
        return values > np.percentile(null, 100 - NULL_PERCENTILE)
    return values < np.percentile(null, NULL_PERCENTILE)


def _nearest(direct: Array, mirrored: Array) -> Nearest:
    is_mirrored = mirrored.max(axis=1) > direct.max(axis=1)
    best = np.where(is_mirrored[:, None], mirrored, direct)
    return Nearest(best.argmax(axis=1), best.max(axis=1).astype(np.float64), is_mirrored)


def _standardise(rows: Array) -> NDArray[np.float32]:
    centred = rows.astype(np.float32)
    centred -= centred.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)


def _distances(x: Array, y: Array) -> NDArray[np.float64]:
    return np.stack([np.linalg.norm(y.astype(np.float64) - row.astype(np.float64), axis=1) for row in x])
