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
from neuromf.evaluation.copies import add_search, search_real, search_training
from neuromf.evaluation.extractors.registry import Extractor, VolumeCodec, load_extractor
from neuromf.evaluation.features import array_sha256, cached_regions, gather
from neuromf.evaluation.measure import (
    add_costs,
    add_distances,
    add_diversity,
    add_fidelity,
    add_sample_figures,
    add_scans,
    add_volume_floor,
    add_volumes,
)
from neuromf.evaluation.rows import (
    METRIC_COLUMNS,
    REFERENCE_RUNS,
    SCAN_COLUMNS,
    Part,
    read_parts,
    write_parquet,
    write_parts,
)
from neuromf.evaluation.scans import (
    ARRAYS,
    EvaluationError,
    Grid,
    Reference,
    ScanSet,
    describe,
    describe_files,
    extractors_of,
    grid_of,
    join,
    read_on_grid,
    read_reference,
    sample_files,
    write_reference,
)
from neuromf.evaluation.spectrum import add_spectrum
from neuromf.provenance import code_hash
from neuromf.tables import SPLITS, content_hash, read_json, write_text
from neuromf.volume import write_volume

PICTURED = 4  # scans whose reconstruction is kept as NIfTI for the report


def evaluate_reference(
    real: Mapping[str, Mapping[str, Path]],
    codec: VolumeCodec,
    settings: Evaluate,
    *,
    release: str,
    n: int,
    codec_validation: Path,
    cache: Path,
    part: Path,
    reference: Path,
    reconstructions: Path,
    weights_dir: Path | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Describe a release's real scans and measure the floors: train against test, and reconstructions against test.

    Args:
        real: split → scan id → preprocessed volume; all on one grid. The train split must not be empty.
        codec: the release's codec.
        n: volumes of each run: as many training scans are drawn for the floor.
        codec_validation: JSON of `neuromf.codec.validate` (rows of figures per scan).
        cache: folder of cached features.
        part: JSON to write: the figures of the runs real, reconstruction and linear_reconstruction.
        reference: safetensors to write: what the evaluation of samples needs of the real scans.
        reconstructions: folder to write: ``<scan>_real.nii.gz`` and ``<scan>_reconstruction.nii.gz`` of the first scans.
        weights_dir, device: where the extractors' weights lie and run.

    Raises:
        EvaluationError: no training scans, or volumes on different grids.
        ExtractorError: an extractor of the settings cannot be used.
        VolumeError: a volume cannot be read.
    """
    if not real.get("train"):
        raise EvaluationError(f"release {release} has no preprocessed training scan; look at its cohorts' manifests")
    extractors = _extractors(settings, codec, weights_dir, device)
    grid = grid_of(next(iter(real["train"].values())))
    sets = {
        split: describe_files(
            real[split], extractors, cache, grid, label=f"real scans ({split})", most=settings.compared
        )
        for split in SPLITS
        if real.get(split)
    }
    empty = _nothing(sets["train"])
    shown = next(split for split in ("test", "val", "train") if real.get(split))
    rebuilt = _reconstruct(real[shown], codec, extractors, cache, grid, reconstructions, most=settings.compared)
    splits = {split: sets.get(split, empty) for split in SPLITS} | {"reconstruction": rebuilt}
    test, one = splits["test"].compared(settings.compared), splits["train"].compared(1)[0]
    scans = Reference(
        splits,
        grid,
        {extractor.name: extractor.key for extractor in extractors},
        {
            extractor.name: {
                region: gather(cache, extractor, test, region) for region in cached_regions(cache, extractor, one)
            }
            for extractor in extractors
        },
    )
    train = splits["train"]

    floor = Part(release, "real")
    add_distances(floor, train, scans, extractors, cache, settings, n)
    add_volume_floor(floor, scans.every, settings, n)
    add_diversity(floor, [path for split in SPLITS for path in real.get(split, {}).values()], settings)
    add_volumes(floor, scans.every, settings)
    add_spectrum(floor, scans.every.spectra, grid.shape, grid.voxel_mm, settings, {})
    for search in (search_training(scans.held_out, train), search_real(scans.every, scans.every)):
        add_search(floor, search, settings)
    for split in SPLITS:
        known = [search_training(splits[split], train)] if split != "train" else []
        add_scans(floor, splits[split], split, [*known, search_real(splits[split], scans.every)], settings)
    fidelity = Part(release, "reconstruction")
    if shown == "test":
        add_distances(fidelity, rebuilt, scans, extractors, cache, settings)
    add_volumes(fidelity, rebuilt, settings)
    originals = {"real": splits[shown].spectra}
    add_spectrum(fidelity, rebuilt.spectra, grid.shape, grid.voxel_mm, settings, originals, paired=True)
    add_scans(fidelity, rebuilt, "reconstruction", [], settings)
    linear = Part(release, "linear_reconstruction")
    add_fidelity({"vae": fidelity, "linear": linear}, codec_validation, settings)

    write_reference(reference, scans)
    provenance = _provenance("evaluate_reference", extractors, codec, settings)
    provenance["inputs"] = {split: _list_of(scans.splits[split]) for split in SPLITS}
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
    weights_dir: Path | None = None,
    device: str | torch.device = "cpu",
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
    extractors = _extractors(settings, codec, weights_dir, device)
    scans = read_reference(reference, extractors)
    files = sample_files(samples)
    label = f"{run} seed {seed} nfe {nfe}"
    generated = describe_files(files, extractors, cache, scans.grid, label=label, most=settings.compared)
    figures = Part(release, run, seed, nfe)
    add_sample_figures(figures, generated, scans, extractors, cache, settings)
    add_diversity(figures, list(files.values()), settings)
    timing = samples / "sample_timing.json"
    add_costs(figures, timing, settings)
    hardware = read_json(timing).get("hardware", {})
    about = {"inputs": {"samples": _list_of(generated)}, "hardware": hardware}
    write_parts(part, [figures], _provenance("evaluate_samples", extractors, codec, settings) | about)


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
    cache: Path,
    part: Path,
    weights_dir: Path | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Measure decoded Gaussian noise, z = mean_c + std_c·ε without any network, as run ``noise``: the scale's bad end.

    Args:
        latent_mean, latent_std: per channel, of the training latents.
        latent_shape: (C, d, h, w).
        n, seed: volume i depends on (seed, i) only.

    Raises:
        EvaluationError: a reference of another codec, or a latent shape that does not decode to the release's grid.
    """
    extractors = _extractors(settings, codec, weights_dir, device)
    scans = read_reference(reference, extractors)
    mean, std = (np.asarray(values, dtype=np.float32)[:, None, None, None] for values in (latent_mean, latent_std))
    described = []
    names = [f"noise{index:05d}" for index in range(n)]
    every = extractors_of(names, extractors, settings.compared)
    for index, own in enumerate(tqdm(every, desc="decoded noise", unit="volume", total=n)):
        noise = np.random.default_rng([seed, index]).standard_normal(latent_shape, dtype=np.float32)
        volume = _decode(codec, torch.from_numpy(mean + std * noise))
        if volume.shape != scans.grid.shape:
            raise EvaluationError(
                f"latents of {latent_shape} decode to {volume.shape}, the scans have {scans.grid.shape}"
            )
        described.append(describe(names[index], volume, array_sha256(volume), own, cache, scans.grid))
    figures, noises = Part(release, "noise"), join(described)
    add_sample_figures(figures, noises, scans, extractors, cache, settings)
    about = {"inputs": {"noise": _list_of(noises)}}
    write_parts(part, [figures], _provenance("evaluate_noise", extractors, codec, settings) | about)


def merge_metrics(parts: Sequence[Path], *, metrics: Path, scans: Path) -> None:
    """Merge the jobs' JSON files to ``metrics`` (parquet, and the same rows as .json beside it) and ``scans`` (parquet).

    Raises:
        ValueError: no parts, or two parts hold the same figure.
    """
    metric_rows: list[dict[str, Any]] = []
    scan_rows: list[dict[str, Any]] = []
    provenance = []
    seen: dict[tuple[Any, ...], Path] = {}
    figure = METRIC_COLUMNS[: METRIC_COLUMNS.index("value")]
    for path in parts:
        figures, about = read_parts(path)
        provenance.append({"part": path.name} | about)
        for part in figures:
            for row in part["metrics"]:
                key = tuple(row[column] for column in figure)
                if key in seen:
                    raise ValueError(
                        f"{path} and {seen[key]} both hold {dict(zip(figure, key, strict=True))}; give one"
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


def _extractors(
    settings: Evaluate, codec: VolumeCodec, weights_dir: Path | None, device: str | torch.device
) -> list[Extractor]:
    return [load_extractor(name, weights_dir=weights_dir, codec=codec, device=device) for name in settings.extractors]


def _reconstruct(
    files: Mapping[str, Path],
    codec: VolumeCodec,
    extractors: Sequence[Extractor],
    cache: Path,
    grid: Grid,
    folder: Path,
    *,
    most: int,
) -> ScanSet:
    """Return the descriptions of the codec's reconstructions and keep the first few beside their originals."""
    described = []
    folder.mkdir(parents=True, exist_ok=True)
    every = extractors_of(list(files), extractors, most)
    for index, (scan_id, path) in enumerate(tqdm(files.items(), desc="reconstructions", unit="volume")):
        image = read_on_grid(path, grid)
        volume = np.asarray(image.dataobj, dtype=np.float32)
        rebuilt = _decode(codec, codec.encode(torch.from_numpy(volume)[None, None])[0])
        if index < PICTURED:
            write_volume(folder / f"{scan_id}_real.nii.gz", volume, image.affine, np.float32)
            write_volume(folder / f"{scan_id}_reconstruction.nii.gz", rebuilt, image.affine, np.float32)
        described.append(describe(scan_id, rebuilt, array_sha256(rebuilt), next(every), cache, grid))
    return join(described)


def _decode(codec: VolumeCodec, latent: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return codec.decode(latent[None])[0, 0].float().cpu().numpy().clip(0, 1)


def _nothing(like: ScanSet) -> ScanSet:
    return ScanSet((), (), *(getattr(like, name)[:0] for name in ARRAYS))


def _list_of(volumes: ScanSet) -> dict[str, Any]:
    """Return the number and the hash of a list of volumes, whatever their order."""
    return {"volumes": len(volumes), "sha256": content_hash(sorted(volumes.hashes))}


def _provenance(
    function: str, extractors: Sequence[Extractor], codec: VolumeCodec, settings: Evaluate
) -> dict[str, Any]:
    return {
        "neuromf": __version__,
        "code": code_hash(f"neuromf.evaluation.evaluate:{function}"),
        "extractors": {extractor.name: extractor.key for extractor in extractors},
        "codec_sha256": codec.sha256,
        "settings": settings.model_dump(mode="json"),
    }
