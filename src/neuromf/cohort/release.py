"""Releases: frozen lists of scans, split by person."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from neuromf.cohort.visits import look_like_visits
from neuromf.names import check_name
from neuromf.tables import SPLITS, Cohort, ReleaseRow, TableError, write_release

FRACTIONS = (0.8, 0.1, 0.1)  # train, val, test


def create_release(
    name: str,
    cohorts: Sequence[Cohort],
    releases: Path,
    *,
    modality: str = "T1w",
    fractions: tuple[float, float, float] = FRACTIONS,
) -> tuple[ReleaseRow, ...]:
    """Write the release ``<releases>/<name>.tsv``: every scan of one modality of the cohorts, with its split.

    A person's split depends on the participant ID and the fractions only: it is the same in every cohort, session and
    later release, however the cohorts grow.

    Raises:
        TableError: a name that cannot be a file's, the release exists (a release never changes), the fractions are no
            shares, a cohort is given twice, or no participant falls into train or test.
    """
    check_name("release name", name, (other.stem for other in releases.glob("*.tsv")))
    table = releases / f"{name}.tsv"
    if table.exists():
        raise TableError(f"{table} exists and a release never changes; choose another name, for instance {name}-2")
    if any(f < 0 for f in fractions) or not math.isclose(sum(fractions), 1.0):
        raise TableError(f"fractions {fractions} of train, val and test must be at least 0 and sum to 1")
    if twice := [cohort for cohort, count in Counter(cohort.name for cohort in cohorts).items() if count > 1]:
        raise TableError(f"release {name}: cohort {twice[0]} is given twice; give it once")
    rows = tuple(
        ReleaseRow(s.participant_id, s.session_id, modality, cohort.name, split_of(s.participant_id, fractions))
        for cohort in cohorts
        for s in cohort.scans
        if s.modality == modality
    )
    _check_splits(name, rows, cohorts, modality, fractions)
    write_release(table, rows)
    return rows


def visits_across_splits(rows: Sequence[ReleaseRow]) -> list[str]:
    """Return a line for IDs without sessions that look like visits of one person and lie in several splits."""
    splits = {row.participant_id: row.split for row in rows if row.session_id is None}
    told = []
    for visits in look_like_visits(splits):
        people = [ids for ids in visits.people if len({splits[one] for one in ids}) > 1]
        if people:
            ids = ", ".join(f"{one} ({splits[one]})" for one in people[0][:4])
            told.append(
                f"{len(people)} groups of IDs look like visits of one person and lie in several splits, for instance {ids}."
                " If they are, index the scans under another cohort name with --participant (docs/cohorts.md)"
            )
    return told


def split_of(participant_id: str, fractions: tuple[float, float, float] = FRACTIONS) -> str:
    """Return train, val or test for a participant.

    The first 64 bits of the ID's SHA-256 are a number in [0, 1): below the share of train it is train, and so on.
    """
    place = int.from_bytes(hashlib.sha256(participant_id.encode()).digest()[:8], "big") / 2**64
    if place < fractions[0]:
        return "train"
    return "val" if place < fractions[0] + fractions[1] else "test"


def _check_splits(
    name: str,
    rows: Sequence[ReleaseRow],
    cohorts: Sequence[Cohort],
    modality: str,
    fractions: tuple[float, float, float],
) -> None:
    given = ", ".join(cohort.name for cohort in cohorts) or "none"
    if not rows:
        found = sorted({scan.modality for cohort in cohorts for scan in cohort.scans})
        raise TableError(
            f"release {name}: no {modality} scan in the cohorts given ({given}); they hold {', '.join(found) or 'nothing'}"
        )
    people = Counter(split for _, split in {(row.participant_id, row.split) for row in rows})
    for split in ("train", "test"):
        if not people[split]:
            counts = ", ".join(f"{people[s]} {s}" for s in SPLITS)
            raise TableError(
                f"release {name}: no participant of {given} falls into {split} ({counts}). The split is a hash of the"
                f" participant ID, so add participants, or choose other fractions than {fractions}"
            )
