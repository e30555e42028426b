"""Latents on disk as a data set: one safetensors file per shard, read through a memory map, one tensor per scan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from neuromf.tables import ReleaseRow

_ANEW = "remove it and run again: the workflow encodes the damaged latents anew"


class LatentError(ValueError):
    """Latents that cannot be used; the message names the file, the scan and the remedy."""


class LatentStore(Dataset[Tensor]):
    """The latents of chosen scans, in the order of ``scan_ids``; item i is a float32 posterior mean (C, D, H, W).

    Only the files' headers are read at first and every item is read when asked for, so memory does not grow with the
    number of scans. The first time an item is read, its bytes are compared with the hash in the header. All files must come
    from the same codec weights and hold latents of the same shape.

    Args:
        paths: safetensors files of shards.
        scan_ids: the scans wanted, each once; None: every scan of every file.

    Raises:
        LatentError: a missing or unreadable file, a scan in none or in two of the files, or files of different codecs;
            when an item is read: one that was damaged after it was encoded.

    Example:
        >>> store = LatentStore(sorted(folder.glob("shard-*.safetensors")), ["sub-01_T1w"])  # doctest: +SKIP
        >>> store[0].shape, store.metadata["codec"]  # doctest: +SKIP
        (torch.Size([4, 16, 16, 16]), 'demo')
    """

    def __init__(self, paths: Iterable[Path], scan_ids: Sequence[str] | None = None) -> None:
        self.metadata: dict[str, Any] = {}
        places: dict[str, Path] = {}
        for path in map(Path, paths):
            for key in self._add(path):
                if key in places and (scan_ids is None or key in scan_ids):
                    raise LatentError(
                        f"{key} is in {places[key]} and in {path}; use LatentStore.of_release for two cohorts"
                    )
                places[key] = path
        self.scan_ids = list(places) if scan_ids is None else list(scan_ids)
        if missing := [key for key in self.scan_ids if key not in places]:
            raise LatentError(
                f"no latent of {', '.join(missing[:3])} ({len(missing)} scans missing); encode their cohort"
            )
        self._places = [places[key] for key in self.scan_ids]
        self._files: dict[Path, Any] = {}
        self._intact: set[int] = set()

    @classmethod
    def of_release(cls, rows: Iterable[ReleaseRow], cohorts: Path, codec: str) -> LatentStore:
        """Return the latents of a release's rows, whose scans lie in ``cohorts``/<cohort>/latents/<codec>.

        Raises:
            LatentError: as the constructor.
        """
        wanted: dict[str, list[str]] = {}
        for row in rows:
            wanted.setdefault(row.cohort, []).append(row.scan_id)
        folders = {cohort: cohorts / cohort / "latents" / codec for cohort in wanted}
        parts = [cls(sorted(folders[c].glob("shard-*.safetensors")), scans) for c, scans in wanted.items()]
        return cls.joined(parts)

    @classmethod
    def joined(cls, stores: Sequence[LatentStore]) -> LatentStore:
        """Return one data set of several, in their order; scans of two cohorts may have the same name.

        Raises:
            LatentError: stores of different codecs or shapes.
        """
        joined = cls([])
        for store in stores:
            for path in dict.fromkeys(store._places):
                joined._add(path)
            joined.scan_ids += store.scan_ids
            joined._places += store._places
        return joined

    def __len__(self) -> int:
        return len(self.scan_ids)

    def __getitem__(self, index: int) -> Tensor:
        path, scan_id = self._places[index], self.scan_ids[index]
        try:
            if path not in self._files:
                self._files[path] = safe_open(path, framework="pt")
            latent = self._files[path].get_tensor(scan_id)
        except (SafetensorError, OSError) as error:
            raise LatentError(f"{path}: {scan_id} cannot be read ({error}); {_ANEW}") from None
        if index not in self._intact:
            if tensor_sha256(latent) != read_header(path)[0]["scans"][scan_id]["sha256"]:
                raise LatentError(f"{path}: {scan_id} is not what was encoded, the file was damaged; {_ANEW}")
            self._intact.add(index)
        return latent.to(torch.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one latent, (C, D, H, W)."""
        return tuple(self.metadata["shape"])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}  # maps are opened anew in each worker process

    def _add(self, path: Path) -> list[str]:
        """Check that a file agrees with those before it; return its scans."""
        metadata, keys = read_header(path)
        for key in ("weights_sha256", "shape") if keys and self.metadata else ():
            if metadata[key] != self.metadata[key]:
                raise LatentError(
                    f"{path}: {key} is {metadata[key]}, in the other latents {self.metadata[key]}; encode again"
                )
        if keys and not self.metadata:
            self.metadata = metadata
        return keys


def read_header(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return a shard's metadata (codec, weights_sha256, shape, voxel_size_mm, scans) and the scans it holds.

    Raises:
        LatentError: a missing or unreadable file, or one that is no shard of latents.
    """
    if not path.is_file():
        raise LatentError(f"{path} does not exist; run the rule encode")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            keys = list(file.keys())
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise LatentError(f"{path} is no readable shard of latents ({error}); {_ANEW}") from None
    if missing := {"codec", "weights_sha256", "shape", "voxel_size_mm", "scans"} - set(metadata):
        raise LatentError(f"{path}: its header lacks {', '.join(sorted(missing))}; it is no shard of latents")
    if keys and not (
        _is_list(metadata["shape"], int, 4)
        and _is_list(metadata["voxel_size_mm"], int | float, 3)
        and isinstance(metadata["scans"], dict)
        and all(_is_scan(metadata["scans"].get(key)) for key in keys)
    ):
        raise LatentError(f"{path}: its header is damaged; {_ANEW}")
    return metadata, keys


def tensor_sha256(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes."""
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _is_list(value: Any, kind: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(isinstance(one, kind) for one in value)


def _is_scan(about: Any) -> bool:
    return isinstance(about, dict) and all(isinstance(about.get(key), str) for key in ("key", "sha256"))
