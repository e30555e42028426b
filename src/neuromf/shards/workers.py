"""Processes that do a stage's work, each of one thread and with one scan at a time."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from neuromf.shards.faults import Failure, ShardError, failure
from neuromf.shards.task import Figures, Task, Work
from neuromf.tables import StorageError

_log = logging.getLogger(__name__)
_SPAWN = threading.Lock()
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1"
)
_DIED = Failure(
    "the worker process died twice, the second time alone, most often for want of memory; give the stage more memory",
    transient=True,
    died=True,
)


def outcomes(
    tasks: Sequence[Task],
    work: Work,
    workers: int,
    initializer: Callable[..., None] | None,
    initargs: tuple[Any, ...],
) -> Iterator[tuple[Task, Figures | Failure]]:
    """Yield each task with its figures, or with the reason why it failed, as they finish.

    Tasks whose process died are done again at the end, one at a time: together they may have wanted too much memory.

    Raises:
        StorageError, ShardError: from the work; they are no fault of a scan.
    """
    if workers == 1:
        if initializer is not None and tasks:
            initializer(*initargs)
        for task in tasks:
            yield task, attempt(work, task)
        return
    died = []
    for task, outcome in _pooled(tasks, work, workers, initializer, initargs):
        if isinstance(outcome, Failure) and outcome.died:
            _log.warning("%s: its worker process died; it is tried once more, alone", task.scan_id)
            died.append(task)
        else:
            yield task, outcome
    yield from _pooled(died, work, 1, initializer, initargs)


def _pooled(
    tasks: Sequence[Task],
    work: Work,
    workers: int,
    initializer: Callable[..., None] | None,
    initargs: tuple[Any, ...],
) -> Iterator[tuple[Task, Figures | Failure]]:
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    processes = [_Worker(initializer, initargs) for _ in range(workers)]
    for process in processes:
        idle.put(process)

    def one(task: Task) -> Figures | Failure:
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


def attempt(work: Work, task: Task) -> Figures | Failure:
    """Do a task in this process."""
    try:
        figures = work(task.inputs, task.outputs, **task.arguments)
        if missing := [str(path) for path in task.outputs if not path.is_file()]:
            raise FileNotFoundError(f"the stage did not write {', '.join(missing)}")
        return figures
    except (StorageError, ShardError):
        raise  # no fault of the scan: a failed row would leave it out for good
    except Exception as error:
        if not isinstance(error, ValueError):
            _log.exception("%s", task.scan_id)
        return failure(error)


class _Worker:
    """A pool of one process, so that a process that dies takes down its own scan and no other."""

    def __init__(self, initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
        self._start = (initializer, initargs)
        self._pool: ProcessPoolExecutor | None = None

    def attempt(self, work: Work, task: Task) -> Figures | Failure:
        try:
            return self._submit(work, task).result()
        except BrokenProcessPool:
            self.stop()
            return _DIED
        except (StorageError, ShardError):
            raise
        except (OSError, MemoryError) as error:  # no process could be started
            self.stop()
            return failure(error)

    def stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _submit(self, work: Work, task: Task) -> Future[Figures | Failure]:
        if self._pool is not None:
            return self._pool.submit(attempt, work, task)
        with _SPAWN, _spawn_environment():
            self._pool = ProcessPoolExecutor(
                1,
                multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=self._start,
            )
            return self._pool.submit(attempt, work, task)  # the first submission starts the process


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
