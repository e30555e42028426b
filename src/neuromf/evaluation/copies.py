"""Copies of training scans and duplicates among the volumes themselves: the search, its null, and what the tables say.

Two searches, the same way: for the nearest training scan, beside that of held-out real scans; and for the nearest other
volume of the same set, beside that of real scans among real scans.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neuromf.config import Evaluate
from neuromf.evaluation import memorisation
from neuromf.evaluation.extractors.registry import CODEC
from neuromf.evaluation.inference import Estimate, mean_estimate, share_estimate
from neuromf.evaluation.memorisation import Array, Candidates, Nearest
from neuromf.evaluation.rows import REFERENCE_RUNS, Part
from neuromf.evaluation.scans import ScanSet, compared

log = logging.getLogger(__name__)

Target = Literal["training", "other"]
PIXELS = "pixels"
SUFFIX = {PIXELS: "", CODEC: "_codec"}  # of the columns of scans.parquet
PREFIX: dict[Target, str] = {"training": "nearest", "other": "other"}
PERCENTILES = {"1st": 0.01, "5th": 0.05}
PICTURED = 4  # pairs of each search in the picture


@dataclass(frozen=True)
class Search:
    """Where volumes have their nearest scan, by pixels and, with a codec, by its features; empty for want of scans.

    ``null`` is the same of real scans; it is empty for real scans, which are the null themselves.
    """

    target: Target
    names: tuple[str, ...]  # of the scans that were searched
    found: Mapping[str, Nearest]
    null: Mapping[str, Nearest]

    def p_values(self, by: str) -> dict[str, NDArray[np.float64]]:
        """Return the p-values (N,) of the distances, ``p``, and of the relative distances, ``relative_p``."""
        return self._p_values.get(by, {})

    @cached_property
    def _p_values(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Of all volumes at once: the table of scans asks volume by volume."""
        every = {}
        for by, null in self.null.items():
            found = self.found[by]
            every[by] = {"p": memorisation.p_values(found.distance, null.distance)}
            if found.relative is not None and null.relative is not None:
                every[by]["relative_p"] = memorisation.p_values(found.relative, null.relative)
        return every

    def columns(self, row: int) -> dict[str, Any]:
        """Return what the table of scans says of one volume."""
        figures: dict[str, Any] = {}
        for by, found in self.found.items():
            own = {
                "scan": self.names[found.index[row]],
                "mirrored": bool(found.mirrored[row]),
                "correlation" if by == PIXELS else "distance": float(_closeness(by, found)[row]),
            }
            if found.relative is not None:
                own["relative"] = float(found.relative[row])
            own |= {name: float(values[row]) for name, values in self.p_values(by).items()}
            figures |= {f"{PREFIX[self.target]}_{name}{SUFFIX[by]}": value for name, value in own.items()}
        return figures


def nearest_scans(volumes: ScanSet, among: ScanSet) -> dict[str, Nearest]:
    """Return each volume's nearest scan of another set, by pixels and, with a codec, by features; nothing for no volumes."""
    none = np.full(len(volumes), -1)
    return _nearest(volumes, among, Candidates(none, len(among)), memorisation.brain_of(among.thumbnails))


def search_training(volumes: ScanSet, train: ScanSet, held_out: ScanSet | None = None) -> Search:
    """Look for each volume's nearest training scan; the null is that of held-out scans, which no model was trained on."""
    return Search(
        "training", train.ids, nearest_scans(volumes, train), nearest_scans(held_out, train) if held_out else {}
    )


def search_others(volumes: ScanSet, real: ScanSet, settings: Evaluate) -> Search:
    """Look for each volume's nearest other one of its set; the null is that of each real scan among the other real scans.

    Of many real scans, as many as there are other volumes are drawn anew for each; at most `evaluate.compared` are the null.
    """
    brain = memorisation.brain_of(real.thumbnails)
    if len(volumes) > len(real) > 1:
        log.warning(
            "%d volumes and %d real scans: among more volumes the nearest other one is nearer by chance; the shares of"
            " duplicates by distance are too high, so read those by relative distance",
            len(volumes), len(real),
        )  # fmt: skip
    null = real.take(compared(real.ids, settings.compared))
    drawn = replace(_others(null, real), most=max(1, len(volumes) - 1), seed=settings.seed)
    return Search(
        "other",
        volumes.ids,
        _nearest(volumes, volumes, _others(volumes, volumes), brain),
        _nearest(null, real, drawn, brain),
    )


def search_real(scans: ScanSet, every: ScanSet) -> Search:
    """Look for the nearest other real scan of each of some real scans, among every one."""
    found = _nearest(scans, every, _others(scans, every), memorisation.brain_of(every.thumbnails))
    return Search("other", every.ids, found, {})


def add_search(part: Part, search: Search, settings: Evaluate) -> None:
    """Add how near the volumes come, and the shares of them that come nearer than the null."""
    target = search.target
    for by, found in search.found.items():
        closeness = "correlation" if by == PIXELS else "distance"
        part.add(f"nearest_{target}_{closeness}", "brain", mean_estimate(_closeness(by, found), settings), by)
        if found.relative is not None:
            part.add(f"nearest_{target}_relative", "brain", mean_estimate(found.relative, settings), by)
        if by not in search.null:
            continue
        size = len(search.null[by].index)
        part.add(f"{target}_null_scans", "brain", Estimate(float(size), None, None, len(found.index)), by)
        for name, p in search.p_values(by).items():
            closer = f"{'relatively_' if name == 'relative_p' else ''}closer_to_{target}_than_null"
            for percentile, level in PERCENTILES.items():
                resolved = memorisation.resolved(level, size)
                share = share_estimate(p <= level + 1e-9, settings) if resolved else Estimate(None, None, None, len(p))
                part.add(f"{closer}_{percentile}", "brain", share, by)
            part.add(f"{closer}_closest", "brain", share_estimate(p <= 1 / (size + 1) + 1e-9, settings), by)


def pairs(scans: pd.DataFrame, target: Target) -> pd.DataFrame:
    """Return every generated volume with its nearest scan, by pixels and by features, the most suspect pair first.

    ``scans`` is the evaluation's table. Columns: run, seed, nfe, scan; by (pixels, codec), nearest, mirrored, value (r, or
    the distance of features), relative, p, relative_p; closer and relatively_closer than the null allows (`suspect`);
    null_size. First come the pairs that are relatively near, since a volume that is smoother than real ones is near to all.
    """
    generated = scans[(scans["split"] == "generated") & ~scans["run"].isin(REFERENCE_RUNS)]  # noise is no sample
    rows = []
    for by, suffix in SUFFIX.items():
        prefix = PREFIX[target]
        value = "correlation" if by == PIXELS else "distance"
        columns = {
            f"{prefix}_{name}{suffix}": called
            for name, called in (("scan", "nearest"), ("mirrored", "mirrored"), (value, "value"), ("relative", "relative"),
                                 ("p", "p"), ("relative_p", "relative_p"))
        }  # fmt: skip
        own = generated[["run", "seed", "nfe", "scan", *columns]].rename(columns=columns)
        own = own[own["nearest"].notna()].assign(by=by)
        size = null_size(scans, target)
        own["closer"] = memorisation.suspect(own["p"].to_numpy(float), size)
        own["relatively_closer"] = memorisation.suspect(own["relative_p"].to_numpy(float), size)
        rows.append(own.assign(null_size=size))
    return pd.concat([own for own in rows if len(own)] or rows[:1]).sort_values(
        ["relative_p", "relative", "p"], kind="stable", ignore_index=True
    )


def null_size(scans: pd.DataFrame, target: Target) -> int:
    """Return how many real scans are the null of a search."""
    return int(scans.loc[scans["run"] == "real", f"{PREFIX[target]}_scan"].notna().sum())


def most_suspect(scans: pd.DataFrame, target: Target, count: int = PICTURED) -> pd.DataFrame:
    """Return the most suspect pairs of `pairs`, one for each volume; of the same noise with more network evaluations, and of
    two volumes that are each other's nearest, only the first."""
    found = pairs(scans, target).drop_duplicates(["run", "seed", "scan"])
    if target == "other":
        both = [tuple(sorted(pair)) for pair in zip(found["scan"], found["nearest"], strict=True)]
        found = found[~found.assign(both=both).duplicated(["run", "seed", "both"])]
    return found.head(count)


def _nearest(volumes: ScanSet, scans: ScanSet, candidates: Candidates, brain: NDArray[np.bool_]) -> dict[str, Nearest]:
    """Return the nearest scans by pixels and, with a codec, by features; nothing without volumes or candidates."""
    if candidates.fewest < 1 or not len(volumes):
        return {}
    reference = memorisation.standardised(scans.thumbnails, brain)

    def by_pixels(rows: NDArray[np.int64]) -> tuple[Array, Array]:
        return memorisation.thumbnail_distances(volumes.thumbnails[rows], reference, brain)

    def by_features(rows: NDArray[np.int64]) -> tuple[Array, Array]:
        return memorisation.feature_distances(volumes.features[rows], volumes.mirrored_features[rows], scans.features)

    found = {PIXELS: memorisation.search(by_pixels, candidates)}
    if volumes.features.shape[1]:
        found[CODEC] = memorisation.search(by_features, candidates)
    return found


def _others(volumes: ScanSet, scans: ScanSet) -> Candidates:
    """Return the scans that are not the volume itself, which goes by its name where they are another set."""
    if volumes is scans:
        return Candidates(np.arange(len(scans)), len(scans))
    rows = {name: row for row, name in enumerate(scans.ids)}
    return Candidates(np.array([rows.get(name, -1) for name in volumes.ids], dtype=np.int64), len(scans))


def _closeness(by: str, found: Nearest) -> NDArray[np.float64]:
    return found.correlation if by == PIXELS else found.distance
