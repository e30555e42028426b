"""One scan under several names: conformed volumes that hold the same values.

A participant's split is a hash of the ID, so a file that was copied under a second ID may be trained on and tested with.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuromf.tables import read_manifest, write_tsv
from neuromf.volume import VolumeError, read_volume

COLUMNS = ("group", "cohort", "scan_id", "file", "sha256")
_SAME_BRAIN = ("brain_ml", "intensity_low", "intensity_high")  # figures of the conform stage that a copy shares
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Duplicate:
    """A scan whose conformed volume equals another one's; ``file`` and ``sha256`` are those of the volume."""

    cohort: str
    scan_id: str
    file: Path
    sha256: str


def find_duplicates(manifests: Mapping[str, Sequence[Path]]) -> list[tuple[Duplicate, ...]]:
    """Return the groups of scans that are one scan, in the order of the manifests.

    Files are compared by the SHA-256 in their rows. Only where figures of two different files agree to the last digit are
    their values read and compared, since one scan may come with two origins in its header.

    Args:
        manifests: of the conform stage, by cohort.

    Raises:
        TableError: a manifest that cannot be read.
    """
    by_content: dict[str, list[Duplicate]] = {}
    by_figures: dict[tuple[object, ...], list[str]] = {}
    for cohort, paths in manifests.items():
        for path in paths:
            for row in read_manifest(path):
                if not row.ok:
                    continue
                scan = Duplicate(cohort, row.scan_id, path.parent / row.file, row.sha256)
                if row.sha256 not in by_content and all(name in row.figures for name in _SAME_BRAIN):
                    by_figures.setdefault(tuple(row.figures[name] for name in _SAME_BRAIN), []).append(row.sha256)
                by_content.setdefault(row.sha256, []).append(scan)
    for first, other in _same_values(by_content, [group for group in by_figures.values() if len(group) > 1]):
        by_content[first] += by_content.pop(other)
    return [tuple(group) for group in by_content.values() if len(group) > 1]


def write_duplicates(path: Path, groups: Sequence[Sequence[Duplicate]]) -> None:
    """Write a row per scan that is there several times, numbered by group, and warn if there is one."""
    rows = [(n, s.cohort, s.scan_id, s.file.name, s.sha256) for n, group in enumerate(groups, 1) for s in group]
    write_tsv(path, COLUMNS, rows)
    if groups:
        _log.warning(
            "Scans that are there under several names: %d, for instance %s; %s lists them. Under two participants they may"
            " fall into train and test: leave all but one out of the release",
            len(groups),
            " = ".join(scan.scan_id for scan in groups[0]),
            path,
        )


def _same_values(
    by_content: Mapping[str, Sequence[Duplicate]], candidates: Sequence[Sequence[str]]
) -> Iterator[tuple[str, str]]:
    """Yield pairs of files' hashes, the first of a group and another one, whose values are the same."""
    for hashes in candidates:
        first_of: dict[str, str] = {}
        for sha256 in hashes:
            values = _values_hash(by_content[sha256][0].file)
            if values and (first := first_of.setdefault(values, sha256)) != sha256:
                yield first, sha256


def _values_hash(path: Path) -> str:
    """Return a hash of a volume's values and shape; "" for a file that cannot be read, which other rules tell of."""
    try:
        data = np.ascontiguousarray(read_volume(path).dataobj)
    except (VolumeError, OSError):
        return ""
    return hashlib.sha256(repr((data.shape, data.dtype.str)).encode() + data.tobytes()).hexdigest()
