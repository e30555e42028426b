"""Regional morphometry of a release: its real scans once, then each folder of samples against them and their neighbours.

Segmenting is the dearest part of an evaluation, so it has jobs of its own and a bound: at most
`evaluate.segmented` scans of each set, drawn once for all runs, besides the nearest training scan of each sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from neuromf import __version__
from neuromf.config import Evaluate
from neuromf.evaluation.memorisation import Nearest
from neuromf.evaluation.morphometry.backends import find_segmenter
from neuromf.evaluation.morphometry.regions import (
    RegionSet,
    add_nearest_regions,
    add_region_comparison,
    add_region_floor,
    add_regions,
    describe_regions,
)
from neuromf.evaluation.morphometry.segmentation import Scan, Segmenter, file_scans
from neuromf.evaluation.rows import Part, read_parts, write_parts
from neuromf.evaluation.scans import EvaluationError, sample_files
from neuromf.provenance import code_hash
from neuromf.tables import SPLITS, content_hash


def evaluate_real_regions(
    real: Mapping[str, Mapping[str, Path]],
    nearest: Path,
    settings: Evaluate,
    *,
    release: str,
    n: int,
    cache: Path,
    part: Path,
    weights_dir: Path | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Segment a release's real scans and write their regional figures; as floors, some of them against the others, and each
    held-out scan against its nearest training scan.

    Args:
        real: split → scan id → preprocessed volume.
        nearest: JSON part of `evaluate_reference`, whose scans name each held-out scan's nearest training scan by features.
        n: volumes of each run, which a floor has too.
        cache: folder of segmentations.
        part: JSON to write, rows of the run ``real``.
        weights_dir, device: where the networks' weights lie and run.

    Raises:
        EvaluationError: no real scans.
        VolumeError: a volume cannot be read or segmented.
        WeightsError: a segmenter of the settings has no weights or program.
    """
    segmenters = _segmenters(settings, weights_dir, device)
    chosen, floor = drawn_scans(real, settings), Part(release, "real")
    trained = np.array([scan_id in real["train"] for scan_id in chosen])
    pool, neighbours = _with_neighbours(
        chosen, nearest, [one for one in chosen if one not in real["train"]], real["train"]
    )
    real_scans = file_scans(pool)
    for segmenter in segmenters:
        every = describe_regions(real_scans, segmenter, cache, label="real scans")
        scans = every.of_scans(np.arange(len(chosen)))
        held_out = scans.of_scans(~trained)
        add_regions(floor, scans, settings)
        add_region_floor(floor, scans, settings, n)
        add_nearest_regions(floor, held_out, every, *neighbours, settings)
    provenance = _provenance("evaluate_real_regions", segmenters, settings, {"real": real_scans})
    write_parts(part, [floor], provenance)


def evaluate_sample_regions(
    samples: Path,
    real: Mapping[str, Mapping[str, Path]],
    nearest: Path,
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
    """Segment generated volumes and write how their regions compare with the real scans' and with each one's nearest.

    Args:
        samples: folder of ``sub-*.nii.gz``.
        real: as for `evaluate_real_regions`.
        nearest: JSON part of `evaluate_samples`, whose scans name each sample's nearest training scan by features.

    Raises:
        EvaluationError: an empty folder, or samples that ``nearest`` does not know.
        VolumeError, WeightsError: as `evaluate_real_regions`.
    """
    files = dict(list(sample_files(samples).items())[: settings.segmented])
    segmenters = _segmenters(settings, weights_dir, device)
    chosen, figures = drawn_scans(real, settings), Part(release, run, seed, nfe)
    pool, neighbours = _with_neighbours(chosen, nearest, list(files), real["train"])
    sample_scans, real_scans = file_scans(files), file_scans(pool)
    for segmenter in segmenters:
        generated = describe_regions(sample_scans, segmenter, cache, label=f"{run} seed {seed} nfe {nfe}")
        every = describe_regions(real_scans, segmenter, cache, label="real scans")
        add_regions(figures, generated, settings)
        add_region_comparison(figures, generated, every.of_scans(np.arange(len(chosen))), settings)
        add_nearest_regions(figures, generated, every, *neighbours, settings)
    inputs = {"samples": sample_scans, "real": real_scans}
    provenance = _provenance("evaluate_sample_regions", segmenters, settings, inputs)
    write_parts(part, [figures], provenance)


def add_folder_regions(
    part: Part, scans: RegionSet, real: RegionSet, nearest: Nearest | None, settings: Evaluate, n: int
) -> None:
    """Add the regional figures of one of two folders; for the real one itself, the floor, ``n`` of its scans are compared
    with the others.

    Args:
        nearest: each scan's nearest (other) real one; None where there is none.
    """
    add_regions(part, scans, settings)
    if scans is real:
        add_region_floor(part, real, settings, n)
    else:
        add_region_comparison(part, scans, real, settings)
    if nearest is not None:
        add_nearest_regions(part, scans, real, nearest.index, nearest.mirrored, settings)


def drawn_scans(real: Mapping[str, Mapping[str, Path]], settings: Evaluate) -> dict[str, Path]:
    """Return at most `evaluate.segmented` real scans, drawn with the evaluation's seed: half of them held-out scans, or as
    many as there are, so that the floor compares two groups.

    Raises:
        EvaluationError: there is no training scan.
    """
    held_out = {scan_id: path for split in SPLITS[1:] for scan_id, path in real.get(split, {}).items()}
    if not real.get("train"):
        raise EvaluationError("the release has no preprocessed training scan; look at its cohorts' manifests")
    draw = np.random.default_rng([settings.seed, 5])
    chosen = _draw(held_out, settings.segmented // 2, draw)
    return _draw(real["train"], settings.segmented - len(chosen), draw) | chosen


def _draw(files: Mapping[str, Path], count: int, draw: np.random.Generator) -> dict[str, Path]:
    ids = sorted(files)
    return {ids[i]: files[ids[i]] for i in sorted(draw.permutation(len(ids))[:count])}


def _with_neighbours(
    chosen: Mapping[str, Path], nearest: Path, ids: Sequence[str], train: Mapping[str, Path]
) -> tuple[dict[str, Path], tuple[list[int], list[bool]]]:
    """Return the chosen scans and after them the nearest training scans of others; and for each of these others its
    neighbour's place among them and whether the neighbour's mirror image is meant."""
    rows = read_parts(nearest)[0][0]["scans"]
    known = {row["scan"]: row.get("nearest_scan_codec") for row in rows}
    flipped = {row["scan"]: bool(row.get("nearest_mirrored_codec")) for row in rows}
    if missing := [scan_id for scan_id in ids if known.get(scan_id) not in train]:
        raise EvaluationError(f"{nearest} knows no training scan that is nearest to {missing[0]}; evaluate again")
    pool = dict(chosen) | {known[scan_id]: train[known[scan_id]] for scan_id in ids}
    places = {scan_id: place for place, scan_id in enumerate(pool)}
    return pool, ([places[known[scan_id]] for scan_id in ids], [flipped[scan_id] for scan_id in ids])


def _segmenters(settings: Evaluate, weights_dir: Path | None, device: str | torch.device) -> list[Segmenter]:
    return [find_segmenter(name, weights_dir, device) for name in settings.segmenters]


def _provenance(
    function: str, segmenters: Sequence[Segmenter], settings: Evaluate, inputs: Mapping[str, Sequence[Scan]]
) -> dict[str, object]:
    return {
        "neuromf": __version__,
        "code": code_hash(f"neuromf.evaluation.morphometry.evaluate:{function}"),
        "inputs": {
            name: {"volumes": len(scans), "sha256": content_hash(sorted(scan.sha256 for scan in scans))}
            for name, scans in inputs.items()
        },
        "segmenters": {segmenter.name: segmenter.key for segmenter in segmenters},
        "settings": settings.model_dump(mode="json"),
    }
