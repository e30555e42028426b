"""The evaluation of a release: its real scans once, each folder of samples, decoded noise as the bad end of the scale.

Every job writes one JSON part; `neuromf.evaluation.rows.merge_metrics` makes the tidy tables of them. What each figure means is
told in docs/evaluation.md.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from neuromf import __version__
from neuromf.config import Evaluate
from neuromf.evaluation import memorisation
from neuromf.evaluation.features import Extractor, VolumeCodec, cached_features, codec_extractor
from neuromf.evaluation.frechet import frechet_estimate, kernel_estimate
from neuromf.evaluation.inference import Estimate, mean_estimate, share_estimate
from neuromf.evaluation.morphometry import TISSUES, compare_volumes
from neuromf.evaluation.rows import REFERENCE_RUNS, Part, write_parts
from neuromf.evaluation.scans import (
    EvaluationError,
    Grid,
    Reference,
    ScanSet,
    describe,
    describe_files,
    grid_of,
    join,
    read_on_grid,
    read_reference,
    write_reference,
)
from neuromf.tables import SPLITS, content_hash
from neuromf.volume import write_volume

log = logging.getLogger(__name__)

PICTURED = 4  # scans whose reconstruction is kept as NIfTI for the report
NETWORK_AND_DECODER = ("network", "decode", "total")


def evaluate_reference(
    real: Mapping[str, Mapping[str, Path]],
    codec: VolumeCodec,
    settings: Evaluate,
    *,
    release: str,
    codec_validation: Path,
    cache: Path,
    part: Path,
    reference: Path,
    reconstructions: Path,
) -> None:
    """Describe a release's real scans and measure the floors: train against test, and reconstructions against test.

    Args:
        real: split → scan id → preprocessed volume; all on one grid. The train split must not be empty.
        codec: the release's codec.
        codec_validation: JSON of `neuromf.codec.validate` (rows of psnr, ssim and mae per scan).
        cache: folder of cached features.
        part: JSON to write: the figures of the runs real, reconstruction and linear_reconstruction.
        reference: safetensors to write: what the evaluation of samples needs of the real scans.
        reconstructions: folder to write: ``<scan>_real.nii.gz`` and ``<scan>_reconstruction.nii.gz`` of the first scans.

    Raises:
        EvaluationError: no training scans, or volumes on different grids.
        VolumeError: a volume cannot be read.
    """
    if not real.get("train"):
        raise EvaluationError(f"release {release} has no preprocessed training scan; look at its cohorts' manifests")
    extractor = codec_extractor(codec)
    grid = grid_of(next(iter(real["train"].values())))
    sets = {
        split: describe_files(real[split], extractor, cache, grid, label=f"real scans ({split})")
        for split in SPLITS
        if real.get(split)
    }
    empty = _nothing(sets["train"])
    scans = Reference({split: sets.get(split, empty) for split in SPLITS}, grid, extractor.name, extractor.key)
    shown = real.get("test") or real.get("val") or real["train"]
    rebuilt = _reconstruct(shown, codec, extractor, grid, reconstructions)

    floor = Part(release, "real")
    _add_distances(floor, scans.splits["train"], scans, settings)
    _add_volumes(floor, scans.every, settings)
    nearest = _nearest(scans.held_out, scans, extractor)
    _add_nearest(floor, nearest, settings)
    for split in SPLITS:
        known = _nearest(scans.splits[split], scans, extractor) if split != "train" else {}
        _add_scans(floor, scans.splits[split], split, known, scans)
    fidelity = Part(release, "reconstruction")
    if shown is real.get("test"):
        _add_distances(fidelity, rebuilt, scans, settings)
    _add_volumes(fidelity, rebuilt, settings)
    _add_scans(fidelity, rebuilt, "reconstruction", {}, scans)
    linear = Part(release, "linear_reconstruction")
    _add_fidelity({"vae": fidelity, "linear": linear}, codec_validation, settings)

    write_reference(reference, scans)
    provenance = _provenance(extractor, codec, settings)
    provenance["real_scans"] = {split: len(scans.splits[split]) for split in SPLITS}
    provenance["real_sha256"] = content_hash({split: scans.splits[split].ids for split in SPLITS})
    write_parts(part, [floor, fidelity, linear], provenance)


def evaluate_samples(
    samples: Path,
    reference: Path,
    codec: VolumeCodec,
    settings: Evaluate,
    *,
    release: str,
    run: str,
    seed: int,
    nfe: int,
    cache: Path,
    part: Path,
) -> None:
    """Measure one folder of generated volumes against the real scans of the release and write the figures to ``part``.

    Args:
        samples: folder of ``sub-*.nii.gz`` on the release's grid and ``sample_timing.json``.
        reference: safetensors of `evaluate_reference`.

    Raises:
        EvaluationError: an empty folder, a volume on another grid, a reserved run name or a reference of another codec.
        VolumeError: a volume cannot be read.
    """
    if run in REFERENCE_RUNS:
        raise EvaluationError(f"run {run!r}: this name is used for the evaluation's references; rename the run")
    extractor = codec_extractor(codec)
    scans = read_reference(reference, extractor)
    files = {path.name.removesuffix(".nii.gz"): path for path in sorted(samples.glob("sub-*.nii.gz"))}
    if not files:
        raise EvaluationError(f"{samples} holds no sub-*.nii.gz; decode the samples first")
    generated = describe_files(files, extractor, cache, scans.grid, label=f"{run} seed {seed} nfe {nfe}")
    figures = Part(release, run, seed, nfe)
    _add_sample_figures(figures, generated, scans, extractor, settings)
    _add_seconds(figures, samples / "sample_timing.json", settings)
    write_parts(part, [figures], _provenance(extractor, codec, settings) | {"samples": len(generated)})


def evaluate_noise(
    reference: Path,
    codec: VolumeCodec,
    settings: Evaluate,
    *,
    release: str,
    latent_mean: Sequence[float],
    latent_std: Sequence[float],
    latent_shape: tuple[int, int, int, int],
    n: int,
    seed: int,
    part: Path,
) -> None:
    """Measure decoded Gaussian noise, z = mean_c + std_c·ε without any network, as run ``noise``: the scale's bad end.

    Args:
        latent_mean, latent_std: per channel, of the training latents.
        latent_shape: (C, d, h, w).
        n, seed: volume i depends on (seed, i) only.

    Raises:
        EvaluationError: a reference of another codec, or a latent shape that does not decode to the release's grid.
    """
    extractor = codec_extractor(codec)
    scans = read_reference(reference, extractor)
    mean, std = (np.asarray(values, dtype=np.float32)[:, None, None, None] for values in (latent_mean, latent_std))
    described = []
    for index in tqdm(range(n), desc="decoded noise", unit="volume"):
        noise = np.random.default_rng([seed, index]).standard_normal(latent_shape, dtype=np.float32)
        volume = _decode(codec, torch.from_numpy(mean + std * noise))
        if volume.shape != scans.grid.shape:
            raise EvaluationError(f"latents of {latent_shape} decode to {volume.shape}, the scans have {scans.grid.shape}")
        described.append(
            describe(f"noise{index:05d}", volume, scans.grid, cached_features(volume, "", extractor, None))
        )
    figures = Part(release, "noise")
    _add_sample_figures(figures, join(described), scans, extractor, settings)
    write_parts(part, [figures], _provenance(extractor, codec, settings) | {"samples": n})


# --- figures --------------------------------------------------------------------------------------------------------


def _add_sample_figures(
    part: Part, generated: ScanSet, scans: Reference, extractor: Extractor, settings: Evaluate
) -> None:
    """Add all that is measured of generated volumes: distances, tissue volumes and copies."""
    real = scans.every
    _add_distances(part, generated, scans, settings)
    _add_volumes(part, generated, settings)
    for tissue in TISSUES:
        for name, estimate in compare_volumes(generated.tissue(tissue), real.tissue(tissue), settings).items():
            part.add(name, tissue, estimate)
    brain = generated.tissue("brain")
    inside = (brain >= real.tissue("brain").min()) & (brain <= real.tissue("brain").max())
    part.add("brain_volume_in_real_range", "brain", share_estimate(inside, settings))
    nearest = _nearest(generated, scans, extractor)
    _add_nearest(part, nearest, settings)
    null = _nearest(scans.held_out, scans, extractor)
    for name, larger in (("pixels", True), (extractor.name, False)):
        if null:
            closer = memorisation.closer_than_null(nearest[name].value, null[name].value, larger_is_closer=larger)
            part.add("closer_to_training_than_null", "brain", share_estimate(closer, settings), name)
    _add_scans(part, generated, "generated", nearest, scans)


def _add_distances(part: Part, volumes: ScanSet, scans: Reference, settings: Evaluate) -> None:
    test = scans.splits["test"]
    if min(len(volumes), len(test)) < 2:
        log.warning("%s: %d volumes and %d test scans; distances need two of each", part.run, len(volumes), len(test))
        missing = Estimate(None, None, None, len(volumes))
        part.add("frechet_distance", "test", missing, scans.extractor)
        part.add("kernel_distance", "test", missing, scans.extractor)
        return
    part.add(
        "frechet_distance", "test", frechet_estimate(volumes.features, test.features, settings), scans.extractor
    )
    part.add("kernel_distance", "test", kernel_estimate(volumes.features, test.features, settings), scans.extractor)


def _add_volumes(part: Part, volumes: ScanSet, settings: Evaluate) -> None:
    for tissue in TISSUES:
        part.add("volume_ml", tissue, mean_estimate(volumes.tissue(tissue), settings))


def _add_nearest(part: Part, nearest: Mapping[str, memorisation.Nearest], settings: Evaluate) -> None:
    metrics = {"pixels": "nearest_training_correlation"}
    for name, found in nearest.items():
        metric = metrics.get(name, "nearest_training_distance")
        part.add(metric, "brain", mean_estimate(found.value, settings), name)


def _nearest(volumes: ScanSet, scans: Reference, extractor: Extractor) -> dict[str, memorisation.Nearest]:
    """Return the nearest training scan of each volume by pixels and by features; nothing for no volumes."""
    if not len(volumes):
        return {}
    train = scans.splits["train"]
    mirrored = extractor.mirror(volumes.features)
    return {
        "pixels": memorisation.nearest_by_correlation(volumes.thumbnails, train.thumbnails),
        extractor.name: memorisation.nearest_by_features(volumes.features, mirrored, train.features),
    }


def _add_scans(
    part: Part, volumes: ScanSet, split: str, nearest: Mapping[str, memorisation.Nearest], scans: Reference
) -> None:
    """Add one row per volume to the table of scans."""
    train = scans.splits["train"].ids
    for row, scan in enumerate(volumes.ids):
        figures: dict[str, Any] = {
            f"{tissue}_ml": float(volume) for tissue, volume in zip(TISSUES, volumes.tissues[row], strict=True)
        }
        if nearest:
            pixels, features = nearest["pixels"], nearest[scans.extractor]
            figures |= {
                "nearest_scan": train[pixels.index[row]],
                "nearest_correlation": float(pixels.value[row]),
                "nearest_mirrored": bool(pixels.mirrored[row]),
                f"nearest_scan_{scans.extractor}": train[features.index[row]],
                f"nearest_distance_{scans.extractor}": float(features.value[row]),
            }
        part.add_scan(scan, split, figures)


def _add_fidelity(parts: Mapping[str, Part], codec_validation: Path, settings: Evaluate) -> None:
    """Add PSNR, SSIM and MAE of the codec's validation, averaged over its test scans."""
    rows = json.loads(codec_validation.read_text(encoding="utf-8"))["rows"]
    for name, part in parts.items():
        for metric, region in (("psnr", "brain_box"), ("ssim", "brain_box"), ("mae", "brain")):
            part.add(metric, region, mean_estimate([row[metric] for row in rows if row["codec"] == name], settings))


def _add_seconds(part: Part, timing: Path, settings: Evaluate) -> None:
    """Add the seconds per volume of network, decoder and both."""
    content = json.loads(timing.read_text(encoding="utf-8"))
    for stage in NETWORK_AND_DECODER:
        part.add("seconds_per_volume", stage, mean_estimate(content[stage], settings))


# --- volumes --------------------------------------------------------------------------------------------------------


def _reconstruct(
    files: Mapping[str, Path], codec: VolumeCodec, extractor: Extractor, grid: Grid, folder: Path
) -> ScanSet:
    """Return the descriptions of the codec's reconstructions and keep the first few beside their originals."""
    described = []
    folder.mkdir(parents=True, exist_ok=True)
    for index, (scan_id, path) in enumerate(tqdm(files.items(), desc="reconstructions", unit="volume")):
        image = read_on_grid(path, grid)
        volume = np.asarray(image.dataobj, dtype=np.float32)
        rebuilt = _decode(codec, codec.encode(torch.from_numpy(volume)[None, None])[0])
        if index < PICTURED:
            write_volume(folder / f"{scan_id}_real.nii.gz", volume, image.affine, np.float32)
            write_volume(folder / f"{scan_id}_reconstruction.nii.gz", rebuilt, image.affine, np.float32)
        described.append(describe(scan_id, rebuilt, grid, cached_features(rebuilt, "", extractor, None)))
    return join(described)


def _decode(codec: VolumeCodec, latent: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return codec.decode(latent[None])[0, 0].float().cpu().numpy().clip(0, 1)


def _nothing(like: ScanSet) -> ScanSet:
    return ScanSet((), like.features[:0], like.thumbnails[:0], like.tissues[:0])


def _provenance(extractor: Extractor, codec: VolumeCodec, settings: Evaluate) -> dict[str, Any]:
    return {
        "neuromf": __version__,
        "extractor": extractor.name,
        "extractor_key": extractor.key,
        "codec_sha256": codec.sha256,
        "settings": settings.model_dump(mode="json"),
    }
