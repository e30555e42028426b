"""Any two folders of volumes, real and synthetic, compared by all figures of the evaluation (`neuromf evaluate`)."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from neuromf import __version__
from neuromf.config import Evaluate
from neuromf.evaluation.copies import (
    PIXELS,
    Search,
    add_search,
    most_suspect,
    nearest_scans,
    search_others,
    search_real,
    search_training,
)
from neuromf.evaluation.distances import biased_by_few_scans, compare_draws
from neuromf.evaluation.extractors.registry import (
    CARDS,
    CODEC,
    VOLUME,
    Extractor,
    VolumeCodec,
    available,
    load_extractor,
)
from neuromf.evaluation.features import cached_regions, gather
from neuromf.evaluation.folders import (
    Found,
    Intensity,
    Rules,
    common_rules,
    on_grid,
    survey,
    volume_files,
    volume_name,
    volumes,
)
from neuromf.evaluation.inference import Estimate, floor_parts
from neuromf.evaluation.measure import add_scans, add_volume_comparison, add_volume_floor, add_volumes
from neuromf.evaluation.memorisation import Nearest
from neuromf.evaluation.morphometry.backends import find_segmenter
from neuromf.evaluation.morphometry.evaluate import add_folder_regions
from neuromf.evaluation.morphometry.regions import describe_regions
from neuromf.evaluation.morphometry.segmentation import Scan
from neuromf.evaluation.ms_ssim import diversity
from neuromf.evaluation.rows import METRIC_COLUMNS, SCAN_COLUMNS, SPECTRUM_COLUMNS, Part, read_parquet, write_parquet
from neuromf.evaluation.scans import EvaluationError, ScanSet, describe, extractors_of, join
from neuromf.evaluation.spectrum import add_spectrum
from neuromf.provenance import code_hash, git_commit
from neuromf.tables import content_hash, write_json
from neuromf.volume import write_volume

log = logging.getLogger(__name__)


def evaluate_folders(
    real: Path,
    synthetic: Path,
    out: Path,
    *,
    train: Path | None = None,
    extractors: Sequence[str] | None = None,
    segmenters: Sequence[str] = (),
    codec: VolumeCodec | None = None,
    weights_dir: Path | None = None,
    spacing_mm: float | None = None,
    intensity: Intensity = "keep",
    settings: Evaluate,
    device: str | torch.device = "cpu",
) -> None:
    """Compare a folder of synthetic volumes with one of real ones; writes {metrics,scans,spectra}.parquet, metrics.json
    and suspects/, the volumes on the common grid that most look like copies.

    Features are kept in ``out/cache``: an evaluation that was interrupted goes on where it was.

    Args:
        train: folder of the scans a model was trained on, for copies; the real scans are then the null and must be others.
        extractors: names; None: `codec` when there is one, and all others whose weights are there.
        segmenters: names (`neuromf.evaluation.morphometry.backends.SEGMENTERS`); every volume is segmented by each.
        codec: what the extractor `codec` and the search for copies by features use.
        weights_dir: folder of published weights; None: the environment's NEUROMF_WEIGHTS.
        spacing_mm, intensity: see `neuromf.evaluation.folders`.

    Raises:
        EvaluationError: folders without volumes, or such that cannot be compared; names the file and the remedy.
        ExtractorError: an extractor that was asked for and cannot be used.
        WeightsError: a segmenter that was asked for has no weights or program.
        VolumeError: a volume that cannot be read.
    """
    cache, folders = out / "cache", {"real": real, "synthetic": synthetic} | ({"train": train} if train else {})
    _check_out(out, folders)
    loaded = _load(extractors, codec, weights_dir, device)
    chosen = [find_segmenter(name, weights_dir, device) for name in dict.fromkeys(segmenters)]
    found = {name: survey(volume_files(folder), cache, label=name) for name, folder in folders.items()}
    _warn_of_copies(found)
    rules = common_rules(found, spacing_mm=spacing_mm, intensity=intensity)
    sets = {
        name: _describe(
            one, folders[name], rules, loaded, cache, label=name, most=0 if name == "train" else settings.compared
        )
        for name, one in found.items()
    }

    floor, figures = Part("folders", "real"), Part("folders", "synthetic")
    features = _add_distances(floor, figures, sets, loaded, cache, settings)
    for part, name in ((floor, "real"), (figures, "synthetic")):
        part.add("ms_ssim", VOLUME, _diversity(found[name], rules, settings))
        add_volumes(part, sets[name], settings)
        others = {} if name == "real" else {"real": sets["real"].spectra}
        add_spectrum(part, sets[name].spectra, rules.grid.shape, rules.grid.voxel_mm, settings, others)
    add_volume_comparison(figures, sets["synthetic"], sets["real"], settings)
    add_volume_floor(floor, sets["real"], settings, len(sets["synthetic"]))
    if chosen:
        real_neighbours = _by_features(search_real(sets["real"], sets["real"]).found)
        neighbours = _by_features(nearest_scans(sets["synthetic"], sets["real"]))
    for segmenter in chosen:
        regions = {
            name: describe_regions(_scans(found[name], sets[name].ids, rules), segmenter, cache, label=name)
            for name in ("real", "synthetic")
        }
        n = len(sets["synthetic"])
        add_folder_regions(floor, regions["real"], regions["real"], real_neighbours, settings, n)
        add_folder_regions(figures, regions["synthetic"], regions["real"], neighbours, settings, n)
    for part, name, split in ((floor, "real", "real"), (figures, "synthetic", "generated")):
        searches = _searches(name, sets, settings)
        for search in searches:
            add_search(part, search, settings)
        add_scans(part, sets[name], split, searches, settings)

    metrics = floor.metrics + figures.metrics
    write_parquet(out / "metrics.parquet", metrics, METRIC_COLUMNS)
    write_parquet(out / "scans.parquet", floor.scans + figures.scans, SCAN_COLUMNS)
    _keep_suspects(out, found, rules, sets)
    write_parquet(out / "spectra.parquet", floor.spectra + figures.spectra, SPECTRUM_COLUMNS)
    provenance = _provenance(found, folders, rules, loaded, features, settings)
    provenance["segmenters"] = {segmenter.name: segmenter.key for segmenter in chosen}
    write_json(
        out / "metrics.json",
        {"provenance": provenance, "rows": [{column: row[column] for column in METRIC_COLUMNS} for row in metrics]},
    )


def _check_out(out: Path, folders: Mapping[str, Path]) -> None:
    """Refuse an ``out`` inside a folder of volumes, which would count what is written there the next time, and a folder of
    volumes inside what is removed or written anew in ``out``."""
    own = [(out / name).resolve() for name in ("suspects", "cache")]
    for name, folder in folders.items():
        there = folder.resolve()
        if out.resolve().is_relative_to(there) or any(there.is_relative_to(one) for one in own):
            raise EvaluationError(
                f"--out {out} and --{name} {folder} lie in each other; give --out a folder of its own"
            )


def _searches(name: str, sets: dict[str, ScanSet], settings: Evaluate) -> list[Search]:
    """Return the searches for copies of training scans, where there are any, and for duplicates in one of the folders."""
    real, train = sets["real"], sets.get("train")
    if name == "real":
        return [search_real(real, real), *([search_training(real, train)] if train else [])]
    others = search_others(sets[name], real, settings)
    return [others, *([search_training(sets[name], train, real)] if train else [])]


def _keep_suspects(out: Path, found: dict[str, list[Found]], rules: Rules, sets: dict[str, ScanSet]) -> None:
    """Write the most suspect volumes and their nearest scans as ``suspects/<folder>/<name>.nii.gz``, for the picture."""
    shutil.rmtree(out / "suspects", ignore_errors=True)
    table = read_parquet(out / "scans.parquet")
    copied, doubled = most_suspect(table, "training"), most_suspect(table, "other")
    shown = {("synthetic", scan) for scan in [*copied["scan"], *doubled["scan"], *doubled["nearest"]]}
    affine = np.diag([*[rules.grid.voxel_mm] * 3, 1.0])
    for name, scan in sorted(shown | {("train", scan) for scan in copied["nearest"]}):
        volume = on_grid(found[name][sets[name].ids.index(scan)], rules)
        write_volume(out / "suspects" / name / f"{scan}.nii.gz", volume, affine, np.float32)


def _load(
    names: Sequence[str] | None, codec: VolumeCodec | None, weights_dir: Path | None, device: str | torch.device
) -> list[Extractor]:
    """Return the extractors asked for, or all that can be used, and say which are left out and why."""
    if names is None:
        missing = available(weights_dir)
        names = [CODEC] * (codec is not None) + [name for name, why in missing.items() if not why]
        if codec is None:
            log.warning("codec is left out: no codec is given (--codec)")
        for name, why in missing.items():
            if why:
                log.warning("%s is left out: %s", name, why)
    loaded = [
        load_extractor(name, weights_dir=weights_dir, codec=codec, device=device) for name in dict.fromkeys(names)
    ]
    if not loaded:
        log.warning("no extractor can be used: there are no distances between distributions")
    if codec is not None and all(extractor.name != CODEC for extractor in loaded):
        log.warning("the codec is given but its extractor is not asked for; copies are looked for by pixels only")
    return loaded


def _describe(
    found: Sequence[Found],
    folder: Path,
    rules: Rules,
    extractors: Sequence[Extractor],
    cache: Path,
    *,
    label: str,
    most: int,
) -> ScanSet:
    names = [volume_name(Path(one.path).relative_to(folder)) for one in found]
    described = [
        describe(name, volume, rules.key(one), own, cache, rules.grid)
        for name, own, (one, volume) in zip(
            names,
            extractors_of(names, extractors, most),
            volumes(found, rules, label=f"{label}: features"),
            strict=True,
        )
    ]
    return join(described)


def _by_features(nearest: Mapping[str, Nearest]) -> Nearest | None:
    """Return the nearest scans by the codec's features, or by pixels where there are none; None for want of scans."""
    return nearest.get(CODEC, nearest[PIXELS]) if nearest else None


def _scans(found: Sequence[Found], ids: Sequence[str], rules: Rules) -> list[Scan]:
    """Return the volumes on the common grid as scans to segment."""

    def read(one: Found) -> nib.Nifti1Image:
        return nib.Nifti1Image(on_grid(one, rules), np.diag([*[rules.grid.voxel_mm] * 3, 1.0]))

    return [Scan(name, rules.key(one), partial(read, one)) for name, one in zip(ids, found, strict=True)]


def _add_distances(
    floor: Part,
    figures: Part,
    sets: dict[str, ScanSet],
    extractors: Sequence[Extractor],
    cache: Path,
    settings: Evaluate,
) -> dict[str, int]:
    """Add what compares the synthetic with the real features and, as the floor, as many real ones (half at most) with the
    others; return how many features each extractor has."""
    features = {}
    chosen = {name: sets[name].compared(settings.compared) for name in ("real", "synthetic")}
    parts = floor_parts(len(chosen["real"]), len(chosen["synthetic"]), settings)
    for extractor in extractors:
        for region in cached_regions(cache, extractor, chosen["real"][0]):
            log.info("%s, %s: distances", extractor.name, region)
            x, y = (gather(cache, extractor, chosen[name], region) for name in ("synthetic", "real"))
            features[extractor.name] = y.values.shape[1]
            for part, pairs in ((figures, [(x, y)]), (floor, [(y.of_scans(a), y.of_scans(b)) for a, b in parts])):
                for metric, estimate in compare_draws(pairs, settings).items():
                    part.add(metric, region, estimate, extractor.name)
        if biased_by_few_scans(min(map(len, chosen.values())), features[extractor.name]):
            log.warning(
                "%s: %d and %d scans, %d features: with so few the Fréchet distance says more about their number; quote"
                " KID and the extrapolated distance",
                extractor.name, len(chosen["real"]), len(chosen["synthetic"]), features[extractor.name],
            )  # fmt: skip
    return features


def _diversity(found: Sequence[Found], rules: Rules, settings: Evaluate) -> Estimate:
    return diversity(len(found), lambda index: on_grid(found[index], rules), settings)


def _warn_of_copies(found: dict[str, list[Found]]) -> None:
    """Warn of scans that lie in two of the folders, however they are packed, and refuse training scans as the null of the
    search for copies."""
    paths = {name: {one.voxels_sha256: one.path for one in founds} for name, founds in found.items()}
    if both := [path for voxels, path in paths["real"].items() if voxels in paths.get("train", {})]:
        raise EvaluationError(
            f"{len(both)} files are in both --real and --train ({', '.join(both[:3])}); --real must hold scans that the"
            " model never saw: take them out"
        )
    for name in ("real", "train"):
        if shared := len(paths["synthetic"].keys() & paths.get(name, {}).keys()):
            log.warning("%d files of --synthetic are in --%s too", shared, name)


def _provenance(
    found: dict[str, list[Found]],
    folders: dict[str, Path],
    rules: Rules,
    extractors: Sequence[Extractor],
    features: dict[str, int],
    settings: Evaluate,
) -> dict[str, Any]:
    return {
        "neuromf": __version__,
        "commit": git_commit(Path(__file__).parent),
        "code": code_hash("neuromf.evaluation.compare:evaluate_folders"),
        "inputs": {
            name: {
                "folder": str(folders[name]),
                "volumes": len(one),
                "sha256": content_hash(sorted(volume.sha256 for volume in one)),
            }
            for name, one in found.items()
        },
        "grid": {
            "shape": rules.grid.shape,
            "voxel_mm": rules.grid.voxel_mm,
            "resampled": not rules.as_is,
            "intensity": "percentile" if rules.upper is None else f"kept, 0 to {rules.upper:g}",
        },
        "extractors": {
            extractor.name: {
                "key": extractor.key,
                "features": features[extractor.name],
                "preprocessing": CARDS[extractor.name].preprocessing if extractor.name in CARDS else "pooled latent",
            }
            for extractor in extractors
        },
        "settings": settings.model_dump(mode="json", exclude={"extractors"}),
    }
