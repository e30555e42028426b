"""What a NIfTI header says of a scan's place: which transform counts, and when what it says contradicts itself.

The header has up to three answers: the sform (any affine), the qform (a rotation, with the voxel sizes of pixdim) and, where
the codes of both are 0, pixdim alone. The rule (docs/cohorts.md has it as a table):

1. The sform counts, else the qform. An sform to a template (code 3, 4 or 5) beside a qform of the scan's own space (code
   1 or 2) is a registration, which may scale and shear the head: then the qform counts.
2. The voxel sizes of the sform and pixdim are the same up to rounding (0.005 mm or 0.1 %); a registration to a template
   may scale by up to 1.8. Otherwise one of them is wrong, and with it the brain's size: refused.
3. Sform and qform may be turned and moved against each other (a registration), but by no more than 45°, and not be mirrored:
   refused, since nobody can know which side is left.
4. Without any code the orientation is unknown: LAS is taken, as Analyze has it, with a warning.
5. Axes that are not orthogonal are a shear: below 0.1° it is rounding and made orthogonal; above, a warning, and
   `without_shear` resamples the scan; above 45° refused.
6. Units of metres and microns are converted where that gives voxels of a head; where only mm do, mm are taken, with a
   warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Affine = NDArray[np.floating]

_TEMPLATE = (3, 4, 5)  # codes of a template's space: Talairach, MNI152, another
_OWN = (1, 2)  # codes of the scan's own space: the scanner's, or aligned to another scan of the person
_CODES = (*_OWN, *_TEMPLATE)
_ROUNDED_MM, _ROUNDED = 0.0051, 1e-3  # voxel sizes of two decimals; relative
_TEMPLATE_SCALE = 1.8  # a newborn's brain to an adult template's, along an axis
_TURN = 45.0  # degrees
_SHEAR, _DAMAGED_SHEAR = np.sin(np.radians(0.1)), np.sin(np.radians(45))  # cosine between two axes
_NOISE = 1e-6  # cosine between two axes that float32 leaves
_LONGEST = 1.01  # of a quaternion (b, c, d), at most 1 but for rounding
_HEAD_MM = (0.02, 50.0)  # voxel sizes that a scan of a head may have
_UNITS = {1: ("metres", 1e3), 3: ("microns", 1e-3)}
_KEEP_SFORM = "nibabel.save(nibabel.Nifti1Image(image.dataobj, image.header.get_sform()), …)"
_KEEP_QFORM = _KEEP_SFORM.replace("sform", "qform")
_PAGE = "docs/cohorts.md, “Repairing a header”"


class HeaderError(ValueError):
    """A header that contradicts itself; the message says what it says, after the file's name, and the remedy."""


@dataclass(frozen=True)
class Orientation:
    """Where a scan lies.

    Attributes:
        affine: (4, 4), voxels to mm; its axes are orthogonal unless they are sheared by more than rounding.
        known: whether the header says where right, anterior and superior are; otherwise LAS is a guess.
        warning: what is doubtful, "" for nothing.
    """

    affine: Affine
    known: bool
    warning: str


def orientation(header: nib.Nifti1Header) -> Orientation:
    """Return where a scan lies by what its header says (as it is in the file: nibabel's checks alter pixdim and codes).

    Raises:
        HeaderError: two transforms that contradict each other, an affine without an inverse, no voxel sizes, a damaged
            quaternion, voxels of a size that no head is scanned with.
    """
    sizes = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    sform_code, qform_code = (int(header[name]) for name in ("sform_code", "qform_code"))
    sform = _sform(header) if sform_code in _CODES else None
    qform = _qform(header, sizes) if qform_code in _CODES and (sform is None or _is_given(sizes)) else None
    registered = sform_code in _TEMPLATE and qform_code in _OWN
    affine = qform if sform is None or (registered and qform is not None) else sform
    known, doubts = affine is not None, []
    if affine is None:
        affine = nib.volumeutils.shape_zoom_affine(header.get_data_shape()[:3], _given(sizes))
        doubts.append(
            "orientation unknown: neither sform nor qform has a code, so left and right are a guess; LAS is taken"
        )
    for one in (affine, sform):
        if one is not None:
            _check_inverse(one, qform if one is sform else None)
    factor, doubt = _units(int(header["xyzt_units"]) & 7, nib.affines.voxel_sizes(affine))
    doubts += doubt
    if sform is not None:
        if _is_given(sizes):
            _check_sizes(sform, qform, factor * sizes, factor, registered=registered)
        else:
            doubts.append(f"pixdim {_sides(sizes)} is no voxel size; the sform's are taken")
        if qform is not None:
            _check_turn(sform, qform)
    affine = np.diag([factor, factor, factor, 1.0]) @ affine
    sheared = shear(affine)
    if sheared > _DAMAGED_SHEAR:
        raise HeaderError(
            f"has axes that are sheared by {_degrees(sheared)}°, as no scan is; repair its sform ({_PAGE})"
        )
    if sheared > _SHEAR:
        doubts.append(f"sheared by {_degrees(sheared)}°: the scan is resampled onto an orthogonal grid")
    elif sheared > _NOISE:
        affine = _orthogonal(affine, header.get_data_shape()[:3])
    return Orientation(affine, known, "; ".join(doubts))


def shear(affine: Affine) -> float:
    """Return the largest cosine between two of an affine's axes: 0 where they are orthogonal."""
    axes = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def without_shear(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return a scan on a grid of orthogonal axes: the image itself where they are, else it is resampled.

    The new axes are the nearest rotation of the old ones, voxel sizes stay, and the grid holds all of the old one.
    Voxels are interpolated linearly among those that are no background (the corners' value), so that neither the size of a
    stripped brain nor the intensities at its border change.
    """
    if shear(image.affine) <= _SHEAR:
        return image
    data = np.asarray(image.dataobj, np.float32)
    axes = _nearest_axes(image.affine)
    corners = np.array(list(product(*((0, n - 1) for n in data.shape))))
    reached = nib.affines.apply_affine(image.affine, corners) @ np.linalg.inv(axes).T
    first, last = reached.min(axis=0), reached.max(axis=0)
    affine = nib.affines.from_matvec(axes, axes @ first)
    sample = partial(
        ndimage.affine_transform,
        matrix=np.linalg.inv(image.affine) @ affine,
        output_shape=tuple(int(n) for n in np.ceil(last - first - 1e-6) + 1),
        order=1,
    )
    background = np.float32(np.median(data[np.ix_(*((0, -1) for _ in range(3)))]))
    scanned = data != background
    share = sample(scanned.astype(np.float32))
    values = sample(np.where(scanned, data - background, 0)) / np.maximum(share, 0.5)
    return nib.Nifti1Image(background + np.where(share > 0.5, values, 0).astype(np.float32), affine)


# --- the two transforms ---------------------------------------------------------------------------------------------


def _sform(header: nib.Nifti1Header) -> Affine:
    rows = [np.asarray(header[f"srow_{axis}"], np.float64) for axis in "xyz"]
    return np.vstack([*rows, [0, 0, 0, 1]])


def _qform(header: nib.Nifti1Header, sizes: NDArray[np.floating]) -> Affine:
    """Return the qform. A quaternion longer than 1 by rounding is one of length 1, as NIfTI's own library has it."""
    vector = np.array([float(header[f"quatern_{axis}"]) for axis in "bcd"])
    length = float(np.linalg.norm(vector))
    if not length <= _LONGEST:  # nor is NaN
        raise HeaderError(
            f"has a damaged qform (a quaternion of length {length:.6g}, at most 1 is possible); if its sform is right,"
            f" keep that alone: {_KEEP_SFORM}"
        )
    vector /= max(length, 1.0)
    turn = nib.quaternions.quat2mat([np.sqrt(max(0.0, 1 - float(vector @ vector))), *vector])
    flip = -1.0 if header["pixdim"][0] < 0 else 1.0
    offset = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return nib.affines.from_matvec(turn * _given(sizes) * [1, 1, flip], offset)


def _given(sizes: NDArray[np.floating]) -> NDArray[np.floating]:
    if not _is_given(sizes):
        raise HeaderError(f"has no voxel sizes (pixdim {_sides(sizes)}); export the scan again")
    return sizes


def _is_given(sizes: NDArray[np.floating]) -> bool:
    return bool(np.isfinite(sizes).all() and (sizes > 0).all())


# --- what is held against each other --------------------------------------------------------------------------------


def _check_inverse(affine: Affine, other: Affine | None) -> None:
    """Refuse an affine without an inverse; ``other`` is a transform that may be kept instead."""
    columns = affine[:3, :3]
    volume = float(np.prod(np.linalg.norm(columns, axis=0)))
    if (
        not np.isfinite(affine).all()
        or not volume > 0
        or abs(np.linalg.det(columns)) < 1e-6 * volume
        or None in nib.aff2axcodes(affine)
    ):
        remedy = f"repair its sform and qform ({_PAGE})" if other is None else f"if its qform is right: {_KEEP_QFORM}"
        raise HeaderError(f"has an affine that cannot be inverted; {remedy}")


def _units(code: int, sizes: NDArray[np.floating]) -> tuple[float, list[str]]:
    """Return by what an affine is multiplied to be in mm, and what is doubtful about it. Unknown units are mm."""

    def of_a_head(factor: float) -> bool:
        return bool((factor * sizes >= _HEAD_MM[0]).all() and (factor * sizes <= _HEAD_MM[1]).all())

    unit, factor = _UNITS.get(code, ("mm" if code == 2 else "nothing, so mm", 1.0))
    if of_a_head(factor):
        return factor, []
    if of_a_head(1.0):
        return 1.0, [f"its units say {unit}, of which voxels of {_sides(sizes)} cannot be a head's; mm are taken"]
    fitting = [name for name, other in (("meter", 1e3), ("micron", 1e-3)) if of_a_head(other)]
    remedy = f"its units, with image.header.set_xyzt_units('{fitting[0]}') of nibabel" if fitting else "its voxel sizes"
    raise HeaderError(
        f"has voxels of {_sides(sizes)}, its units (xyzt_units) say {unit}: no head is scanned so; correct {remedy}"
    )


def _check_sizes(
    sform: Affine, qform: Affine | None, sizes: NDArray[np.floating], factor: float, *, registered: bool
) -> None:
    """Refuse an sform whose voxels have another size than pixdim says, in mm."""
    found = factor * nib.affines.voxel_sizes(sform)
    ratio = found / sizes
    if registered and (np.maximum(ratio, 1 / ratio) < _TEMPLATE_SCALE).all():
        return
    if not registered and np.allclose(found, sizes, rtol=_ROUNDED, atol=_ROUNDED_MM):
        return
    sheared = f", sheared by {_degrees(shear(sform))}°" if shear(sform) > _SHEAR else ""
    told = f"has an sform ({_axes(sform)}, {_sides(found)} mm{sheared})"
    why = "one has the wrong voxel size. See the scan's protocol, or measure the brain"
    if qform is None:
        raise HeaderError(
            f"{told} and a pixdim ({_sides(sizes)} mm) that disagree: {why}. If the sform is right: {_KEEP_SFORM}; if"
            f" pixdim is: {_PAGE}"
        )
    raise HeaderError(
        f"{told} and qform ({_axes(qform)}, {_sides(sizes)} mm) that disagree: {why}. If the sform is right: {_KEEP_SFORM};"
        " if the qform is: fslorient -copyqform2sform"
    )


def _check_turn(sform: Affine, qform: Affine) -> None:
    """Refuse two transforms of which one is mirrored, or turned by more than 45°."""
    turn = np.linalg.inv(_directions(qform)) @ _directions(sform)
    degrees = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    mirrored = np.linalg.det(turn) < 0
    if mirrored or degrees > _TURN:
        how = "mirrored" if mirrored else f"turned by {degrees:.0f}°"
        raise HeaderError(
            f"has an sform ({_axes(sform)}) and qform ({_axes(qform)}) that disagree: one is {how} against the other."
            " Compare with the scan's DICOM files, or a marker on the head. If the sform is right: fslorient"
            " -copysform2qform; if the qform is: fslorient -copyqform2sform"
        )


# --- axes -----------------------------------------------------------------------------------------------------------


def _directions(affine: Affine) -> Affine:
    """Return the orthogonal unit axes (3, 3) nearest to an affine's."""
    left, _, right = np.linalg.svd(affine[:3, :3] / nib.affines.voxel_sizes(affine))
    return left @ right


def _nearest_axes(affine: Affine) -> Affine:
    return _directions(affine) * nib.affines.voxel_sizes(affine)


def _orthogonal(affine: Affine, shape: tuple[int, ...]) -> Affine:
    """Return the nearest affine of orthogonal axes; the middle of the volume stays where it is."""
    middle = (np.array(shape) - 1) / 2
    axes = _nearest_axes(affine)
    return nib.affines.from_matvec(axes, nib.affines.apply_affine(affine, middle) - axes @ middle)


def _axes(affine: Affine) -> str:
    return "".join(nib.aff2axcodes(affine))


def _sides(sizes: NDArray[np.floating]) -> str:
    return " × ".join(f"{side:.4g}" for side in sizes)


def _degrees(cosine: float) -> str:
    return f"{np.degrees(np.arcsin(min(cosine, 1.0))):.1f}"
