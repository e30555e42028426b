"""What is measured of a set of volumes, added row by row to a part of the evaluation's tables."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuromf.config import Evaluate
from neuromf.evaluation import memorisation
from neuromf.evaluation.features import Extractor
from neuromf.evaluation.frechet import frechet_estimate, kernel_estimate
from neuromf.evaluation.inference import Estimate, mean_estimate, share_estimate
from neuromf.evaluation.morphometry import TISSUES, compare_volumes
from neuromf.evaluation.rows import Part
from neuromf.evaluation.scans import Reference, ScanSet
from neuromf.evaluation.spectrum import add_spectrum

log = logging.getLogger(__name__)

FIDELITY = {  # column of the codec's validation: metric and region of the tables
    "psnr": ("psnr", "brain_box"),
    "ssim": ("ssim", "brain_box"),
    "psnr_brain": ("psnr", "brain"),
    "ssim_brain": ("ssim", "brain"),
    "mae": ("mae", "brain"),
    "lpips_sagittal": ("lpips", "sagittal"),
    "lpips_coronal": ("lpips", "coronal"),
    "lpips_axial": ("lpips", "axial"),
}
STAGES = ("network", "decode", "total")  # of generation, as sample_timing.json has them


def add_sample_figures(
    part: Part, generated: ScanSet, scans: Reference, extractor: Extractor, settings: Evaluate
) -> None:
    """Add all that is measured of generated volumes: distances, tissue volumes, spectrum and copies."""
    real = scans.every
    add_distances(part, generated, scans, settings)
    add_volumes(part, generated, settings)
    for tissue in TISSUES:
        for name, estimate in compare_volumes(generated.tissue(tissue), real.tissue(tissue), settings).items():
            part.add(name, tissue, estimate)
    brain = generated.tissue("brain")
    inside = (brain >= real.tissue("brain").min()) & (brain <= real.tissue("brain").max())
    part.add("brain_volume_in_real_range", "brain", share_estimate(inside, settings))
    others = {"real": real.spectra}
    if "reconstruction" in scans.splits:  # a reference of scans alone, without a release's codec, has none
        others["reconstruction"] = scans.splits["reconstruction"].spectra
    add_spectrum(part, generated.spectra, scans.grid.shape, scans.grid.voxel_mm, settings, others)
    nearest = nearest_scans(generated, scans, extractor)
    add_nearest(part, nearest, settings)
    null = nearest_scans(scans.held_out, scans, extractor)
    for name, larger in (("pixels", True), (extractor.name, False)):
        if null:
            closer = memorisation.closer_than_null(nearest[name].value, null[name].value, larger_is_closer=larger)
            part.add("closer_to_training_than_null", "brain", share_estimate(closer, settings), name)
    add_scans(part, generated, "generated", nearest, scans)


def add_distances(part: Part, volumes: ScanSet, scans: Reference, settings: Evaluate) -> None:
    test = scans.splits["test"]
    if min(len(volumes), len(test)) < 2:
        log.warning("%s: %d volumes and %d test scans; distances need two of each", part.run, len(volumes), len(test))
        missing = Estimate(None, None, None, len(volumes))
        part.add("frechet_distance", "test", missing, scans.extractor)
        part.add("kernel_distance", "test", missing, scans.extractor)
        return
    part.add("frechet_distance", "test", frechet_estimate(volumes.features, test.features, settings), scans.extractor)
    part.add("kernel_distance", "test", kernel_estimate(volumes.features, test.features, settings), scans.extractor)


def add_volumes(part: Part, volumes: ScanSet, settings: Evaluate) -> None:
    for tissue in TISSUES:
        part.add("volume_ml", tissue, mean_estimate(volumes.tissue(tissue), settings))


def add_nearest(part: Part, nearest: Mapping[str, memorisation.Nearest], settings: Evaluate) -> None:
    metrics = {"pixels": "nearest_training_correlation"}
    for name, found in nearest.items():
        metric = metrics.get(name, "nearest_training_distance")
        part.add(metric, "brain", mean_estimate(found.value, settings), name)


def nearest_scans(volumes: ScanSet, scans: Reference, extractor: Extractor) -> dict[str, memorisation.Nearest]:
    """Return the nearest training scan of each volume by pixels and by features; nothing for no volumes."""
    if not len(volumes):
        return {}
    train = scans.splits["train"]
    mirrored = extractor.mirror(volumes.features)
    return {
        "pixels": memorisation.nearest_by_correlation(volumes.thumbnails, train.thumbnails),
        extractor.name: memorisation.nearest_by_features(volumes.features, mirrored, train.features),
    }


def add_scans(
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


def add_fidelity(parts: Mapping[str, Part], codec_validation: Path, settings: Evaluate) -> None:
    """Add PSNR, SSIM, MAE and LPIPS of the codec's validation, averaged over its test scans; LPIPS may be unmeasured."""
    rows = json.loads(codec_validation.read_text(encoding="utf-8"))["rows"]
    for name, part in parts.items():
        for figure, (metric, region) in FIDELITY.items():
            values = [row[figure] for row in rows if row["codec"] == name]
            measured = None not in values
            estimate = mean_estimate(values, settings) if measured else Estimate(None, None, None, len(values))
            part.add(metric, region, estimate)


def add_seconds(part: Part, timing: Path, settings: Evaluate) -> None:
    """Add the seconds per volume of network, decoder and both."""
    content = json.loads(timing.read_text(encoding="utf-8"))
    for stage in STAGES:
        part.add("seconds_per_volume", stage, mean_estimate(content[stage], settings))
