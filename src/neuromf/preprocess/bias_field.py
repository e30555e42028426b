"""N4 bias-field correction inside the brain: fitted on a shrunken image, applied at full resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from neuromf.config import BiasField
from neuromf.preprocess.derivatives import following_tasks, read_mask
from neuromf.shards import Figures, run_shard
from neuromf.tables import ManifestRow, Scan
from neuromf.volume import VolumeError, read_volume, to_ras, voxel_sizes, write_volume

Volume = NDArray[np.float32]

_SPLINE_ORDER = 3
_FLOOR = 0.01  # of the brain's median: darker voxels carry no information about the field, and log(0) is none


def bias_correct_shard(
    scans: Sequence[Scan], upstream: Path, folder: Path, manifest: Path, settings: BiasField, *, code: str, workers: int
) -> tuple[ManifestRow, ...]:
    """Correct the scans of one shard; ``upstream`` is the skull strip's manifest, ``folder`` the derivatives tree.

    Figures of a row: field_min and field_max, the multiplicative field's range inside the brain (geometric mean 1).
    """
    return run_shard(
        following_tasks(scans, upstream, folder, "n4", ("volume",)),
        partial(bias_correct_file, settings=settings),
        manifest,
        settings=settings.model_dump(mode="json"),
        code=code,
        workers=workers,
        label=f"bias_correct {manifest.stem}",
    )


def bias_correct_file(inputs: Sequence[Path], outputs: Sequence[Path], *, settings: BiasField) -> Figures:
    """Correct the stripped volume ``inputs[0]`` inside the mask ``inputs[1]``; write it as float32 in RAS."""
    image, mask = to_ras(read_volume(inputs[0])), to_ras(read_mask(inputs[1]))
    data, brain = np.asarray(image.dataobj, np.float32), np.asarray(mask.dataobj) > 0.5
    if data.shape != brain.shape:
        raise VolumeError(f"{inputs[0]} and its mask lie on different grids; run the skull strip again")
    field = bias_field(data, brain, voxel_sizes(image.affine), settings)
    write_volume(outputs[0], np.where(brain, data / field, 0), image.affine, np.float32)
    return {"field_min": round(float(field[brain].min()), 4), "field_max": round(float(field[brain].max()), 4)}


def bias_field(data: Volume, brain: NDArray[np.bool_], spacing: NDArray[np.floating], settings: BiasField) -> Volume:
    """Return the multiplicative bias field of a scan, of geometric mean 1 inside the brain.

    N4 (Tustison et al. 2010, IEEE TMI 29:1310) is fitted on means over blocks of ``shrink_factor``³ voxels; its cubic
    B-splines, ``spline_distance_mm`` apart at the first level, are then evaluated on every voxel of the brain's box and
    continued beyond it by its value at the border. One thread, so the
    same input gives the same field.

    Args:
        data: (D, H, W), not negative inside the brain.
        brain: (D, H, W), where the field is fitted.
        spacing: the voxels' edge lengths in mm.

    Raises:
        VolumeError: the mask is empty, hardly any voxel inside it is positive, or N4 breaks down.
    """
    found = ndimage.find_objects(brain.view(np.uint8))
    if not found:
        raise VolumeError("the brain mask is empty")
    box = found[0]
    inside, values = brain[box], data[box]
    usable = inside & (values > _FLOOR * np.median(values[inside]))
    if usable.sum() < 1000:
        raise VolumeError(f"only {usable.sum()} voxels inside the brain mask are positive; look at the scan")
    log_field = _fit(values, usable, spacing, settings)
    field = np.exp(log_field - log_field[inside].mean())
    return np.pad(field, [(s.start, n - s.stop) for s, n in zip(box, data.shape, strict=True)], mode="edge")


def _fit(values: Volume, usable: NDArray[np.bool_], spacing: NDArray[np.floating], settings: BiasField) -> Volume:
    weight = _image(usable, spacing)
    signal = _image(np.where(usable, values / values[usable].mean(), 0), spacing)
    factors = [min(settings.shrink_factor, n) for n in signal.GetSize()]
    share = sitk.BinShrink(weight, factors)
    mean = sitk.BinShrink(signal, factors) / sitk.Maximum(share, 1e-6)  # over the brain's part of each block
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)
    n4.SetMaximumNumberOfIterations(list(settings.iterations))
    n4.SetConvergenceThreshold(settings.convergence)
    n4.SetSplineOrder(_SPLINE_ORDER)
    extent = np.array(signal.GetSize()) * signal.GetSpacing()
    n4.SetNumberOfControlPoints([math.ceil(e / settings.spline_distance_mm) + _SPLINE_ORDER for e in extent])
    try:
        n4.Execute(mean, share > 0.5)
    except RuntimeError as error:  # of ITK; its last line says what
        said = (str(error).strip().splitlines() or ["ITK says no more"])[-1].strip()
        raise VolumeError(f"N4 broke down on the scan's intensities ({said}); look at the scan and its mask") from None
    return sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(signal)).T


def _image(data: NDArray[np.generic], spacing: NDArray[np.floating]) -> sitk.Image:
    """Return an ITK image along the voxel axes (N4 is indifferent to the orientation)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T, np.float32))
    image.SetSpacing([float(s) for s in spacing])
    return image
