"""One demo head: a whole T1-weighted head made from the ICBM152 template, with its ground truth.

A head is the template seen through a chain of maps. A voxel of the scan goes through the scan's affine and the head's
pose to millimetres of the head, through a scale to the template's space, and through a smooth diffeomorphism
(random, and wider ventricles with age) to the place of the template whose tissue it shows. Intensities, skull, scalp,
face, bias field and noise come on top. Everything about a head depends on (seed, participant) only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from neuromf.cohort.phantom_template import (
    FIELD_BOX,
    FIELD_MM,
    GREY,
    HEAD_MM,
    MASK,
    MEANS,
    RESIDUAL,
    VENTRICLES,
    WHITE,
    Array,
    brain_maps,
    field_points,
    head_maps,
    sample,
    smooth_noise,
    spline,
    template,
    ventricle_field,
)
from neuromf.config import Phantom

LABELS = {"background": 0, "csf": 1, "grey_matter": 2, "white_matter": 3, "ventricles": 4}
ORIENTATIONS = ("RAS", "LAS", "LIA", "LPI", "PSR", "ASR")
STORAGES = ("int16", "uint8", "float32", "scaled")  # `scaled`: int16 with a scl_slope in the header
AGES = (20.0, 85.0)  # years
BRAIN_ML = (1130.0, 1690.0)  # volumes of the brain mask are drawn inside
HEAD_MARGIN = np.array([[24.0, 24.0], [26.0, 32.0], [52.0, 24.0]])  # of the field of view around the brain, mm
STRIPPED_MARGIN = np.full((3, 2), 6.0)
SLAB = 16  # planes worked at once: bounds the memory


@dataclass(frozen=True)
class Person:
    """Who a head belongs to; the columns of participants.tsv."""

    age: float  # years
    sex: str  # F | M

    @property
    def ageing(self) -> float:
        """Return how far between youngest and oldest, 0 to 1."""
        return float(np.clip((self.age - AGES[0]) / (AGES[1] - AGES[0]), 0, 1))


@dataclass(frozen=True)
class Head:
    """A head and its ground truth, all on one grid.

    ``image`` (X, Y, Z) float32 in scanner units, ``mask`` and ``labels`` (X, Y, Z) uint8 (`LABELS`), ``affine`` voxel
    to world in mm, ``volumes_ml``: the brain mask, grey matter, white matter, csf (ventricles included) and
    ventricles (lateral and third); the tissues' are sums of partial volumes inside the mask.
    """

    image: NDArray[np.float32]
    affine: Array
    storage: str
    mask: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    person: Person
    volumes_ml: dict[str, float]


# --- one head -------------------------------------------------------------------------------------------------------


def draw_person(settings: Phantom, participant_id: str) -> Person:
    """Draw age and sex; sexes are equally likely, ages uniform."""
    rng = _rng(settings, participant_id, "person")
    return Person(age=round(float(rng.uniform(*AGES)), 1), sex=str(rng.choice(["F", "M"])))


def make_head(settings: Phantom, participant_id: str, *, person: Person | None = None, stripped: bool = False) -> Head:
    """Make one head.

    Args:
        settings: ranges of deformation, noise, bias field and voxel size.
        participant_id: whose head; the same settings, ID and person give the same head.
        person: age and sex; drawn when None.
        stripped: leave everything outside the true brain mask 0 and crop to the brain's box (cheaper).
    """
    person = person or draw_person(settings, participant_id)
    displacement = _displacement(_rng(settings, participant_id, "deformation"), settings.deformation_mm, person)
    margin = STRIPPED_MARGIN if stripped else HEAD_MARGIN
    grid = _draw_grid(_rng(settings, participant_id, "grid"), settings.voxel_mm, person, displacement, margin)
    tissue = _draw_tissue(_rng(settings, participant_id, "tissue"), person)

    image = np.empty(grid.shape, np.float32)
    labels = np.zeros(grid.shape, np.uint8)
    fractions = np.zeros(4)
    for start in range(0, grid.shape[0], SLAB):
        slab = slice(start, min(start + SLAB, grid.shape[0]))
        places = _places(grid, slab, displacement)
        brain = sample(brain_maps(), places, template().origin, 1.0).numpy()
        image[slab], labels[slab], sums = tissue.brain(brain)
        fractions += sums
        if not stripped:
            head = sample(head_maps(), places, FIELD_BOX[:, 0], HEAD_MM, border=True).numpy()
            image[slab] = brain[MASK] * image[slab] + (1 - brain[MASK]) * tissue.surroundings(head)
    image *= _bias_field(_rng(settings, participant_id, "bias"), settings.bias_amplitude, grid.shape)
    image = _add_noise(_rng(settings, participant_id, "noise"), settings.noise_percent, image)
    if stripped:
        image *= labels > 0
    return _scan(_rng(settings, participant_id, "scan"), grid, image, labels, person, fractions)


def _rng(settings: Phantom, participant_id: str, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{settings.seed}/{participant_id}/{purpose}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _scan(
    rng: np.random.Generator,
    grid: Grid,
    image: NDArray[np.float32],
    labels: NDArray[np.uint8],
    person: Person,
    fractions: Array,
) -> Head:
    """Scale to scanner units, turn the arrays to a drawn orientation and sum up the volumes."""
    storage = str(rng.choice(STORAGES))
    white = 165.0 if storage == "uint8" else float(rng.uniform(300, 1200))
    ras, drawn = (nib.orientations.axcodes2ornt(codes) for codes in ("RAS", str(rng.choice(ORIENTATIONS))))
    turn = nib.orientations.ornt_transform(ras, drawn)
    image, labels = (
        np.ascontiguousarray(nib.orientations.apply_orientation(array, turn)) for array in (image * white, labels)
    )
    affine = grid.affine @ nib.orientations.inv_ornt_aff(turn, grid.shape)
    mask = (labels > 0).astype(np.uint8)
    volumes = np.array([mask.sum(), fractions[1], fractions[2], fractions[0] + fractions[3], fractions[3]])
    names = ("brain", "grey_matter", "white_matter", "csf", "ventricles")
    ml = np.round(volumes * float(np.prod(grid.voxel_mm)) / 1000, 3)
    return Head(image, affine, storage, mask, labels, person, dict(zip(names, ml.tolist(), strict=True)))


# --- geometry -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """The scan's voxels: ``affine`` voxel → world mm, ``to_template`` voxel → mm of the undeformed template (3, 4)."""

    shape: tuple[int, int, int]
    voxel_mm: Array
    affine: Array
    to_template: Array


def _displacement(rng: np.random.Generator, deformation_mm: float, person: Person) -> torch.Tensor:
    """Return the diffeomorphism's displacement (3, X, Y, Z) in mm on the field's grid, from head to template."""
    shape = field_points().shape[:3]
    velocity = np.zeros((3, *shape))
    for share, knots_mm in ((0.9, 60.0), (0.35, 22.0)):  # the brain's form, and that of its gyri
        noise = np.stack([smooth_noise(rng, shape, FIELD_MM / knots_mm) for _ in range(3)])
        velocity += share * deformation_mm * noise
    widening_mm = -1.0 + 7.0 * person.ageing**1.5 + rng.gamma(1.5, 0.7 + 1.0 * person.ageing)
    velocity -= widening_mm * ventricle_field()
    return _exponential(torch.from_numpy(velocity.astype(np.float32)), steps=5)


def _exponential(velocity: torch.Tensor, steps: int) -> torch.Tensor:
    """Return exp(velocity) − id by scaling and squaring (Arsigny et al. 2006)."""
    displacement = velocity / 2**steps
    for _ in range(steps):
        places = field_points() + displacement.permute(1, 2, 3, 0)
        displacement = displacement + sample(displacement, places, FIELD_BOX[:, 0], FIELD_MM, border=True)
    return displacement


def _draw_grid(
    rng: np.random.Generator,
    voxel_bounds: tuple[float, float],
    person: Person,
    displacement: torch.Tensor,
    margin: Array,
) -> Grid:
    """Draw brain size, pose, voxel size and obliqueness, and fit the field of view around the brain."""
    places = field_points() + displacement.permute(1, 2, 3, 0)
    mask = sample(brain_maps()[MASK : MASK + 1], places, template().origin, 1.0)[0].numpy()
    stretch = np.exp(rng.normal(0, 0.025, 3))
    volume_ml = mask.sum() * FIELD_MM**3 * stretch.prod() / 1000
    scale = stretch * (_draw_brain_ml(rng, person) / volume_ml) ** (1 / 3)
    pose = Rotation.from_euler("xyz", rng.normal(0, 4.0, 3), degrees=True).as_matrix()
    tilt = rng.normal(0, 6.0, 3) * (rng.random() < 0.3)  # most scans are not oblique
    axes = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix()
    position = rng.normal(0, 8.0, 3)  # of the template's origin in the scanner, mm
    voxel_mm = _draw_voxel(rng, voxel_bounds)

    brain = field_points().numpy()[mask > 0.5] * scale
    along_axes = (brain @ pose.T + position) @ axes
    low, high = along_axes.min(0) - margin[:, 0], along_axes.max(0) + margin[:, 1]
    x, y, z = (int(n) + 1 for n in np.ceil((high - low) / voxel_mm))
    affine, placed = np.eye(4), np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * voxel_mm, axes @ low
    placed[:3, :3], placed[:3, 3] = pose * scale, position
    return Grid((x, y, z), voxel_mm, affine, (np.linalg.inv(placed) @ affine)[:3])


def _draw_brain_ml(rng: np.random.Generator, person: Person) -> float:
    mean = (1470 if person.sex == "M" else 1320) - 1.5 * max(person.age - 40, 0)
    return float(np.clip(rng.normal(mean, 95), *BRAIN_ML))


def _draw_voxel(rng: np.random.Generator, bounds: tuple[float, float]) -> Array:
    """Draw isotropic voxels, or a thicker or thinner slice along one axis."""
    plane, slices = (round(float(edge), 2) for edge in rng.uniform(*bounds, 2))
    voxel = np.full(3, plane)
    if rng.random() < 0.6:
        voxel[rng.integers(3)] = slices
    return voxel


def _places(grid: Grid, slab: slice, displacement: torch.Tensor) -> torch.Tensor:
    """Return the places of the template, in mm, that a slab of voxels shows: (planes, Y, Z, 3)."""
    i, j, k = (torch.arange(n, dtype=torch.float32) for n in grid.shape)
    matrix = torch.from_numpy(grid.to_template).float()
    places = (
        (i[slab, None, None, None] * matrix[:, 0] + matrix[:, 3])
        + j[None, :, None, None] * matrix[:, 1]
        + k[None, None, :, None] * matrix[:, 2]
    )
    return places + sample(displacement, places, FIELD_BOX[:, 0], FIELD_MM, border=True).permute(1, 2, 3, 0)


# --- intensities ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tissue:
    """One head's contrast and layers. Intensities are shares of the white matter's, thicknesses in mm."""

    csf: float
    grey: float
    texture: float  # of the template's own residual
    sharpness: float  # power of the tissue maps: an average of many brains is blurred
    atrophy: float  # log-odds by which fluid gains on the other tissues: widens the sulci, thins the cortex
    rim: float
    skull: float
    scalp: float
    fat: float
    marrow: float

    def brain(self, maps: Array) -> tuple[Array, NDArray[np.uint8], Array]:
        """Return intensity, labels and the summed fractions (csf outside the ventricles, grey, white, ventricles)."""
        csf = (1 - maps[GREY] - maps[WHITE]).clip(1e-3)
        weights = np.stack([csf, maps[GREY], maps[WHITE]]) ** np.float32(self.sharpness)
        weights[0] *= np.float32(np.exp(self.atrophy))
        fluid, grey, white = weights / weights.sum(0)
        lumen = np.clip(maps[VENTRICLES] / csf, 0, 1) * fluid
        image = white + self.grey * grey + self.csf * fluid + self.texture * maps[RESIDUAL]
        inside = maps[MASK] > 0.5
        labels = 1 + np.argmax([fluid, grey, white], axis=0).astype(np.uint8)
        labels[(labels == LABELS["csf"]) & (lumen > 0.5 * fluid)] = LABELS["ventricles"]
        sums = [part[inside].sum(dtype=np.float64) for part in (fluid - lumen, grey, white, lumen)]
        return image.clip(0), labels * inside, np.array(sums)

    def surroundings(self, maps: Array) -> Array:
        """Return the intensity of everything outside the brain: fluid rim, skull, scalp, face, air."""
        skull, face, deep = maps
        outside = self.rim + self.skull
        depth = np.maximum(outside + self.scalp - skull, face)  # below the skin
        soft = np.where(depth < 4.0, self.fat, np.where(skull < outside + self.scalp, 0.55 * self.fat, deep))
        marrow = self.marrow * np.exp(-(((skull - self.rim - self.skull / 2) / (0.2 * self.skull)) ** 2))
        image = np.where(skull < outside, 0.06 + marrow, soft)
        image = np.where(skull < self.rim, self.csf, image)
        return image * np.clip(depth, 0, 1)


def _draw_tissue(rng: np.random.Generator, person: Person) -> Tissue:
    return Tissue(
        csf=rng.uniform(0.17, 0.28),
        grey=rng.uniform(0.64, 0.78),
        texture=rng.uniform(0.7, 1.1) / MEANS["white"],
        sharpness=rng.uniform(1.8, 2.4),
        atrophy=0.9 + 1.5 * person.ageing + rng.normal(0, 0.25),
        rim=rng.uniform(1.0, 2.0) + 2.0 * person.ageing,
        skull=rng.uniform(5.0, 8.0),
        scalp=rng.uniform(4.0, 8.0),
        fat=rng.uniform(0.9, 1.3),
        marrow=rng.uniform(0.1, 0.5),
    )


def _bias_field(rng: np.random.Generator, amplitude: tuple[float, float], shape: tuple[int, int, int]) -> Array:
    """Return the multiplicative field (X, Y, Z): exp of a random cubic in each axis, of a drawn half-amplitude."""
    bases = [np.polynomial.legendre.legvander(np.linspace(-1, 1, n, dtype=np.float32), 3) for n in shape]
    decay = 1.0 / (1 + np.arange(4, dtype=np.float32)) ** 1.5
    coefficients = rng.standard_normal((4, 4, 4)).astype(np.float32) * np.einsum("i,j,k->ijk", decay, decay, decay)
    field = spline(coefficients, bases)
    field -= (field.max() + field.min()) / 2
    return np.exp(field * np.float32(rng.uniform(*amplitude) / field.max()))


def _add_noise(
    rng: np.random.Generator, percent: tuple[float, float], image: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the image with Rician noise: the magnitude of a signal with Gaussian noise in both channels."""
    sigma = np.float32(rng.uniform(*percent) / 100)
    real = rng.standard_normal(image.shape, np.float32)
    real *= sigma
    real += image
    imaginary = rng.standard_normal(image.shape, np.float32)
    imaginary *= sigma
    return np.hypot(real, imaginary, out=real)
