"""Features of volumes, cached by the volume's hash and the extractor's key, and gathered as the rows of a set of scans."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from neuromf.evaluation.extractors.base import Extractor, Identity
from neuromf.tensors import TensorError, load_tensors, save_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """Feature rows of N scans, one scan after the other: values (R, F) and how many rows each scan has, counts (N,).

    A volume's features are one row; of slices there are several, and they are resampled together.
    """

    values: NDArray[np.floating]
    counts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def starts(self) -> NDArray[np.int64]:
        """The first row of each scan, (N,)."""
        return np.cumsum(self.counts) - self.counts

    def of_scans(self, chosen: ArrayLike) -> Rows:
        """Return the rows of some scans, given by their numbers."""
        scans = np.asarray(chosen, dtype=np.int64)
        starts = self.starts
        index = [np.arange(starts[i], starts[i] + self.counts[i]) for i in scans]
        return Rows(self.values[np.concatenate(index) if index else []], self.counts[scans])


def one_row_each(values: ArrayLike) -> Rows:
    """Return features (N, F) as the rows of N scans."""
    array = np.asarray(values)
    if array.ndim != 2:
        raise ValueError(f"features must be (n, F) with one F; got {array.shape}")
    return Rows(array, np.ones(len(array), dtype=np.int64))


def rows_of(features: Iterable[NDArray[np.floating]]) -> Rows:
    """Return the features (S, F) of several scans as their rows."""
    every = list(features)
    return Rows(np.concatenate(every), np.array([len(one) for one in every], dtype=np.int64))


def cached_features(
    volume: NDArray[np.floating], sha256: str, extractor: Extractor, cache: Path, voxel_mm: float
) -> dict[str, NDArray[np.float32]]:
    """Return the features (S, F) per region of a volume (D, H, W) in [0, 1], from the cache when they are there.

    They lie in ``cache/<extractor>-<key>/<sha256>.safetensors``, ``sha256`` standing for the volume (`array_sha256`, or the
    hash of its file). Work that was interrupted goes on with the first volume that has no file.
    """
    path = cache_file(cache, extractor, sha256)
    if path.is_file():
        try:
            return {region: values.numpy() for region, values in load_tensors(path)[0].items()}
        except TensorError as error:
            log.warning("%s: computed again", error)
    with torch.no_grad():
        computed = extractor.compute(torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32)), voxel_mm)
    features = {region: values.to(torch.float32).cpu().clone() for region, values in computed.items()}
    save_tensors(path, features)
    return {region: values.numpy() for region, values in features.items()}


def gather(cache: Path, extractor: Identity, hashes: Sequence[str], region: str) -> Rows:
    """Return the cached rows of scans, given by their volumes' hashes, in one region; other regions stay on disk.

    Raises:
        TensorError: a scan's features are not in the cache, or damaged.
    """

    def read(sha256: str) -> NDArray[np.floating]:
        return load_tensors(cache_file(cache, extractor, sha256), [region])[0][region].numpy()

    if not hashes:
        return one_row_each(np.zeros((0, 0), dtype=np.float32))
    return rows_of(read(sha256) for sha256 in hashes)


def cached_regions(cache: Path, extractor: Identity, sha256: str) -> list[str]:
    """Return the regions that an extractor has rows for, from one scan's cached features.

    Raises:
        TensorError: they are not in the cache, or damaged.
    """
    return sorted(load_tensors(cache_file(cache, extractor, sha256))[0])


def array_sha256(volume: NDArray[np.floating]) -> str:
    """Return the hash of a volume that is no file: of its shape and its values in single precision."""
    values = np.ascontiguousarray(volume, dtype="<f4")
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()


def cache_file(cache: Path, extractor: Identity, sha256: str) -> Path:
    """Return where the features of a volume lie."""
    return cache / f"{extractor.name}-{extractor.key[:16]}" / f"{sha256}.safetensors"
