"""Reading, checking and writing NIfTI volumes."""

from __future__ import annotations

import gzip
import io
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from numpy.typing import ArrayLike, DTypeLike, NDArray

from neuromf import signatures
from neuromf.orientation import HeaderError, Orientation, orientation
from neuromf.tables import atomic_path

SMALLEST_SIDE = 16  # voxels; below this no brain can be told from noise
MOST_VOXELS = 2**30  # 1024³: a head at 0.25 mm. More is a damaged header, or would fill the memory
_DEFLATE = 1032  # the most that deflate shrinks: a header that claims more than this times the file cannot be true
_SILENT = logging.Logger("nibabel's notes on headers", logging.CRITICAL + 1)


class VolumeError(ValueError):
    """A volume that cannot be used; the message names the file, what is wrong with it and the remedy."""


def read_volume(path: Path) -> nib.Nifti1Image:
    """Read a scan into memory and check that it can be one.

    Returns:
        A 3D float32 image (scaling applied, trailing axes of length 1 removed) with the affine in mm that the header gives
        by the rule of `neuromf.orientation`; sheared axes stay sheared. In ``image.extra``: ``oriented``, whether the
        header says where left is (else LAS is a guess), and ``warning``, what is doubtful in it ("" for nothing).

    Raises:
        VolumeError: no such file, a folder, no NIfTI (what it is instead: `neuromf.signatures`), a content that was not
            fetched, gzipped or not against its name, truncated or damaged (the checksum of .nii.gz), not 3D, no real
            numbers, NaN or infinite voxels, constant, fewer than 16 voxels along an axis, more than 1024³ or than the file
            can hold, a header that contradicts itself (`neuromf.orientation`).
    """
    data, place = _read(path, np.float32)
    if not np.isfinite(data).all():
        count = int(data.size - np.isfinite(data).sum())
        raise VolumeError(f"{path} has {count} voxels that are NaN or infinite; export the scan again")
    if data.min() == data.max():
        what = "all zero" if data.max() == 0 else f"constant ({data.max():g})"
        raise VolumeError(f"{path} is {what}; there is no scan in it")
    return nib.Nifti1Image(data, place.affine, extra={"oriented": place.known, "warning": place.warning})


def read_labels(path: Path) -> nib.Nifti1Image:
    """Read a 3D volume of labels into memory, in the integer type it is stored in.

    Raises:
        VolumeError: as `read_volume` where it reads the file, or voxels that are no integers.
    """
    data, place = _read(path)
    if data.dtype.kind not in "biu":
        raise VolumeError(f"{path} has voxels of type {data.dtype}; labels are integers")
    return nib.Nifti1Image(data, place.affine, dtype=data.dtype)


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


def header_warning(path: Path) -> str:
    """Return what is doubtful in a scan's header, "" for nothing; no voxel is read.

    Raises:
        VolumeError: as `read_volume` where it goes by the header.
    """
    _, raw, _ = _open(path)
    return _orientation(path, raw).warning


def voxel_sizes(affine: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the voxels' edge lengths (3,) in mm."""
    return nib.affines.voxel_sizes(affine)


def _read(path: Path, kind: DTypeLike | None = None) -> tuple[NDArray[Any], Orientation]:
    """Return a 3D array of real numbers, in the type it is stored in unless ``kind`` is given, and where it lies.

    What the header claims is held against a limit and against the file's size before memory is taken for it."""
    header, raw, zipped = _open(path)
    shape = header.get_data_shape()
    if len(shape) > 3 and shape[3:] == (1,) * (len(shape) - 3):
        shape = shape[:3]
    if len(shape) != 3:
        raise VolumeError(f"{path} is {len(shape)}-dimensional {shape}; give one 3D volume per scan")
    if min(shape) < SMALLEST_SIDE:
        raise VolumeError(f"{path} has {shape} voxels; every side needs at least {SMALLEST_SIDE}")
    if math.prod(shape) > MOST_VOXELS:
        raise VolumeError(f"{path} claims {shape} voxels, at most 1024³ are read; repair its header or resample it")
    stored = header.get_data_dtype()
    if stored.kind not in "biuf":
        raise VolumeError(f"{path} has voxels of type {stored}; give a scan of real numbers")
    place = _orientation(path, raw)
    content = _whole(path, math.prod(shape) * stored.itemsize, shape, zipped=zipped)
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused by the caller
            data = np.asarray(ArrayProxy(content, header), dtype=kind or stored).reshape(shape)
    except Exception as error:
        raise _damaged(path, error) from None
    return data, place


def _open(path: Path) -> tuple[nib.Nifti1Header, nib.Nifti1Header, bool]:
    """Return a file's header as nibabel mends it and as it is written, and whether the file is gzipped."""
    if path.is_dir():
        raise VolumeError(f"{path} is a folder; convert DICOM to one NIfTI file, for instance with dcm2niix")
    if not path.is_file():
        raise VolumeError(f"{path} {signatures.absent(path)}")
    if path.stat().st_size == 0:
        raise VolumeError(f"{path} is empty; copy it again")
    try:
        content, unpacked = signatures.beginning(path)
    except Exception as error:  # a damaged file raises anything: EOFError, zlib.error, BadGzipFile
        raise _damaged(path, error) from None
    if what := signatures.foreign(path, content, unpacked):
        raise VolumeError(f"{path} {what}")
    begins = content if unpacked is None else unpacked
    kind = nib.Nifti2Header if signatures.is_nifti2(begins) else nib.Nifti1Header
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that a damaged header holds
            raw = kind(begins[: kind.template_dtype.itemsize], check=False)
            header = raw.copy()
            header.check_fix(_SILENT, error_level=40)
            header.get_data_shape(), header.get_data_dtype(), header.get_slope_inter()
    except Exception as error:  # as does a damaged header: HeaderDataError, OverflowError, TypeError
        raise _damaged(path, error) from None
    return header, raw, unpacked is not None


def _whole(path: Path, claimed: int, shape: tuple[int, ...], *, zipped: bool) -> str | io.BytesIO:
    """Return what a file's voxels are read from; a .nii.gz is read to its end, where the checksum is: nibabel reads no byte
    more than it needs and does not see it."""
    size = path.stat().st_size
    if claimed > size * (_DEFLATE if zipped else 1):
        raise VolumeError(
            f"{path} is truncated or damaged: its header claims {shape} voxels, its {size} bytes hold fewer; copy it again"
        )
    if not zipped:
        return str(path)
    try:
        with gzip.open(path) as stream:
            content = stream.read(claimed + 2**24)  # and room for a header with extensions
            more = stream.read(1)
    except Exception as error:
        raise _damaged(path, error) from None
    if more:
        raise VolumeError(f"{path} holds more than its header claims {shape}; copy it again")
    return io.BytesIO(content)


def _orientation(path: Path, raw: nib.Nifti1Header) -> Orientation:
    try:
        with np.errstate(all="ignore"):  # of numbers that a damaged header holds
            return orientation(raw)
    except HeaderError as error:
        raise VolumeError(f"{path} {error}") from None


def _damaged(path: Path, error: Exception) -> VolumeError:
    what = " ".join(str(error).split())[:200] or type(error).__name__
    return VolumeError(f"{path} is truncated or damaged ({what}); copy it again")
