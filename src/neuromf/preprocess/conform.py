"""Common grid and intensity range: RAS, isotropic spacing, crop or pad around the brain, percentiles to [0, 1]."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from neuromf.config import Conform
from neuromf.preprocess.derivatives import following_tasks, read_mask
from neuromf.shards import Figures, run_shard
from neuromf.tables import ManifestRow, Scan
from neuromf.volume import VolumeError, read_volume, to_ras, voxel_sizes, write_volume

Volume = NDArray[np.float32]
Floats = NDArray[np.floating]

_log = logging.getLogger(__name__)
_MARGIN = 8  # voxels kept around the brain's box: more than the reach of the filters
_SAME_SPACING = 1e-3  # below this relative difference of spacings voxels are copied, not interpolated


def conform_shard(
    scans: Sequence[Scan],
    upstream: Path,
    folder: Path,
    manifest: Path,
    settings: Conform,
    *,
    code: str,
    workers: int,
) -> tuple[ManifestRow, ...]:
    """Conform the scans of one shard; ``upstream`` is the bias correction's manifest, ``folder`` the derivatives tree.

    Figures of a row: those of `conform_volume`.
    """
    return run_shard(
        following_tasks(scans, upstream, folder, "preproc", ("volume", "mask")),
        partial(conform_file, settings=settings),
        manifest,
        settings=settings.model_dump(mode="json"),
        code=code,
        workers=workers,
        label=f"conform {manifest.stem}",
    )


def conform_file(inputs: Sequence[Path], outputs: Sequence[Path], *, settings: Conform) -> Figures:
    """Conform the volume ``inputs[0]`` with the brain mask ``inputs[1]``; write volume (float32) and mask (uint8)."""
    data, mask, affine, figures = conform_volume(read_volume(inputs[0]), read_mask(inputs[1]), settings)
    write_volume(outputs[1], mask, affine, np.uint8)
    write_volume(outputs[0], data, affine, np.float32)
    return figures


def conform_volume(
    image: nib.Nifti1Image, mask: nib.Nifti1Image, settings: Conform
) -> tuple[Volume, NDArray[np.bool_], Floats, Figures]:
    """Bring a scan and its brain mask (same grid, any orientation) to the common grid and intensity range.

    The grid's axes are the scan's own, reordered to RAS; its centre lies on the mask's centroid (on the nearest voxel
    along axes that need no interpolation). Where voxels get larger, the scan is low-pass filtered first with a Gaussian
    of σ² = (k² - 1) / (8 ln 2) voxels² for a ratio k of spacings (Cardoso et al. 2015, MICCAI), then sampled by cubic
    B-splines. Filters see the brain continued beyond its border, so the border is not darkened by the background.

    Returns:
        data (settings.shape) float32, zero outside the brain; mask (settings.shape) bool; affine (4, 4) of both;
        figures: brain_ml, cut_fraction, intensity_low, intensity_high (what 0 and 1 stand for) and warning.

    Raises:
        VolumeError: the grids differ, the mask is empty, no brain lies in the grid or it has no contrast.
    """
    if image.shape != mask.shape or not np.allclose(image.affine, mask.affine, atol=1e-3):
        raise VolumeError(f"scan {image.shape} and mask {mask.shape} lie on different grids; run the skull strip again")
    image, mask = to_ras(image), to_ras(mask)
    scan, brain = np.asarray(image.dataobj, np.float32), np.asarray(mask.dataobj) > 0.5
    if not brain.any():
        raise VolumeError("the brain mask is empty")
    ratio, first = _grid(brain, image.affine, settings)
    affine = image.affine @ np.block([[np.diag(ratio), first[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
    cut_fraction = _cut_fraction(brain, ratio, first, settings.shape)

    box = tuple(
        slice(max(s.start - _MARGIN, 0), s.stop + _MARGIN) for s in ndimage.find_objects(brain.view(np.uint8))[0]
    )
    first = first - [s.start for s in box]
    scan, share = _low_pass(scan[box], brain[box], ratio)
    inside = _sample(share, ratio, first, settings.shape, order=1) > 0.5
    if not inside.any():
        raise VolumeError(f"no brain is left in the grid of {settings.shape} voxels")
    data = np.where(inside, _sample(scan, ratio, first, settings.shape, order=3), 0)
    data, low, high = _scale(data, inside, settings)
    warning = ""
    if cut_fraction > settings.max_cut_fraction:
        warning = f"{100 * cut_fraction:.1f} % of the brain lies outside the grid; use a larger shape or spacing"
        _log.warning("%s", warning)
    return (
        data,
        inside,
        affine,
        {
            "brain_ml": round(float(inside.sum()) * settings.spacing_mm**3 / 1000, 2),
            "cut_fraction": round(cut_fraction, 5),
            "intensity_low": low,
            "intensity_high": high,
            "warning": warning,
        },
    )


def share_outside(mask: nib.Nifti1Image, settings: Conform) -> float:
    """Return the share of a brain mask (any orientation) that `conform_volume` would leave outside the grid."""
    mask = to_ras(mask)
    brain = np.asarray(mask.dataobj) > 0.5
    return _cut_fraction(brain, *_grid(brain, mask.affine, settings), settings.shape)


def _grid(brain: NDArray[np.bool_], affine: Floats, settings: Conform) -> tuple[Floats, Floats]:
    """Return the output's spacing and first voxel in units of the input's voxels."""
    ratio = settings.spacing_mm / voxel_sizes(affine)
    same = np.abs(ratio - 1) < _SAME_SPACING
    ratio = np.where(same, 1.0, ratio).astype(np.float64)
    first = np.array(ndimage.center_of_mass(brain)) - ratio * (np.array(settings.shape) - 1) / 2
    return ratio, np.where(same, np.floor(first + 0.5), first)


def _cut_fraction(
    brain: NDArray[np.bool_],
    ratio: Floats,
    first: Floats,
    shape: tuple[int, ...],
) -> float:
    """Return the share of the brain's voxels whose centre lies outside the output grid."""
    kept = brain
    for axis in range(3):
        position = (np.arange(brain.shape[axis]) - first[axis]) / ratio[axis]
        kept = np.compress((position >= -0.5) & (position < shape[axis] - 0.5), kept, axis=axis)
    return 1 - float(kept.sum()) / float(brain.sum())


def _low_pass(scan: Volume, brain: NDArray[np.bool_], ratio: Floats) -> tuple[Volume, Volume]:
    """Return the scan, continued beyond the brain, and the brain's share of each voxel, both without aliases."""
    weight = brain.astype(np.float32)
    spread = ndimage.gaussian_filter(scan * weight, 1.5) / np.maximum(ndimage.gaussian_filter(weight, 1.5), 1e-6)
    continued = np.where(brain, scan, spread)
    sigma = np.sqrt(np.maximum(ratio**2 - 1, 0) / (8 * math.log(2)))
    if sigma.any():
        continued, weight = (
            ndimage.gaussian_filter(continued, sigma),
            ndimage.gaussian_filter(weight, sigma),
        )
    return continued, weight


def _sample(
    data: Volume,
    ratio: Floats,
    first: Floats,
    shape: tuple[int, ...],
    order: int,
) -> Volume:
    if np.all(ratio == 1):
        order = 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The behavior of affine_transform with a 1-D array")  # the one wanted here
        return ndimage.affine_transform(data, ratio, first, shape, order=order, mode="constant", cval=0)


def _scale(data: Volume, inside: NDArray[np.bool_], settings: Conform) -> tuple[Volume, float, float]:
    values = data[inside] if settings.percentile_mask == "brain" else data
    low, high = (float(v) for v in np.percentile(values, settings.percentiles))
    if high - low <= 1e-4 * max(abs(low), abs(high)):
        raise VolumeError(f"the brain has no contrast: percentiles {settings.percentiles} are {low:g} and {high:g}")
    data = np.where(inside, (data - low) / (high - low), 0).astype(np.float32)
    return (np.clip(data, 0, 1) if settings.clip else data), low, high
