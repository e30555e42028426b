"""Preprocessed volumes → latents: one safetensors file per shard, one tensor (the posterior mean) per scan."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tqdm import tqdm

from neuromf.codec.maisi import FrozenCodec
from neuromf.latents.store import LatentError, read_header, tensor_sha256
from neuromf.shards import Failure, check_intact, failure
from neuromf.tables import (
    ManifestRow,
    Scan,
    StorageError,
    atomic_path,
    content_hash,
    file_sha256,
    read_manifest,
    write_manifest,
)
from neuromf.volume import read_volume

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """One scan's latent (C, D, H, W), what decided it, and the voxel size of its volume in mm."""

    latent: torch.Tensor
    key: str
    sha256: str  # of the latent's bytes
    voxel_size_mm: tuple[float, ...]


def encode_shard(
    scans: Sequence[Scan], upstream: Path, manifest: Path, latents: Path, codec: FrozenCodec, *, code: str
) -> tuple[ManifestRow, ...]:
    """Encode the scans of one shard and write ``latents`` (safetensors) and ``manifest``.

    A scan whose volume, codec weights and code are as before keeps the latent it has. Snakemake deletes a job's
    declared outputs before it runs again, so the finished shard has a second, hidden name (a hard link, which takes no
    space) and the scans of an unfinished one lie in a hidden folder beside it until the shard is whole.

    Args:
        scans: the shard's scans, in order.
        upstream: manifest of the stage conform; a scan that failed there is a failed row here, with its reason.
        manifest: where this stage's manifest goes. ``file`` of a row is the shard; ``bytes`` and ``sha256`` are those
            of the scan's own tensor in it.
        latents: where the shard goes; its header holds codec, weights_sha256, shape, voxel_size_mm and each scan's key.
        codec: the frozen VAE.
        code: hash of the code that encodes.

    Returns:
        One row per scan with its latent's mean and standard deviation.

    Raises:
        ShardError: a volume is not what conform wrote.
        StorageError: the disk is full or cannot be written.
    """
    before = {row.scan_id: row for row in read_manifest(upstream)}
    kept = _read_shard(_second_name(latents)) or _read_shard(latents)
    parts = latents.with_name(f".{latents.stem}.parts")
    encoded: dict[str, Encoded] = {}
    failed: dict[str, ManifestRow] = {}
    for scan in tqdm(scans, desc=f"encode {latents.stem}", unit="scan"):
        row = before.get(scan.scan_id)
        if row is None or not row.ok:
            reason = row.reason if row else f"{upstream} has no row of this scan; run conform again"
            failed[scan.scan_id] = Failure(reason).row(scan.scan_id, "")
            continue
        try:
            encoded[scan.scan_id] = _one(row, upstream.parent / row.file, kept, parts, codec, code)
            _check_grid(encoded, scan.scan_id)
        except (ValueError, OSError, MemoryError) as error:
            encoded.pop(scan.scan_id, None)
            why = failure(error)
            if isinstance(error, StorageError) or not (why.final or why.transient):
                raise
            failed[scan.scan_id] = why.row(scan.scan_id, "")
            log.warning("encode: %s failed: %s", scan.scan_id, failed[scan.scan_id].reason)
    _write_shard(latents, encoded, codec)
    file = os.path.relpath(latents, manifest.parent)
    rows = tuple(
        _row(scan.scan_id, encoded[scan.scan_id], file) if scan.scan_id in encoded else failed[scan.scan_id]
        for scan in scans
    )
    write_manifest(manifest, rows)
    shutil.rmtree(parts, ignore_errors=True)
    return rows


def _one(
    row: ManifestRow, volume: Path, kept: dict[str, Encoded], parts: Path, codec: FrozenCodec, code: str
) -> Encoded:
    """Return a scan's latent: the one there is, if nothing changed, or a new one, kept until the shard is whole.

    Raises:
        ShardError: the volume is not what conform wrote.
        VolumeError: the volume cannot be read.
        LatentError: the latent is not finite.
    """
    scan_id = row.scan_id
    key = content_hash([row.sha256, codec.sha256, code])
    part = parts / f"{scan_id}.safetensors"
    done = [old[scan_id] for old in (kept, _read_shard(part)) if scan_id in old and old[scan_id].key == key]
    try:
        check_intact(volume, row, file_sha256(volume) if volume.is_file() else "none")
    except OSError as error:
        if done and failure(error).transient:  # the latent of the volume that conform wrote, which cannot be read today
            log.warning("encode: %s cannot be read (%s); its latent stays", volume, error)
            return done[0]
        raise
    if done:
        return done[0]
    image = read_volume(volume)
    tensor = torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))[None, None]
    latent = codec.encode(tensor)[0].contiguous()
    if not torch.isfinite(latent).all():
        raise LatentError(f"{volume}: the latent is not finite; check the codec's weights ({codec.settings.weights})")
    voxel = tuple(round(float(size), 6) for size in image.header.get_zooms()[:3])
    result = Encoded(latent, key, tensor_sha256(latent), voxel)
    _write(part, {scan_id: result}, codec)
    return result


def _check_grid(encoded: dict[str, Encoded], scan_id: str) -> None:
    """Refuse a scan whose grid is not that of the shard's first."""
    first, this = next(iter(encoded.values())), encoded[scan_id]
    if this.latent.shape != first.latent.shape or not np.allclose(this.voxel_size_mm, first.voxel_size_mm, atol=1e-3):
        grids = [f"{tuple(e.latent.shape)} of {e.voxel_size_mm} mm voxels" for e in (this, first)]
        raise LatentError(f"{scan_id}: its latent is {grids[0]}, the shard's others are {grids[1]}; run conform again")


def _row(scan_id: str, encoded: Encoded, file: str) -> ManifestRow:
    latent = encoded.latent
    figures: dict[str, float | str] = {"latent_mean": float(latent.mean()), "latent_std": float(latent.std())}
    size = latent.numel() * latent.element_size()
    return ManifestRow(scan_id, "ok", "", file, size, encoded.sha256, encoded.key, figures)


# --- files ----------------------------------------------------------------------------------------------------------


def _write_shard(path: Path, encoded: dict[str, Encoded], codec: FrozenCodec) -> None:
    _write(path, encoded, codec)
    second = _second_name(path)
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # a file system without hard links: a shard that is run again is encoded again as a whole
        log.info("%s: no hard link possible; a later run cannot reuse this shard's latents", path)


def _write(path: Path, encoded: dict[str, Encoded], codec: FrozenCodec) -> None:
    """Write a shard, or the part of one scan, atomically."""
    first = next(iter(encoded.values()), None)
    metadata = {
        "codec": codec.settings.name,
        "weights_sha256": codec.sha256,
        "shape": list(first.latent.shape) if first else None,
        "voxel_size_mm": first.voxel_size_mm if first else None,
        "scans": {scan_id: {"key": one.key, "sha256": one.sha256} for scan_id, one in encoded.items()},
    }
    tensors = {scan_id: one.latent for scan_id, one in encoded.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, {key: json.dumps(value) for key, value in metadata.items()}))


def _read_shard(path: Path) -> dict[str, Encoded]:
    """Return the intact latents of a shard or part; none of a file that is missing or damaged."""
    if not path.is_file():
        return {}
    try:
        metadata, _ = read_header(path)
        tensors = load_file(path)
    except (LatentError, SafetensorError, OSError) as error:
        log.warning("%s is not used again: %s", path, error)
        return {}
    voxel = tuple(metadata["voxel_size_mm"] or ())
    known = metadata["scans"]
    return {
        scan_id: Encoded(latent, known[scan_id]["key"], known[scan_id]["sha256"], voxel)
        for scan_id, latent in tensors.items()
        if scan_id in known and tensor_sha256(latent) == known[scan_id]["sha256"]
    }


def _second_name(path: Path) -> Path:
    return path.with_name(f".{path.name}")
