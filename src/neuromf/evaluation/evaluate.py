"""The evaluation of a release: its real scans once, each folder of samples, decoded noise as the bad end of the scale.

Every job writes one JSON part; `merge_metrics` makes the tidy tables of them. What each figure means is
told in docs/evaluation.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from neuromf import __version__
from neuromf.config import Evaluate
from neuromf.evaluation.features import Extractor, VolumeCodec, cached_features, codec_extractor
from neuromf.evaluation.measure import (
    add_distances,
    add_fidelity,
    add_nearest,
    add_sample_figures,
    add_scans,
    add_seconds,
    add_volumes,
    nearest_scans,
)
from neuromf.evaluation.rows import METRIC_COLUMNS, REFERENCE_RUNS, SCAN_COLUMNS, Part, write_parquet, write_parts
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
from neuromf.evaluation.spectrum import add_spectrum
from neuromf.tables import SPLITS, content_hash, write_text
from neuromf.volume import write_volume

PICTURED = 4  # scans whose reconstruction is kept as NIfTI for the report


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
        codec_validation: JSON of `neuromf.codec.validate` (rows of figures per scan).
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
    shown = next(split for split in ("test", "val", "train") if real.get(split))
    rebuilt = _reconstruct(real[shown], codec, extractor, grid, reconstructions)
    splits = {split: sets.get(split, empty) for split in SPLITS} | {"reconstruction": rebuilt}
    scans = Reference(splits, grid, extractor.name, extractor.key)

    floor = Part(release, "real")
    add_distances(floor, scans.splits["train"], scans, settings)
    add_volumes(floor, scans.every, settings)
    add_spectrum(floor, scans.every.spectra, grid.shape, grid.voxel_mm, settings, {})
    nearest = nearest_scans(scans.held_out, scans, extractor)
    add_nearest(floor, nearest, settings)
    for split in SPLITS:
        known = nearest_scans(scans.splits[split], scans, extractor) if split != "train" else {}
        add_scans(floor, scans.splits[split], split, known, scans)
    fidelity = Part(release, "reconstruction")
    if shown == "test":
        add_distances(fidelity, rebuilt, scans, settings)
    add_volumes(fidelity, rebuilt, settings)
    originals = {"real": scans.splits[shown].spectra}
    add_spectrum(fidelity, rebuilt.spectra, grid.shape, grid.voxel_mm, settings, originals, paired=True)
    add_scans(fidelity, rebuilt, "reconstruction", {}, scans)
    linear = Part(release, "linear_reconstruction")
    add_fidelity({"vae": fidelity, "linear": linear}, codec_validation, settings)

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
    add_sample_figures(figures, generated, scans, extractor, settings)
    add_seconds(figures, samples / "sample_timing.json", settings)
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
            raise EvaluationError(
                f"latents of {latent_shape} decode to {volume.shape}, the scans have {scans.grid.shape}"
            )
        described.append(
            describe(f"noise{index:05d}", volume, scans.grid, cached_features(volume, "", extractor, None))
        )
    figures = Part(release, "noise")
    add_sample_figures(figures, join(described), scans, extractor, settings)
    write_parts(part, [figures], _provenance(extractor, codec, settings) | {"samples": n})


def merge_metrics(parts: Sequence[Path], *, metrics: Path, scans: Path) -> None:
    """Merge the jobs' JSON files to ``metrics`` (parquet, and the same rows as .json beside it) and ``scans`` (parquet).

    Raises:
        ValueError: no parts, or two parts hold the same run, seed and NFE.
    """
    metric_rows: list[dict[str, Any]] = []
    scan_rows: list[dict[str, Any]] = []
    provenance = []
    seen: dict[tuple[Any, ...], Path] = {}
    for path in parts:
        content = json.loads(path.read_text(encoding="utf-8"))
        provenance.append({"part": path.name} | content["provenance"])
        for part in content["parts"]:
            key = (part["release"], part["run"], part["seed"], part["nfe"])
            if key in seen:
                raise ValueError(
                    f"{path} and {seen[key]} both hold run {key[1]}, seed {key[2]}, nfe {key[3]}; give one"
                )
            seen[key] = path
            metric_rows += part["metrics"]
            scan_rows += part["scans"]
    if not metric_rows:
        raise ValueError("nothing to merge: no part holds a figure")
    write_parquet(metrics, metric_rows, METRIC_COLUMNS)
    write_parquet(scans, scan_rows, SCAN_COLUMNS)
    ordered = [{column: row[column] for column in METRIC_COLUMNS} for row in metric_rows]
    content = {"provenance": provenance, "rows": ordered}
    write_text(metrics.with_suffix(".json"), json.dumps(content, indent=1, allow_nan=False) + "\n")


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
    return ScanSet((), like.features[:0], like.thumbnails[:0], like.tissues[:0], like.spectra[:0])


def _provenance(extractor: Extractor, codec: VolumeCodec, settings: Evaluate) -> dict[str, Any]:
    return {
        "neuromf": __version__,
        "extractor": extractor.name,
        "extractor_key": extractor.key,
        "codec_sha256": codec.sha256,
        "settings": settings.model_dump(mode="json"),
    }
