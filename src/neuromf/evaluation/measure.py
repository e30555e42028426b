"""What is measured of a set of volumes, added row by row to a part of the evaluation's tables."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromf.config import Evaluate
from neuromf.evaluation.copies import Search, add_search, search_others, search_training
from neuromf.evaluation.distances import compare_draws
from neuromf.evaluation.extractors.registry import VOLUME, Extractor
from neuromf.evaluation.features import gather
from neuromf.evaluation.inference import Estimate, floor_draws, floor_parts, mean_estimate, share_estimate
from neuromf.evaluation.morphometry import TISSUES, compare_volume_draws, compare_volumes
from neuromf.evaluation.ms_ssim import diversity
from neuromf.evaluation.rows import Part
from neuromf.evaluation.scans import Reference, ScanSet
from neuromf.evaluation.spectrum import add_spectrum, high_frequency_ratio
from neuromf.tables import read_json
from neuromf.volume import read_volume

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
    part: Part,
    generated: ScanSet,
    scans: Reference,
    extractors: Sequence[Extractor],
    cache: Path,
    settings: Evaluate,
) -> None:
    """Add all that is measured of generated volumes: distances, tissue volumes, spectrum, copies and duplicates."""
    add_distances(part, generated, scans, extractors, cache, settings)
    add_volumes(part, generated, settings)
    add_volume_comparison(part, generated, scans.every, settings)
    others = {"real": scans.every.spectra}
    if "reconstruction" in scans.splits:  # a reference of scans alone, without a release's codec, has none
        others["reconstruction"] = scans.splits["reconstruction"].spectra
    add_spectrum(part, generated.spectra, scans.grid.shape, scans.grid.voxel_mm, settings, others)
    searches = [
        search_training(generated, scans.splits["train"], scans.held_out),
        search_others(generated, scans.every, settings),
    ]
    for search in searches:
        add_search(part, search, settings)
    add_scans(part, generated, "generated", searches, settings)


def add_distances(
    part: Part,
    volumes: ScanSet,
    scans: Reference,
    extractors: Sequence[Extractor],
    cache: Path,
    settings: Evaluate,
    n: int | None = None,
) -> None:
    """Add what compares the features of volumes with those of the test split, for each extractor and region.

    Args:
        n: compare so many of the volumes, as the mean over several draws (`floor_draws`); None: all of them.
    """
    chosen = volumes.compared(settings.compared)
    for extractor in extractors:
        for region, test in scans.test_rows[extractor.name].items():
            rows = gather(cache, extractor, chosen, region)
            if min(len(rows), len(test)) < 2:
                log.warning(
                    "%s: %d volumes and %d test scans; distances need two of each", part.run, len(rows), len(test)
                )
            drawn = floor_draws(len(rows), len(rows) if n is None else n, settings)
            for metric, estimate in compare_draws([(rows.of_scans(one), test) for one in drawn], settings).items():
                part.add(metric, region, estimate, extractor.name)


def add_volume_floor(part: Part, real: ScanSet, settings: Evaluate, n: int) -> None:
    """Add how tissue volumes of ``n`` real scans, half of them at most, differ from those of the others."""
    parts = floor_parts(len(real), n, settings)
    for tissue in TISSUES:
        volumes = real.tissue(tissue)
        for name, estimate in compare_volume_draws([(volumes[a], volumes[b]) for a, b in parts], settings).items():
            part.add(name, tissue, estimate)


def add_diversity(part: Part, files: Sequence[Path], settings: Evaluate) -> None:
    """Add the MS-SSIM among the volumes of files."""

    def read(index: int) -> NDArray[np.floating]:
        return np.asarray(read_volume(files[index]).dataobj, dtype=np.float32)

    part.add("ms_ssim", VOLUME, diversity(len(files), read, settings))


def add_volumes(part: Part, volumes: ScanSet, settings: Evaluate) -> None:
    for tissue in TISSUES:
        part.add("volume_ml", tissue, mean_estimate(volumes.tissue(tissue), settings))


def add_volume_comparison(part: Part, volumes: ScanSet, real: ScanSet, settings: Evaluate) -> None:
    """Add how tissue volumes differ from those of real scans, and the share of brains within the real range."""
    for tissue in TISSUES:
        for name, estimate in compare_volumes(volumes.tissue(tissue), real.tissue(tissue), settings).items():
            part.add(name, tissue, estimate)
    brain = volumes.tissue("brain")
    inside = (brain >= real.tissue("brain").min()) & (brain <= real.tissue("brain").max())
    part.add("brain_volume_in_real_range", "brain", share_estimate(inside, settings))


def add_scans(part: Part, volumes: ScanSet, split: str, searches: Sequence[Search], settings: Evaluate) -> None:
    """Add one row per volume to the table of scans, with where `searches` of these volumes found the nearest scan."""
    ratio = high_frequency_ratio(volumes.spectra, settings.spectrum_k0)
    for row, scan in enumerate(volumes.ids):
        figures: dict[str, Any] = {
            f"{tissue}_ml": float(volume) for tissue, volume in zip(TISSUES, volumes.tissues[row], strict=True)
        }
        figures |= {"high_frequency_ratio": float(ratio[row]), "sha256": volumes.hashes[row]}
        for search in searches:
            figures |= search.columns(row)
        part.add_scan(scan, split, figures)


def add_fidelity(parts: Mapping[str, Part], codec_validation: Path, settings: Evaluate) -> None:
    """Add PSNR, SSIM, MAE and LPIPS of the codec's validation, averaged over its test scans; LPIPS may be unmeasured."""
    rows = read_json(codec_validation, "rows")["rows"]
    for name, part in parts.items():
        for figure, (metric, region) in FIDELITY.items():
            values = [row[figure] for row in rows if row["codec"] == name]
            measured = None not in values
            estimate = mean_estimate(values, settings) if measured else Estimate(None, None, None, len(values))
            part.add(metric, region, estimate)


def add_costs(part: Part, timing: Path, settings: Evaluate) -> None:
    """Add seconds and joules per volume of network, decoder and both; joules have no value where the device told none."""
    content = read_json(timing)
    for stage in STAGES:
        part.add("seconds_per_volume", stage, mean_estimate(content[stage], settings))
        joules = content.get("joules", {}).get(stage, [None])  # files of before joules were told have none
        told = None not in joules
        missing = Estimate(None, None, None, len(content[stage]))
        part.add("joules_per_volume", stage, mean_estimate(joules, settings) if told else missing)
