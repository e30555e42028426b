"""Further columns of a cohort's table (age, sex, group) from participants.tsv and, in BIDS, each person's sessions.tsv.

These tables are typed by people and saved by spreadsheets. Whatever is wrong with one is told of and leaves its columns out;
it never keeps scans from being indexed.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from neuromf.cohort.layouts import Found, Layout
from neuromf.cohort.visits import plain_id
from neuromf.tables import COHORT_COLUMNS, MOST_COLUMNS, NOT_AVAILABLE

Key = tuple[str, str | None]  # person, session
Row = dict[str, str | None]
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class Demographics:
    """The rows of a folder's tables, found by a scan's person and session.

    Attributes:
        warnings: what could not be read, one line each.
    """

    def __init__(self, root: Path, layout: Layout) -> None:
        self._root = root
        self._sessions: dict[str, dict[Key, dict[str, str]]] = {}
        self.warnings: list[str] = []
        self.table = root / "participants.tsv"
        rows: list[Row] = []
        if self.table.exists():
            rows, notes = read_leniently(self.table, "participant_id")
            self.warnings += notes
        else:
            self.warnings += _not_read(root)
        self._rows = _by_key(rows, layout)
        self._near = _unambiguous((_plain(key), key) for key in self._rows)

    def columns(self, scan: Found) -> dict[str, str]:
        """Return a scan's further columns: of its person, then of its session, which win."""
        found: dict[str, str] = {}
        for key in self._keys(scan):
            found |= self._rows[key]
        return found | self._session_table(scan.person).get((scan.person, scan.session), {})

    def match(self, scans: Sequence[Found]) -> str:
        """Learn which people's IDs are written otherwise than the table's, and say how many are found.

        Without a table there is nothing to say. An ID that differs in leading zeros, case, blanks or the prefix sub- is
        matched where no other is like it.
        """
        people = _unambiguous((_plain((s.person, session)), (s.person, session)) for s in scans for session in _both(s))
        self._near = {plain: key for plain, key in self._near.items() if plain in people}
        if not self._rows:
            return ""
        every = list(dict.fromkeys(scan.person for scan in scans))
        found = {scan.person for scan in scans if self._keys(scan)}
        used = {key for scan in scans for key in self._keys(scan)}
        exact = {scan.person for scan in scans if any(key in self._rows for key in _exact(scan))}
        said = f"{len(found)} of {len(every)} people found in {self.table.name}"
        if near := [person for person in every if person in found - exact]:
            row = next(key for scan in scans if scan.person == near[0] for key in self._keys(scan))
            said += f", {len(near)} of them by an ID that is written otherwise ({row[0]!r} for {near[0]!r})"
        if missing := [person for person in every if person not in found]:
            unused = next((key for key in self._rows if key not in used), None)
            other = f"; a row that matches nobody: {_written(unused)}" if unused else ""
            self.warnings.append(
                f"{said}: no row for {missing[0]!r}{other}. Write the participant_id as the scans have it"
            )
        return said

    def _keys(self, scan: Found) -> list[Key]:
        """Return the rows of a scan, the more particular last."""
        keys = [key for key in _exact(scan) if key in self._rows]
        if not keys:
            keys = [
                self._near[plain] for session in _both(scan) if (plain := _plain((scan.person, session))) in self._near
            ]
        return keys

    def _session_table(self, person: str) -> dict[Key, dict[str, str]]:
        if person not in self._sessions:
            table = self._root / f"sub-{person}" / f"sub-{person}_sessions.tsv"
            rows, notes = read_leniently(table, "session_id") if table.is_file() else ([], [])
            self.warnings += notes
            self._sessions[person] = {
                (person, _without_prefix(row["session_id"])): _further(row) for row in rows if row["session_id"]
            }
        return self._sessions[person]


# --- who is who -----------------------------------------------------------------------------------------------------


def _both(scan: Found) -> tuple[str | None, ...]:
    return (None, scan.session) if scan.session else (None,)


def _exact(scan: Found) -> list[Key]:
    """Return the keys of a scan as it is, and as its file is called where --participant divided that ID."""
    keys: list[Key] = [(scan.person, session) for session in _both(scan)]
    return [(scan.file_id, None), *keys] if scan.file_id else keys


def _plain(key: Key) -> Key:
    """Return a key without what spreadsheets and people change: 1, 1.0, ' 001', SUB-001 and subj_001 are 001."""
    person = re.sub(r"(?i)^\s*sub(?:ject|j)?[-_ ]*(?=.)", "", re.sub(r"^\s*(\d+)\.0+\s*$", r"\1", key[0]))
    session = re.sub(r"(?i)^\s*ses(?:sion)?[-_ ]*(?=.)", "", key[1] or "")
    return plain_id(person), plain_id(session) if session else None


def _unambiguous(pairs: Iterable[tuple[Key, Key]]) -> dict[Key, Key]:
    pairs = set(pairs)
    counts = Counter(plain for plain, _ in pairs)
    return {plain: key for plain, key in pairs if counts[plain] == 1}


def _by_key(rows: Sequence[Row], layout: Layout) -> dict[Key, dict[str, str]]:
    people = {}
    for row in rows:
        if row["participant_id"]:
            source = re.match(r"PT\d+", row.get("dataset") or "")
            groups = {"participant": _without_prefix(row["participant_id"]), "source": source[0] if source else ""}
            session = row.get("session_id")
            people[layout.person.format(**groups), _without_prefix(session) if session else None] = _further(row)
    return people


def _written(key: Key) -> str:
    return repr(key[0]) + (f", session {key[1]!r}" if key[1] else "")


def _without_prefix(identifier: str | None) -> str:
    return re.sub(r"^(sub|ses)[-_]", "", identifier or "")


def _further(row: Row) -> dict[str, str]:
    return {key: value for key, value in row.items() if key and key not in COHORT_COLUMNS and value is not None}


# --- tables as people save them ---------------------------------------------------------------------------------------


def read_leniently(path: Path, needed: str) -> tuple[list[Row], list[str]]:
    """Return the rows of a TSV that anybody may have saved, and what was wrong with it, one line each.

    UTF-8, UTF-16 and Windows-1252 are read. A column without a name is dropped, a row of another length is left out.

    Args:
        needed: column without which there are no rows.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        return [], [f"{path} is not used: {error.strerror or error}"]
    text, notes = _decoded(path, raw)
    header, *body = [line.split("\t") for line in re.split(r"\r\n|\r|\n", text)]
    names = [_column(name, needed) for name in header]
    if needed not in names:
        shown = ", ".join(filter(None, names[:6])) or "an empty file"
        return [], [*notes, f"{path} is not used: no column {needed} (found: {shown}); separate the columns by tabs"]
    if len(names) > MOST_COLUMNS:
        return [], [*notes, f"{path} is not used: {len(names)} columns, at most {MOST_COLUMNS} are read"]
    if twice := [name for name, count in Counter(filter(None, names)).items() if count > 1]:
        notes.append(f"{path}: column {twice[0]!r} is there several times; the first is used")
    named = [place for place, name in enumerate(names) if name and names.index(name) == place]
    rows, odd = [], []
    for number, cells in enumerate(body, start=2):
        places = _places(cells, names, named)
        if places is None:
            odd.append(number)
        elif any(cell.strip() for cell in cells):
            values = [cells[place].strip() for place in places]
            rows.append({names[n]: None if v in ("", NOT_AVAILABLE) else v for n, v in zip(named, values, strict=True)})
    if odd:
        notes.append(
            f"{path}: {len(odd)} rows have more or fewer cells than the header and are left out, first row {odd[0]}"
        )
    if not rows and not odd:
        notes.append(f"{path} has no rows")
    return rows, notes


def _places(cells: Sequence[str], names: Sequence[str], named: Sequence[int]) -> Sequence[int] | None:
    """Return where a row has the named columns; None where its length does not tell."""
    if len(cells) == 1 and not cells[0].strip():
        return [0] * len(named)  # an empty line
    while len(cells) > len(names) and not cells[-1].strip():
        cells = cells[:-1]
    if len(cells) == len(names):
        return named
    filled = [place for place, name in enumerate(names) if name]
    if len(cells) == len(filled):  # the header has a tab too many
        return [filled.index(place) for place in named]
    return None


def _column(name: str, needed: str) -> str:
    name = name.strip().strip('"').strip()
    return needed if name.lower() == needed else name


def _decoded(path: Path, raw: bytes) -> tuple[str, list[str]]:
    """Return a text in whichever of the usual encodings it is, and a note where that is none of ours."""
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            note = (
                [] if encoding == "utf-8-sig" else [f"{path} is UTF-16 and was read as such; better save it as UTF-8"]
            )
            return raw.decode(encoding, errors="replace"), note
    if raw[1:100:2].count(0) > len(raw[1:100:2]) // 2 or raw[:100:2].count(0) > len(raw[:100:2]) // 2:
        encoding = "utf-16-le" if raw[1:2] == b"\0" else "utf-16-be"
        return raw.decode(encoding, errors="replace"), [
            f"{path} is UTF-16 and was read as such; better save it as UTF-8"
        ]
    try:
        return raw.decode("utf-8"), []
    except UnicodeDecodeError as error:
        other = (
            f"{path} is not UTF-8 (byte {error.start}) and was read as Windows-1252 (Latin-1); better save it as UTF-8"
        )
        return raw.decode("cp1252", errors="replace"), [other]


def _not_read(root: Path) -> list[str]:
    """Return a line for each table of people that would be used under another name."""
    endings = (".csv", ".xls", ".xlsx", ".ods", ".txt", ".tsv")
    tables = sorted(
        path.name
        for path in root.iterdir()
        if path.stem.lower() in ("participants", "participant") and path.suffix.lower() in endings
    )
    return [
        f"{root / name} is not read: save it as {root / 'participants.tsv'}, with tabs between columns"
        for name in tables
    ]
