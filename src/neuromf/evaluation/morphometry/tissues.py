"""Tissue volumes of a preprocessed T1-weighted brain, without weights and in milliseconds.

The brain's intensities are divided by three k-means centres (cerebrospinal fluid < grey < white matter in T1w) of their
histogram. Meant for comparing distributions of real and generated volumes that went
the same way, not for the volumes of one patient.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

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
    csf, grey, white = _voxel_shares(volume, mask)
    deep = depth_mm(mask, voxel_mm)[mask] > DEEP_MM
    totals = [mask.sum(), csf.sum(), grey.sum(), white.sum(), csf[deep].sum()]
    return TissueVolumes(*(float(total * voxel_ml) for total in totals))


def tissue_labels(volume: NDArray[np.floating], voxel_mm: float) -> NDArray[np.uint8]:
    """Return each voxel's largest tissue (X, Y, Z): 1 fluid, 2 grey matter, 3 white matter, 4 deep fluid, 0 outside."""
    mask = brain_mask(volume)
    labels = np.zeros(volume.shape, np.uint8)
    if mask.sum() >= 3:
        labels[mask] = 1 + _voxel_shares(volume, mask).argmax(axis=0)
        labels[(labels == 1) & (depth_mm(mask, voxel_mm) > DEEP_MM)] = 4
    return labels


def depth_mm(mask: NDArray[np.bool_], voxel_mm: float) -> Array:
    """Return each voxel's distance (mm) to the nearest one outside a mask (X, Y, Z); beyond the volume is outside."""
    return ndimage.distance_transform_edt(np.pad(mask, 1), sampling=voxel_mm)[1:-1, 1:-1, 1:-1]


def _voxel_shares(volume: NDArray[np.floating], mask: NDArray[np.bool_]) -> Array:
    """Return the shares of fluid, grey and white matter of the voxels in a mask, (3, voxels)."""
    intensities = np.clip(volume[mask].astype(np.float64), 0, 1)
    bins = np.minimum((intensities * _BINS).astype(int), _BINS - 1)
    return _tissue_shares(np.bincount(bins, minlength=_BINS).astype(np.float64))[:, bins]


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
