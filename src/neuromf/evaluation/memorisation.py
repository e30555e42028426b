"""How near volumes come to other volumes, mirror images included, and how rarely held-out real scans come as near.

Distances are between thumbnails, standardised inside the brain (so they say what Pearson's correlation says), and between
features. Beside the distance d₁ to the nearest scan stands the relative distance of Carlini et al. 2023 (Extracting
Training Data from Diffusion Models): d₁ over the mean distance to the scans that come next. Volumes smoother than real
ones are nearer to every scan; a copy is near to one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool3d

THUMBNAIL_SIDE = 32  # voxels
BRAIN_INTENSITY = 0.05
NEIGHBOURS = 10  # scans after the nearest that its distance is set against
LEVEL = 0.05  # of the p-value at which a volume counts as suspect

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Nearest:
    """The nearest scan of each of N volumes: its row, whether its mirror image is meant, how far it is and how far compared
    with the next ones; all (N,). ``relative`` is None where there is no next scan."""

    index: NDArray[np.int64]
    mirrored: NDArray[np.bool_]
    distance: NDArray[np.float64]
    relative: NDArray[np.float64] | None

    @property
    def correlation(self) -> NDArray[np.float64]:
        """Pearson's r, (N,), where the distances are those of thumbnails: d² = 2 (1 − r)."""
        return 1 - self.distance**2 / 2


def thumbnail(volume: Array) -> NDArray[np.float16]:
    """Return block means of a volume (X, Y, Z) on a grid of at most 32 voxels a side."""
    x, y, z = (min(THUMBNAIL_SIDE, side) for side in volume.shape)
    values = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
    return adaptive_avg_pool3d(values[None], (x, y, z))[0].numpy().astype(np.float16)


def brain_of(thumbnails: Array) -> NDArray[np.bool_]:
    """Return the voxels (X, Y, Z) in which the mean of thumbnails (N, X, Y, Z) is brain, and their mirror images."""
    brain = thumbnails.mean(axis=0, dtype=np.float32) > BRAIN_INTENSITY
    return brain | brain[::-1]


def thumbnail_distances(queries: Array, others: Array, brain: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return the distances (N, M) of thumbnails (N, X, Y, Z) to others (M, X, Y, Z), and of the queries' mirror images.

    Each is standardised inside ``brain`` to mean 0 and norm 1; one that is constant there correlates with nothing (r = 0).
    """
    reference = _standardise(others[:, brain]).T
    direct, mirrored = (_standardise(rows[:, brain]) @ reference for rows in (queries, queries[:, ::-1]))
    return np.sqrt(2 - 2 * direct.clip(-1, 1)), np.sqrt(2 - 2 * mirrored.clip(-1, 1))


def feature_distances(queries: Array, mirrored: Array, others: Array) -> tuple[Array, Array]:
    """Return the Euclidean distances (N, M) of features (N, F) to others (M, F), and of the mirror images' (N, F)."""
    return _distances(queries, others), _distances(mirrored, others)


def nearest(direct: Array, mirrored: Array, candidates: NDArray[np.bool_]) -> Nearest:
    """Return the nearest of M scans for each of N volumes, by distances to them and to their mirror images, all (N, M).

    ``candidates`` says which of the scans count, at least one for each volume.
    """
    distance = np.where(candidates, np.minimum(direct, mirrored), np.inf).astype(np.float64)
    index = distance.argmin(axis=1)
    rows = np.arange(len(index))
    ordered = np.sort(distance, axis=1)
    following = ordered[:, 1 : 1 + min(NEIGHBOURS, int(candidates.sum(axis=1).min()) - 1)]
    relative = None
    if following.shape[1]:
        mean = following.mean(axis=1)
        relative = np.divide(ordered[:, 0], mean, out=np.ones_like(mean), where=mean > 0)
    return Nearest(index, mirrored[rows, index] < direct[rows, index], ordered[:, 0], relative)


def drawn_candidates(allowed: NDArray[np.bool_], count: int, seed: int) -> NDArray[np.bool_]:
    """Return ``allowed`` (N, M) with at most ``count`` scans left in each row, drawn at random.

    Among more scans the nearest is nearer: sets of different sizes are compared by as many candidates.
    """
    order = np.random.default_rng([seed, 5]).random(allowed.shape)
    order[~allowed] = np.inf
    rank = order.argsort(axis=1).argsort(axis=1)
    return allowed & (rank < count)


def p_values(values: Array, null: Array) -> NDArray[np.float64]:
    """Return for each distance (N,) how rarely the null (m,) comes as near: (1 + number of null values ≤ it) / (m + 1).

    The conformal p-value (Bates et al. 2023, Testing for outliers with conformal p-values): a volume that is like those of
    the null has p ≤ α with a probability of α at most. No p lies below 1 / (m + 1), so m scans resolve no smaller share.
    """
    return (1 + np.sort(null).searchsorted(values, side="right")) / (len(null) + 1)


def resolved(level: float, null_size: int) -> bool:
    """Return whether as few scans of the null can tell a share of ``level``: 5 % takes 19 scans, 1 % takes 99."""
    return level * (null_size + 1) >= 1 - 1e-9


def suspect(p: Array, null_size: int) -> NDArray[np.bool_]:
    """Return which p-values are at most 5 %, or the smallest there can be where the null is too small to tell 5 %."""
    return p <= max(LEVEL, 1 / (null_size + 1)) + 1e-9


def _standardise(rows: Array) -> NDArray[np.float32]:
    centred = rows.astype(np.float32)
    centred -= centred.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)


def _distances(x: Array, y: Array) -> NDArray[np.float64]:
    return np.stack([np.linalg.norm(y.astype(np.float64) - row.astype(np.float64), axis=1) for row in x])
