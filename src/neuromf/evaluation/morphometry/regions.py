"""Regional figures of sets of scans, and the rows of the evaluation's tables that compare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from neuromf.config import Evaluate
from neuromf.evaluation.inference import floor_parts, mean_estimate, share_estimate
from neuromf.evaluation.morphometry.atlas import Atlas
from neuromf.evaluation.morphometry.compare import (
    asymmetry,
    compare_volume_draws,
    correlation,
    effect_size,
    overlaps,
)
from neuromf.evaluation.morphometry.segmentation import Scan, Segmenter, labels_path, mirrored, segment_scan
from neuromf.evaluation.morphometry.synthseg import QUALITY_PASS
from neuromf.evaluation.rows import Part

Array = NDArray[np.float64]
RATIOS = (("grey", "white"), ("csf", "grey"), ("csf", "white"))


@dataclass(frozen=True)
class RegionSet:
    """Regional figures of N scans by one segmenter, whose R regions and P paired regions are the atlas's, in its order.

    ``volumes`` (N, R) and ``sides`` (N, P, 2; left, right) in ml; ``quality`` (N, Q) of the scores ``scores``; ``labels``
    are the files of the label volumes.
    """

    ids: tuple[str, ...]
    segmenter: str
    atlas: Atlas
    volumes: Array
    sides: Array
    scores: tuple[str, ...]
    quality: Array
    labels: tuple[Path, ...]

    def of_scans(self, chosen: ArrayLike) -> RegionSet:
        """Return some of the scans, given by their numbers or by a mask (N,)."""
        rows = np.arange(len(self.ids))[np.asarray(chosen)]
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows),
            volumes=self.volumes[rows],
            sides=self.sides[rows],
            quality=self.quality[rows],
        )

    def volume(self, region: str) -> Array:
        """Return one region's volumes (N,) in ml."""
        return self.volumes[:, list(self.atlas.regions).index(region)]

    def tissue(self, name: str) -> Array:
        """Return the volumes (N,) in ml of ``grey``, ``white`` or ``csf``: the sum of the atlas's regions of it."""
        return np.sum([self.volume(region) for region in self.atlas.tissues[name]], axis=0)


def describe_regions(scans: Sequence[Scan], segmenter: Segmenter, cache: Path, *, label: str) -> RegionSet:
    """Return the regional figures of scans, segmenting those that the cache does not have.

    Raises:
        ValueError: there is none.
        VolumeError: a volume cannot be read or segmented.
    """
    if not scans:
        raise ValueError(f"{label}: no volumes to segment")
    atlas = segmenter.atlas
    volumes, sides, quality, labels = [], [], [], []
    scores: tuple[str, ...] = ()
    for scan in tqdm(scans, desc=f"{label}: {segmenter.name}", unit="volume"):
        found = segment_scan(scan, segmenter, cache)
        scores = tuple(found.quality)
        volumes.append([found.volumes[region] for region in atlas.regions])
        sides.append([found.sides[region] for region in atlas.paired])
        quality.append(list(found.quality.values()))
        labels.append(labels_path(segmenter.stem(cache, scan.sha256)))
    return RegionSet(
        tuple(scan.id for scan in scans),
        segmenter.name,
        atlas,
        np.array(volumes, dtype=np.float64),
        np.array(sides, dtype=np.float64),
        scores,
        np.array(quality, dtype=np.float64),
        tuple(labels),
    )


def add_regions(part: Part, scans: RegionSet, settings: Evaluate) -> None:
    """Add the means of regional volumes, tissue ratios, asymmetries and quality scores: one row per figure and region.

    Quality has rows where the segmenter gives scores: each one's mean, and the share of scans whose every score passes.
    The rows' extractor is the segmenter.
    """
    name = scans.segmenter
    for region in scans.atlas.regions:
        part.add("volume_ml", region, mean_estimate(scans.volume(region), settings), name)
    for (upper, lower), ratio in _ratios(scans).items():
        part.add("volume_ratio", f"{upper}/{lower}", mean_estimate(ratio[np.isfinite(ratio)], settings), name)
    for index, region in enumerate(scans.atlas.paired):
        gaps = asymmetry(scans.sides[:, index])
        part.add("asymmetry", region, mean_estimate(gaps[np.isfinite(gaps)], settings), name)
    for index, score in enumerate(scans.scores):
        part.add("quality", score, mean_estimate(scans.quality[:, index], settings), name)
    if scans.scores:
        passed = (scans.quality >= QUALITY_PASS).all(axis=1)
        part.add("quality_pass", "all", share_estimate(passed, settings), name)


def add_region_comparison(part: Part, generated: RegionSet, real: RegionSet, settings: Evaluate) -> None:
    """Add how regional volumes, tissue ratios and asymmetries of generated scans differ from those of real ones: Cohen's
    d, distances of the distributions, shares in the real range.

    Raises:
        ValueError: the two were segmented by different segmenters.
    """
    _same_segmenter(generated, real)
    _compare(part, [(generated, real)], settings)


def add_region_floor(part: Part, real: RegionSet, settings: Evaluate, n: int) -> None:
    """Add the same of ``n`` real scans, half of them at most, beside the others: means over several draws."""
    _compare(part, [(real.of_scans(a), real.of_scans(b)) for a, b in floor_parts(len(real.ids), n, settings)], settings)


def _compare(part: Part, pairs: Sequence[tuple[RegionSet, RegionSet]], settings: Evaluate) -> None:
    first, _ = pairs[0]
    name = first.segmenter
    for region in first.atlas.regions:
        volumes = [(x.volume(region), y.volume(region)) for x, y in pairs]
        for metric, estimate in compare_volume_draws(volumes, settings).items():
            part.add(metric, region, estimate, name)
        inside = [(x >= y.min()) & (x <= y.max()) for x, y in volumes if len(y)]
        share = share_estimate(np.concatenate(inside) if inside else [], settings)
        part.add("volume_in_real_range", region, replace(share, n=len(first.ids) if inside else 0), name)
    ratios = [(_ratios(x), _ratios(y)) for x, y in pairs]
    for upper, lower in ratios[0][0]:
        d = effect_size([(x[upper, lower], y[upper, lower]) for x, y in ratios], settings)
        part.add("volume_ratio_cohens_d", f"{upper}/{lower}", d, name)
    for index, region in enumerate(first.atlas.paired):
        gaps = [(asymmetry(x.sides[:, index]), asymmetry(y.sides[:, index])) for x, y in pairs]
        part.add("asymmetry_cohens_d", region, effect_size(gaps, settings), name)


def add_nearest_regions(
    part: Part, generated: RegionSet, real: RegionSet, nearest: ArrayLike, flipped: ArrayLike, settings: Evaluate
) -> None:
    """Add how alike generated scans and their nearest real scans are: Pearson's r of volumes, and Dice, per region.

    Region ``all`` of the correlation is the mean over scans of r between the regional volumes of scan and neighbour,
    each region standardised by the real scans (raw volumes correlate in any two brains). Dice needs both on one grid.

    Args:
        nearest: (N,) rows of ``real``, in feature space (`memorisation.Nearest.index` for the training scans).
        flipped: (N,) whether it is a neighbour's mirror image that is nearest; its labels are flipped before they overlap.

    Raises:
        ValueError: different segmenters, one index per generated scan missing, or label volumes on different grids.
    """
    _same_segmenter(generated, real)
    rows, name = np.asarray(nearest, dtype=np.int64), generated.segmenter
    if rows.shape != (len(generated.ids),):
        raise ValueError(f"nearest has shape {rows.shape}; give one row of the real scans per generated scan")
    neighbours = real.volumes[rows]
    for index, region in enumerate(generated.atlas.regions):
        estimate = correlation(generated.volumes[:, index], neighbours[:, index], settings)
        part.add("nearest_volume_correlation", region, estimate, name)
    spread = real.volumes.std(axis=0, ddof=1) if len(real.ids) > 1 else np.zeros(real.volumes.shape[1])
    varies = spread > 0
    if varies.sum() > 2:
        mean = real.volumes.mean(axis=0)
        x, y = (
            ((values - mean) / np.where(varies, spread, 1))[:, varies] for values in (generated.volumes, neighbours)
        )
        pairs = [(a, b) for a, b in zip(x, y, strict=True) if min(np.ptp(a), np.ptp(b)) > 1e-9]  # a constant has no r
        profile = [np.corrcoef(a, b)[0, 1] for a, b in pairs]
        part.add("nearest_volume_correlation", "all", mean_estimate(profile, settings), name)
    pairs_of_labels = zip(generated.labels, rows, np.asarray(flipped, dtype=bool), strict=True)
    shared = np.array([_overlaps(a, real.labels[j], generated.atlas, flip=flip) for a, j, flip in pairs_of_labels])
    for index, region in enumerate(_labelled(generated.atlas)):
        values = shared[:, index]
        part.add("nearest_dice", region, mean_estimate(values[np.isfinite(values)], settings), name)


def _overlaps(ours: Path, neighbours: Path, atlas: Atlas, *, flip: bool) -> list[float]:
    """Return Dice of each labelled region in two files of labels; of the neighbour's mirror image where ``flip``."""
    a, b = nib.Nifti1Image.from_filename(ours), nib.Nifti1Image.from_filename(neighbours)
    if a.shape != b.shape:
        raise ValueError(f"labels of {ours} {a.shape} and {neighbours} {b.shape} lie on different grids")
    labels, others = (np.asarray(image.dataobj) for image in (a, mirrored(b) if flip else b))
    return list(overlaps(labels, others, _labelled(atlas)).values())


def _labelled(atlas: Atlas) -> dict[str, tuple[int, ...]]:
    return {region: known for region, known in atlas.regions.items() if known}


def _ratios(scans: RegionSet) -> dict[tuple[str, str], Array]:
    """Return the ratios (N,) of tissue volumes; NaN where the lower one is zero."""
    volumes = {tissue: scans.tissue(tissue) for tissue in scans.atlas.tissues}
    return {
        (upper, lower): np.divide(
            volumes[upper], volumes[lower], out=np.full(len(scans.ids), np.nan), where=volumes[lower] > 0
        )
        for upper, lower in RATIOS
    }


def _same_segmenter(generated: RegionSet, real: RegionSet) -> None:
    if generated.segmenter != real.segmenter:
        raise ValueError(f"generated scans by {generated.segmenter}, real ones by {real.segmenter}; use one segmenter")
