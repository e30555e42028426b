"""A shard's work: what is done already, what is done now, and the manifest of both.

What becomes of an earlier result of a scan:

- A raw file that is absent, or that cannot be read today, takes nothing away: the result stays, with a warning in its row,
  as long as settings and code are those that made it. Where they are not, it is no result of this run: the row fails and
  the files stay.
- An attempt that fails for no fault of the scan (`neuromf.shards.faults`) removes what it wrote itself, no more.
- A scan that fails by its own fault loses its files: they would pass for what its input of now comes to.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from neuromf.shards.faults import Failure, ShardError, failure, is_transient
from neuromf.shards.journal import ABSENT, NOWHERE, Entry, Journal, Source, look, read_source
from neuromf.shards.task import Figures, Task, Work
from neuromf.shards.workers import outcomes
from neuromf.tables import ManifestRow, content_hash, file_sha256, read_manifest, write_manifest, writing

_log = logging.getLogger(__name__)


def run_shard(
    tasks: Sequence[Task],
    work: Work,
    manifest: Path,
    *,
    settings: Mapping[str, Any],
    code: str,
    workers: int,
    label: str,
    root: Path | None = None,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> tuple[ManifestRow, ...]:
    """Do a stage's work on the scans of one shard and write its manifest.

    Args:
        work: ``work(inputs, outputs, **arguments) -> figures``, an importable function (or a partial of one: what it
            binds is no part of the key) that writes its outputs atomically. An exception becomes a failed row.
        settings: the stage's settings; with ``code``, the inputs' SHA-256 and the arguments they make a scan's key.
        workers: processes, each of one thread; 1 works in this process.
        root: the folder that raw inputs lie in.
        initializer: called once in each worker, for instance to load a network.

    Returns:
        One row per task, in the tasks' order. Scans whose key is unchanged and whose output is intact are skipped, and so
        are those that failed by their own fault with the same key.

    Raises:
        ShardError: an input is not what the stage before wrote, or scans are to be done and ``root`` is not there.
        StorageError: the disk is full or cannot be written. Finished scans keep their rows in the journal, and a scan that
            could not be written is no failed one.
    """
    journal = Journal(manifest)
    decided = [_Decision.of(task, settings, code, journal, manifest.parent) for task in tasks]
    if root is not None and any(decision.waits for decision in decided):
        _check_root(root, sum(decision.waits for decision in decided))
    done = {d.task.scan_id: Entry(d.row, d.source, d.final) for d in decided if d.row is not None}
    pending = {d.task.scan_id: d for d in decided if d.row is None}
    for decision in decided:
        _tell(label, decision.row, decision.note)
    workers = max(1, min(workers, len(pending)))
    with writing(manifest):
        manifest.parent.mkdir(parents=True, exist_ok=True)
    journal.make_writable()
    before = {path: _look(path) for d in pending.values() for path in d.task.outputs}
    with tqdm(total=len(tasks), initial=len(done), desc=label, unit="scan") as bar:
        for task, outcome in outcomes([d.task for d in pending.values()], work, workers, initializer, initargs):
            entry = done[task.scan_id] = _entry(pending[task.scan_id], outcome, before, manifest.parent)
            _tell(label, entry.row)
            journal.append(entry)
            bar.update()
    rows = tuple(_with_note(done[d.task.scan_id].row, d.note) for d in decided)
    write_manifest(manifest, rows)
    journal.write(_kept(done, journal, manifest.parent))
    return rows


def check_intact(path: Path, row: ManifestRow, sha256: str) -> None:
    """Refuse a file of an earlier stage that is not what its manifest says: a flipped bit would become the next result.

    Args:
        sha256: of the file now; ``none`` where it is gone.

    Raises:
        ShardError: names the file and the remedy.
    """
    if sha256 != row.sha256:
        what = "is gone" if sha256 == ABSENT else f"has sha256 {sha256}, its manifest says {row.sha256}"
        raise ShardError(
            f"{os.path.normpath(path)} {what}: it was damaged or altered after it was made. Remove it, if it is there, and"
            " run again: the workflow makes it anew, and nothing else"
        )


def check_failures(manifests: Sequence[Path], max_failed_fraction: float) -> tuple[ManifestRow, ...]:
    """Return the failed scans of a cohort; stop when they are more than a share of it.

    Raises:
        ShardError: with one line per failed scan and its reason.
    """
    rows = [row for manifest in manifests for row in read_manifest(manifest)]
    failed = tuple(row for row in rows if not row.ok)
    for row in failed:
        _log.warning("%s failed: %s", row.scan_id, row.reason)
    if len(failed) > max_failed_fraction * len(rows):
        width = max(len(row.scan_id) for row in failed)
        lines = "\n".join(f"  {row.scan_id:<{width}}  {row.reason}" for row in failed)
        raise ShardError(
            f"{len(failed)} of {len(rows)} scans failed; max_failed_fraction = {max_failed_fraction:g} allows fewer:"
            f"\n{lines}\nRepair the scans and run again: those whose files have changed are tried again, as are those that"
            " failed for no fault of their own. Or raise max_failed_fraction to go on without them"
        )
    return failed


# --- what is done already -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Decision:
    """What is to become of a task. ``row`` is None where it is to be done; ``note`` is a warning for this manifest only."""

    task: Task
    key: str = ""
    source: Source | None = None
    row: ManifestRow | None = None
    final: bool = False
    note: str = ""
    waits: bool = False  # for a raw file that is not to be had

    @classmethod
    def of(cls, task: Task, settings: Mapping[str, Any], code: str, journal: Journal, folder: Path) -> _Decision:
        def key(hashes: Sequence[str]) -> str:
            return content_hash(
                {"inputs": list(hashes), "settings": dict(settings), "code": code, "arguments": task.arguments}
            )

        if task.raw is None and task.failed_upstream:
            return cls(task, row=Failure(task.failed_upstream).row(task.scan_id, key(())))
        last, made = journal.last.get(task.scan_id), journal.made.get(task.scan_id)
        intact = made is not None and _is_intact(task, made.row, folder)
        try:
            sources = _read_inputs(task)
        except _Unavailable as error:
            why, known = error.failure, made.source if made else None
            if made and intact and known and made.row.key == key([known.sha256]):
                note = f"its raw file cannot be had ({why.reason}); what was made of it stays"
                return cls(task, made.row.key, known, made.row, note=note)
            if last and last.final and last.source and last.row.key == key([last.source.sha256]):
                return cls(task, last.row.key, last.source, last.row, final=True)
            if intact and not why.transient:
                why = replace(
                    why, reason=f"{why.reason}. What was made of it before, with other settings or code, stays unused"
                )
            row = why.row(task.scan_id, key([ABSENT]))
            return cls(task, row.key, known if why.transient else NOWHERE, row, waits=not task.failed_upstream)
        now = key([source.sha256 for source in sources])
        raw = sources[0] if task.raw else None
        if made and intact and made.row.key == now:
            return cls(task, now, raw, made.row)
        if last and last.final and last.row.key == now:
            return cls(task, now, raw, last.row, final=True)
        return cls(task, now, raw)


class _Unavailable(Exception):
    """A raw file that is absent, out of bounds or cannot be read today."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def _read_inputs(task: Task) -> list[Source]:
    """Return what a task's inputs are.

    Raises:
        _Unavailable: the raw file is not to be had.
        ShardError: an input is not what the stage before wrote.
    """
    if task.raw and task.failed_upstream:
        raise _Unavailable(Failure(task.failed_upstream))
    try:
        if task.raw and not task.raw.exists():
            raise _Unavailable(
                Failure(f"{task.raw} does not exist; bring it back or correct its path in the cohort's table")
            )
        sources = [read_source(path) for path in task.inputs]
    except OSError as error:
        if not is_transient(error):
            raise
        raise _Unavailable(failure(error)) from error
    if task.made is not None:
        check_intact(task.inputs[0], task.made, sources[0].sha256)
    return sources


def _is_intact(task: Task, row: ManifestRow, folder: Path) -> bool:
    """Return whether the files of a row that is ok are there, under the names of now, and its first as it was written."""
    if not all(path.is_file() for path in task.outputs) or row.file != os.path.relpath(task.outputs[0], folder):
        return False
    return task.outputs[0].stat().st_size == row.bytes and file_sha256(task.outputs[0]) == row.sha256


def _check_root(root: Path, waiting: int) -> None:
    """Refuse to fail scan after scan where the disk that they lie on is not there.

    Raises:
        ShardError: the cohort's root is missing, cannot be read or is empty, as the folder of a disk that is not mounted.
    """
    try:
        what = "" if any(os.scandir(root)) else "is empty"
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
    if what:
        raise ShardError(
            f"{root}, the cohort's root, {what}, and {waiting} scans of this shard wait for their raw files: mount its disk,"
            ' or correct "root" in config/cohorts/<cohort>.json, and run again. Nothing was removed'
        )


# --- what is done now -----------------------------------------------------------------------------------------------


def _entry(decision: _Decision, outcome: Figures | Failure, before: Mapping[Path, Source], folder: Path) -> Entry:
    """Return what came of a task; its files of before, or half a new one, must not pass for a result that there is not."""
    task, source = decision.task, decision.source
    if not isinstance(outcome, Failure):
        output = task.outputs[0]
        row = ManifestRow(
            task.scan_id,
            "ok",
            file=os.path.relpath(output, folder),
            bytes=output.stat().st_size,
            sha256=file_sha256(output),
            key=decision.key,
            figures=outcome,
        )
        return Entry(row, source)
    if task.raw and source and not outcome.transient and not source.looks_like(_look(task.raw), closely=True):
        outcome = replace(
            outcome, reason=f"{outcome.reason}; its raw file changed meanwhile", transient=True, final=False
        )
    for path in task.outputs:
        if not outcome.transient or _look(path) != before[path]:
            path.unlink(missing_ok=True)
    return Entry(outcome.row(task.scan_id, decision.key), source, outcome.final)


def _kept(done: Mapping[str, Entry], journal: Journal, folder: Path) -> Iterator[Entry]:
    """Yield the entries of the journal to come: those of now, and earlier results that are there beside a failure."""
    for scan_id, entry in done.items():
        made = journal.made.get(scan_id)
        if made is not None and not entry.row.ok and (folder / made.row.file).is_file():
            yield made
        yield entry


def _look(path: Path) -> Source:
    try:
        return look(path)
    except OSError:
        return NOWHERE


def _with_note(row: ManifestRow, note: str) -> ManifestRow:
    """Return a row with one more warning."""
    if not note:
        return row
    warning = "; ".join(filter(None, [str(row.figures.get("warning") or ""), note]))
    return replace(row, figures={**row.figures, "warning": warning})


def _tell(label: str, row: ManifestRow | None, note: str = "") -> None:
    if row is not None and not row.ok:
        _log.warning("%s: %s failed: %s", label, row.scan_id, row.reason)
    elif row is not None and note:
        _log.warning("%s: %s: %s", label, row.scan_id, note)
