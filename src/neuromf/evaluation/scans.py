"""What evaluation keeps of each volume: features, thumbnail, tissue volumes and spectrum, from one pass over the files.

A volume is read, described and forgotten, so memory grows by some 70 kB per volume whatever its size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from neuromf.evaluation.features import Extractor, cached_features
from neuromf.evaluation.memorisation import thumbnail
from neuromf.evaluation.morphometry import TISSUES, tissue_volumes
from neuromf.evaluation.spectrum import radial_energy
from neuromf.tables import SPLITS, atomic_path, file_sha256
from neuromf.volume import read_volume, voxel_sizes

_ARRAYS = ("features", "thumbnails", "tissues", "spectra")  # of a ScanSet, in its order


class EvaluationError(ValueError):
    """Volumes that cannot be compared; the message names the file, what is wrong and the remedy."""


@dataclass(frozen=True)
class Grid:
    """The grid that all volumes of a comparison share: shape, isotropic voxel size, RAS."""

    shape: tuple[int, int, int]
    voxel_mm: float


@dataclass(frozen=True)
class ScanSet:
    """Descriptions of N volumes: features (N, F), thumbnails (N, x, y, z), tissue volumes in ml (N, 5), energy by shell
    of spatial frequencies (N, S)."""

    ids: tuple[str, ...]
    features: NDArray[np.floating]
    thumbnails: NDArray[np.floating]
    tissues: NDArray[np.floating]
    spectra: NDArray[np.floating]

    def __len__(self) -> int:
        return len(self.ids)

    def tissue(self, name: str) -> NDArray[np.floating]:
        """Return one tissue's volumes (N,) in ml; ``name`` is one of `TISSUES`."""
        return self.tissues[:, TISSUES.index(name)]


@dataclass(frozen=True)
class Reference:
    """The real scans of a release by split, the grid they lie on and the extractor that described them.

    Beside the splits, ``reconstruction`` holds held-out scans through the codec.
    """

    splits: dict[str, ScanSet]
    grid: Grid
    extractor: str
    extractor_key: str

    @property
    def every(self) -> ScanSet:
        """All real scans of the release."""
        return join(self.splits[split] for split in SPLITS)

    @property
    def held_out(self) -> ScanSet:
        """The scans no model was trained on: validation and test."""
        return join(self.splits[split] for split in SPLITS if split != "train")


def describe(scan_id: str, volume: NDArray[np.floating], grid: Grid, features: NDArray[np.floating]) -> ScanSet:
    """Return the description of one volume."""
    tissues = tissue_volumes(volume, grid.voxel_mm).as_array()
    return ScanSet((scan_id,), features[None], thumbnail(volume)[None], tissues[None], radial_energy(volume)[None])


def describe_files(files: Mapping[str, Path], extractor: Extractor, cache: Path, grid: Grid, *, label: str) -> ScanSet:
    """Return the descriptions of volume files (scan id → path), in their order.

    Raises:
        EvaluationError: a volume lies on another grid, or there is none.
        VolumeError: a volume cannot be read.
    """
    if not files:
        raise EvaluationError(f"{label}: no volumes to evaluate")
    described = []
    for scan_id, path in tqdm(files.items(), desc=label, unit="volume"):
        volume = np.asarray(read_on_grid(path, grid).dataobj, dtype=np.float32)
        features = cached_features(volume, file_sha256(path), extractor, cache)
        described.append(describe(scan_id, volume, grid, features))
    return join(described)


def join(sets: Iterable[ScanSet]) -> ScanSet:
    """Return several sets as one, in their order."""
    parts = list(sets)
    return ScanSet(
        tuple(scan_id for part in parts for scan_id in part.ids),
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.thumbnails for part in parts]),
        np.concatenate([part.tissues for part in parts]),
        np.concatenate([part.spectra for part in parts]),
    )


def grid_of(path: Path) -> Grid:
    """Return the grid of a volume.

    Raises:
        EvaluationError: it is not RAS or its voxels are no cubes.
    """
    image = read_volume(path)
    sizes, axes = voxel_sizes(image.affine), "".join(nib.aff2axcodes(image.affine))
    if axes != "RAS" or np.ptp(sizes) > 1e-3 * sizes.max():
        raise EvaluationError(f"{path} is {axes} with voxels of {sizes.round(4)} mm; conform it first (RAS, isotropic)")
    x, y, z = image.shape
    return Grid((x, y, z), round(float(sizes.mean()), 4))


def read_on_grid(path: Path, grid: Grid) -> nib.Nifti1Image:
    """Read a volume that lies on ``grid`` (its origin is its own).

    Raises:
        EvaluationError: it lies on another grid.
        VolumeError: it cannot be read.
    """
    image = read_volume(path)
    sizes, axes = voxel_sizes(image.affine), "".join(nib.aff2axcodes(image.affine))
    if image.shape != grid.shape or axes != "RAS" or np.abs(sizes - grid.voxel_mm).max() > 1e-3 * grid.voxel_mm:
        raise EvaluationError(
            f"{path} has {image.shape} voxels of {sizes.round(4)} mm in {axes}, the release's scans have {grid.shape} of"
            f" {grid.voxel_mm} mm in RAS; preprocess or generate it with the release's settings"
        )
    return image


def write_reference(path: Path, reference: Reference) -> None:
    """Write the descriptions of a release's real scans as safetensors."""
    tensors = {}
    for split, scans in reference.splits.items():
        for name in _ARRAYS:
            tensors[f"{split}/{name}"] = np.ascontiguousarray(getattr(scans, name))
    about = {
        "ids": {split: scans.ids for split, scans in reference.splits.items()},
        "shape": reference.grid.shape,
        "voxel_mm": reference.grid.voxel_mm,
        "extractor": reference.extractor,
        "extractor_key": reference.extractor_key,
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"reference": json.dumps(about)})


def read_reference(path: Path, extractor: Extractor) -> Reference:
    """Read the descriptions of a release's real scans.

    Raises:
        EvaluationError: the file is missing or was made with another extractor or codec.
    """
    if not path.is_file():
        raise EvaluationError(f"{path} does not exist; evaluate the release's real scans first")
    with safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["reference"])
        if about["extractor_key"] != extractor.key:
            raise EvaluationError(f"{path} was made with another codec; evaluate the release's real scans again")
        splits = {
            split: ScanSet(tuple(ids), *(file.get_tensor(f"{split}/{name}") for name in _ARRAYS))
            for split, ids in about["ids"].items()
        }
    grid = Grid(tuple(about["shape"]), about["voxel_mm"])
    return Reference(splits, grid, about["extractor"], about["extractor_key"])
