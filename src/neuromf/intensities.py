"""What a scan's intensities say: which value its background has, and whether a brain or a whole head stands in it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from neuromf.volume import VolumeError

Volume = NDArray[np.float32]
Mask = NDArray[np.bool_]
Kind = Literal["brain", "head", "unknown"]

LARGEST = 1e30  # beyond it float32 sums overflow; no scanner writes such a number
_CONSTANT = 0.1  # of the border's voxels that share a value exactly: it is a background that somebody set
_FEW = 0.05  # of these, other voxels that lie next to that value: more, and the background was interpolated
_NEXT_TO = 1e-3  # of the intensities' span
_INTERPOLATED = 1e-2  # of the span: what interpolation leaves two voxels and more from the brain
_WINDOW = 0.02  # of the span: a background that varies by more is noise
_LEAST = 0.25  # of the border's voxels inside the window
_FULL = 0.95  # of the voxels: a brain that fills more than that has no background
_NEAR_ZERO = 0.05  # of the span: a background that counts as 0
_OVERSHOOT = 0.15  # of the span: how far interpolation reaches beyond a background
_TWO_SIDED = 0.05  # of the brain on either side of the background's value: z-scores

# The shells of a head, from outside: scalp, skull (dark in every contrast), brain. A brain gets brighter inwards.
_COARSE = 3.0  # mm
_OBJECT = 0.12  # of the way from the background to the 99th percentile: more is no background
_UPPER = 70.0  # mm below the vertex: face and neck have no shells
_SCALP, _SKULL = (3, 6, 9), (9, 12, 15, 18, 21, 24)  # mm below the surface, edges of shells
_HEAD, _BRAIN = (
    0.8,
    0.9,
)  # darkest of the deeper shells over brightest of the outer: heads 0.20–0.72, brains 0.98–1.14
_LARGEST_BRAIN = 2500.0  # ml


@dataclass(frozen=True)
class Background:
    """A scan's background: its value, how far voxels of it may lie from that value (0 where they have it exactly), and its
    share of the voxels at the volume's border."""

    value: float
    tolerance: float
    share: float


def check_range(data: Volume) -> None:
    """Refuse a volume with numbers that are no intensities.

    Raises:
        VolumeError: voxels beyond 1e30.
    """
    largest = float(np.abs(data).max())
    if largest > LARGEST:
        count = int((np.abs(data) > LARGEST).sum())
        raise VolumeError(
            f"{count} voxels lie beyond ±{LARGEST:g} (up to {largest:g}), no intensities; export the scan again"
        )


def find_background(data: Volume) -> Background:
    """Return the background of a volume (D, H, W): the most common value at its border.

    A value that many voxels of the border have exactly was set by somebody. Else (noise, interpolation) the background is
    the densest stretch of the border's values.

    Raises:
        VolumeError: voxels beyond 1e30, or a border without a common value.
    """
    check_range(data)
    border = _border(data)
    values, counts = np.unique(border, return_counts=True)
    value, share = float(values[counts.argmax()]), float(counts.max() / border.size)
    span = _span(data, value)
    if share >= _CONSTANT:
        apart = np.abs(data - np.float32(value))
        if ((apart > 0) & (apart <= _NEXT_TO * span)).sum() <= _FEW * (apart == 0).sum():
            return Background(value, 0.0, share)
    else:
        value = _densest(border, _WINDOW * span)
    near = np.abs(border - value) <= _WINDOW * span
    if near.mean() < _LEAST:
        raise VolumeError(
            f"no background: at the volume's border hardly any voxels ({near.mean():.0%}) have one value (the most common is"
            f" {value:g})"
        )
    value = float(np.median(border[near])) if share < _CONSTANT else value
    tolerance = max(1.5 * float(np.percentile(np.abs(border[near] - value), 99.9)), _INTERPOLATED * span)
    return Background(value, tolerance, float(near.mean()))


def stripped_brain(data: Volume, background: Background) -> Mask:
    """Return what differs from the background (D, H, W) in a scan that is skull-stripped; with islands and holes.

    Where brain lies on both sides of the background's value (z-scores), gaps of two voxels are closed: they have it by
    chance.

    Raises:
        VolumeError: hardly anything is background.
    """
    above, below = data > background.value + background.tolerance, data < background.value - background.tolerance
    mask = above | below
    if mask.mean() > _FULL:
        raise VolumeError(
            f"{mask.mean():.0%} of the voxels differ from {background.value:g}, the border's most common value: the scan"
            " is not skull-stripped; set skull_stripped to false in the cohort's table"
        )
    lesser = min(above, below, key=np.count_nonzero)
    if background.tolerance and lesser.any():
        reach = np.percentile(np.abs(data[lesser] - np.float32(background.value)), 99)
        if reach < _OVERSHOOT * _span(data, background.value):
            return mask & ~lesser
    if lesser.sum() >= _TWO_SIDED * mask.sum():
        mask |= ndimage.binary_closing(mask)
    return mask


def zero_level(data: Volume) -> float:
    """Return the value that stands for no signal in a whole head (D, H, W): 0 where the background lies about there.

    A magnitude image has its noise at and above 0; scans that were offset, z-scored or scaled to [−1, 1] have not.
    """
    try:
        background = find_background(data).value
    except VolumeError:
        background = float(np.percentile(_border(data), 1))  # the head fills the border
    near = _NEAR_ZERO * _span(data, background)
    return 0.0 if abs(background) <= near and np.percentile(data, 0.1) >= -near else background


def border_noise(data: Volume) -> float:
    """Return the standard deviation of the noise at a volume's border as a share of the intensities' span.

    From neighbours' differences, whose median is 0.954 σ of white noise; the median of the six faces, since a neck
    leaves through one of them.
    """
    faces = [np.take(data, place, axis) for axis in range(3) for place in (0, -1)]
    steps = [np.median(np.abs(np.diff(face, axis=0))) for face in faces]
    span = _span(data, float(np.median(_border(data))))
    return float(np.median(steps)) / 0.954 / span if span else 0.0


def kind(data: Volume, spacing: NDArray[np.floating]) -> Kind:
    """Tell a skull-stripped brain from a whole head by the shells below its surface; (D, H, W) in RAS, ``spacing`` in mm.

    Below a head's bright scalp lies a dark skull, whatever the contrast; a brain gets brighter inwards. What is neither
    clearly (a blob, noise, a slab) is unknown; so is a "brain" without a constant background or of more than 2500 ml.
    """
    try:
        background = find_background(data)
    except VolumeError:
        return "unknown"
    figure = _shells(data, spacing, background.value)
    if figure is None:
        return "unknown"
    ratio, volume_ml = figure
    if ratio < _HEAD:
        return "head"
    noisy = background.tolerance > 1.01 * _INTERPOLATED * _span(
        data, background.value
    )  # more than interpolation leaves
    return (
        "brain"
        if ratio > _BRAIN and volume_ml <= _LARGEST_BRAIN and not noisy and _alone(data, background)
        else "unknown"
    )


def _shells(data: Volume, spacing: NDArray[np.floating], background: float) -> tuple[float, float] | None:
    """Return darkest deeper shell over brightest outer one, medians in the object's upper part, and the object's ml."""
    sigma = np.sqrt(np.maximum((_COARSE / spacing) ** 2 - 1, 0) / (8 * np.log(2)))
    scan = ndimage.zoom(ndimage.gaussian_filter(data - np.float32(background), sigma), spacing / _COARSE, order=1)
    scan = np.pad(scan, 3)
    top = np.percentile(np.abs(scan), 99)
    body = ndimage.binary_opening(ndimage.binary_closing(np.abs(scan) > _OBJECT * top, iterations=2))
    labels, count = ndimage.label(body)
    if not count:
        return None
    body = ndimage.binary_fill_holes(labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:])))
    scan = scan - min(0.0, float(np.percentile(scan[body], 1)))  # z-scores lie on both sides of their background
    depth = ndimage.distance_transform_edt(body, sampling=_COARSE)
    highest = int(np.nonzero(body.any(axis=(0, 1)))[0][-1])
    depth[:, :, : max(0, highest - round(_UPPER / _COARSE))] = 0
    outer, deeper = ([scan[(depth > a) & (depth <= b)] for a, b in pairwise(s)] for s in (_SCALP, _SKULL))
    if min(map(len, [*outer, *deeper])) < 20:
        return None
    brightest = max(float(np.median(values)) for values in outer)
    if brightest <= 0:
        return None
    return min(float(np.median(values)) for values in deeper) / brightest, float(body.sum()) * _COARSE**3 / 1000


def _alone(data: Volume, background: Background) -> bool:
    """Whether one piece holds nearly all that differs from the background."""
    labels, count = ndimage.label(np.abs(data - np.float32(background.value)) > background.tolerance)
    sizes = np.bincount(labels.ravel())[1:]
    return bool(count) and sizes.max() > 0.95 * sizes.sum() and sizes.max() < 0.9 * data.size


def _border(data: Volume) -> Volume:
    """Return the voxels of the six faces of a volume."""
    return np.concatenate([np.take(data, [0, -1], axis).ravel() for axis in range(3)])


def _span(data: Volume, value: float) -> float:
    return float(np.percentile(np.abs(data - np.float32(value)), 99.9))


def _densest(values: Volume, width: float) -> float:
    """Return the centre of the window of a width that holds most of the values."""
    ordered = np.sort(values)
    held = np.searchsorted(ordered, ordered + width, side="right") - np.arange(len(ordered))
    first = int(held.argmax())
    return float(np.median(ordered[first : first + held[first]]))
