"""What the shard manifests tell about a cohort: scans per stage, failures with their reasons, distributions of figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neuromf.cohort.duplicates import find_duplicates
from neuromf.tables import SPLITS, ManifestRow, ReleaseRow, read_manifest

# figure of a stage → how it is called; those that a stage does not have are left out
FIGURES = {
    "brain_ml": "brain volume (ml)",
    "field_min": "smallest value of the bias field",
    "field_max": "largest value of the bias field",
    "cut_fraction": "share of the brain cut off",
}


@dataclass(frozen=True)
class StageCount:
    """How many scans of a cohort a stage did."""

    cohort: str
    stage: str
    done: int
    failed: int
    warned: int  # of those done


@dataclass(frozen=True)
class Note:
    """A scan that failed (where it first did) or that a stage warned about."""

    cohort: str
    scan: str
    stage: str
    text: str


@dataclass(frozen=True)
class SameScan:
    """One scan under several names: ``cohort/scan`` of each, and the splits of the release that hold one of them."""

    scans: tuple[str, ...]
    splits: tuple[str, ...]

    @property
    def leaks(self) -> bool:
        """Whether models are trained on a scan that they are validated or tested with."""
        return "train" in self.splits and len(self.splits) > 1


@dataclass(frozen=True)
class Quality:
    """A release's cohorts as the preprocessing saw them. ``figures``: label → values over scans."""

    counts: list[StageCount]
    failures: list[Note]
    warnings: list[Note]
    figures: dict[str, list[float]]
    duplicates: list[SameScan] = field(default_factory=list)


def read_quality(manifests: Mapping[str, Mapping[str, Sequence[Path]]], release: Sequence[ReleaseRow] = ()) -> Quality:
    """Read all manifests, cohort → stage → shard manifests, stages in the order of the work.

    A failed scan fails in all later stages with the same reason; it is listed once, with the stage it first failed in.
    """
    counts, failures, warnings = [], [], []
    figures: dict[str, list[float]] = {}
    for cohort, stages in manifests.items():
        known: set[str] = set()
        for stage, paths in stages.items():
            rows = [row for path in paths for row in read_manifest(path)]
            done = [row for row in rows if row.ok]
            warned = sum(bool(row.figures.get("warning")) for row in done)
            counts.append(StageCount(cohort, stage, len(done), len(rows) - len(done), warned))
            failures += [Note(cohort, r.scan_id, stage, r.reason) for r in rows if not r.ok and r.scan_id not in known]
            known |= {row.scan_id for row in rows if not row.ok}
            warnings += [
                Note(cohort, r.scan_id, stage, str(r.figures["warning"])) for r in rows if r.figures.get("warning")
            ]
            _collect(figures, stage, rows)
    return Quality(counts, failures, warnings, figures, _duplicates(manifests, release))


def _duplicates(manifests: Mapping[str, Mapping[str, Sequence[Path]]], release: Sequence[ReleaseRow]) -> list[SameScan]:
    """Return the scans that are there several times, those first that are in several splits of the release."""
    split = {(row.cohort, row.scan_id): row.split for row in release}
    same = []
    for group in find_duplicates({cohort: stages.get("conform", ()) for cohort, stages in manifests.items()}):
        found = {split[scan.cohort, scan.scan_id] for scan in group if (scan.cohort, scan.scan_id) in split}
        names = tuple(f"{scan.cohort}/{scan.scan_id}" for scan in group)
        same.append(SameScan(names, tuple(part for part in SPLITS if part in found)))
    return sorted(same, key=lambda one: not one.leaks)


def _collect(figures: dict[str, list[float]], stage: str, rows: Sequence[ManifestRow]) -> None:
    for name, label in FIGURES.items():
        values = [row.figures[name] for row in rows if row.ok and isinstance(row.figures.get(name), float)]
        if values and not (name == "brain_ml" and stage != "skull_strip"):  # later stages repeat it on their own grid
            figures.setdefault(label, []).extend(float(value) for value in values)
