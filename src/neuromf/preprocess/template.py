"""Brain extraction without weights: registration of a pseudo-head, then a refinement by the scan's own intensities.

The skull-stripped ICBM152 template (Fonov et al. 2011, packaged by nilearn) gets a dark rim of CSF, a dark skull and a
bright scalp. ANTs (Avants et al. 2008) registers this head to the scan coarsely, by an affine transform and SyN. The
template's signed distance to the brain's border, carried over, says where the border can be; the scan's own
intensities say where it is.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ants
import nibabel as nib
import numpy as np
from nilearn.datasets import load_mni152_brain_mask, load_mni152_template
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_multiotsu, threshold_otsu

from neuromf.config import BiasField
from neuromf.intensities import border_noise, zero_level
from neuromf.preprocess.bias_field import bias_field
from neuromf.scratch import temporary_folder
from neuromf.volume import VolumeError, to_ras, voxel_sizes

Volume = NDArray[np.float32]
Mask = NDArray[np.bool_]

# ITK reads this once, at its first use: one thread sums in one order, so the same scan gives the same mask.
os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

# The pseudo-head: thickness in mm and intensity (white matter is 1) of the shells around the brain, inside out.
_SHELLS = ((2.0, 0.2), (6.0, 0.08), (6.0, 0.9))
_FAR = 60.0  # mm, the signed distance given to what lies outside the template
_HEAD_HEIGHT = 170.0  # mm below the vertex: what belongs to the head rather than to the neck
_PITCHES = (-0.3, 0.0, 0.3)  # rad, nodding angles from which the affine registration starts
_HEAD_AREA, _HEAD_EXTENT = 2000.0, 60.0  # mm², mm: what stands out in fewer slices of any direction is no head
_ARTEFACTS = (
    40  # times that something brighter than the head is taken away: each is several times brighter than the next
)
_NOISE = 0.1  # of the intensities' span, at the border: 0.001–0.04 of magnitude images, 0.2–0.3 of MP2RAGE's quotient

# Refinement, in mm; intensities are shares of the white matter's.
_FINE = 2.0  # voxel size
_BAND = 5.0  # how far the border may be from the registered template's
_OPENING = 3.0  # cuts bridges (dura, vessels, optic nerves) between brain and scalp that are thinner than twice this
_CLOSING = 8.0  # bridges sulci
_RIM = 1.0  # subarachnoid space kept around the brain
_TISSUE_LOW = 0.45  # between CSF (about 0.2) and grey matter (about 0.7)
_WARP_BYTES = 24  # a voxel of the template: SyN's field and its inverse, each three float32
_COARSE_N4 = BiasField(shrink_factor=3, iterations=(30, 30, 20))


def template_mask(image: nib.Nifti1Image, spacing_mm: float) -> tuple[Mask, dict[str, float]]:
    """Return the brain mask of a whole T1w head, on the image's grid.

    Args:
        image: a head in any orientation; oblique angles are left to the registration.
        spacing_mm: voxel size of the registration.

    Returns:
        The mask and figures: template_dice, the overlap of the registered template's brain with the refined one, and
        template_correlation, of the scan's intensities with the registered pseudo-head's (low values call for a look).

    Raises:
        VolumeError: no head stands out from the background, the background is noise as bright as tissue, or the
            registration breaks down.
    """
    ras = to_ras(image)
    data, spacing = np.asarray(ras.dataobj, np.float32), voxel_sizes(ras.affine)
    if (noise := border_noise(data)) > _NOISE:
        raise VolumeError(
            f"the background is noise as bright as tissue ({noise:.2f} of the intensities' span), as in MP2RAGE's UNI image;"
            " give the image with the background suppressed, or strip it and set skull_stripped to true"
        )
    data = _without_artefacts(np.maximum(data - np.float32(zero_level(data)), 0), spacing)
    coarse = _resample(data, spacing, spacing_mm)
    head = _pseudo_head(spacing_mm)
    try:
        with temporary_folder(_WARP_BYTES * head.image.numpy().size / 2**20 + 1) as folder:
            distance, correlation = _register(head, coarse, spacing_mm, folder)
    except RuntimeError as error:  # of ITK
        raise VolumeError(
            f"the template's head could not be registered ({_first_line(error)}); look at the scan"
        ) from None
    fine = _resample(data, spacing, _FINE)
    prior = _onto(distance, spacing_mm, fine.shape, np.full(3, _FINE))
    if (prior < -_BAND).sum() < 1000:
        raise VolumeError("the template's head was registered outside the scan; look at the scan")
    brain = _refine(fine, prior)
    overlap = 2 * (brain & (prior < 0)).sum() / max(int(brain.sum() + (prior < 0).sum()), 1)
    smooth = ndimage.gaussian_filter(brain.astype(np.float32), 0.5)
    mask = _onto(smooth, _FINE, data.shape, spacing) > 0.5
    back = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(ras.affine), nib.orientations.io_orientation(image.affine)
    )
    return nib.orientations.apply_orientation(mask, back).astype(bool), {
        "template_dice": round(float(overlap), 4),
        "template_correlation": round(correlation, 4),
    }


def _without_artefacts(data: Volume, spacing: NDArray[np.floating]) -> Volume:
    """Return a scan (not negative, background 0) without what is far brighter than the head and no head: spikes, slices.

    What stands out most (Otsu's threshold) is taken away until it is as large as a head in all directions.

    Raises:
        VolumeError: nothing of the size of a head is left.
    """
    areas = np.prod(spacing) / spacing  # mm² of a voxel, across each axis
    for _ in range(_ARTEFACTS):
        if not np.ptp(data):
            break
        bright = data > threshold_otsu(data)
        across = [bright.sum(axis=tuple({0, 1, 2} - {axis})) * areas[axis] for axis in range(3)]
        if all(
            (slices > _HEAD_AREA).sum() * size >= _HEAD_EXTENT for slices, size in zip(across, spacing, strict=True)
        ):
            return data
        data = np.where(bright, 0, data)
    raise VolumeError("no head stands out from the background; look at the scan")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else "ITK says no more"


# --- registration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Head:
    image: ants.ANTsImage
    distance: ants.ANTsImage  # mm to the brain's border, negative inside
    region: ants.ANTsImage  # where the registration looks


@cache
def _pseudo_head(spacing_mm: float) -> _Head:
    brain = np.pad(load_mni152_brain_mask(resolution=1).get_fdata() > 0, 24)
    head = np.pad(load_mni152_template(resolution=1).get_fdata(dtype=np.float32), 24) * brain
    head = np.clip(head / np.percentile(head[brain], 99), 0, 1)
    outside = ndimage.distance_transform_edt(~brain)
    inner = 0.0
    for thickness, intensity in _SHELLS:
        head[(outside > inner) & (outside <= inner + thickness)] = intensity
        inner += thickness
    distance = np.where(brain, -ndimage.distance_transform_edt(brain), outside).astype(np.float32)
    one = np.ones(3)
    distance = _resample(distance, one, spacing_mm)
    return _Head(
        _ants(_resample(head.astype(np.float32), one, spacing_mm), spacing_mm),
        _ants(distance, spacing_mm),
        _ants((distance <= inner + 1).astype(np.float32), spacing_mm),
    )


def _register(head: _Head, scan: Volume, spacing_mm: float, folder: Path) -> tuple[Volume, float]:
    """Return the template's signed distance to the brain's border (mm), carried over to the scan's grid, and the
    correlation of the scan with the pseudo-head after registration; transforms are written into ``folder``."""
    bright = scan > threshold_otsu(scan)
    if not bright.any():
        raise VolumeError("no head stands out from the background")
    field = bias_field(scan + 1e-3 * scan.max(), ndimage.binary_dilation(bright), np.full(3, spacing_mm), _COARSE_N4)
    scan = scan / field
    low, high = np.percentile(scan, (1, 99))
    moving = _ants(np.clip((scan - low) / (high - low), 0, 1), spacing_mm)
    shift = _centre(bright, spacing_mm) - _centre(head.image.numpy() > 0.5, spacing_mm)
    affine = _affine(head, moving, shift, folder)
    syn = ants.registration(
        head.image,
        moving,
        "SyNOnly",
        initial_transform=affine,
        outprefix=f"{folder}/syn",
        mask=head.region,
        reg_iterations=(40, 0),  # half resolution only: the refinement does the rest
        random_seed=1,
    )
    distance = ants.apply_transforms(
        moving, head.distance, syn["invtransforms"], whichtoinvert=[True, False], defaultvalue=_FAR
    )
    return distance.numpy(), _correlation(head, syn["warpedmovout"])


def _correlation(head: _Head, scan: ants.ANTsImage) -> float:
    """Return Pearson's r of a registered scan with the pseudo-head inside its region; 0 where the scan is constant."""
    here = head.region.numpy() > 0.5
    x, y = head.image.numpy()[here], scan.numpy()[here]
    return float(np.corrcoef(x, y)[0, 1]) if x.std() and y.std() else 0.0


def _affine(head: _Head, moving: ants.ANTsImage, shift: NDArray[np.floating], folder: Path) -> str:
    """Return the file of the affine transform that refines the best similarity found from several nodding angles."""
    best: tuple[float, str] | None = None
    for number, pitch in enumerate(_PITCHES):
        start = ants.create_ants_transform(
            transform_type="AffineTransform",
            matrix=np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]),
            translation=shift,
        )
        ants.write_transform(start, f"{folder}/start{number}.mat")
        result = ants.registration(
            head.image,
            moving,
            "Similarity",  # a free affine transform may stretch the brain over the neck
            initial_transform=f"{folder}/start{number}.mat",
            outprefix=f"{folder}/nod{number}_",
            aff_iterations=(100, 50),
            aff_shrink_factors=(4, 2),
            aff_smoothing_sigmas=(2, 1),
            random_seed=1,
        )
        loss = ants.image_similarity(
            head.image, result["warpedmovout"], metric_type="MattesMutualInformation", fixed_mask=head.region
        )
        if best is None or loss < best[0]:
            best = (loss, f"{folder}/nod{number}_0GenericAffine.mat")
    assert best is not None
    ants.registration(
        head.image,
        moving,
        "Affine",
        initial_transform=best[1],
        outprefix=f"{folder}/affine_",
        aff_iterations=(50, 30),
        aff_shrink_factors=(2, 1),
        aff_smoothing_sigmas=(1, 0),
        random_seed=1,
    )
    # not the result's "fwdtransforms": ANTsPy lists every file whose name begins with the prefix
    return f"{folder}/affine_0GenericAffine.mat"


def _centre(bright: Mask, spacing_mm: float) -> NDArray[np.floating]:
    """Return the centroid (mm, from the volume's centre) of the uppermost part of a head: necks differ in length."""
    bright = ndimage.binary_opening(bright, iterations=1)
    top = int(np.nonzero(bright.any(axis=(0, 1)))[0][-1])
    head = bright.copy()
    head[:, :, : max(0, round(top - _HEAD_HEIGHT / spacing_mm))] = False
    head = ndimage.binary_fill_holes(head)
    return (np.array(ndimage.center_of_mass(head)) - (np.array(head.shape) - 1) / 2) * spacing_mm


# --- refinement -----------------------------------------------------------------------------------------------------


def _refine(scan: Volume, prior: Volume) -> Mask:
    """Return the brain near the registered template's: tissue by its intensity, opened, closed and in one piece.

    Args:
        scan: (D, H, W) at 2 mm.
        prior: (D, H, W), the registered template's signed distance to the brain's border in mm.
    """
    scan = scan / bias_field(scan + 1e-3 * scan.max(), prior < 0, np.full(3, _FINE), _COARSE_N4)
    inside = scan[prior < -3]
    inside = np.clip(inside, *np.percentile(inside, (0.5, 99.5)))
    csf, grey = threshold_multiotsu(inside, 3, nbins=128)
    white_matter, grey_matter = inside[inside >= grey].mean(), inside[(inside >= csf) & (inside < grey)].mean()
    tissue = (scan > _TISSUE_LOW * white_matter) & (scan < 2 * white_matter - grey_matter) & (prior < _BAND)
    core = prior < -_BAND
    eroded = largest_component((_depth(tissue) > _OPENING) | core)
    brain = core | (tissue & (_depth(~eroded) <= _OPENING + 0.5))
    pad = int(_CLOSING / _FINE) + 2
    brain = np.pad(brain, pad)
    closed = _depth(_depth(~brain) <= _CLOSING) > _CLOSING - _RIM
    closed = ndimage.binary_fill_holes(closed | brain)[pad:-pad, pad:-pad, pad:-pad] & (prior < _BAND)
    return largest_component(ndimage.gaussian_filter(closed.astype(np.float32), 1.0) > 0.5)


def largest_component(mask: Mask) -> Mask:
    """Return the largest 6-connected component of a mask; an empty mask stays empty."""
    labels, count = ndimage.label(mask)
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:])) if count else mask


def _depth(mask: Mask) -> Volume:
    """Return each voxel's distance (mm) to the nearest voxel outside the mask."""
    return ndimage.distance_transform_edt(mask, sampling=_FINE)


# --- grids along the voxel axes, aligned at their centres -----------------------------------------------------------


def _resample(data: Volume, spacing: NDArray[np.floating], new: float) -> Volume:
    """Resample to an isotropic spacing, low-pass filtered as in `conform_volume` where voxels get larger."""
    sigma = np.sqrt(np.maximum((new / spacing) ** 2 - 1, 0) / (8 * np.log(2)))
    shape = tuple(int(np.ceil(n * s / new)) for n, s in zip(data.shape, spacing, strict=True))
    return _interpolate(ndimage.gaussian_filter(data, sigma), new / spacing, shape)


def _onto(data: Volume, spacing_mm: float, shape: tuple[int, ...], spacing: NDArray[np.floating]) -> Volume:
    return _interpolate(data, spacing / spacing_mm, shape)


def _interpolate(data: Volume, ratio: NDArray[np.floating], shape: tuple[int, ...]) -> Volume:
    first = (np.array(data.shape) - 1) / 2 - ratio * (np.array(shape) - 1) / 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The behavior of affine_transform with a 1-D array")  # the one wanted here
        return ndimage.affine_transform(data, ratio, first, shape, order=1, mode="nearest")


def _ants(data: Volume, spacing_mm: float) -> ants.ANTsImage:
    origin = [-(n - 1) / 2 * spacing_mm for n in data.shape]
    return ants.from_numpy(np.ascontiguousarray(data, np.float32), origin=origin, spacing=[spacing_mm] * 3)
