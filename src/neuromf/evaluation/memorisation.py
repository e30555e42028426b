"""How near volumes come to other volumes, mirror images included, and how rarely held-out real scans come as near.

Distances are between thumbnails, standardised inside the brain (so they say what Pearson's correlation says), and between
features. Beside the distance d₁ to the nearest scan stands the relative distance of Carlini et al. 2023 (Extracting
Training Data from Diffusion Models): d₁ over the mean distance to the scans that come next. Volumes smoother than real
ones are nearer to every scan; a copy is near to one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool3d

THUMBNAIL_SIDE = 32  # voxels
BRAIN_INTENSITY = 0.05
NEIGHBOURS = 10  # scans after the nearest that its distance is set against
_CHUNK_ENTRIES = 4_000_000  # of a matrix of distances that exist at once: bounds the memory
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


@dataclass(frozen=True)
class Candidates:
    """Which of ``scans`` each of N volumes is compared with: all but itself (``own`` (N,) is its row among them, −1 where it
    is none of them), and of more than ``most`` as many drawn at random.

    Among more scans the nearest is nearer: sets of different sizes are compared by as many candidates.
    """

    own: NDArray[np.int64]
    scans: int
    most: int | None = None
    seed: int = 0

    @property
    def fewest(self) -> int:
        """How many candidates each volume has at least."""
        others = self.scans - int((self.own >= 0).any())
        return others if self.most is None else min(self.most, others)

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return the candidates (n, M) of some volumes, the same whichever are asked for together."""
        allowed = np.ones((len(rows), self.scans), dtype=bool)
        itself = np.flatnonzero(self.own[rows] >= 0)
        allowed[itself, self.own[rows][itself]] = False
        if self.most is not None:
            for row, its in zip(rows, allowed, strict=True):
                others = np.flatnonzero(its)
                if len(others) > self.most:
                    its[:] = False
                    its[np.random.default_rng([self.seed, 5, row]).choice(others, self.most, replace=False)] = True
        return allowed


def thumbnail(volume: Array) -> NDArray[np.float16]:
    """Return block means of a volume (X, Y, Z) on a grid of at most 32 voxels a side."""
    x, y, z = (min(THUMBNAIL_SIDE, side) for side in volume.shape)
    values = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
    return adaptive_avg_pool3d(values[None], (x, y, z))[0].numpy().astype(np.float16)


def brain_of(thumbnails: Array) -> NDArray[np.bool_]:
    """Return the voxels (X, Y, Z) in which the mean of thumbnails (N, X, Y, Z) is brain, and their mirror images."""
    brain = thumbnails.mean(axis=0, dtype=np.float32) > BRAIN_INTENSITY
    return brain | brain[::-1]


def standardised(thumbnails: Array, brain: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the V voxels inside ``brain`` of thumbnails (N, X, Y, Z) with mean 0 and norm 1, (N, V); one that is constant
    there becomes 0, which correlates with nothing."""
    centred = thumbnails[:, brain].astype(np.float32)
    centred -= centred.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)


def thumbnail_distances(queries: Array, reference: Array, brain: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return the distances (N, M) of thumbnails (N, X, Y, Z) and of their mirror images to those of a reference, whose
    `standardised` voxels are (M, V)."""
    direct, mirrored = (standardised(rows, brain) @ reference.T for rows in (queries, queries[:, ::-1]))
    return np.sqrt(2 - 2 * direct.clip(-1, 1)), np.sqrt(2 - 2 * mirrored.clip(-1, 1))


def feature_distances(queries: Array, mirrored: Array, others: Array) -> tuple[Array, Array]:
    """Return the Euclidean distances (N, M) of features (N, F) to others (M, F), and of the mirror images' (N, F)."""
    x, x_mirrored, y = (
        torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float64)) for rows in (queries, mirrored, others)
    )
    direct, flipped = (torch.cdist(rows, y, compute_mode="donot_use_mm_for_euclid_dist") for rows in (x, x_mirrored))
    return direct.numpy(), flipped.numpy()


def search(distances: Callable[[NDArray[np.int64]], tuple[Array, Array]], candidates: Candidates) -> Nearest:
    """Return the nearest scan of each volume, some volumes at a time: their matrix of distances never exists as a whole.

    Args:
        distances: from the rows (n,) of some volumes to their distances and their mirror images' to all scans, both (n, M).
        candidates: at least one for each volume.
    """
    count = len(candidates.own)
    following = min(NEIGHBOURS, candidates.fewest - 1)
    chunks = np.array_split(np.arange(count), -(-count * candidates.scans // _CHUNK_ENTRIES))
    parts = [nearest(*distances(rows), candidates.of(rows), following) for rows in chunks]
    relative = [part.relative for part in parts if part.relative is not None]
    return Nearest(
        np.concatenate([part.index for part in parts]),
        np.concatenate([part.mirrored for part in parts]),
        np.concatenate([part.distance for part in parts]),
        np.concatenate(relative) if relative else None,
    )


def nearest(direct: Array, mirrored: Array, candidates: NDArray[np.bool_], following: int) -> Nearest:
    """Return the nearest of M scans for each of N volumes, by distances to them and to their mirror images, all (N, M).

    ``candidates`` says which of the scans count, more than ``following`` of them for each volume: with the mean distance to
    as many scans after the nearest its own is compared.
    """
    distance = np.where(candidates, np.minimum(direct, mirrored), np.inf).astype(np.float64)
    index = distance.argmin(axis=1)
    rows = np.arange(len(index))
    ordered = np.sort(np.partition(distance, following, axis=1)[:, : following + 1], axis=1)
    relative = None
    if following:
        mean = ordered[:, 1:].mean(axis=1)
        relative = np.divide(ordered[:, 0], mean, out=np.ones_like(mean), where=mean > 0)
    return Nearest(index, mirrored[rows, index] < direct[rows, index], ordered[:, 0], relative)


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
