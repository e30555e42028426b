"""Index a folder of scans: find out whose they are and append them to the cohort's table."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuromf.cohort.layouts import FLAT, MODALITIES, Found, Layout, recognise
from neuromf.names import check_name
from neuromf.tables import COHORT_COLUMNS, Cohort, Scan, TableError, leads_out, read_cohort, read_tsv, write_cohort

DEFAULT_MODALITIES = ("T1w", "FLAIR")
NOT_RAW = ("derivatives", "sourcedata", "code", "stimuli")
IMAGE_NAME = re.compile(r"\.nii(\.gz)?$")
EXAMPLES = 3  # paths shown of each reason

_OTHER_SCAN = "another scan of the same person, session and modality is used"


@dataclass(frozen=True)
class Skipped:
    """A file or folder that gave no row, relative to the cohort's root, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class IndexReport:
    """What `index` found and did; ``str`` of it is for people."""

    table: Path
    root: Path
    layout: str
    found: int  # NIfTI files
    kept: tuple[Scan, ...]  # rows that were there
    added: tuple[Scan, ...]
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        scans = (*self.kept, *self.added)
        people, sessions = (
            len({s.participant_id for s in scans}),
            len({(s.participant_id, s.session_id) for s in scans}),
        )
        lines = [
            f"{self.table}: {len(scans)} scans of {people} people in {sessions} sessions",
            f"  layout   {self.layout}, in {self.root}",
            f"  found    {self.found} NIfTI files",
            f"  kept     {len(self.kept)} rows",
            f"  added    {len(self.added)} rows{_by_modality(self.added)}",
            f"  skipped  {len(self.skipped)}",
        ]
        for reason, count in Counter(s.reason for s in self.skipped).most_common():
            paths = [s.path for s in self.skipped if s.reason == reason]
            more = ", …" if count > EXAMPLES else ""
            lines.append(f"    {count} × {reason}: {', '.join(paths[:EXAMPLES])}{more}")
        return "\n".join(lines)


def index(
    path: Path,
    name: str,
    tables: Path,
    *,
    modality: Sequence[str] | None = None,
    skull_stripped: bool | None = None,
) -> IndexReport:
    """Write or extend the cohort table ``<tables>/<name>.tsv`` with the scans found below a folder.

    The layout (BIDS, IXI, OASIS-3, BraTS 2021, FOMO-60K, UK Biobank, or a flat folder; docs/cohorts.md) is recognised
    by the files' names; no scan is opened. There is one row per person, session and modality. Rows that are there stay
    as they are and where they are, new ones follow in the order of their paths.

    Args:
        modality: of the scans that are wanted; None: T1w and FLAIR.
        skull_stripped: whether all scans are; None: as the layout knows, else no.

    Raises:
        TableError: the folder is none, holds no scan of the modalities, or differs from the table's own; an unknown
            modality or a name that cannot be a cohort's; a participants.tsv that cannot be read.
    """
    wanted = tuple(modality or DEFAULT_MODALITIES)
    table = tables / f"{name}.tsv"
    check_name("cohort name", name, (other.stem for other in tables.glob("*.tsv")))
    _check(path, wanted)
    before = read_cohort(table) if table.exists() else Cohort(name, path.resolve(), (), "folder")
    if before.root.resolve() != path.resolve():
        raise TableError(f"{table} is the table of {before.root}, not of {path}; choose another cohort name for {path}")

    paths, skipped = _nifti_files(path)
    layout = recognise(paths)
    found, strange = _read(layout, paths, wanted)
    skipped += strange
    added, others = _new_scans(path, layout, before, found, skull_stripped)
    skipped += others
    if not (before.scans or added):
        raise TableError(_nothing(path, paths, wanted, skipped))
    if added:
        source = before.source if before.scans else "bids" if layout.name == "BIDS" else "folder"
        write_cohort(table, Cohort(name, before.root, (*before.scans, *added), source))
    return IndexReport(table, path, layout.name, len(paths), before.scans, tuple(added), tuple(skipped))


# --- files ----------------------------------------------------------------------------------------------------------


def _nifti_files(root: Path) -> tuple[list[str], list[Skipped]]:
    """Return the relative paths of the NIfTI files in order, and what was passed over."""
    paths: list[str] = []
    skipped: list[Skipped] = []
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        for one in sorted(folders):
            place = (here / one).relative_to(root).as_posix()
            if one.startswith(".") or one in NOT_RAW:
                folders.remove(one)
                skipped += [Skipped(place, "a folder that holds no raw scans")] if one in NOT_RAW else []
            elif (here / one).is_symlink():  # a link may lead round in a circle
                skipped.append(Skipped(place, "a linked folder is not followed"))
            elif IMAGE_NAME.search(one) and not any(IMAGE_NAME.search(below.name) for below in (here / one).rglob("*")):
                paths.append(place)  # a folder where a scan should be: a row that fails with that reason, not a gap
        folders.sort()
        for one in sorted(files):
            place = (here / one).relative_to(root).as_posix()
            if not IMAGE_NAME.search(one) or one.startswith("."):
                continue
            if not (here / one).exists():
                skipped.append(Skipped(place, "a link to a file that is not there (with datalad: get it first)"))
            elif (here / one).is_symlink() and leads_out(root, place):
                skipped.append(
                    Skipped(place, "a link that leaves the folder (copy the file, or index a folder above both)")
                )
            elif re.search(r"[\t\r\n]", place) or not _is_unicode(place):
                skipped.append(Skipped(repr(place), "a name with a tab, a line break or bytes that are no UTF-8"))
            else:
                paths.append(place)
    return sorted(paths), skipped


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(layout: Layout, paths: Sequence[str], wanted: Sequence[str]) -> tuple[list[Found], list[Skipped]]:
    """Return the scans of the wanted modalities, best first where several share a person and session."""
    found: list[Found] = []
    skipped: list[Skipped] = []
    for path in paths:
        scan = layout.read(path)
        if scan is None:
            where = "in a sub-folder, or no structural scan by its name" if layout is FLAT else "not named like a scan"
            skipped.append(Skipped(path, f"{where} (layout: {layout.name})"))
        elif scan.modality not in wanted:
            skipped.append(Skipped(path, f"its modality {scan.modality} is not asked for"))
        else:
            found.append(scan)
    return found, skipped


# --- rows -----------------------------------------------------------------------------------------------------------


def _new_scans(
    root: Path, layout: Layout, before: Cohort, found: Sequence[Found], skull_stripped: bool | None
) -> tuple[list[Scan], list[Skipped]]:
    """Return the rows to append, in the order of their paths, and the scans that give none."""
    old = [(layout.read(scan.image), scan) for scan in before.scans]
    people = identifiers([f.person for f in found], {f.person: s.participant_id for f, s in old if f})
    sessions = identifiers(
        [f.session for f in found if f.session], {f.session: s.session_id for f, s in old if f and s.session_id}
    )
    columns = _Columns(root, layout)
    images = {scan.image for scan in before.scans}
    taken = {scan.scan_id for scan in before.scans}
    added: list[Scan] = []
    skipped: list[Skipped] = []
    for one in sorted(found, key=lambda f: f.rank):
        if one.image in images:
            continue
        session = sessions[one.session] if one.session else None
        mask = one.mask if one.mask and (root / one.mask).is_file() else None
        stripped = one.skull_stripped if skull_stripped is None else skull_stripped
        extra = columns.of(one) | one.extra
        scan = Scan(people[one.person], session, one.image, one.modality, mask, stripped, extra)
        if scan.scan_id in taken:
            skipped.append(Skipped(one.image, _OTHER_SCAN))
        else:
            taken.add(scan.scan_id)
            added.append(scan)
    return sorted(added, key=lambda scan: scan.image), sorted(skipped, key=lambda s: s.path)


def identifiers(raw: Iterable[str], known: Mapping[str | None, str | None]) -> dict[str, str]:
    """Return an ID of letters and digits for each raw one, different for different ones.

    ``known`` holds the IDs given before, which stay. Other characters are left out; an ID that then equals another's
    gets a hash of the raw ID appended.
    """
    ids = {person: identifier for person, identifier in known.items() if person and identifier}
    new = sorted(set(raw) - set(ids))
    plain = {person: re.sub(r"[^A-Za-z0-9]", "", person) for person in new}
    given = set(ids.values())
    claims = Counter(plain.values())
    for person in new:
        alone = claims[plain[person]] == 1 or plain[person] == person
        if plain[person] and alone and plain[person] not in given:
            ids[person] = plain[person]
        else:
            ids[person] = f"{plain[person]}x{hashlib.sha256(person.encode()).hexdigest()[:8]}"
    return ids


class _Columns:
    """The further columns of participants.tsv and, in BIDS, of each person's sessions.tsv."""

    def __init__(self, root: Path, layout: Layout) -> None:
        self._root = root
        self._sessions: dict[str, dict[tuple[str, str | None], dict[str, str]]] = {}
        table = root / "participants.tsv"
        self._people = _by_key(read_tsv(table, ["participant_id"]), layout) if table.is_file() else {}

    def of(self, scan: Found) -> dict[str, str]:
        person = self._people.get((scan.person, None), {})
        session = self._people.get((scan.person, scan.session), {})
        return person | session | self._session_table(scan.person).get((scan.person, scan.session), {})

    def _session_table(self, person: str) -> dict[tuple[str, str | None], dict[str, str]]:
        if person not in self._sessions:
            table = self._root / f"sub-{person}" / f"sub-{person}_sessions.tsv"
            rows = read_tsv(table, ["session_id"]) if table.is_file() else []
            self._sessions[person] = {
                (person, _without_prefix(row["session_id"])): _further(row) for row in rows if row["session_id"]
            }
        return self._sessions[person]


def _by_key(rows: Sequence[dict[str, str | None]], layout: Layout) -> dict[tuple[str, str | None], dict[str, str]]:
    people = {}
    for row in rows:
        if row["participant_id"]:
            source = re.match(r"PT\d+", row.get("dataset") or "")
            groups = {"participant": _without_prefix(row["participant_id"]), "source": source[0] if source else ""}
            session = row.get("session_id")
            people[layout.person.format(**groups), _without_prefix(session) if session else None] = _further(row)
    return people


def _without_prefix(identifier: str | None) -> str:
    return re.sub(r"^(sub|ses)[-_]", "", identifier or "")


def _further(row: dict[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in row.items() if key and key not in COHORT_COLUMNS and value is not None}


# --- complaints -----------------------------------------------------------------------------------------------------


def _check(path: Path, wanted: Sequence[str]) -> None:
    if not path.is_dir():
        raise TableError(f"{path} is not a folder; give the folder that holds the scans")
    if unknown := [one for one in wanted if one not in MODALITIES]:
        raise TableError(f"modality {unknown[0]!r} is not known; use {', '.join(MODALITIES)}")


def _nothing(path: Path, paths: Sequence[str], wanted: Sequence[str], skipped: Sequence[Skipped]) -> str:
    if not paths:
        return f"{path}: no .nii or .nii.gz file below it; convert DICOM first, for instance with dcm2niix into BIDS"
    reasons = ", ".join(f"{count} × {reason}" for reason, count in Counter(s.reason for s in skipped).most_common(4))
    wish = " or ".join(wanted)
    return f"{path}: none of its {len(paths)} NIfTI files is a scan of {wish}: {reasons}. See docs/cohorts.md"


def _by_modality(scans: Sequence[Scan]) -> str:
    counts = Counter(scan.modality for scan in scans)
    return f" ({', '.join(f'{n} {m}' for m, n in counts.items())})" if counts else ""
