"""Reading, checking and writing NIfTI volumes."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import ArrayLike, DTypeLike, NDArray

from neuromf.tables import atomic_path

SMALLEST_SIDE = 16  # voxels; below this no brain can be told from noise


class VolumeError(ValueError):
    """A volume that cannot be used; the message names the file, what is wrong with it and the remedy."""


def read_volume(path: Path) -> nib.Nifti1Image:
    """Read a scan into memory and check that it can be one.

    Returns:
        A 3D float32 image with the file's affine (scaling applied, trailing axes of length 1 removed).

    Raises:
        VolumeError: no such file, a folder, no NIfTI, truncated, not 3D, no real numbers, NaN or infinite voxels,
            constant, fewer than 16 voxels along an axis, an affine that cannot be inverted.
    """
    image = _open(path)
    data = _voxels(path, image)
    if data.ndim > 3 and data.shape[3:] == (1,) * (data.ndim - 3):
        data = data.reshape(data.shape[:3])
    if data.ndim != 3:
        raise VolumeError(f"{path} is {data.ndim}-dimensional {data.shape}; give one 3D volume per scan")
    if min(data.shape) < SMALLEST_SIDE:
        raise VolumeError(f"{path} has {data.shape} voxels; every side needs at least {SMALLEST_SIDE}")
    if not np.isfinite(data).all():
        count = int(data.size - np.isfinite(data).sum())
        raise VolumeError(f"{path} has {count} voxels that are NaN or infinite; export the scan again")
    if data.min() == data.max():
        what = "all zero" if data.max() == 0 else f"constant ({data.max():g})"
        raise VolumeError(f"{path} is {what}; there is no scan in it")
    affine = image.affine
    if affine is None or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise VolumeError(f"{path} has an affine that cannot be inverted; repair its sform and qform")
    return nib.Nifti1Image(data, affine)


def write_volume(path: Path, data: ArrayLike, affine: NDArray[np.floating], dtype: DTypeLike) -> None:
    """Write a volume atomically, with sform and qform (code 1, mm) and without intensity scaling.

    The same content gives the same bytes. Real values are rounded for an integer ``dtype``.

    Raises:
        VolumeError: a value does not fit in ``dtype``.
    """
    values = np.asarray(data)
    kind = np.dtype(dtype)
    if np.issubdtype(kind, np.integer):
        limits = np.iinfo(kind)
        values = values if values.dtype.kind in "biu" else np.rint(values)
        if values.min() < limits.min or values.max() > limits.max:
            raise VolumeError(f"{path}: values {values.min():g} to {values.max():g} do not fit in {kind}")
    image = nib.Nifti1Image(values.astype(kind), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def to_ras(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return the image with its axes flipped and permuted to be closest to right, anterior, superior."""
    return nib.as_closest_canonical(image)


def voxel_sizes(affine: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the voxels' edge lengths (3,) in mm."""
    return nib.affines.voxel_sizes(affine)


def _open(path: Path) -> nib.Nifti1Pair:
    if path.is_dir():
        raise VolumeError(f"{path} is a folder; convert DICOM to one NIfTI file, for instance with dcm2niix")
    if not path.is_file():
        raise VolumeError(f"{path} does not exist")
    if path.stat().st_size == 0:
        raise VolumeError(f"{path} is empty; copy it again")
    try:
        image = nib.load(path)
    except (ImageFileError, gzip.BadGzipFile):
        raise VolumeError(f"{path} is not a NIfTI file; give .nii or .nii.gz") from None
    except (EOFError, zlib.error, OSError) as error:
        raise VolumeError(f"{path} is truncated or damaged ({error}); copy it again") from None
    if not isinstance(image, nib.Nifti1Pair):
        raise VolumeError(f"{path} is not a NIfTI file ({type(image).__name__}); convert it to .nii.gz")
    return image


def _voxels(path: Path, image: nib.Nifti1Pair) -> NDArray[np.float32]:
    kind = image.get_data_dtype()
    if kind.kind not in "biuf":
        raise VolumeError(f"{path} has voxels of type {kind}; give a scan of real numbers")
    try:
        return np.asarray(image.dataobj, dtype=np.float32)
    except (EOFError, zlib.error, OSError, ValueError) as error:
        raise VolumeError(f"{path} is truncated or damaged ({error}); copy it again") from None
