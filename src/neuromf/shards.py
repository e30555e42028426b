"""The shard runner that every per-scan stage shares: a process pool, resumption and one manifest row per scan.

Finished rows are kept in a journal beside the manifest, ``.<shard>.journal``. The manifest is a declared output, which
Snakemake deletes before it runs a job again; the journal is not, so neither a killed job nor a job that is run again
for one new scan repeats what is done.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from neuromf.tables import (
    ManifestRow,
    StorageError,
    content_hash,
    file_sha256,
    read_manifest,
    write_manifest,
    write_text,
    writing,
)

Figures = dict[str, float | str]
Work = Callable[..., Figures]

_log = logging.getLogger(__name__)
_SPAWN = threading.Lock()
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1"
)


class ShardError(RuntimeError):
    """A shard or cohort that cannot go on: too many scans failed, or a finished file was altered; the message names them."""


@dataclass(frozen=True)
class Task:
    """One scan's work in a stage.

    ``inputs``' content and ``arguments`` (keyword arguments of the work function) decide the result and whether it is
    still valid; ``outputs[0]`` is the manifest's ``file``. With ``failed_upstream`` (a reason) nothing is done. ``made`` is
    the row of the stage that wrote ``inputs[0]``: its SHA-256 must be that of the file.
    """

    scan_id: str
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    failed_upstream: str = ""
    made: ManifestRow | None = None


def run_shard(
    tasks: Sequence[Task],
    work: Work,
    manifest: Path,
    *,
    settings: Mapping[str, Any],
    code: str,
    workers: int,
    label: str,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> tuple[ManifestRow, ...]:
    """Do a stage's work on the scans of one shard and write its manifest.

    Args:
        work: ``work(inputs, outputs, **arguments) -> figures``, an importable function (or a partial of one: what it
            binds is no part of the key) that writes its outputs atomically. An exception becomes a failed row.
        settings: the stage's settings; with ``code``, the inputs' SHA-256 and the arguments they make a scan's key.
        workers: processes, each of one thread; 1 works in this process.
        initializer: called once in each worker, for instance to load a network.

    Returns:
        One row per task, in the tasks' order. Scans whose key is unchanged and whose output is intact are skipped.

    Raises:
        ShardError: an input is not what the stage before wrote.
        StorageError: the disk is full or cannot be written. Finished scans keep their rows in the journal, and a scan that
            could not be written is no failed one.
    """
    journal = _journal(manifest)
    before = _read_journal(journal)
    keys = {task.scan_id: _key(task, settings, code) for task in tasks}
    done = {t.scan_id: before[t.scan_id] for t in tasks if _is_done(t, keys[t.scan_id], before, manifest.parent)}
    pending = [task for task in tasks if task.scan_id not in done]
    for task in pending:
        if task.failed_upstream:
            done[task.scan_id] = ManifestRow(task.scan_id, "failed", task.failed_upstream, key=keys[task.scan_id])
    pending = [task for task in pending if not task.failed_upstream]
    workers = max(1, min(workers, len(pending)))
    with tqdm(total=len(tasks), initial=len(done), desc=label, unit="scan") as bar:
        with writing(manifest):
            manifest.parent.mkdir(parents=True, exist_ok=True)
        _make_writable(journal)
        for task, outcome in _outcomes(pending, work, workers, initializer, initargs):
            row = _row(task, outcome, keys[task.scan_id], manifest.parent)
            if not row.ok:
                _log.warning("%s: %s failed: %s", label, row.scan_id, row.reason)
            done[task.scan_id] = row
            with writing(journal):
                _append(journal, row)
            bar.update()
    rows = tuple(done[task.scan_id] for task in tasks)
    write_manifest(manifest, rows)
    write_text(journal, "".join(json.dumps(asdict(row)) + "\n" for row in rows if row.ok))
    return rows


def finished_scans(manifest: Path) -> dict[str, Path]:
    """Return the scans that a shard's job would find done, if their inputs, settings and code are as before: ID → file.

    Also for a job that was killed or whose manifest is gone: it goes by the journal.
    """
    rows = _read_journal(_journal(manifest)).values()
    files = {row.scan_id: (manifest.parent / row.file, row.bytes) for row in rows if row.ok}
    return {scan: path for scan, (path, size) in files.items() if path.is_file() and path.stat().st_size == size}


def check_intact(path: Path, row: ManifestRow, sha256: str) -> None:
    """Refuse a file of an earlier stage that is not what its manifest says: a flipped bit would become the next result.

    Args:
        sha256: of the file now; ``none`` where it is gone.

    Raises:
        ShardError: names the file and the remedy.
    """
    if sha256 != row.sha256:
        what = "is gone" if sha256 == "none" else f"has sha256 {sha256}, its manifest says {row.sha256}"
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
            f"\n{lines}\nRepair the scans, or raise max_failed_fraction to go on without them"
        )
    return failed


# --- what is done already -------------------------------------------------------------------------------------------


def _key(task: Task, settings: Mapping[str, Any], code: str) -> str:
    inputs = [file_sha256(path) if path.is_file() else "none" for path in task.inputs]
    if task.made is not None:
        check_intact(task.inputs[0], task.made, inputs[0])
    return content_hash(
        {
            "inputs": inputs,
            "settings": dict(settings),
            "code": code,
            "arguments": task.arguments,
        }
    )


def _is_done(task: Task, key: str, before: Mapping[str, ManifestRow], folder: Path) -> bool:
    row = before.get(task.scan_id)
    if row is None or task.failed_upstream or not row.ok or row.key != key:
        return False
    if not all(path.is_file() for path in task.outputs) or row.file != os.path.relpath(task.outputs[0], folder):
        return False
    return task.outputs[0].stat().st_size == row.bytes and file_sha256(task.outputs[0]) == row.sha256


def _journal(manifest: Path) -> Path:
    return manifest.with_name(f".{manifest.stem}.journal")


def _read_journal(path: Path) -> dict[str, ManifestRow]:
    rows: dict[str, ManifestRow] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = ManifestRow(**json.loads(line))
            except (
                json.JSONDecodeError,
                TypeError,
            ):  # the line that was being written when the job was killed
                continue
            rows[row.scan_id] = row
    return rows


def _make_writable(path: Path) -> None:
    """Put a file of our own in the place of another user's that can be read alone, as in the folder of a group."""
    if path.is_file() and not os.access(path, os.W_OK):
        write_text(path, path.read_text(encoding="utf-8", errors="replace"))


def _append(journal: Path, row: ManifestRow) -> None:
    with journal.open("a", encoding="utf-8") as stream:
        stream.write("\n" + json.dumps(asdict(row)))  # newline first: a torn line before it cannot swallow this row
        stream.flush()
        os.fsync(stream.fileno())


def _row(task: Task, outcome: Figures | str, key: str, folder: Path) -> ManifestRow:
    row = ManifestRow(task.scan_id, "failed", key=key)
    if isinstance(outcome, str):
        for path in task.outputs:  # an older result must not pass for this one
            path.unlink(missing_ok=True)
        return replace(row, reason=" ".join(outcome.split()))
    output = task.outputs[0]
    return replace(
        row,
        status="ok",
        file=os.path.relpath(output, folder),
        bytes=output.stat().st_size,
        sha256=file_sha256(output),
        figures=outcome,
    )


# --- doing it -------------------------------------------------------------------------------------------------------


def _outcomes(
    tasks: Sequence[Task],
    work: Work,
    workers: int,
    initializer: Callable[..., None] | None,
    initargs: tuple[Any, ...],
) -> Iterator[tuple[Task, Figures | str]]:
    """Yield each task with its figures, or with the reason why it failed, as they finish."""
    if workers == 1:
        if initializer is not None and tasks:
            initializer(*initargs)
        for task in tasks:
            yield task, _attempt(work, task)
        return
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    processes = [_Worker(initializer, initargs) for _ in range(workers)]
    for process in processes:
        idle.put(process)

    def one(task: Task) -> Figures | str:
        process = idle.get()
        try:
            return process.attempt(work, task)
        finally:
            idle.put(process)

    threads = ThreadPoolExecutor(workers)
    try:
        futures = {threads.submit(one, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.stop()


def _attempt(work: Work, task: Task) -> Figures | str:
    try:
        figures = work(task.inputs, task.outputs, **task.arguments)
        if missing := [str(path) for path in task.outputs if not path.is_file()]:
            raise FileNotFoundError(f"the stage did not write {', '.join(missing)}")
        return figures
    except (StorageError, ShardError):
        raise  # no fault of the scan: a failed row would leave it out for good
    except ValueError as error:  # our own errors: the message is meant for the user
        return str(error)
    except Exception as error:
        _log.exception("%s", task.scan_id)
        return f"{type(error).__name__}: {error}"


class _Worker:
    """A pool of one process, so that a process that dies takes down its own scan and no other."""

    def __init__(self, initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
        self._start = (initializer, initargs)
        self._pool: ProcessPoolExecutor | None = None

    def attempt(self, work: Work, task: Task) -> Figures | str:
        try:
            return self._submit(work, task).result()
        except BrokenProcessPool:
            self.stop()
            return "the worker process died, most often for want of memory; give the stage fewer threads or more memory"

    def stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _submit(self, work: Work, task: Task) -> Future[Figures | str]:
        if self._pool is not None:
            return self._pool.submit(_attempt, work, task)
        with _SPAWN, _spawn_environment():
            self._pool = ProcessPoolExecutor(
                1,
                multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=self._start,
            )
            return self._pool.submit(_attempt, work, task)  # the first submission starts the process


def _begin(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _end_with_parent() -> None:
    """End this process when its parent was killed: a pool's worker would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _spawn_environment() -> Iterator[None]:
    """One thread per worker, and no import of the parent's main module, which would run a Snakemake script again."""
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: main.__dict__[name] for name in ("__file__", "__spec__") if name in main.__dict__}
    environment = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    main.__dict__.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        main.__dict__.update(hidden)
        for name, value in environment.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
