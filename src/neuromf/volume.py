"""Reading, checking and writing NIfTI volumes."""

from __future__ import annotations

import gzip
import math
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import ArrayLike, DTypeLike, NDArray

from neuromf.tables import atomic_path

SMALLEST_SIDE = 16  # voxels; below this no brain can be told from noise
MOST_VOXELS = 2**30  # 1024³: a head at 0.25 mm. More is a damaged header, or would fill the memory
_DEFLATE = 1032  # the most that deflate shrinks: a header that claims more than this times the file cannot be true
_SIZES_AGREE = 0.05  # relative difference of the voxel sizes of sform and qform
_NO_NIFTI = "is not a NIfTI file; give .nii or .nii.gz"


class VolumeError(ValueError):
    """A volume that cannot be used; the message names the file, what is wrong with it and the remedy."""


def read_volume(path: Path) -> nib.Nifti1Image:
    """Read a scan into memory and check that it can be one.

    Returns:
        A 3D float32 image with the file's affine (scaling applied, trailing axes of length 1 removed). The affine is the
        sform's where there is one, else the qform's.

    Raises:
        VolumeError: no such file, a folder, no NIfTI, truncated or damaged (the checksum of .nii.gz), not 3D, no real
            numbers, NaN or infinite voxels, constant, fewer than 16 voxels along an axis, more than 1024³ or than the file
            can hold, an affine that cannot be inverted, a sform and a qform of different brains.
    """
    image = _read(path)
    data = _array(path, image, np.float32)
    if not np.isfinite(data).all():
        count = int(data.size - np.isfinite(data).sum())
        raise VolumeError(f"{path} has {count} voxels that are NaN or infinite; export the scan again")
    if data.min() == data.max():
        what = "all zero" if data.max() == 0 else f"constant ({data.max():g})"
        raise VolumeError(f"{path} is {what}; there is no scan in it")
    _check_affines(path, image)
    return nib.Nifti1Image(data, image.affine)


def read_labels(path: Path) -> nib.Nifti1Image:
    """Read a 3D volume of labels into memory, in the integer type it is stored in.

    Raises:
        VolumeError: as `read_volume` where it reads the file, or voxels that are no integers.
    """
    image = _read(path)
    kind = image.get_data_dtype()
    if kind.kind not in "biu":
        raise VolumeError(f"{path} has voxels of type {kind}; labels are integers")
    _check_affines(path, image)
    return nib.Nifti1Image(_array(path, image, kind), image.affine, dtype=kind)


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


def is_oriented(path: Path) -> bool:
    """Return whether a volume's header says where right, anterior and superior are: a sform or qform of a code above 0.

    Raises:
        VolumeError: as `read_volume` where it opens the file.
    """
    image = _open(path)
    return any(_form(path, image, name) is not None for name in ("sform", "qform"))


def voxel_sizes(affine: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the voxels' edge lengths (3,) in mm."""
    return nib.affines.voxel_sizes(affine)


def _read(path: Path) -> nib.Nifti1Image:
    """Return a 3D image of real numbers whose file is whole. What its header claims is held against a limit and against the
    file's size before memory is taken for it."""
    image = _open(path)
    shape = image.shape
    if len(shape) > 3 and shape[3:] == (1,) * (len(shape) - 3):
        shape = shape[:3]
    if len(shape) != 3:
        raise VolumeError(f"{path} is {len(shape)}-dimensional {shape}; give one 3D volume per scan")
    if min(shape) < SMALLEST_SIDE:
        raise VolumeError(f"{path} has {shape} voxels; every side needs at least {SMALLEST_SIDE}")
    if math.prod(shape) > MOST_VOXELS:
        raise VolumeError(f"{path} claims {shape} voxels, at most 1024³ are read; repair its header or resample it")
    kind = image.get_data_dtype()
    if kind.kind not in "biuf":
        raise VolumeError(f"{path} has voxels of type {kind}; give a scan of real numbers")
    return _whole(path, image)


def _open(path: Path) -> nib.Nifti1Image:
    if path.is_dir():
        raise VolumeError(f"{path} is a folder; convert DICOM to one NIfTI file, for instance with dcm2niix")
    if not path.is_file():
        raise VolumeError(f"{path} does not exist")
    if path.stat().st_size == 0:
        raise VolumeError(f"{path} is empty; copy it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that a damaged header holds
            image = nib.load(path)
    except (ImageFileError, gzip.BadGzipFile):
        raise VolumeError(f"{path} {_NO_NIFTI}") from None
    except (
        Exception
    ) as error:  # a damaged header raises anything: HeaderDataError, OverflowError, zlib.error, TypeError
        raise _damaged(path, error) from None
    if not isinstance(image, nib.Nifti1Image):
        raise VolumeError(f"{path} is not a NIfTI file ({type(image).__name__}); convert it to .nii.gz")
    return image


def _whole(path: Path, image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return the image after reading a .nii.gz to its end, where the checksum is: nibabel reads no byte more than it needs
    and does not see it."""
    claimed = math.prod(image.shape) * image.get_data_dtype().itemsize
    size = path.stat().st_size
    zipped = path.name.endswith(".gz")
    if claimed > size * (_DEFLATE if zipped else 1):
        raise VolumeError(
            f"{path} is truncated or damaged: its header claims {image.shape} voxels, its {size} bytes hold fewer; copy it"
            " again"
        )
    try:
        if not zipped:
            return image
        with gzip.open(path) as stream:
            content = stream.read(claimed + 2**24)  # and room for a header with extensions
            if stream.read(1):
                raise VolumeError(f"{path} holds more than its header claims {image.shape}; copy it again")
        return type(image).from_bytes(content)
    except VolumeError:
        raise
    except Exception as error:
        raise _damaged(path, error) from None


def _array(path: Path, image: nib.Nifti1Image, kind: DTypeLike) -> NDArray[Any]:
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused by the caller
            return np.asarray(image.dataobj, dtype=kind).reshape(image.shape[:3])
    except Exception as error:
        raise _damaged(path, error) from None


def _check_affines(path: Path, image: nib.Nifti1Image) -> None:
    """Refuse an affine without an inverse, and a sform and qform that would show different brains: mirrored, larger,
    or turned by more than 45°, where nobody can know which one is true. A moved or slightly turned one is a registration."""
    sform, qform = _form(path, image, "sform"), _form(path, image, "qform")
    for affine in (image.affine, sform, qform):
        if affine is not None and not _invertible(affine):
            raise VolumeError(f"{path} has an affine that cannot be inverted; repair its sform and qform")
    if sform is None or qform is None:
        return
    sizes = [voxel_sizes(affine) for affine in (sform, qform)]
    turn = np.linalg.inv(qform[:3, :3] / sizes[1]) @ (sform[:3, :3] / sizes[0])
    degrees = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    if np.linalg.det(turn) < 0 or degrees > 45 or not np.allclose(sizes[0], sizes[1], rtol=_SIZES_AGREE):
        axes = ["".join(nib.aff2axcodes(affine)) for affine in (sform, qform)]
        raise VolumeError(
            f"{path}: its sform ({axes[0]}, {sizes[0].round(3)} mm) and qform ({axes[1]}, {sizes[1].round(3)} mm) disagree;"
            " repair the wrong one, for instance with fslorient -copysform2qform"
        )


def _invertible(affine: NDArray[np.floating]) -> bool:
    """Whether an affine is one of voxels between a hundredth and a hundred mm, and each axis has a direction of its own."""
    plausible = np.isfinite(affine).all() and 1e-6 <= abs(np.linalg.det(affine[:3, :3])) <= 1e6
    return bool(plausible) and None not in nib.aff2axcodes(affine)


def _form(path: Path, image: nib.Nifti1Image, name: str) -> NDArray[np.floating] | None:
    """Return the header's sform or qform; None where its code is 0."""
    try:
        return getattr(image.header, f"get_{name}")(coded=True)[0]
    except Exception as error:
        raise VolumeError(f"{path}: its {name} is damaged ({error}); repair it") from None


def _damaged(path: Path, error: Exception) -> VolumeError:
    what = " ".join(str(error).split())[:200] or type(error).__name__
    return VolumeError(f"{path} is truncated or damaged ({what}); copy it again")
