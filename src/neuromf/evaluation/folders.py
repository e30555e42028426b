"""Two or three folders of NIfTI volumes on one grid and in one intensity range, by stated rules, or refused by name.

Grid: volumes that already share one (shape, RAS, isotropic voxels) stay as they are. Otherwise all go the same way: axes
reordered to RAS, the coarsest voxel size found (or the one asked for), a box around each brain's centroid that holds the
largest of them. Intensities: kept when all volumes have one nominal range, [0, 1] or [0, 255]; otherwise refused, unless
the rule `percentile` is asked for, which treats every volume of every folder alike.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from neuromf.cohort.layouts import modality_of
from neuromf.evaluation.features import array_sha256
from neuromf.evaluation.morphometry import brain_mask
from neuromf.evaluation.scans import EvaluationError, Grid
from neuromf.intensities import LARGEST, find_background, kind
from neuromf.orientation import without_shear
from neuromf.signatures import absent
from neuromf.tables import TableError, content_hash, file_sha256, read_json, write_json
from neuromf.volume import MOST_VOXELS, SMALLEST_SIDE, VolumeError, read_volume, to_ras, voxel_sizes

Intensity = Literal["keep", "percentile"]
RANGES = (1.0, 255.0)  # nominal ranges [0, upper end] that are kept
TOLERANCE = 0.05  # of the range: what interpolation may overshoot
PERCENTILE = 99.5  # of the brain's voxels, mapped to 1 by the rule `percentile`
MARGIN = 2  # voxels around the largest brain
LEAST_LEVELS = 16  # different values in a brain; a mask has one or two, a scan of bytes many more
OBLIQUE = 5.0  # degrees: less is how a head lies
BRIGHTER = 1.25  # ratio of two folders' brains above which they are called different
MULTIPLE = 8  # of voxels a side, for the networks' halvings
_SAME_SPACING = 1e-3  # relative
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What is known of one volume before it is brought to the grid; axes x, y, z are those of the volume in RAS."""

    path: str
    sha256: str
    voxels_sha256: str  # of the voxels in RAS: the same for a scan that was packed or turned otherwise
    axes: str  # of the file, e.g. LAS
    oriented: bool  # whether the header says so, or the axes are a guess
    warning: str  # what else is doubtful in the header, "" for nothing
    oblique: float  # largest angle in degrees between an axis and the nearest of R, A, S
    shape: tuple[int, int, int]
    voxel_mm: tuple[float, float, float]
    background: float  # the most common value at the border
    head: bool  # whether a dark skull lies below its surface: a whole head
    low: float
    high: float
    brain_high: float  # the brain's 99.5th percentile
    centroid: tuple[float, float, float]  # of the brain, in voxels
    reach_mm: tuple[float, float, float]  # of the brain from its centroid, the longer side of each axis

    @property
    def nominal(self) -> float | None:
        """The upper end of the nominal range that the intensities lie in, or None."""
        for upper in RANGES:
            if self.low >= -TOLERANCE * upper and self.high <= (1 + TOLERANCE) * upper:
                return upper
        return None


@dataclass(frozen=True)
class Rules:
    """How every volume is brought to one grid and range: ``upper`` None stands for the rule `percentile`; ``as_is`` for
    volumes that share a grid already and are only padded to it."""

    grid: Grid
    as_is: bool
    upper: float | None

    def key(self, found: Found) -> str:
        """Return the hash of a volume on the grid, by its file and these rules."""
        return content_hash([found.sha256, asdict(self)])


def volume_files(folder: Path) -> list[Path]:
    """Return the NIfTI files below a folder, sorted; hidden ones are left out.

    Raises:
        EvaluationError: no folder, no NIfTI file in it, a link to a folder (whose volumes would be left out), one volume as
            .nii and as .nii.gz (it would count twice), a name that no table can hold, names of two modalities.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is no folder; give one that holds NIfTI volumes")
    every = sorted(
        path for path in folder.rglob("*") if not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    if linked := [path for path in every if path.is_symlink() and path.is_dir()]:
        raise EvaluationError(f"{linked[0]} is a link to a folder, which is not followed; link its files instead")
    found = [path for path in every if path.name.lower().endswith((".nii", ".nii.gz"))]
    if not found:
        raise EvaluationError(f"{folder} holds no .nii or .nii.gz; convert its volumes first")
    known: dict[str, Path] = {}
    for path in found:
        if any("\ud800" <= character <= "\udfff" for character in str(path)):  # bytes that are no UTF-8
            raise EvaluationError(f"{str(path)!r} has a name that no table can hold; rename it")
        if other := known.get(volume_name(path)):
            raise EvaluationError(f"{other} and {path} have one name, so one scan would count twice; remove one")
        known[volume_name(path)] = path
    by_modality = {modality: path for path in found if (modality := modality_of(path.name))}
    if len(by_modality) > 1:
        told = ", ".join(f"{modality} ({path.name})" for modality, path in sorted(by_modality.items()))
        raise EvaluationError(f"{folder} holds volumes of several modalities: {told}; give each a folder of its own")
    return found


def volume_name(path: Path) -> str:
    """Return the path of a volume without .nii or .nii.gz."""
    return re.sub(r"(\.nii)?(\.gz)?$", "", str(path), count=1, flags=re.IGNORECASE)


def survey(files: Sequence[Path], cache: Path, *, label: str) -> list[Found]:
    """Read each volume once and return what decides the common grid and range; kept in the cache by the file's hash.

    Raises:
        VolumeError: a volume that cannot be used (4D, RGB, NaN, empty, truncated, …), by name and with the remedy.
    """
    found = []
    for path in tqdm(files, desc=f"{label}: reading", unit="volume"):
        if not path.is_file():
            what = "is a folder; remove it or copy the volume there" if path.exists() else absent(path)
            raise VolumeError(f"{path} is no file: it {what}")
        sha256 = file_sha256(path)
        kept = cache / "survey" / f"{sha256}.json"
        content = _kept(kept)
        if content is None:
            content = _look_at(path)
            write_json(kept, {"content": content, "sha256": content_hash(content)})
        content = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
        found.append(Found(path=str(path), sha256=sha256, **content))
    return found


def _kept(path: Path) -> dict[str, Any] | None:
    """Return what an earlier survey found; None where there is none, a damaged one, or one of another version."""
    try:
        known = read_json(path, "content", "sha256")
    except TableError:
        return None
    content = known["content"]
    whole = isinstance(content, dict) and content_hash(content) == known["sha256"]
    return content if whole and content.keys() | {"path", "sha256"} == {one.name for one in fields(Found)} else None


def common_rules(
    sets: Mapping[str, Sequence[Found]], *, spacing_mm: float | None = None, intensity: Intensity = "keep"
) -> Rules:
    """Return how the volumes of all folders are brought to one grid and range, and tell of whole heads and of folders whose
    names say different modalities.

    Raises:
        EvaluationError: intensities or orientations that cannot be compared, with the file, its values and the remedy.
    """
    every = [found for one in sets.values() for found in one]
    _tell_heads(sets)
    _tell_modalities(sets)
    _check_background(every, scaled=intensity == "percentile")
    _check_orientation(sets)
    upper = _common_range(every) if intensity == "keep" else None
    if upper is not None:
        _tell_brightness(sets, upper)
    first = every[0]
    shared = all(
        found.axes == "RAS" and found.shape == first.shape and np.allclose(found.voxel_mm, first.voxel_mm[0], rtol=1e-3)
        for found in every
    )
    if shared and (spacing_mm is None or math.isclose(spacing_mm, first.voxel_mm[0], rel_tol=_SAME_SPACING)):
        return Rules(Grid(_rounded_up(first.shape), round(first.voxel_mm[0], 4)), True, upper)
    coarsest = round(max(max(found.voxel_mm) for found in every), 4)
    spacing = spacing_mm or coarsest
    if spacing < coarsest * (1 - _SAME_SPACING):
        log.warning("--spacing %g is finer than the coarsest volume (%g mm), which is interpolated", spacing, coarsest)
    for name, one in sets.items():
        sizes = sorted({round(size, 2) for found in one for size in found.voxel_mm})
        log.warning(
            "%s: %s with voxels of %s mm, brought to RAS, %g mm, around each brain's centroid",
            name, "/".join(sorted({found.axes for found in one})), ", ".join(map(str, sizes[:6])), spacing,
        )  # fmt: skip
    reach = np.max([found.reach_mm for found in every], axis=0)
    sides = [2 * (math.ceil(mm / spacing) + MARGIN) for mm in reach]
    shape = _rounded_up(sides)
    if min(sides) < SMALLEST_SIDE or math.prod(shape) > MOST_VOXELS:
        raise EvaluationError(
            f"{spacing:g} mm would make a grid of {sides} voxels around the largest brain; it takes {SMALLEST_SIDE} a side"
            " and at most 1024³ in all: choose another --spacing, or remove the volumes of the coarsest voxels"
        )
    return Rules(Grid(shape, spacing), False, upper)


def on_grid(found: Found, rules: Rules) -> NDArray[np.float32]:
    """Read a volume and return it on the common grid, in [0, 1].

    Where voxels get larger, it is low-pass filtered with a Gaussian of σ² = (k² − 1) / (8 ln 2) voxels² for a ratio k of
    spacings (Cardoso et al. 2015), then interpolated linearly, which leaves the range of intensities.
    """
    data = np.asarray(to_ras(without_shear(read_volume(Path(found.path)))).dataobj, dtype=np.float32)
    if rules.upper is None:
        data = data - np.float32(found.background)
    shape = np.array(rules.grid.shape)
    if rules.as_is:
        before = (shape - data.shape) // 2
        data = np.pad(data, [(b, s - n - b) for b, s, n in zip(before, shape, data.shape, strict=True)])
    else:
        ratio = rules.grid.voxel_mm / np.array(found.voxel_mm)
        data = ndimage.gaussian_filter(data, np.sqrt(np.maximum(ratio**2 - 1, 0) / (8 * math.log(2))))
        first = np.array(found.centroid) - ratio * (shape - 1) / 2
        data = ndimage.affine_transform(data, np.diag(ratio), first, tuple(shape), order=1, mode="constant", cval=0)
    scale = found.brain_high - found.background if rules.upper is None else rules.upper
    return np.clip(data / np.float32(scale), 0, 1)


def volumes(founds: Sequence[Found], rules: Rules, *, label: str) -> Iterator[tuple[Found, NDArray[np.float32]]]:
    """Yield each volume on the common grid, one at a time."""
    for found in tqdm(founds, desc=label, unit="volume"):
        yield found, on_grid(found, rules)


def _look_at(path: Path) -> dict[str, Any]:
    image = read_volume(path)
    oriented, warning = image.extra["oriented"], image.extra["warning"]
    image = without_shear(image)
    axes = "".join(nib.aff2axcodes(image.affine))
    oblique = float(np.degrees(nib.affines.obliquity(image.affine)).max())
    image = to_ras(image)
    data = np.asarray(image.dataobj, dtype=np.float32)
    background = _background(path, data)
    top = float(np.percentile(data, 99.9))
    mask = (
        brain_mask((data - background) / (top - background)) if top > background else np.zeros(data.shape, dtype=bool)
    )
    if mask.sum() < 100:
        raise VolumeError(f"{path} holds no brain (its brightest 0.1 % begin at {top:g}); remove it or export it again")
    sizes = voxel_sizes(image.affine)
    centroid = np.array(ndimage.center_of_mass(mask))
    box = ndimage.find_objects(mask.view(np.uint8))[0]
    reach = [max(c - s.start, s.stop - 1 - c) * size for c, s, size in zip(centroid, box, sizes, strict=True)]
    if (levels := len(np.unique(data[mask]))) < LEAST_LEVELS:
        raise VolumeError(
            f"{path} has {levels} different values in its brain: a mask or labels and no scan; move it away"
        )
    return {
        "voxels_sha256": array_sha256(data),
        "axes": axes,
        "oriented": oriented,
        "warning": warning,
        "oblique": round(oblique, 2),
        "shape": tuple(int(n) for n in data.shape),
        "voxel_mm": tuple(round(float(size), 5) for size in sizes),
        "background": background,
        "head": kind(data, sizes) == "head",
        "low": float(data.min()),
        "high": float(data.max()),
        "brain_high": float(np.percentile(data[mask], PERCENTILE)),
        "centroid": tuple(float(c) for c in centroid),
        "reach_mm": tuple(float(mm) for mm in reach),
    }


def _background(path: Path, data: NDArray[np.float32]) -> float:
    """Return the value of a volume's background: 0 where its border is noise or brain about there."""
    try:
        background = find_background(data)
    except VolumeError as error:
        if np.abs(data).max() > LARGEST:
            raise VolumeError(f"{path}: {error}") from None
        return 0.0
    return background.value if background.tolerance == 0 or data.min() < 0 else 0.0


def _common_range(every: Sequence[Found]) -> float:
    """Return the upper end of the nominal range that all volumes share.

    Raises:
        EvaluationError: a volume in no nominal range, or two in different ones.
    """
    remedy = (
        "scale the folders alike, or pass `--intensity percentile`, which maps 0 to 0 and the brain's"
        f" {PERCENTILE}th percentile to 1 in every volume of every folder"
    )
    for found in every:
        if found.nominal is None:
            raise EvaluationError(
                f"{found.path} has intensities from {found.low:g} to {found.high:g}, neither [0, 1] nor [0, 255]; {remedy}"
            )
        if found.nominal != every[0].nominal:
            first = every[0]
            raise EvaluationError(
                f"{found.path} has intensities from {found.low:g} to {found.high:g}, {first.path} from {first.low:g} to"
                f" {first.high:g}: one is in [0, 1], the other in [0, 255]; {remedy}"
            )
    upper = every[0].nominal
    assert upper is not None
    return upper


def _check_background(every: Sequence[Found], *, scaled: bool) -> None:
    """Refuse volumes whose background is not 0, which the rule `percentile` alone mends, and brains on both sides of it."""
    for found in every:
        reach = TOLERANCE * (found.brain_high - found.background)
        if found.low < found.background - reach:
            raise EvaluationError(
                f"{found.path} has intensities from {found.low:g} to {found.high:g} about a background of"
                f" {found.background:g}; shift the brain so that the background is its lowest value, best 0"
            )
        if not scaled and abs(found.background) > reach:
            raise EvaluationError(
                f"{found.path} has intensities from {found.low:g} to {found.high:g}, its background is {found.background:g};"
                " shift it so that the background is 0, or pass `--intensity percentile`, which maps the background to 0"
            )
        if found.low > found.background + reach:
            raise EvaluationError(
                f"{found.path} has intensities from {found.low:g} to {found.high:g}; shift it so that the background is 0"
            )


def _tell_heads(sets: Mapping[str, Sequence[Found]]) -> None:
    """Tell of whole heads, by the dark skull below their surface: every figure is meant for brains."""
    for name, one in sets.items():
        heads = [found.path for found in one if found.head]
        if heads:
            log.warning(
                "%s: %d of %d volumes are whole heads (%s); the figures are made for stripped brains: strip them first",
                name, len(heads), len(one), ", ".join(heads[:3]),
            )  # fmt: skip


def _tell_modalities(sets: Mapping[str, Sequence[Found]]) -> None:
    """Tell of folders whose files' names say different modalities (in one folder, `volume_files` refuses them)."""
    named = {name: {modality_of(Path(found.path).name) for found in one} - {""} for name, one in sets.items()}
    if len(set().union(*named.values())) > 1:
        told = ", ".join(f"{name} {'/'.join(sorted(said))}" for name, said in named.items() if said)
        log.warning("the files' names say different modalities: %s; compare volumes of one modality", told)


def _check_orientation(sets: Mapping[str, Sequence[Found]]) -> None:
    """Refuse volumes of unknown orientation beside those of a known one; tell of what is taken as it is."""
    every = [found for one in sets.values() for found in one]
    guessed = [found for found in every if not found.oriented]
    if guessed and (known := [found for found in every if found.oriented]):
        raise EvaluationError(
            f"{guessed[0].path} has neither sform nor qform, so nobody knows which side is left; {known[0].path} says it"
            f" ({known[0].axes}). Save the {len(guessed)} volumes without it with their affine, e.g."
            " nibabel.Nifti1Image(data, affine)"
        )
    if guessed:
        log.warning("no volume has a sform or qform: their axes are taken as %s, alike in all folders", guessed[0].axes)
    for name, one in sets.items():
        if doubtful := [found for found in one if found.warning and found.oriented]:
            log.warning(
                "%s: the headers of %d of %d volumes are doubtful, such as %s: %s",
                name, len(doubtful), len(one), doubtful[0].path, doubtful[0].warning,
            )  # fmt: skip
        angles = [found.oblique for found in one if found.oblique > OBLIQUE]
        if angles:
            log.warning(
                "%s: %d of %d volumes are oblique, by up to %.0f°; axes go to the nearest of R, A, S, the rotation stays",
                name, len(angles), len(one), max(angles),
            )  # fmt: skip


def _tell_brightness(sets: Mapping[str, Sequence[Found]], upper: float) -> None:
    """Tell of folders whose brains are brighter than another's: of one range, but perhaps not scaled alike."""
    bright = {name: float(np.median([found.brain_high for found in one])) / upper for name, one in sets.items()}
    if max(bright.values()) > BRIGHTER * min(bright.values()):
        told = ", ".join(f"{value:.2f} ({name})" for name, value in bright.items())
        log.warning(
            "the brains' %sth percentile is %s of the range in the median: a difference that every figure sees. If the"
            " folders were scaled differently, pass `--intensity percentile`", PERCENTILE, told,
        )  # fmt: skip


def _rounded_up(sides: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (MULTIPLE * math.ceil(side / MULTIPLE) for side in sides)
    return x, y, z
