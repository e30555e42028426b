"""What is wrong or doubtful with a cohort's scans: by the skull strip's rows, before them by the headers of some scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neuromf.tables import Cohort, Scan, read_manifest
from neuromf.volume import VolumeError, header_warning

LOOKED_AT = 32  # scans of a cohort, before any was stripped


@dataclass
class Told:
    """What was told of ``number`` scans: reasons why some cannot be used, and warnings about others, each with the scan."""

    number: int = 0
    stripped: bool = False
    refused: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)


def some(scans: Sequence[Scan]) -> Sequence[Scan]:
    """Return a few scans from all over a cohort."""
    return scans[:: max(1, len(scans) // LOOKED_AT)][:LOOKED_AT]


def told_of(cohort: Cohort) -> Told:
    """Return what is known of a cohort's scans. Heads that the workflow makes are known once they are stripped."""
    manifests = sorted(Path(f"results/cohorts/{cohort.name}/preprocessed/manifests/skull_strip").glob("shard-*.tsv"))
    if manifests:
        told = Told(stripped=True)
        for row in (row for manifest in manifests for row in read_manifest(manifest)):
            told.number += 1
            if not row.ok:
                told.refused.append(f"{row.scan_id}: {row.reason}")
            elif warning := row.figures.get("warning"):
                told.doubtful.append(f"{row.scan_id}: {warning}")
        return told
    told = Told()
    for scan in () if cohort.source == "phantom" else some(cohort.scans):
        path = cohort.root / scan.image
        told.number += 1
        try:
            if warning := header_warning(path):
                told.doubtful.append(f"{path}: {warning}")
        except VolumeError as error:
            told.refused.append(str(error))
    return told
