"""Tables that pass between the parts: participants, releases and shard manifests, with typed rows and atomic writes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ID_PATTERN = re.compile(r"[A-Za-z0-9]+")
NOT_AVAILABLE = "n/a"
COHORT_COLUMNS = ("participant_id", "session_id", "image", "modality", "mask", "skull_stripped")
RELEASE_COLUMNS = ("participant_id", "session_id", "modality", "cohort", "split")
MANIFEST_COLUMNS = ("scan_id", "status", "reason", "file", "bytes", "sha256", "key")
SPLITS = ("train", "val", "test")
STATUSES = ("ok", "failed")
MOST_COLUMNS = 2000  # of a table: every row keeps its cells in memory, and a cohort may have 60,000
_WORDS = {"participant_id", "session_id", "modality", "skull_stripped", "cohort", "split"}
_PATHS = {"image", "mask"}  # of NIfTI files: none of them ends in a quote
_COHORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_CANNOT_WRITE = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EFBIG: "raise the limit of the size of files",
    errno.EROFS: "mount the file system writable or work in another folder",
    errno.EACCES: "make the folder writable or work in another one",
    errno.EPERM: "make the folder writable or work in another one",
}


class TableError(ValueError):
    """A table that cannot be used; the message names the file, the row and the remedy."""


def scan_id(participant_id: str, session_id: str | None, modality: str) -> str:
    """Return the BIDS-like identifier of one scan, ``sub-<id>[_ses-<s>]_<modality>``."""
    session = f"_ses-{session_id}" if session_id else ""
    return f"sub-{participant_id}{session}_{modality}"


@dataclass(frozen=True)
class Scan:
    """One row of a cohort table. ``image`` and ``mask`` lie under the cohort's root; a relative path starts there."""

    participant_id: str
    session_id: str | None
    image: str
    modality: str
    mask: str | None = None
    skull_stripped: bool = False
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def scan_id(self) -> str:
        return scan_id(self.participant_id, self.session_id, self.modality)

    def volume_name(self, description: str) -> str:
        """Return ``sub-<id>[_ses-<s>]_desc-<description>_<modality>.nii.gz``."""
        stem, modality = self.scan_id.rsplit("_", 1)
        return f"{stem}_desc-{description}_{modality}.nii.gz"


@dataclass(frozen=True)
class Cohort:
    """A cohort table and the folder its images lie in."""

    name: str
    root: Path
    scans: tuple[Scan, ...]
    source: str = "folder"  # bids | folder | phantom
    participant: str = ""  # expression that tells person and visit apart in the scans' names (index --participant)

    def shard(self, index: int, shard_size: int) -> tuple[Scan, ...]:
        """Return the scans of one shard: every ``shard_size`` consecutive rows."""
        return self.scans[index * shard_size : (index + 1) * shard_size]

    def shard_count(self, shard_size: int) -> int:
        return -(-len(self.scans) // shard_size)


@dataclass(frozen=True)
class ReleaseRow:
    """One scan of a frozen release."""

    participant_id: str
    session_id: str | None
    modality: str
    cohort: str
    split: str

    @property
    def scan_id(self) -> str:
        return scan_id(self.participant_id, self.session_id, self.modality)


@dataclass(frozen=True)
class ManifestRow:
    """What a stage made of one scan. ``file`` is relative to the manifest's folder; ``figures`` are the stage's own."""

    scan_id: str
    status: str  # ok | failed
    reason: str = ""
    file: str = ""
    bytes: int = 0
    sha256: str = ""
    key: str = ""  # hash of input, settings and code: what decides whether the work is done again
    figures: dict[str, float | str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.status == "ok"


# --- files ----------------------------------------------------------------------------------------------------------


class StorageError(OSError):
    """A file that cannot be written: a full disk or quota, a read-only file system; the message names it and the remedy.

    It is no fault of a scan, so it stops a stage.
    """


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (same suffixes) that replaces it when the block ends without an error.

    Raises:
        StorageError: the disk is full or cannot be written; ``path`` is as it was, and nothing else is left.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".tmp-{uuid.uuid4().hex}{''.join(path.suffixes[-2:])}"
        try:
            temporary.touch(
                exist_ok=False
            )  # with the mode that the umask, or the folder's default ACL, lets a file have
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the error of a disk that cannot be written, whichever library met it, into one that says what to do.

    Raises:
        StorageError: with the file, the reason, the space that is left and the remedy.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _rust_errno(error)
        if number not in _CANNOT_WRITE:
            raise
        there = next(folder for folder in path.absolute().parents if folder.exists())
        free = shutil.disk_usage(there).free / 2**20
        raise StorageError(
            f"{path} cannot be written: {os.strerror(number)} ({free:,.0f} MiB free at {there});"
            f" {_CANNOT_WRITE[number]} and run again: what is finished is kept"
        ) from error


def _rust_errno(error: Exception) -> int | None:
    """Return the error number that Rust's standard library puts into its messages (safetensors), or None."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        needed: keys that it must have.

    Raises:
        TableError: the file is missing or damaged, holds no object or lacks a key.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TableError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:  # of UTF-8, of JSON, a number of 5,000 digits, brackets without end
        raise TableError(f"{path} is damaged or no JSON ({error}); restore it, or remove it and run again") from None
    if not isinstance(content, dict) or (absent := [key for key in needed if key not in content]):
        what = f"lacks {', '.join(absent)}" if isinstance(content, dict) else f"holds a {type(content).__name__}"
        raise TableError(f"{path} {what}; restore it, or remove it and run again")
    return content


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(content: Any) -> str:
    """Return a hash of JSON-able content that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


# --- cohorts --------------------------------------------------------------------------------------------------------


def read_cohort(table: Path) -> Cohort:
    """Read a cohort table ``<name>.tsv`` and its sidecar ``<name>.json`` ({"root": folder, "source": …}).

    Raises:
        TableError: a missing file or column, a malformed or duplicate ID, a path that leaves the cohort's root;
            the message gives the row's number (the header is row 1).
    """
    sidecar = table.with_suffix(".json")
    if not sidecar.is_file():
        raise TableError(f'{sidecar} is missing: it names the folder the cohort\'s images lie in, {{"root": "/data"}}')
    about = read_json(sidecar, "root")
    for key in ("root", "source", "participant"):
        if not isinstance(about.get(key, ""), str):
            raise TableError(f"{sidecar}: {key} is {about[key]!r}; give a text")
    rows = read_tsv(table, COHORT_COLUMNS)
    scans: list[Scan] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        scan = _scan(table, number, row, Path(about["root"]))
        if scan.scan_id in seen:
            raise TableError(
                f"{table}, row {number}: {scan.scan_id} is already in row {seen[scan.scan_id]}; remove one"
            )
        seen[scan.scan_id] = number
        scans.append(scan)
    return Cohort(
        table.stem, Path(about["root"]), tuple(scans), about.get("source", "folder"), about.get("participant", "")
    )


def leads_out(root: Path, image: str) -> str:
    """Return why a file may not be read: a link leads out of the cohort's root; "" if none does."""
    real = (root / image).resolve()
    if real.is_relative_to(root.resolve()):
        return ""
    return (
        f"{root / image} is a link to {real}, which leaves the cohort's root; copy the file there, or make the root a folder"
        " that holds both"
    )


def write_cohort(table: Path, cohort: Cohort) -> None:
    """Write a cohort's table and sidecar."""
    extra = list(dict.fromkeys(key for scan in cohort.scans for key in scan.extra))
    rows = [
        [s.participant_id, s.session_id, s.image, s.modality, s.mask, str(s.skull_stripped).lower()]
        + [s.extra.get(key) for key in extra]
        for s in cohort.scans
    ]
    write_tsv(table, [*COHORT_COLUMNS, *extra], rows)
    rule = {"participant": cohort.participant} if cohort.participant else {}
    write_json(table.with_suffix(".json"), {"root": str(cohort.root), "source": cohort.source, **rule})


def check_append_only(table: Path, scans: Sequence[Scan], used: Path) -> None:
    """Refuse a cohort table in which a row that was used before was removed or moved.

    ``used`` lists the scan IDs of the last use in order (`record_use` writes it).

    Raises:
        TableError: with the number of the first row that differs.
    """
    if not used.is_file():
        return
    for number, old in enumerate(used.read_text(encoding="utf-8", errors="replace").split(), start=2):
        now = scans[number - 2].scan_id if number - 2 < len(scans) else "nothing"
        if now != old:
            raise TableError(
                f"{table}, row {number}: was {old} when the table was last used, is {now} now. Cohort tables only grow at"
                f" the end: restore the row (to leave a scan out of a model, leave it out of the release)"
            )


def check_shard_size(cohort: str, size: int, used: Path) -> None:
    """Refuse to cut a cohort into shards of another size than the one noted in the file ``used``.

    Raises:
        TableError: names both sizes.
    """
    if not used.is_file():
        return
    before = used.read_text(encoding="utf-8", errors="replace").strip()
    if before != str(size):
        raise TableError(
            f"shard_size is {size}, but cohort {cohort} has been worked on in shards of {before} scans, and nearly all of it"
            f" would be done again: set shard_size: {before} (or remove {used.parent} to begin anew)"
        )


def record_use(scans: Sequence[Scan], used: Path) -> None:
    """Record the order of a cohort's rows for `check_append_only`."""
    write_text(used, "".join(f"{scan.scan_id}\n" for scan in scans))


def _scan(table: Path, number: int, row: dict[str, str | None], root: Path) -> Scan:
    where = f"{table}, row {number}"
    _check_ids(where, row)
    participant, session, modality = row["participant_id"], row["session_id"], row["modality"]
    for column in ("image", "mask"):
        value = row[column]
        if value is not None and (".." in Path(value).parts or not (root / value).is_relative_to(root)):
            raise TableError(f"{where}: {column} {value!r} leaves the cohort's root {root}; put the file under it")
    if row["image"] is None:
        raise TableError(f"{where}: image is empty")
    stripped = (row["skull_stripped"] or "false").lower()
    if stripped not in ("true", "false"):
        raise TableError(f"{where}: skull_stripped is {stripped!r}; write true or false")
    extra = {key: value for key, value in row.items() if key not in COHORT_COLUMNS and value is not None}
    assert participant is not None and modality is not None
    return Scan(participant, session, row["image"], modality, row["mask"], stripped == "true", extra)


def _check_ids(where: str, row: Mapping[str, str | None]) -> None:
    for column in ("participant_id", "session_id", "modality"):
        value = row[column]
        if value is None and column != "session_id":
            raise TableError(f"{where}: {column} is empty")
        if value is not None and not ID_PATTERN.fullmatch(value):
            raise TableError(f"{where}: {column} {value!r} must consist of letters and digits only")


# --- releases -------------------------------------------------------------------------------------------------------


def read_release(table: Path) -> tuple[ReleaseRow, ...]:
    """Read a release table.

    Raises:
        TableError: missing file or column, malformed ID, unknown split, duplicate scan; with the row's number.
    """
    releases: list[ReleaseRow] = []
    seen: set[tuple[str, str]] = set()
    for number, row in enumerate(read_tsv(table, RELEASE_COLUMNS), start=2):
        _check_ids(f"{table}, row {number}", row)
        if not _COHORT_NAME.fullmatch(row["cohort"] or ""):
            raise TableError(f"{table}, row {number}: cohort {row['cohort']!r} is no cohort's name")
        if row["split"] not in SPLITS:
            raise TableError(f"{table}, row {number}: split is {row['split']!r}; use one of {', '.join(SPLITS)}")
        entry = ReleaseRow(**{c: row[c] for c in RELEASE_COLUMNS})  # type: ignore[arg-type]
        if (entry.cohort, entry.scan_id) in seen:
            raise TableError(f"{table}, row {number}: {entry.scan_id} of cohort {entry.cohort} is listed twice")
        seen.add((entry.cohort, entry.scan_id))
        releases.append(entry)
    return tuple(releases)


def release_modality(rows: Sequence[ReleaseRow]) -> str:
    """Return the modality of a release's scans; ``mixed`` where a table written by hand has several."""
    modalities = {row.modality for row in rows}
    return modalities.pop() if len(modalities) == 1 else "mixed"


def write_release(table: Path, rows: Iterable[ReleaseRow]) -> None:
    """Write a release table."""
    write_text(table, _release_text(rows))


def release_sha256(rows: Iterable[ReleaseRow]) -> str:
    """Return the SHA-256 of the file that `write_release` makes of the rows, however the table they come from is written.

    So an editor's line ends, a byte-order mark, quotes and further columns count for nothing; the rows' order does, since a
    training draws by it.
    """
    return hashlib.sha256(_release_text(rows).encode()).hexdigest()


def _release_text(rows: Iterable[ReleaseRow]) -> str:
    return _tsv(RELEASE_COLUMNS, [[getattr(row, c) for c in RELEASE_COLUMNS] for row in rows])


def check_release(table: Path, rows: Sequence[ReleaseRow], cohorts: Mapping[str, Cohort]) -> None:
    """Refuse a release that names a scan its cohort does not have.

    Raises:
        TableError: with the row's number.
    """
    known = {name: {scan.scan_id for scan in cohort.scans} for name, cohort in cohorts.items()}
    for number, row in enumerate(rows, start=2):
        if row.scan_id not in known[row.cohort]:
            raise TableError(
                f"{table}, row {number}: cohort {row.cohort!r} has no scan {row.scan_id}; restore its row in the cohort's"
                f" table or make a new release"
            )


def succeeded(rows: Sequence[ReleaseRow], manifests: Mapping[str, Sequence[Path]]) -> dict[ReleaseRow, Path]:
    """Return what a stage made of a release's scans, in the release's order: row -> file; failed scans are left out.

    ``manifests`` maps each cohort to the stage's shard manifests.
    """
    made = {
        (cohort, row.scan_id): path.parent / row.file
        for cohort, paths in manifests.items()
        for path in paths
        for row in read_manifest(path)
        if row.ok
    }
    return {row: made[row.cohort, row.scan_id] for row in rows if (row.cohort, row.scan_id) in made}


def released_files(rows: Sequence[ReleaseRow], manifests: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, Path]]:
    """Return `succeeded` by split: split -> key -> file.

    The key is the scan ID, with ``<cohort>_`` before it when the release draws on several cohorts, since data sets share
    names like sub-01.
    """
    files: dict[str, dict[str, Path]] = {split: {} for split in SPLITS}
    for row, path in succeeded(rows, manifests).items():
        prefix = f"{row.cohort}_" if len(manifests) > 1 else ""
        files[row.split][prefix + row.scan_id] = path
    return files


# --- manifests ------------------------------------------------------------------------------------------------------


def read_manifest(path: Path) -> tuple[ManifestRow, ...]:
    """Read a shard manifest.

    Raises:
        TableError: missing file or column, a status or size that is none.
    """
    rows = []
    for number, raw in enumerate(read_tsv(path, MANIFEST_COLUMNS), start=2):
        figures = {k: _figure(v) for k, v in raw.items() if k not in MANIFEST_COLUMNS and v is not None}
        known = {c: raw[c] or "" for c in MANIFEST_COLUMNS}
        size = known["bytes"] or "0"
        if known["status"] not in STATUSES or not (size.isascii() and size.isdigit() and len(size) < 19):
            raise TableError(
                f"{path}, row {number}: status {known['status']!r}, bytes {size!r}; remove the damaged file and run again"
            )
        rows.append(ManifestRow(**(known | {"bytes": int(size)}), figures=figures))  # type: ignore[arg-type]
    return tuple(rows)


def write_manifest(path: Path, rows: Sequence[ManifestRow]) -> None:
    """Write a shard manifest atomically; the stages' own figures become further columns."""
    extra = list(dict.fromkeys(key for row in rows for key in row.figures))
    table = [[asdict(row)[c] for c in MANIFEST_COLUMNS] + [row.figures.get(key) for key in extra] for row in rows]
    write_tsv(path, [*MANIFEST_COLUMNS, *extra], table)


def _figure(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


# --- TSV ------------------------------------------------------------------------------------------------------------


def read_tsv(path: Path, required: Sequence[str]) -> list[dict[str, str | None]]:
    """Read a TSV file; empty cells and ``n/a`` are None.

    Raises:
        TableError: the file is missing, is not UTF-8, lacks a required column, has a column twice or thousands of them, or
            has a row of another length.
    """
    if not path.is_file():
        raise TableError(f"{path} does not exist")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines also splits at what a cell may hold
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    header, *body = (line.split("\t") if line.strip("\t ") else [] for line in lines)
    if any(bare in required for cell in header if (bare := _bare(cell)) != cell):  # as spreadsheets write names
        header = [_bare(cell) for cell in header]
    while (
        header and not header[-1] and all(not cells or not cells[-1] for cells in body)
    ):  # a spreadsheet's empty columns
        header, body = header[:-1], [cells[:-1] for cells in body]
    if len(header) > MOST_COLUMNS:
        raise TableError(
            f"{path} has {len(header)} columns, at most {MOST_COLUMNS} are read; leave out what is not needed"
        )
    if twice := [column for column, count in Counter(header).items() if column and count > 1]:
        raise TableError(f"{path}: column {twice[0]!r} is there {header.count(twice[0])} times; rename or remove one")
    if missing := [column for column in required if column not in header]:
        raise TableError(f"{path}: missing column {', '.join(missing)}; found: {', '.join(header) or 'an empty file'}")
    words, paths = ([place for place, column in enumerate(header) if column in kind] for kind in (_WORDS, _PATHS))
    rows = []
    for number, cells in enumerate(body, start=2):
        if not cells:
            continue
        if len(cells) != len(header):
            raise TableError(f"{path}, row {number}: {len(cells)} cells where the header has {len(header)}")
        for place in words:
            cells[place] = _bare(cells[place])
        for place in paths:
            cells[place] = _bare(cells[place]) if cells[place].startswith('"') else cells[place].rstrip()
        rows.append({k: None if v in ("", NOT_AVAILABLE) else v for k, v in zip(header, cells, strict=True)})
    return rows


def _bare(cell: str) -> str:
    """Return a cell without the spaces and quotes that spreadsheets and editors put around it."""
    cell = cell.strip()
    return cell[1:-1].strip() if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def write_tsv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a TSV file atomically; None becomes ``n/a``, tabs and newlines inside a cell become spaces."""
    write_text(path, _tsv(header, rows))


def _tsv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["\t".join(header)]
    lines += ["\t".join(_cell(value) for value in row) for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None or value == "":
        return NOT_AVAILABLE
    return re.sub(r"[\t\r\n]+", " ", str(value))
