"""What a segmenter is and what it gives: labels, regional volumes and quality scores of one brain, cached by its hash."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from neuromf.evaluation.morphometry.atlas import Atlas
from neuromf.evaluation.morphometry.hemispheres import left_half
from neuromf.tables import content_hash, file_sha256, read_json, write_json
from neuromf.volume import read_labels, read_volume, to_ras, voxel_sizes, write_volume

READ = "upright"  # how segmenters see a volume; part of what a cached result depends on


@dataclass(frozen=True)
class Segmentation:
    """The regions of one brain.

    Attributes:
        labels: (X, Y, Z), on a grid that depends on the input's grid only; 0 is background.
        volumes: region → ml, both sides together.
        sides: paired region → (left, right) in ml.
        quality: the segmenter's own scores, 0 (bad) to 1; empty where it gives none.
    """

    labels: nib.Nifti1Image
    volumes: Mapping[str, float]
    sides: Mapping[str, tuple[float, float]]
    quality: Mapping[str, float]


@dataclass(frozen=True)
class Scan:
    """One brain to segment: ``sha256`` stands for the volume that ``read`` gives."""

    id: str
    sha256: str
    read: Callable[[], nib.Nifti1Image]


@dataclass(frozen=True)
class Segmenter:
    """A way to segment a brain. ``key`` (weights or program, and rule) decides whether cached results are still valid."""

    name: str
    key: str
    atlas: Atlas
    compute: Callable[[nib.Nifti1Image], Segmentation]

    def stem(self, cache: Path, sha256: str) -> Path:
        """Return where the results of a volume are cached, without the suffix."""
        key = content_hash({"segmenter": self.key, "read": READ})
        return cache / f"{self.name}-{key[:16]}" / sha256


def upright(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return a volume with its axes along R, A and S and its centre at 0 mm.

    Preprocessing keeps the slabs of an oblique scan and a generator imitates them, but generated volumes have no rotation
    in their affine: were it kept, real labels would be turned to the world's axes and generated ones not.
    """
    image = to_ras(image)
    affine = np.diag([*voxel_sizes(image.affine), 1.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(image.shape) - 1) / 2
    return nib.Nifti1Image(image.dataobj, affine)


def mirrored(labels: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return label volumes (X, Y, Z) of an `upright` volume as those of its mirror image: left and right swapped about 0 mm.

    Voxels go to the nearest; what comes from outside the grid is background.
    """
    axis = next(axis for axis, name in enumerate(nib.aff2axcodes(labels.affine)) if name in "LR")
    values, step, first = np.asarray(labels.dataobj), labels.affine[0, axis], labels.affine[0, 3]
    source = np.rint(-2 * first / step - np.arange(values.shape[axis])).astype(int)
    inside = (source >= 0) & (source < values.shape[axis])
    flipped = np.take(values, source.clip(0, values.shape[axis] - 1), axis)
    flipped[(slice(None),) * axis + (~inside,)] = 0
    return nib.Nifti1Image(flipped, labels.affine)


def measure_labels(labels: nib.Nifti1Image, atlas: Atlas) -> Segmentation:
    """Return the segmentation of a label image (X, Y, Z): voxels counted per region, and on each side of the brain.

    The sides are those of `left_half`, whatever the labels: for atlases that do not tell left from right.
    """
    values = np.asarray(labels.dataobj).astype(np.int64)
    voxel_ml = abs(float(np.linalg.det(labels.affine[:3, :3]))) / 1000
    left = left_half(nib.Nifti1Image((values > 0).astype(np.uint8), labels.affine))
    size = 1 + max(int(values.max()), *(label for known in atlas.regions.values() for label in known))
    total, lefts = np.bincount(values.ravel(), minlength=size), np.bincount(values[left], minlength=size)
    volumes = {region: float(total[list(known)].sum() * voxel_ml) for region, known in atlas.regions.items()}
    sides = {}
    for region in atlas.paired:
        known = list(atlas.regions[region])
        sides[region] = (float(lefts[known].sum() * voxel_ml), float((total - lefts)[known].sum() * voxel_ml))
    return Segmentation(labels, volumes, sides, {})


def file_scans(files: Mapping[str, Path]) -> list[Scan]:
    """Return volume files (scan id → path) as scans to segment."""
    return [Scan(scan_id, file_sha256(path), partial(read_volume, path)) for scan_id, path in files.items()]


def segment_scan(scan: Scan, segmenter: Segmenter, cache: Path) -> Segmentation:
    """Return the segmentation of a volume, from the cache when it is there.

    The segmenter sees it `upright`. It lies in ``cache/<segmenter>-<key>/<sha256>`` as ``.nii.gz`` (labels) and ``.json``
    (figures, written last), so an interrupted series goes on where it stopped. Damaged entries are computed again.

    Raises:
        VolumeError: the volume cannot be read or segmented.
    """
    stem = segmenter.stem(cache, scan.sha256)
    found = _read(stem)
    if found is not None:
        return found
    result = segmenter.compute(upright(scan.read()))
    kind = np.uint8 if np.asarray(result.labels.dataobj).max() < 256 else np.int16
    write_volume(labels_path(stem), np.asarray(result.labels.dataobj).astype(kind), result.labels.affine, kind)
    write_json(
        stem.with_name(f"{stem.name}.json"),
        {"volumes_ml": dict(result.volumes), "sides_ml": dict(result.sides), "quality": dict(result.quality)},
    )
    return result


def labels_path(stem: Path) -> Path:
    """Return the file of a cached segmentation's labels."""
    return stem.with_name(f"{stem.name}.nii.gz")


def _read(stem: Path) -> Segmentation | None:
    try:
        figures = read_json(stem.with_name(f"{stem.name}.json"), "volumes_ml", "sides_ml", "quality")
        labels = read_labels(labels_path(stem))
        sides = {region: (float(left), float(right)) for region, (left, right) in figures["sides_ml"].items()}
        return Segmentation(labels, figures["volumes_ml"], sides, figures["quality"])
    except (ValueError, TypeError, AttributeError):  # none, or damaged: computed again
        return None
