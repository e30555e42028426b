"""What phantom heads are made of: maps of the ICBM152 template's tissues and of a crude head around it.

Template: ICBM152 2009a nonlinear symmetric (Fonov et al. 2011), 1 mm, skull-stripped, as packaged by nilearn. All maps
are computed once per process. Places are in the template's millimetres (MNI space, axes right, anterior, superior).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from nilearn import datasets
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn.functional import grid_sample

GREY, WHITE, MASK, VENTRICLES, RESIDUAL = range(5)  # channels of `brain_maps`
MEANS = {"csf": 0.30, "grey": 0.65, "white": 0.87}  # the template's T1w intensities
FIELD_MM = 3.0  # grid of displacement fields
FIELD_BOX = np.array([[-111.0, 111.0], [-150.0, 132.0], [-153.0, 111.0]])  # the part of space that heads fill, mm
HEAD_MM = 2.0  # grid of `head_maps`
VENTRICLE_REACH_MM = 12.0  # the ventricles' expansion fades over this distance

Array = NDArray[np.floating]


# --- brain ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """The packaged template at 1 mm, arrays of (197, 233, 189), and the place of its first voxel (3,) in mm."""

    t1: Array
    grey: Array
    white: Array
    mask: NDArray[np.bool_]
    origin: Array

    @property
    def csf(self) -> Array:
        """Return the fluid's share of each voxel of the brain."""
        return (1 - self.grey - self.white).clip(0) * self.mask


@lru_cache(maxsize=1)
def template() -> Template:
    """Return the template with the head-independent brain mask (ventricles included)."""
    grey = datasets.load_mni152_gm_template(resolution=1).get_fdata(dtype=np.float32)
    white = datasets.load_mni152_wm_template(resolution=1).get_fdata(dtype=np.float32)
    mask = datasets.load_mni152_brain_mask(resolution=1).get_fdata(dtype=np.float32) > 0
    t1 = datasets.load_mni152_template(resolution=1)
    origin = t1.affine[:3, 3]
    return Template(t1.get_fdata(dtype=np.float32), grey, white, ndimage.binary_fill_holes(mask), origin)


@lru_cache(maxsize=1)
def brain_maps() -> torch.Tensor:
    """Return (5, 197, 233, 189): grey, white, mask, ventricles, and what of the T1w image the tissues leave over."""
    brain = template()
    expected = brain.csf * MEANS["csf"] + brain.grey * MEANS["grey"] + brain.white * MEANS["white"]
    mask = brain.mask.astype(np.float32)
    residual = (brain.t1 - expected) * ndimage.gaussian_filter(mask, 1.0) * mask
    lumen = ndimage.binary_dilation(ventricles(), iterations=2) * brain.csf
    maps = [brain.grey, brain.white, ndimage.gaussian_filter(mask, 0.5), lumen, residual]
    return torch.from_numpy(np.stack(maps).astype(np.float32))


@lru_cache(maxsize=1)
def ventricles() -> NDArray[np.bool_]:
    """Return the lateral and third ventricles (197, 233, 189): the fluid deep inside, in the middle of the brain."""
    brain = template()
    deep = 2 * ndimage.distance_transform_edt(brain.mask[::2, ::2, ::2]) > 14  # mm from the brain's surface
    for axis, size in enumerate(brain.mask.shape):
        deep = deep.repeat(2, axis).take(range(size), axis)
    components, _ = ndimage.label((brain.csf > 0.5) & deep)
    low = (np.array([-30, -50, 0]) - brain.origin).astype(int)
    high = (np.array([30, 30, 28]) - brain.origin).astype(int)
    middle = components[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return components == np.bincount(middle[middle > 0]).argmax()


@lru_cache(maxsize=1)
def ventricle_field() -> Array:
    """Return the field (3, X, Y, Z) that points away from the ventricles: 1 at their walls, fading outwards."""
    wall = ventricles()[::2, ::2, ::2]
    distance = 2 * (ndimage.distance_transform_edt(~wall) - ndimage.distance_transform_edt(wall))
    distance = ndimage.gaussian_filter(distance.astype(np.float32), 0.75)
    coarse = sample(torch.from_numpy(distance)[None], field_points(), template().origin, 2.0, border=True)[0].numpy()
    return np.stack(np.gradient(coarse, FIELD_MM)) * np.exp(-np.maximum(coarse, 0) / VENTRICLE_REACH_MM)


@lru_cache(maxsize=1)
def field_points() -> torch.Tensor:
    """Return the places (X, Y, Z, 3) of the displacement fields' grid."""
    axes = [np.arange(low, high + 1, FIELD_MM, dtype=np.float32) for low, high in FIELD_BOX]
    return torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"), -1))


# --- head -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def head_maps() -> torch.Tensor:
    """Return (3, X, Y, Z) over `FIELD_BOX` every 2 mm: distance to the skull's inside and depth under the skin of face
    and neck, in mm, and the intensity of what lies deep there (muscle, eyes, fat, air), white matter = 1."""
    axes = [np.arange(low, high + 1, HEAD_MM) for low, high in FIELD_BOX]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    index = [c - o for c, o in zip((x, y, z), template().origin, strict=True)]
    brain = ndimage.map_coordinates(template().mask.astype(np.float32), index, order=1) > 0.5
    near = HEAD_MM * ndimage.distance_transform_edt(~brain) < 10
    hull = HEAD_MM * ndimage.distance_transform_edt(near) > 10  # the brain closed by 10 mm: the skull spans its sulci
    skull = HEAD_MM * (ndimage.distance_transform_edt(~hull) - ndimage.distance_transform_edt(hull))

    jaw = _ellipsoid(x, y, z, (0, 25, -72), (60, 72, 62))
    nose = _ellipsoid(x, y, z, (0, 98, -62), (12, 14, 22))
    neck = np.minimum(62 - 0.95 * np.hypot(x, y + 28), -40 - z)
    face = np.maximum.reduce([jaw, nose, neck])
    maps = [ndimage.gaussian_filter(skull, 1.0), face, ndimage.gaussian_filter(_deep_tissue(x, y, z), 0.6)]
    return torch.from_numpy(np.stack(maps).astype(np.float32))


def _deep_tissue(x: Array, y: Array, z: Array) -> Array:
    """Return the intensity of face and neck below the skin: muscle with the large structures laid over it."""
    rng = np.random.default_rng(152)  # the same muscles for every head; deformation and contrast make them differ
    fine, coarse = smooth_noise(rng, x.shape, HEAD_MM / 10.0), smooth_noise(rng, x.shape, HEAD_MM / 40.0)
    deep = np.clip(0.48 + 0.06 * fine + 0.1 * coarse, 0.2, 1.0)
    air, fluid, fat, bone, cord = 0.04, 0.22, 0.95, 0.62, 0.9
    structures = [((0, 62, -58), (10, 38, 20), air), ((0, 10, -110), (9, 9, 45), air), ((0, 76, -8), (14, 7, 12), air)]
    for side in (-1, 1):
        structures.append(((side * 32, 58, -34), (19, 19, 19), fat))  # orbit
        structures.append(((side * 33, 66, -34), (12, 12, 12), fluid))  # eye
        structures.append(((side * 30, 48, -66), (13, 15, 16), air))  # maxillary sinus
    for centre, radii, intensity in structures:
        deep[_ellipsoid(x, y, z, centre, radii) > 0] = intensity
    spine = np.where(z < -60, np.hypot(x, y + 48), np.inf)
    for radius, intensity in ((22, bone), (9, fluid), (5.5, cord)):
        deep[spine < radius] = intensity
    return deep


def _ellipsoid(x: Array, y: Array, z: Array, centre: Sequence[float], radii: Sequence[float]) -> Array:
    """Return the depth below an ellipsoid's surface in mm, to first order; negative outside."""
    squares = [((a - c) / r) ** 2 for a, c, r in zip((x, y, z), centre, radii, strict=True)]
    return (1 - np.sqrt(squares[0] + squares[1] + squares[2])) * min(radii)


# --- sampling and noise ---------------------------------------------------------------------------------------------


def sample(
    maps: torch.Tensor, places: torch.Tensor, origin: Array, spacing: float, *, border: bool = False
) -> torch.Tensor:
    """Sample maps (C, X, Y, Z) linearly.

    Args:
        maps: the first voxel lies at ``origin`` (mm), the next ``spacing`` mm on.
        places: (X', Y', Z', 3) in mm.
        border: outside the maps take the nearest value, not 0.

    Returns:
        (C, X', Y', Z').
    """
    size = torch.tensor(maps.shape[1:], dtype=torch.float32)
    grid = (places - torch.as_tensor(origin, dtype=torch.float32)) * (2.0 / ((size - 1) * spacing)) - 1.0
    padding = "border" if border else "zeros"
    return grid_sample(maps[None], grid.flip(-1)[None], "bilinear", padding, align_corners=True)[0]


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], step: float) -> Array:
    """Return noise of unit variance: cubic B-splines with random coefficients, ``step`` knots per voxel."""
    bases = [_spline_basis(points, step) for points in shape]
    noise = rng.standard_normal([basis.shape[1] for basis in bases])
    return spline(noise, bases)


def spline(coefficients: Array, bases: Sequence[Array]) -> Array:
    """Return a tensor-product spline on a grid, from coefficients (K, L, M) and bases (X, K), (Y, L), (Z, M)."""
    values = coefficients
    for basis in bases:  # contracts the first axis and appends the fine one: after three, the order is as before
        values = np.tensordot(values, basis, axes=(0, 1))
    return values


def _spline_basis(points: int, step: float) -> Array:
    """Return (points, knots): cubic B-splines at whole numbers, seen every ``step``; each row has unit energy."""
    at = np.arange(points) * step
    x = np.abs(at[:, None] - np.arange(-1, int(np.ceil(at[-1])) + 2))
    basis = np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.clip(2 - x, 0, None) ** 3 / 6)
    return basis / np.linalg.norm(basis, axis=1, keepdims=True)
