"""Index a folder of scans: find out whose they are and append them to the cohort's table.

What a folder holds is found in files.py, what names mean in names.py and layouts.py, who is one person in visits.py, age and
sex in demographics.py.
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuromf.cohort.demographics import Demographics
from neuromf.cohort.files import Skipped, nifti_files
from neuromf.cohort.layouts import FLAT, Found, Layout, recognise
from neuromf.cohort.names import MODALITIES, derivative, not_raw, stem_of
from neuromf.cohort.visits import ParticipantRule, look_like_visits, written_alike
from neuromf.names import check_name
from neuromf.tables import Cohort, Scan, TableError, read_cohort, write_cohort

DEFAULT_MODALITIES = ("T1w", "FLAIR")
WIDTH = 100  # characters of a line
MOST_REASONS = 20  # shown

_OTHER_SCAN = "another scan of the same person, session and modality is used"
_COPY = "skull-stripped copy of a whole head that is used"


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
    people: str = ""  # how many were found in participants.tsv
    warnings: tuple[str, ...] = ()

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
        counts = Counter(s.counted_as for s in self.skipped).most_common()
        for reason, count in counts[:MOST_REASONS]:
            example = next(s.path for s in self.skipped if s.counted_as == reason)
            lines.append(_wrapped(f"    {count} × ", f"{reason}, {'for instance ' if count > 1 else ''}{example}"))
        if more := counts[MOST_REASONS:]:
            lines.append(f"    {sum(count for _, count in more)} for {len(more)} other reasons")
        lines += [_wrapped("  columns  ", self.people)] if self.people else []
        lines += [_wrapped("  warning  ", warning) for warning in self.warnings]
        return "\n".join(lines)


def index(
    path: Path,
    name: str,
    tables: Path,
    *,
    modality: Sequence[str] | None = None,
    skull_stripped: bool | None = None,
    participant: str | None = None,
) -> IndexReport:
    """Write or extend the cohort table ``<tables>/<name>.tsv`` with the scans found below a folder.

    The layout (BIDS, IXI, OASIS-3, BraTS, ADNI, FOMO-60K, UK Biobank, or a flat folder; docs/cohorts.md) is recognised
    by the files' names; no scan is opened. There is one row per person, session and modality. Rows that are there stay
    as they are and where they are, new ones follow in the order of their paths.

    Args:
        modality: of the scans that are wanted; None: T1w and FLAIR.
        skull_stripped: whether all scans are; None: as the layout and the names tell, else no.
        participant: regular expression whose group is the person in an ID or path (`ParticipantRule`); the rest is the
            session. It is kept beside the table; None: as it was kept there, else as the layout tells.

    Raises:
        TableError: the folder is none, holds no scan of the modalities, or differs from the table's own; an unknown
            modality or a name that cannot be a cohort's; a ``participant`` that is no expression, matches nothing, or
            divides people otherwise than the rows that are there.
    """
    wanted = tuple(modality or DEFAULT_MODALITIES)
    table = tables / f"{name}.tsv"
    check_name("cohort name", name, (other.stem for other in tables.glob("*.tsv")))
    _check(path, wanted)
    before = read_cohort(table) if table.exists() else Cohort(name, path.resolve(), (), "folder")
    if before.root.resolve() != path.resolve():
        raise TableError(f"{table} is the table of {before.root}, not of {path}; choose another cohort name for {path}")
    rule_text = participant or before.participant
    rule = ParticipantRule.parse(rule_text) if rule_text else None

    paths, skipped = nifti_files(path)
    layout = recognise(paths)
    if rule:
        layout = rule.reads(layout)
    known = {scan.image for scan in before.scans}
    found, strange = _read(layout, rule, paths, wanted, known)
    skipped += strange
    old = _old_rows(layout, rule, before, table if participant else None)
    demographics = Demographics(path, layout)
    joined = demographics.match(found)
    added, others = _new_scans(path, before, old, found, demographics, skull_stripped)
    skipped += others
    if not (before.scans or added):
        raise TableError(_nothing(path, paths, wanted, skipped))
    if added or rule_text != before.participant:
        source = before.source if before.scans else "bids" if layout.name == "BIDS" else "folder"
        write_cohort(table, Cohort(name, before.root, (*before.scans, *added), source, rule_text))
    warnings = (*_warnings(table, rule, found, old), *demographics.warnings)
    return IndexReport(
        table, path, layout.name, len(paths), before.scans, tuple(added), tuple(skipped), joined, warnings
    )


def _read(
    layout: Layout, rule: ParticipantRule | None, paths: Sequence[str], wanted: Sequence[str], known: set[str]
) -> tuple[list[Found], list[Skipped]]:
    """Return the scans of the wanted modalities; what is in the table already is not told of as skipped.

    Raises:
        TableError: the rule matches none of them.
    """
    stems = {(str(Path(path).parent), stem_of(path)) for path in paths}
    found: list[Found] = []
    skipped: list[Skipped] = []
    for path in paths:
        scan = layout.read(path)
        reason = not_raw(path, stems) if layout.name == FLAT.name else derivative(stem_of(path))
        if reason:
            skipped.append(Skipped(path, reason))
        elif scan is None:
            skipped.append(Skipped(path, _strange(layout, path)))
        elif scan.modality not in wanted:
            skipped.append(Skipped(path, f"its modality {scan.modality} is not asked for"))
        else:
            found.append(scan)
    if rule:
        divided = [(scan, rule.apply(scan)) for scan in found]
        if found and not any(scan for _, scan in divided):
            example = found[0].image if rule.on_path else found[0].person
            raise TableError(
                f"--participant {rule.expression.pattern!r} matches none of {len(found)} scans, for instance {example!r}; it"
                " is matched from the beginning of the ID, or of the path if it has a /"
            )
        skipped += [
            Skipped(one.image, "--participant does not match its ID or path") for one, scan in divided if not scan
        ]
        found = [scan for _, scan in divided if scan]
    return found, [one for one in skipped if one.path not in known]


def _strange(layout: Layout, path: str) -> str:
    if layout.name != FLAT.name:
        return f"not named like a scan (layout: {layout.name})"
    if "/" in path:
        return "in a sub-folder of a flat folder (if folders are people: --participant '([^/]+)/')"
    return "no person in its name"


# --- rows -----------------------------------------------------------------------------------------------------------


def _old_rows(
    layout: Layout, rule: ParticipantRule | None, before: Cohort, asked: Path | None
) -> list[tuple[Found, Scan]]:
    """Return the rows that are there with what their names tell today.

    Raises:
        TableError: for the table ``asked``, a rule that is new joins or divides people of these rows.
    """
    old = []
    for scan in before.scans:
        found = layout.read(scan.image)
        found = rule.apply(found) if found and rule else found
        old += [(found, scan)] if found else []
    ids, people = _ids(old), dict[str, set[str]]()
    for found, scan in old:
        people.setdefault(scan.participant_id, set()).add(found.person)
    for one in (*ids.values(), *people.values()):
        if asked and len(one) > 1:
            raise TableError(
                f"{asked}: its rows divide people otherwise than --participant ({', '.join(sorted(one)[:3])} would be one"
                f" or several), and rows stay as they are; give another --cohort, or remove the table if nothing has used it"
            )
    return old


def _ids(old: Iterable[tuple[Found, Scan]]) -> dict[str, set[str]]:
    """Return person → the IDs that the rows give them."""
    ids: dict[str, set[str]] = {}
    for found, scan in old:
        ids.setdefault(found.person, set()).add(scan.participant_id)
    return ids


def _new_scans(
    root: Path,
    before: Cohort,
    old: Sequence[tuple[Found, Scan]],
    found: Sequence[Found],
    demographics: Demographics,
    skull_stripped: bool | None,
) -> tuple[list[Scan], list[Skipped]]:
    """Return the rows to append, in the order of their paths, and the scans that give none."""
    known: dict[str | None, str | None] = {
        f.person: scan.participant_id for f, scan in reversed(old)
    }  # of several IDs the first stays
    people = identifiers([f.person for f in found], known)
    sessions = identifiers(
        [f.session for f in found if f.session], {f.session: s.session_id for f, s in old if f.session and s.session_id}
    )
    images = {scan.image for scan in before.scans}
    taken = {scan.scan_id: (scan.image, scan.skull_stripped) for scan in before.scans}
    added: list[Scan] = []
    skipped: list[Skipped] = []
    for one in sorted(found, key=lambda f: f.rank):
        if one.image in images:
            continue
        session = sessions[one.session] if one.session else None
        mask = one.mask if one.mask and (root / one.mask).is_file() else None
        stripped = one.skull_stripped if skull_stripped is None else skull_stripped
        extra = demographics.columns(one) | one.extra
        scan = Scan(people[one.person], session, one.image, one.modality, mask, stripped, extra)
        if scan.scan_id not in taken:
            taken[scan.scan_id] = (scan.image, one.skull_stripped)
            added.append(scan)
        elif one.skull_stripped and not taken[scan.scan_id][1]:
            skipped.append(Skipped(one.image, f"skull-stripped copy of {taken[scan.scan_id][0]}", _COPY))
        else:
            skipped.append(Skipped(one.image, _OTHER_SCAN))
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


# --- complaints -----------------------------------------------------------------------------------------------------


def _check(path: Path, wanted: Sequence[str]) -> None:
    if not path.is_dir():
        raise TableError(f"{path} is not a folder; give the folder that holds the scans")
    if unknown := [one for one in wanted if one not in MODALITIES]:
        raise TableError(f"modality {unknown[0]!r} is not known; use {', '.join(MODALITIES)}")


def _nothing(path: Path, paths: Sequence[str], wanted: Sequence[str], skipped: Sequence[Skipped]) -> str:
    reasons = ", ".join(
        f"{count} × {reason}" for reason, count in Counter(s.counted_as for s in skipped).most_common(4)
    )
    if not paths:
        found = f" ({reasons})" if reasons else "; convert DICOM first, for instance with dcm2niix into BIDS"
        return f"{path}: no .nii or .nii.gz file below it{found}"
    wish = " or ".join(wanted)
    return f"{path}: none of its {len(paths)} NIfTI files is a scan of {wish}: {reasons}. See docs/cohorts.md"


def _warnings(
    table: Path, rule: ParticipantRule | None, found: Sequence[Found], old: Sequence[tuple[Found, Scan]]
) -> list[str]:
    """Return what the user should know of who is one person."""
    warnings = []
    if several := [sorted(ids) for ids in _ids(old).values() if len(ids) > 1]:
        warnings.append(
            f"{table} holds visits of {len(several)} people under IDs of their own, for instance"
            f" {', '.join(several[0][:3])}. These rows stay; to have them as people, index under another --cohort"
        )
    everybody = {one.person for one in (*found, *(read for read, _ in old))}
    if alike := written_alike(everybody):
        warnings.append(
            f"{len(alike)} groups of IDs differ in case, separators or leading zeros only, for instance"
            f" {' and '.join(alike[0][:3])}: rename the files if they are one person, who could fall into train and test"
        )
    if rule is None:
        sure = {one.person for one in (*found, *(read for read, _ in old)) if one.session}
        for visits in look_like_visits(everybody - sure):
            warnings.append(
                f"{visits}. If they are, index again with --participant '{visits.pattern}' under another --cohort, or after"
                f" removing {table}, if nothing has used it"
            )
    return warnings


def _wrapped(label: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=label, subsequent_indent=" " * len(label), break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def _by_modality(scans: Sequence[Scan]) -> str:
    counts = Counter(scan.modality for scan in scans)
    return f" ({', '.join(f'{n} {m}' for m, n in counts.items())})" if counts else ""
