"""What evaluation keeps of each volume: features, thumbnail, tissue volumes and spectrum, from one pass over the files.

A volume is read, described and forgotten, so memory grows by some 190 kB per volume whatever its size; the features of
slices stay in the cache until one plane of them is compared.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from neuromf.evaluation.extractors.registry import CODEC, VOLUME, Extractor
from neuromf.evaluation.features import Rows, cached_features
from neuromf.evaluation.memorisation import thumbnail
from neuromf.evaluation.morphometry import TISSUES, tissue_volumes
from neuromf.evaluation.spectrum import radial_energy
from neuromf.tables import SPLITS, content_hash, file_sha256
from neuromf.tensors import TensorError, load_tensors, save_tensors
from neuromf.volume import read_volume, voxel_sizes

log = logging.getLogger(__name__)

ARRAYS = (
    "features",
    "mirrored_features",
    "thumbnails",
    "tissues",
    "spectra",
)  # of a ScanSet, in its order after ids and hashes


class EvaluationError(ValueError):
    """Volumes that cannot be compared; the message names the file, what is wrong and the remedy."""


@dataclass(frozen=True)
class Grid:
    """The grid that all volumes of a comparison share: shape, isotropic voxel size, RAS."""

    shape: tuple[int, int, int]
    voxel_mm: float


@dataclass(frozen=True)
class ScanSet:
    """Descriptions of N volumes: their hashes, by which extractors' features are found in the cache, features of the codec
    that copies are looked for with, of the volumes and of their mirror images, both (N, F) (F = 0 without a codec),
    thumbnails (N, x, y, z), tissue volumes in ml (N, 5), energy by shell of spatial frequencies (N, S)."""

    ids: tuple[str, ...]
    hashes: tuple[str, ...]
    features: NDArray[np.floating]
    mirrored_features: NDArray[np.floating]
    thumbnails: NDArray[np.floating]
    tissues: NDArray[np.floating]
    spectra: NDArray[np.floating]

    def __len__(self) -> int:
        return len(self.ids)

    def compared(self, most: int) -> list[str]:
        """Return the hashes of the volumes whose features are `compared`."""
        return [self.hashes[row] for row in compared(self.ids, most)]

    def take(self, rows: Sequence[int]) -> ScanSet:
        """Return the volumes of some rows."""
        ids, hashes = (tuple(one[row] for row in rows) for one in (self.ids, self.hashes))
        return ScanSet(ids, hashes, *(getattr(self, name)[list(rows)] for name in ARRAYS))

    def tissue(self, name: str) -> NDArray[np.floating]:
        """Return one tissue's volumes (N,) in ml; ``name`` is one of `TISSUES`."""
        return self.tissues[:, TISSUES.index(name)]


@dataclass(frozen=True)
class Reference:
    """The real scans of a release by split, the grid they lie on, the keys of the extractors that described them, and the
    test split's rows of each extractor and region.

    Beside the splits, ``reconstruction`` holds held-out scans through the codec.
    """

    splits: dict[str, ScanSet]
    grid: Grid
    keys: dict[str, str]
    test_rows: dict[str, dict[str, Rows]]

    @property
    def every(self) -> ScanSet:
        """All real scans of the release."""
        return join(self.splits[split] for split in SPLITS)

    @property
    def held_out(self) -> ScanSet:
        """The scans no model was trained on: validation and test."""
        return join(self.splits[split] for split in SPLITS if split != "train")


def describe(
    scan_id: str,
    volume: NDArray[np.floating],
    sha256: str,
    extractors: Sequence[Extractor],
    cache: Path,
    grid: Grid,
) -> ScanSet:
    """Return the description of one volume (D, H, W) in [0, 1], after its features are in the cache.

    The codec's features are taken of the mirror image too: a latent that is flipped is not that of the flipped volume.
    """
    features = mirrored = np.zeros((1, 0), dtype=np.float32)
    for extractor in extractors:
        found = cached_features(volume, sha256, extractor, cache, grid.voxel_mm)
        if extractor.name == CODEC:
            features = found[VOLUME]
            mirrored = cached_features(volume[::-1], f"{sha256}-mirrored", extractor, cache, grid.voxel_mm)[VOLUME]
    tissues = tissue_volumes(volume, grid.voxel_mm).as_array()
    arrays = (features, mirrored, thumbnail(volume)[None], tissues[None], radial_energy(volume)[None])
    return ScanSet((scan_id,), (sha256,), *arrays)


def compared(ids: Sequence[str], most: int) -> list[int]:
    """Return which volumes (rows) have features that are compared: all, or the ``most`` whose names have the lowest hashes.

    So all runs compare the same samples, and a cohort that grows mostly the same scans.
    """
    return sorted(sorted(range(len(ids)), key=lambda row: content_hash(ids[row]))[:most])


def extractors_of(ids: Sequence[str], extractors: Sequence[Extractor], most: int) -> Iterator[Sequence[Extractor]]:
    """Yield what describes each volume: every extractor where it is `compared`, else the codec's, to search for copies."""
    if 0 < most < len(ids):
        log.warning("of %d volumes the features of %d are compared (evaluate.compared)", len(ids), most)
    chosen = set(compared(ids, most))
    codec = [extractor for extractor in extractors if extractor.name == CODEC]
    for row in range(len(ids)):
        yield extractors if row in chosen else codec


def describe_files(
    files: Mapping[str, Path], extractors: Sequence[Extractor], cache: Path, grid: Grid, *, label: str, most: int
) -> ScanSet:
    """Return the descriptions of volume files (scan id → path), in their order; of the ``most`` compared by all extractors.

    Raises:
        EvaluationError: a volume lies on another grid, or there is none.
        VolumeError: a volume cannot be read.
    """
    if not files:
        raise EvaluationError(f"{label}: no volumes to evaluate")
    described = []
    every = extractors_of(list(files), extractors, most)
    for (scan_id, path), own in zip(tqdm(files.items(), desc=label, unit="volume"), every, strict=True):
        volume = np.asarray(read_on_grid(path, grid).dataobj, dtype=np.float32)
        described.append(describe(scan_id, volume, file_sha256(path), own, cache, grid))
    return join(described)


def sample_files(folder: Path) -> dict[str, Path]:
    """Return the generated volumes of a folder, scan id → path.

    Raises:
        EvaluationError: there is none.
    """
    files = {path.name.removesuffix(".nii.gz"): path for path in sorted(folder.glob("sub-*.nii.gz"))}
    if not files:
        raise EvaluationError(f"{folder} holds no sub-*.nii.gz; decode the samples first")
    return files


def join(sets: Iterable[ScanSet]) -> ScanSet:
    """Return several sets as one, in their order."""
    parts = list(sets)
    return ScanSet(
        tuple(scan_id for part in parts for scan_id in part.ids),
        tuple(sha256 for part in parts for sha256 in part.hashes),
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS),
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
    """Write the descriptions of a release's real scans, and the rows of its test split, as safetensors."""
    tensors = {}
    for split, scans in reference.splits.items():
        for name in ARRAYS:
            tensors[f"{split}/{name}"] = _tensor(getattr(scans, name))
    for extractor, regions in reference.test_rows.items():
        for region, rows in regions.items():
            tensors[f"rows/{extractor}/{region}/values"] = _tensor(rows.values)
            tensors[f"rows/{extractor}/{region}/counts"] = _tensor(rows.counts)
    about = {
        "ids": {split: scans.ids for split, scans in reference.splits.items()},
        "hashes": {split: scans.hashes for split, scans in reference.splits.items()},
        "shape": reference.grid.shape,
        "voxel_mm": reference.grid.voxel_mm,
        "keys": reference.keys,
        "regions": {extractor: list(regions) for extractor, regions in reference.test_rows.items()},
    }
    save_tensors(path, tensors, {"reference": json.dumps(about)})


def read_reference(path: Path, extractors: Sequence[Extractor]) -> Reference:
    """Read the descriptions of a release's real scans.

    Raises:
        EvaluationError: the file is missing, damaged or was made with other extractors, weights or another codec.
    """
    if not path.is_file():
        raise EvaluationError(f"{path} does not exist; evaluate the release's real scans first")
    try:
        tensors, metadata = load_tensors(path)
        about = json.loads(metadata["reference"])
    except (TensorError, KeyError) as error:
        raise EvaluationError(f"{error}; remove it and evaluate the release's real scans again") from None
    arrays = {name: value.numpy() for name, value in tensors.items()}
    for extractor in extractors:
        if about["keys"].get(extractor.name) != extractor.key:
            what = "another codec" if extractor.name == CODEC else f"another extractor {extractor.name} or without it"
            raise EvaluationError(f"{path} was made with {what}; evaluate the release's real scans again")
    splits = {
        split: ScanSet(tuple(ids), tuple(about["hashes"][split]), *(arrays[f"{split}/{name}"] for name in ARRAYS))
        for split, ids in about["ids"].items()
    }
    rows = {
        name: {
            region: Rows(*(arrays[f"rows/{name}/{region}/{part}"] for part in ("values", "counts")))
            for region in regions
        }
        for name, regions in about["regions"].items()
    }
    return Reference(splits, Grid(tuple(about["shape"]), about["voxel_mm"]), about["keys"], rows)


def _tensor(array: NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.array(array))  # a copy: safetensors refuses tensors that share memory
