"""MS-SSIM between pairs of volumes of one set: how alike they are, a sign of lost diversity when above that of real scans.

Wang et al. 2003 in three dimensions; a Gaussian window of 11 voxels (σ = 1.5), constants 0.01 and 0.03 for a range of 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool3d, conv3d

from neuromf.config import Evaluate
from neuromf.evaluation.inference import Estimate, percentile_interval, resample_counts

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first
WINDOW, SIGMA = 11, 1.5  # voxels
LARGEST = 100  # volumes of a set that are compared
_C1, _C2 = 0.01**2, 0.03**2


def scales_of(shape: tuple[int, ...]) -> int:
    """Return how many scales fit: at the coarsest the shortest side must hold the window (64 voxels: three of five)."""
    return max(1, sum(min(shape) // 2**scale >= WINDOW for scale in range(len(WEIGHTS))))


def ms_ssim(x: Tensor, y: Tensor) -> float:
    """Return the MS-SSIM of two volumes (D, H, W) in [0, 1], 1 for equal ones.

    Volumes too small for five scales use the first ones, their weights scaled to a sum of 1.

    Raises:
        ValueError: different shapes, or a side shorter than the window.
    """
    if x.shape != y.shape or min(x.shape) < WINDOW:
        raise ValueError(
            f"MS-SSIM needs two volumes of one shape, at least {WINDOW} voxels a side; got {x.shape}, {y.shape}"
        )
    scales = scales_of(tuple(x.shape))
    total = sum(WEIGHTS[:scales])
    pair = torch.stack([x, y])[:, None].float()
    result = 1.0
    for scale in range(scales):
        luminance, contrast = _terms(pair)
        term = (luminance * contrast).mean() if scale == scales - 1 else contrast.mean()
        result *= max(float(term), 0.0) ** (WEIGHTS[scale] / total)
        pair = avg_pool3d(pair, 2)
    return result


def diversity(n: int, read: Callable[[int], NDArray[np.floating]], settings: Evaluate) -> Estimate:
    """Return the mean MS-SSIM of pairs among n volumes with its interval; scans are resampled, a pair with both its scans.

    At most 100 volumes, drawn at random, are each compared with the next one in a random ring; two are in memory at a
    time. ``read`` returns volume i as (D, H, W). Fewer than two volumes, or such that are smaller than the window, have no
    value.
    """
    order = np.random.default_rng([settings.seed, 3]).permutation(n)[:LARGEST]
    if len(order) < 2:
        return Estimate(None, None, None, len(order))
    first = previous = torch.from_numpy(np.ascontiguousarray(read(int(order[0])), dtype=np.float32))
    if min(first.shape) < WINDOW:
        return Estimate(None, None, None, len(order))
    values = []
    for index in order[1:]:
        volume = torch.from_numpy(np.ascontiguousarray(read(int(index)), dtype=np.float32))
        values.append(ms_ssim(previous, volume))
        previous = volume
    if len(order) > 2:
        values.append(ms_ssim(previous, first))
    pairs = np.array(values)
    w = resample_counts(len(order), settings)
    both = (w * np.roll(w, -1, axis=1))[:, : len(pairs)]
    weight = both.sum(1)
    draws = np.divide(both @ pairs, weight, out=np.full(len(w), np.nan), where=weight > 0)
    return percentile_interval(float(pairs.mean()), draws, len(order), settings)


def _terms(pair: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maps of luminance and of contrast times structure of a pair of volumes (2, 1, D, H, W)."""
    x, y = pair[:1], pair[1:]
    mean_x, mean_y, xx, yy, xy = _blur(torch.cat([x, y, x * x, y * y, x * y]))
    variance = xx - mean_x**2 + yy - mean_y**2
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return luminance, (2 * (xy - mean_x * mean_y) + _C2) / (variance + _C2)


def _blur(volumes: Tensor) -> Tensor:
    """Return volumes (B, 1, D, H, W) averaged by the Gaussian window, where it fits."""
    offsets = torch.arange(WINDOW) - WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    window = window / window.sum()
    for shape in ((WINDOW, 1, 1), (1, WINDOW, 1), (1, 1, WINDOW)):
        volumes = conv3d(volumes, window.view(1, 1, *shape).to(volumes))
    return volumes
