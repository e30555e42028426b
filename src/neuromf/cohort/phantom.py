"""Demo heads: whole T1-weighted heads made from the ICBM152 template, with ground truth beside them.

A head is the template seen through a chain of maps. A voxel of the scan goes through the scan's affine and the head's
pose to millimetres of the head, through a scale to the template's space, and through a smooth diffeomorphism
(random, and wider ventricles with age) to the place of the template whose tissue it shows. Intensities, skull, scalp,
face, bias field and noise come on top. Everything about a head depends on (seed, participant) only.

Template and tissue maps: ICBM152 2009a symmetric (Fonov et al. 2011), as packaged by nilearn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import grid_sample

from neuromf.config import Phantom
from neuromf.shards import Task, run_shard
from neuromf.tables import Cohort, ManifestRow, Scan, atomic_path, write_json, write_tsv
from neuromf.volume import write_volume

LABELS = {"background": 0, "csf": 1, "grey matter": 2, "white matter": 3, "ventricles": 4}
ORIENTATIONS = ("RAS", "LAS", "LIA", "LPI", "PSR", "ASR")
STORAGES = ("int16", "uint8", "float32", "scaled")  # `scaled`: int16 with a scl_slope in the header
AGES = (20.0, 85.0)  # years
BRAIN_ML = (1130.0, 1690.0)  # volumes of the brain mask are drawn inside
FIELD_MM = 3.0  # grid of the displacement field
FIELD_BOX = np.array([[-111.0, 111.0], [-150.0, 132.0], [-153.0, 111.0]])  # the template's space that heads fill, mm
HEAD_MARGIN = np.array([[24.0, 24.0], [26.0, 32.0], [52.0, 24.0]])  # of the field of view around the brain, mm
SLAB = 16  # planes worked at once: bounds the memory


@dataclass(frozen=True)
class Person:
    """Who a head belongs to; the columns of participants.tsv."""

    age: float  # years
    sex: str  # F | M


@dataclass(frozen=True)
class Head:
    """A head and its ground truth, all on one grid.

    ``image`` (X, Y, Z) float32 in scanner units, ``mask`` and ``labels`` (X, Y, Z) uint8 (`LABELS`), ``affine`` voxel
    to world in mm, ``volumes_ml`` of brain (the mask), grey matter, white matter, csf (ventricles included) and
    ventricles (lateral and third).
    """

    image: np.ndarray
    affine: np.ndarray
    storage: str
    mask: np.ndarray
    labels: np.ndarray
    person: Person
    volumes_ml: dict[str, float]


# --- cohort ---------------------------------------------------------------------------------------------------------


def phantom_cohort(name: str, n: int, root: Path, settings: Phantom, *, prefix: str = "demo") -> Cohort:
    """Return the table of ``n`` phantom participants ``<prefix>001`` …, with the ages and sexes their heads will have."""
    scans = []
    for number in range(1, n + 1):
        participant = f"{prefix}{number:03d}"
        person = draw_person(settings, participant)
        extra = {"age": f"{person.age:.1f}", "sex": person.sex}
        scans.append(
            Scan(participant, None, f"sub-{participant}/anat/sub-{participant}_T1w.nii.gz", "T1w", extra=extra)
        )
    return Cohort(name, root, tuple(scans), source="phantom")


def make_heads(
    scans: Sequence[Scan], root: Path, settings: Phantom, manifest: Path, *, code: str, workers: int
) -> tuple[ManifestRow, ...]:
    """Write the heads of one shard under ``root`` and their ground truth under ``root/derivatives/truth``.

    A scan's own ``age`` and ``sex`` columns are used where the table has both, and are drawn otherwise. Scans with
    ``skull_stripped`` are written without skull.

    Returns:
        The shard manifest's rows; ``file`` is the head, the figures are age, sex and the true volumes in ml.
    """
    tasks = [_task(scan, root, settings) for scan in scans]
    return run_shard(
        tasks,
        _write_head,
        manifest,
        settings=settings.model_dump(mode="json"),
        code=code,
        workers=workers,
        label="phantom",
    )


def write_dataset_files(cohort: Cohort) -> None:
    """Write what makes the heads and their ground truth BIDS data sets: descriptions and participants.tsv."""
    about = {"Name": f"{cohort.name}: phantom heads of NeuroMF", "BIDSVersion": "1.9.0", "License": "CC0"}
    source = "ICBM 152 nonlinear 2009a symmetric, (c) 1993-2009 Louis Collins, McConnell Brain Imaging Centre"
    maker = [{"Name": "neuromf.cohort.phantom", "Description": "Heads synthesised from a template, no person's scan"}]
    write_json(
        cohort.root / "dataset_description.json",
        about | {"DatasetType": "raw", "GeneratedBy": maker, "Acknowledgements": source},
    )
    write_json(
        cohort.root / "derivatives" / "truth" / "dataset_description.json",
        about | {"DatasetType": "derivative", "GeneratedBy": maker},
    )
    people = {scan.participant_id: scan.extra for scan in cohort.scans}
    columns = list(dict.fromkeys(column for extra in people.values() for column in extra))
    rows = [[f"sub-{participant}", *(extra.get(c) for c in columns)] for participant, extra in people.items()]
    write_tsv(cohort.root / "participants.tsv", ["participant_id", *columns], rows)


def _task(scan: Scan, root: Path, settings: Phantom) -> Task:
    session = f"ses-{scan.session_id}" if scan.session_id else ""
    truth = root / "derivatives" / "truth" / f"sub-{scan.participant_id}" / session / "anat"
    stem = scan.scan_id.rsplit("_", 1)[0]
    outputs = [f"{stem}_desc-brain_mask.nii.gz", f"{stem}_dseg.nii.gz", f"{stem}_dseg.json"]
    arguments = {
        "settings": settings.model_dump(mode="json"),
        "participant_id": scan.participant_id,
        "age": scan.extra.get("age"),
        "sex": scan.extra.get("sex"),
        "stripped": scan.skull_stripped,
    }
    return Task(scan.scan_id, (), (root / scan.image, *(truth / name for name in outputs)), arguments)


def _write_head(
    inputs: Sequence[Path],
    outputs: Sequence[Path],
    *,
    settings: Mapping[str, Any],
    participant_id: str,
    age: str | None,
    sex: str | None,
    stripped: bool,
) -> dict[str, float | str]:
    torch.set_num_threads(1)
    person = Person(float(age), sex) if age is not None and sex is not None else None
    head = make_head(Phantom.model_validate(settings), participant_id, person=person, stripped=stripped)
    image, mask, labels, about = outputs
    write_volume(mask, head.mask, head.affine, np.uint8)
    write_volume(labels, head.labels, head.affine, np.uint8)
    facts: dict[str, float | str] = {"age": head.person.age, "sex": head.person.sex}
    facts |= {f"{tissue}_ml": volume for tissue, volume in head.volumes_ml.items()}
    write_json(about, {"labels": LABELS, **facts})
    _write_image(image, head)
    return facts


def _write_image(path: Path, head: Head) -> None:
    if head.storage == "scaled":
        scaled = nib.Nifti1Image(head.image, head.affine)
        scaled.set_data_dtype(np.int16)  # nibabel chooses scl_slope so that the range is used
        with atomic_path(path) as temporary:
            nib.save(scaled, temporary)
    else:
        largest = 255 if head.storage == "uint8" else np.inf
        write_volume(path, np.minimum(head.image, largest), head.affine, head.storage)


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
    displacement = _displacement(settings, participant_id, person)
    grid = _draw_grid(settings, participant_id, person, displacement, HEAD_MARGIN if not stripped else 6.0)
    tissue = _draw_tissue(_rng(settings, participant_id, "tissue"), person)

    image = np.empty(grid.shape, np.float32)
    labels = np.zeros(grid.shape, np.uint8)
    fractions = np.zeros(4)
    for start in range(0, grid.shape[0], SLAB):
        where = slice(start, min(start + SLAB, grid.shape[0]))
        places = _places(grid, where, displacement)
        brain = _sample(_brain_maps(), places, _template().affine, 1.0)
        image[where], labels[where], sums = tissue.brain(brain)
        fractions += sums
        if not stripped:
            outside = _sample(_head_maps(), places, FIELD_BOX[:, 0], 2.0, border=True)
            inside = brain[_MASK]
            image[where] = inside * image[where] + (1 - inside) * tissue.surroundings(outside)
    mask = (labels > 0).astype(np.uint8)
    image *= _bias_field(settings, participant_id, grid.shape)
    image = _add_noise(settings, participant_id, image)
    if stripped:
        image *= mask
    return _finish(_rng(settings, participant_id, "storage"), grid, image, mask, labels, person, fractions)


def _rng(settings: Phantom, participant_id: str, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{settings.seed}/{participant_id}/{purpose}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _finish(
    rng: np.random.Generator,
    grid: Grid,
    image: np.ndarray,
    mask: np.ndarray,
    labels: np.ndarray,
    person: Person,
    fractions: np.ndarray,
) -> Head:
    """Scale to scanner units and turn the arrays to the drawn orientation."""
    storage = str(rng.choice(STORAGES))
    white = 165.0 if storage == "uint8" else float(rng.uniform(300, 1200))
    orientation = nib.orientations.axcodes2ornt(str(rng.choice(ORIENTATIONS)))
    arrays = [nib.orientations.apply_orientation(a, _turn(orientation)) for a in (image * white, mask, labels)]
    affine = grid.affine @ nib.orientations.inv_ornt_aff(_turn(orientation), grid.shape)
    voxel_ml = float(np.prod(grid.voxel_mm)) / 1000
    csf, grey, white_matter, ventricles = fractions * voxel_ml
    volumes = {
        "brain": int(mask.sum()) * voxel_ml,
        "grey_matter": grey,
        "white_matter": white_matter,
        "csf": csf + ventricles,
        "ventricles": ventricles,
    }
    image, mask, labels = (np.ascontiguousarray(a) for a in arrays)
    return Head(image, affine, storage, mask, labels, person, {k: round(float(v), 3) for k, v in volumes.items()})


def _turn(orientation: np.ndarray) -> np.ndarray:
    return nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), orientation)


# --- geometry -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """The scan's voxels: ``affine`` voxel → world mm, ``to_template`` voxel → mm of the undeformed template (3, 4)."""

    shape: tuple[int, int, int]
    voxel_mm: np.ndarray
    affine: np.ndarray
    to_template: np.ndarray


def _displacement(settings: Phantom, participant_id: str, person: Person) -> torch.Tensor:
    """Return the diffeomorphism's displacement (3, X, Y, Z) in mm on the field's grid, from head to template.

    The exponential of a stationary velocity field by scaling and squaring (Arsigny et al. 2006).
    """
    rng = _rng(settings, participant_id, "deformation")
    shape = _field_shape()
    velocity = np.zeros((3, *shape))
    for share, knots_mm in ((0.9, 60.0), (0.35, 22.0)):  # the brain's form, and that of its gyri
        noise = np.stack([_smooth_noise(rng, shape, FIELD_MM, knots_mm) for _ in range(3)])
        velocity += share * settings.deformation_mm * noise
    old = (person.age - AGES[0]) / (AGES[1] - AGES[0])
    widening = -1.0 + 7.0 * old**1.5 + rng.gamma(1.5, 0.7 + 1.0 * old)  # mm at the ventricles' walls
    velocity -= widening * _ventricle_field()
    return _exponential(torch.from_numpy(velocity.astype(np.float32)), steps=5)


def _exponential(velocity: torch.Tensor, steps: int) -> torch.Tensor:
    """Return exp(velocity) − id: halve ``steps`` times, then compose with itself as often."""
    displacement = velocity / 2**steps
    axes = [
        torch.from_numpy(low + FIELD_MM * np.arange(n))
        for (low, _), n in zip(FIELD_BOX, velocity.shape[1:], strict=True)
    ]
    identity = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).float()
    for _ in range(steps):
        places = identity + displacement.permute(1, 2, 3, 0)
        displacement = displacement + _sample_tensor(displacement, places, FIELD_BOX[:, 0], FIELD_MM, border=True)
    return displacement


def _draw_grid(
    settings: Phantom, participant_id: str, person: Person, displacement: torch.Tensor, margin: np.ndarray | float
) -> Grid:
    """Draw brain size, pose, voxel size and obliqueness, and fit the field of view around the brain."""
    rng = _rng(settings, participant_id, "grid")
    axes = [low + FIELD_MM * np.arange(n) for (low, _), n in zip(FIELD_BOX, _field_shape(), strict=True)]
    points = torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32))
    mask = _sample_tensor(
        _brain_maps()[_MASK : _MASK + 1], points + displacement.permute(1, 2, 3, 0), _template().affine, 1.0
    )[0].numpy()
    stretch = np.exp(rng.normal(0, 0.025, 3))
    volume_ml = mask.sum() * FIELD_MM**3 * stretch.prod() / 1000
    scale = stretch * (_draw_brain_ml(rng, person) / volume_ml) ** (1 / 3)

    pose = _rotation(rng.normal(0, 4.0, 3))
    oblique = _rotation(rng.normal(0, 6.0, 3)) if rng.random() < 0.3 else np.eye(3)
    place = rng.normal(0, 8.0, 3)  # the head's origin in the scanner, mm
    voxel_mm = _draw_voxel(rng, settings.voxel_mm)

    brain = points.numpy()[mask > 0.5] * scale
    seen = (brain @ pose.T + place) @ oblique  # along the scan's axes, mm
    span = np.broadcast_to(margin, (3, 2)) if np.isscalar(margin) else margin
    low, high = seen.min(0) - span[:, 0], seen.max(0) + span[:, 1]  # type: ignore[index]
    shape = np.ceil((high - low) / voxel_mm).astype(int) + 1
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = oblique * voxel_mm, oblique @ low
    to_template = np.diag([*(1 / scale), 1.0]) @ np.linalg.inv(_rigid(pose, place)) @ affine
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), voxel_mm, affine, to_template[:3])


def _draw_brain_ml(rng: np.random.Generator, person: Person) -> float:
    mean = (1470 if person.sex == "M" else 1320) - 1.5 * max(person.age - 40, 0)
    return float(np.clip(rng.normal(mean, 95), *BRAIN_ML))


def _draw_voxel(rng: np.random.Generator, bounds: tuple[float, float]) -> np.ndarray:
    """Draw isotropic voxels, or a thicker or thinner slice along one axis."""
    plane, slices = (round(float(v), 2) for v in rng.uniform(*bounds, 2))
    voxel = np.full(3, plane)
    if rng.random() < 0.6:
        voxel[rng.integers(3)] = slices
    return voxel


def _rotation(degrees: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


def _rigid(rotation: np.ndarray, shift: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, shift
    return matrix


def _places(grid: Grid, where: slice, displacement: torch.Tensor) -> torch.Tensor:
    """Return the places of the template, in mm, that a slab of voxels shows: (planes, Y, Z, 3)."""
    i, j, k = (torch.arange(n, dtype=torch.float32) for n in grid.shape)
    matrix = torch.from_numpy(grid.to_template).float()
    places = (
        (i[where, None, None, None] * matrix[:, 0] + matrix[:, 3])
        + j[None, :, None, None] * matrix[:, 1]
        + k[None, None, :, None] * matrix[:, 2]
    )
    return places + _sample_tensor(displacement, places, FIELD_BOX[:, 0], FIELD_MM, border=True).permute(1, 2, 3, 0)


# --- intensities ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tissue:
    """One head's contrast and layers. Intensities are shares of the white matter's, thicknesses in mm."""

    csf: float
    grey: float
    texture: float
    sharpness: float
    atrophy: float  # log-odds by which fluid gains on grey matter: widens the sulci, thins the cortex
    rim: float
    skull: float
    scalp: float
    fat: float
    marrow: float

    def brain(self, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return intensity, labels and the summed fractions (csf outside the ventricles, grey, white, ventricles)."""
        mask = maps[_MASK] > 0.5
        grey, white = maps[_GREY] ** self.sharpness, maps[_WHITE] ** self.sharpness
        fluid = (1 - maps[_GREY] - maps[_WHITE]).clip(1e-3) ** self.sharpness * np.float32(np.exp(self.atrophy))
        total = grey + white + fluid
        grey, white, fluid = grey / total, white / total, fluid / total
        inside = np.clip(maps[_VENTRICLES] / (1 - maps[_GREY] - maps[_WHITE]).clip(1e-3), 0, 1) * fluid
        image = white + self.grey * grey + self.csf * fluid + self.texture * maps[_RESIDUAL]
        labels = 1 + np.argmax([fluid, grey, white], axis=0).astype(np.uint8)
        labels[(labels == 1) & (inside > 0.5 * fluid)] = LABELS["ventricles"]
        sums = [float(part[mask].sum(dtype=np.float64)) for part in (fluid - inside, grey, white, inside)]
        return image.clip(0), labels * mask, np.array(sums)

    def surroundings(self, maps: np.ndarray) -> np.ndarray:
        """Return the intensity of everything outside the brain: fluid rim, skull, scalp, face, air."""
        skull, face, deep = maps
        outer = self.rim + self.skull
        depth = np.maximum(outer + self.scalp - skull, face)  # below the skin
        soft = np.where(depth < 4.0, self.fat, np.where(skull < outer + self.scalp, 0.55 * self.fat, deep))
        marrow = self.marrow * np.exp(-(((skull - self.rim - self.skull / 2) / (0.2 * self.skull)) ** 2))
        image = np.where(skull < outer, 0.06 + marrow, soft)
        image = np.where(skull < self.rim, self.csf, image)
        image *= np.clip(depth, 0, 1)
        return image


def _draw_tissue(rng: np.random.Generator, person: Person) -> Tissue:
    old = (person.age - AGES[0]) / (AGES[1] - AGES[0])
    return Tissue(
        csf=rng.uniform(0.17, 0.28),
        grey=rng.uniform(0.64, 0.78),
        texture=rng.uniform(0.7, 1.1) / TEMPLATE_MEANS["white"],
        sharpness=rng.uniform(1.8, 2.4),
        atrophy=0.9 + 1.5 * old + rng.normal(0, 0.25),
        rim=rng.uniform(1.0, 2.0) + 2.0 * old,
        skull=rng.uniform(5.0, 8.0),
        scalp=rng.uniform(4.0, 8.0),
        fat=rng.uniform(0.9, 1.3),
        marrow=rng.uniform(0.1, 0.5),
    )


def _bias_field(settings: Phantom, participant_id: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the smooth multiplicative field (X, Y, Z), exp of a spline with its half-range drawn."""
    rng = _rng(settings, participant_id, "bias")
    coefficients = rng.standard_normal((4, 4, 4)).astype(np.float32)
    bases = [_spline_basis(n, 1.0 / (n - 1)).astype(np.float32) for n in shape]
    field = coefficients
    for base in bases:
        field = np.tensordot(field, base, axes=(0, 1))
    field -= (field.max() + field.min()) / 2
    return np.exp(field * np.float32(rng.uniform(*settings.bias_amplitude) / field.max()))


def _add_noise(settings: Phantom, participant_id: str, image: np.ndarray) -> np.ndarray:
    """Return the image with Rician noise: the magnitude of a signal with Gaussian noise in both channels."""
    rng = _rng(settings, participant_id, "noise")
    sigma = np.float32(rng.uniform(*settings.noise_percent) / 100)
    real = rng.standard_normal(image.shape, np.float32)
    real *= sigma
    real += image
    imaginary = rng.standard_normal(image.shape, np.float32)
    imaginary *= sigma
    return np.hypot(real, imaginary, out=real)
