"""The shard runner: failures, resumption, skipping and dead workers."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from neuromf.shards import (
    ShardError,
    Task,
    check_failures,
    finished_scans,
    run_shard,
)
from neuromf.tables import ManifestRow, read_manifest, write_manifest

# Work must be importable in a spawned process, as that of the stages is.
STAGE = """
import os, time
from neuromf.tables import write_text

def double(inputs, outputs, log="", sleep=0.0, factor=2):
    with open(log, "a") as stream:
        stream.write(outputs[0].name + "\\n")
    time.sleep(sleep)
    text = inputs[0].read_text()
    if text == "die":
        os._exit(9)
    if text == "silent":
        return {}
    if text == "EIO":
        raise OSError(5, "Input/output error", str(inputs[0]))
    if text == "copying":
        inputs[0].write_text("-10")
        text = "-1"
    if text.startswith("once"):
        inputs[0].with_name(inputs[0].name + ".tried").exists() or (
            inputs[0].with_name(inputs[0].name + ".tried").touch(), os._exit(9))
        text = text.removeprefix("once")
    number = int(text)
    if number < 0:
        raise ValueError(f"{inputs[0]} is negative")
    write_text(outputs[0], str(factor * number))
    return {"doubled": float(factor * number), "threads": float(os.environ.get("OMP_NUM_THREADS", "0"))}
"""


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a_stage.py").write_text(STAGE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    sys.modules.pop("a_stage", None)
    import a_stage  # type: ignore[import-not-found]

    return a_stage


def tasks(folder: Path, contents: dict[str, str], **arguments: object) -> list[Task]:
    made = []
    for name, text in contents.items():
        (folder / f"{name}.in").write_text(text)
        made.append(
            Task(
                name,
                (folder / f"{name}.in",),
                (folder / "out" / f"{name}.txt",),
                dict(arguments),
            )
        )
    return made


class Shard:
    """Runs a shard and tells which scans were worked on."""

    def __init__(self, folder: Path, stage: ModuleType) -> None:
        self.folder, self.stage = folder, stage
        self.manifest = folder / "manifests" / "shard-0000.tsv"

    def __call__(self, todo: list[Task], workers: int = 1, **key: object) -> tuple[list[str], dict[str, ManifestRow]]:
        log = self.folder / "log.txt"
        log.unlink(missing_ok=True)
        settings, code = key.get("settings", {"a": 1}), str(key.get("code", "v1"))
        work = partial(self.stage.double, log=str(log))
        rows = run_shard(
            todo,
            work,
            self.manifest,
            settings=settings,
            code=code,
            workers=workers,
            label="t",
        )  # type: ignore[arg-type]
        assert [row.scan_id for row in rows] == [task.scan_id for task in todo]
        assert read_manifest(self.manifest) == rows
        worked = log.read_text().split() if log.exists() else []
        return sorted(name.removesuffix(".txt") for name in worked), {row.scan_id: row for row in rows}


@pytest.fixture
def shard(tmp_path: Path, stage: ModuleType) -> Shard:
    return Shard(tmp_path, stage)


@pytest.mark.parametrize("workers", [1, 2])
def test_one_bad_scan_stops_no_other(tmp_path: Path, shard: Shard, workers: int) -> None:
    todo = tasks(tmp_path, {"a": "1", "bad": "-1", "no": "text", "mute": "silent", "z": "4"})
    todo.append(Task("gone", (tmp_path / "gone",), (tmp_path / "out" / "gone.txt",)))
    todo.append(
        Task(
            "up",
            (),
            (tmp_path / "out" / "up.txt",),
            failed_upstream="skull_strip: no brain",
        )
    )
    _, rows = shard(todo, workers)
    assert [name for name, row in rows.items() if row.ok] == ["a", "z"]
    assert rows["a"].figures["doubled"] == 2
    assert (shard.manifest.parent / rows["a"].file).read_text() == "2"
    assert "is negative" in rows["bad"].reason and "invalid literal" in rows["no"].reason
    assert "did not write" in rows["mute"].reason and "gone does not exist" in rows["gone"].reason
    assert rows["up"].reason == "skull_strip: no brain"


def test_a_dead_worker_fails_its_scan_only(tmp_path: Path, shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    _, rows = shard(
        tasks(tmp_path, {"a": "1", "b": "die", "c": "3", "d": "die", "e": "5"}),
        workers=2,
    )
    assert [name for name, row in rows.items() if not row.ok] == ["b", "d"]
    assert "worker process died" in rows["b"].reason and rows["b"].figures == {"transient": "yes"}
    assert rows["e"].figures["threads"] == 1
    assert "OMP_NUM_THREADS" not in os.environ  # the parent keeps its own


def test_a_scan_whose_worker_died_is_tried_once_more_alone(tmp_path: Path, shard: Shard) -> None:
    worked, rows = shard(tasks(tmp_path, {"a": "once1", "b": "2", "c": "once3"}), workers=3)
    assert all(row.ok for row in rows.values()) and worked == ["a", "a", "b", "c", "c"]


def test_what_is_unchanged_and_intact_is_skipped(tmp_path: Path, shard: Shard) -> None:
    contents = {"a": "1", "b": "2", "c": "3"}
    todo = tasks(tmp_path, contents)
    assert shard(todo)[0] == ["a", "b", "c"]
    shard.manifest.unlink()  # Snakemake deletes the declared output before it runs the job again
    assert shard(todo)[0] == []
    assert shard(tasks(tmp_path, contents | {"b": "7", "d": "4"}))[0] == ["b", "d"]
    (tmp_path / "out" / "a.txt").write_text("3")  # same length, other content
    assert shard(todo)[0] == ["a"]
    (tmp_path / "out" / "c.txt").unlink()
    assert shard(todo)[0] == ["c"]
    assert shard(todo, settings={"a": 2})[0] == ["a", "b", "c"]
    assert shard(todo, settings={"a": 2}, code="v2")[0] == ["a", "b", "c"]
    todo = tasks(tmp_path, contents, factor=3)
    assert shard(todo, settings={"a": 2}, code="v2")[0] == ["a", "b", "c"]


def test_a_scans_own_fault_is_not_tried_again_until_something_changed_and_leaves_no_stale_output(
    tmp_path: Path, shard: Shard
) -> None:
    shard(tasks(tmp_path, {"a": "1", "b": "2"}))
    bad = tasks(tmp_path, {"a": "1", "b": "-2"})
    worked, rows = shard(bad)
    assert worked == ["b"] and not rows["b"].ok and not (tmp_path / "out" / "b.txt").exists()
    assert shard(bad) == ([], rows)
    assert shard(bad, code="v2")[0] == ["a", "b"]
    worked, rows = shard(tasks(tmp_path, {"a": "1", "b": "2"}), code="v2")
    assert worked == ["b"] and rows["b"].ok


def outputs(folder: Path) -> dict[str, tuple[str, int]]:
    return {path.name: (path.read_text(), path.stat().st_mtime_ns) for path in (folder / "out").iterdir()}


@pytest.mark.parametrize("gone", ["absent", "behind a link", "unreadable"])
def test_what_was_made_of_a_raw_file_that_is_not_to_be_had_stays(
    tmp_path: Path, shard: Shard, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    todo = tasks(tmp_path, {"a": "1", "b": "2"})
    before, made = shard(todo)[1], outputs(tmp_path)
    if gone == "absent":
        (tmp_path / "b.in").unlink()
    elif gone == "unreadable":
        fails(monkeypatch, tmp_path / "b.in", errno.ESTALE)
    more = tasks(tmp_path, {"c": "3"})
    leads_out = "b.in is a link that leaves the cohort's root" if gone == "behind a link" else ""
    worked, rows = shard([todo[0], replace(todo[1], failed_upstream=leads_out), *more])
    assert worked == ["c"] and rows["a"] == before["a"]
    assert rows["b"].ok and rows["b"].sha256 == before["b"].sha256
    assert re.search("its raw file cannot be had .*b.in.* what was made of it stays", str(rows["b"].figures["warning"]))
    assert made.items() <= outputs(tmp_path).items()
    # with other settings it is no result of this run, and still nobody removes it
    worked, rows = shard([todo[0], replace(todo[1], failed_upstream=leads_out), *more], settings={"a": 2})
    assert worked == ["a", "c"] and not rows["b"].ok and outputs(tmp_path)["b.txt"] == made["b.txt"]
    monkeypatch.undo()
    (tmp_path / "b.in").write_text("2")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    worked, rows = shard(todo)
    assert worked == ["a"] and rows["b"] == before["b"], "settings and file are back"


def fails(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """Have a file fail to be opened, as a disk that does not answer."""
    opened = Path.open

    def open_(self: Path, *arguments: object, **named: object) -> object:
        if self == path:
            raise OSError(number, os.strerror(number), str(path))
        return opened(self, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", open_)


def test_a_failure_that_passes_takes_nothing_away_and_is_tried_again(
    tmp_path: Path, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result of the old content stays on the disk, is no result of the new one, and is found when the old is back."""
    before = shard(tasks(tmp_path, {"a": "1", "b": "2"}))[1]
    made = outputs(tmp_path)
    worked, rows = shard(tasks(tmp_path, {"a": "1", "b": "EIO"}))
    assert worked == ["b"] and not rows["b"].ok and rows["b"].figures == {"transient": "yes"}
    assert "Input/output error" in rows["b"].reason and "the next call tries it again" in rows["b"].reason
    assert outputs(tmp_path) == made
    assert shard(tasks(tmp_path, {"a": "1", "b": "EIO"}))[0] == ["b"], "tried again"
    assert shard(tasks(tmp_path, {"a": "1", "b": "2"})) == ([], before)
    assert shard(tasks(tmp_path, {"a": "1", "b": "3"}))[0] == ["b"]


def test_a_scan_whose_file_changed_while_it_was_read_is_tried_again(tmp_path: Path, shard: Shard) -> None:
    _, rows = shard(tasks(tmp_path, {"a": "copying"}))
    assert rows["a"].figures == {"transient": "yes"} and "changed meanwhile" in rows["a"].reason


@pytest.mark.parametrize("root", ["missing", "empty"])
def test_scans_on_a_disk_that_is_not_there_stop_the_shard_with_one_line(
    tmp_path: Path, stage: ModuleType, root: str
) -> None:
    manifest, there = tmp_path / "m" / "shard-0000.tsv", tmp_path / "raw"
    if root == "empty":
        there.mkdir()
    todo = [Task(name, (there / name,), (tmp_path / "out" / name,)) for name in "ab"]
    how = {"settings": {}, "code": "", "workers": 1, "label": "t", "root": there}
    with pytest.raises(ShardError, match=r"raw, the cohort's root, .*2 scans of this shard wait.*mount its disk"):
        run_shard(todo, stage.double, manifest, **how)  # type: ignore[arg-type]
    assert not manifest.exists()
    there.mkdir(exist_ok=True)
    for name in "abc":
        (there / name).write_text("1")
    log = {"log": str(tmp_path / "log")}
    todo = [replace(task, arguments=log) for task in todo]
    run_shard(todo, stage.double, manifest, **how)  # type: ignore[arg-type]
    for name in "ab":
        (there / name).unlink()
    more = Task("c", (there / "c",), (tmp_path / "out" / "c",), log)
    rows = run_shard([*todo, more], stage.double, manifest, **how)  # type: ignore[arg-type]
    assert all(row.ok for row in rows), "archived, and nothing waits for them"
    shutil.rmtree(there)
    assert run_shard([*todo, more], stage.double, manifest, **how)[0].ok  # type: ignore[arg-type]


def test_a_killed_shard_resumes(tmp_path: Path, shard: Shard) -> None:
    todo = tasks(tmp_path, {f"s{i}": str(i) for i in range(6)})
    script = tmp_path / "job.py"  # no __main__ guard, as in Snakemake's scripts
    script.write_text(
        "import sys; from pathlib import Path; from functools import partial\n"
        f"sys.path.insert(0, {str(tmp_path / 'code')!r})\n"
        "import a_stage; from neuromf.shards import Task, run_shard\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "todo = [Task(f's{i}', (folder / f's{i}.in',), (folder / 'out' / f's{i}.txt',)) for i in range(6)]\n"
        "work = partial(a_stage.double, log=str(folder / 'killed.txt'), sleep=0.4)\n"
        f"run_shard(todo, work, Path({str(shard.manifest)!r}), settings={{'a': 1}}, code='v1', workers=2, label='t')\n"
    )
    job = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    journal = shard.manifest.with_name(".shard-0000.journal")
    while (not journal.exists() or journal.read_text().count("\n") < 2) and job.poll() is None:
        time.sleep(0.02)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    finished = journal.read_text().count('"ok"')
    assert 2 <= finished < 6 and not shard.manifest.exists()
    with journal.open("a") as stream:
        stream.write('\n{"scan_id": "s5", "sta')
    worked, rows = shard(todo)
    assert len(worked) == 6 - finished
    assert all(row.ok for row in rows.values())


# A job of one worker that is killed before or after the n-th call of a step of `neuromf.shards`.
KILLED_JOB = """
import os, signal, sys
from functools import partial
from pathlib import Path

folder, manifest, step, when, number = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:5], int(sys.argv[5])
sys.path.insert(0, str(folder / "code"))
import a_stage
from neuromf import shards
from neuromf.shards import journal, runner

owner = runner if step == "write_manifest" else journal.Journal
function, calls = getattr(owner, step), []

def killed(*arguments, **named):
    calls.append(arguments)
    if len(calls) == number and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = function(*arguments, **named)
    if len(calls) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, step, killed)
todo = [shards.Task(f"s{i}", (folder / f"s{i}.in",), (folder / "out" / f"s{i}.txt",)) for i in range(3)]
work = partial(a_stage.double, log=str(folder / "killed.txt"))
shards.run_shard(todo, work, manifest, settings={"a": 1}, code="v1", workers=1, label="t")
"""
FINISHED = [
    ("write_manifest", "before", 1),
    ("write_manifest", "after", 1),
    ("write", "before", 1),
    ("write", "after", 1),
]


def kill_at(folder: Path, manifest: Path, step: tuple[str, str, int]) -> None:
    """Run the job as a workflow does, which removes the declared output first, and have it killed."""
    manifest.unlink(missing_ok=True)
    arguments = [sys.executable, "-c", KILLED_JOB, str(folder), str(manifest), *map(str, step)]
    assert subprocess.run(arguments, stderr=subprocess.DEVNULL, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize("step", [("append", "before", 2), ("append", "after", 2), *FINISHED])
def test_killed_at_any_step_a_shard_makes_at_most_the_scan_in_hand_again(
    tmp_path: Path, shard: Shard, step: tuple[str, str, int]
) -> None:
    """However often: a finished shard whose job runs again is killed at every step too."""
    todo = tasks(tmp_path, {f"s{i}": str(i) for i in range(3)})
    kill_at(tmp_path, shard.manifest, step)
    written, finished = {path.stem for path in (tmp_path / "out").iterdir()}, set(finished_scans(shard.manifest))
    assert finished <= written and len(written - finished) == (step == ("append", "before", 2))
    worked, _ = shard(todo)
    assert set(worked) == {"s0", "s1", "s2"} - finished

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    for again in FINISHED:
        kill_at(tmp_path, shard.manifest, again)
    assert shard(todo)[0] == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_check_failures(tmp_path: Path) -> None:
    rows = [ManifestRow(f"sub-{i}", "failed" if i < 2 else "ok", "all zero" if i < 2 else "") for i in range(10)]
    manifests = [tmp_path / "shard-0000.tsv", tmp_path / "shard-0001.tsv"]
    write_manifest(manifests[0], rows[:5])
    write_manifest(manifests[1], rows[5:])
    check_failures(manifests, 0.2)
    with pytest.raises(
        ShardError,
        match=r"2 of 10 scans failed.*max_failed_fraction = 0.1 allows fewer(.|\n)*sub-1  all zero",
    ):
        check_failures(manifests, 0.1)


def test_finished_scans_are_those_whose_files_are_whole(stage: ModuleType, tmp_path: Path) -> None:
    manifest = tmp_path / "manifests" / "shard-0000.tsv"
    assert finished_scans(manifest) == {}
    made = tasks(tmp_path, {"good": "1", "lost": "2", "cut": "3", "bad": "-4"}, log=str(tmp_path / "log"))
    run_shard(made, stage.double, manifest, settings={}, code="", workers=1, label="")
    manifest.unlink()  # as Snakemake does before it runs the job again
    (tmp_path / "out" / "lost.txt").unlink()
    (tmp_path / "out" / "cut.txt").write_text("")
    assert {name: path.resolve() for name, path in finished_scans(manifest).items()} == {
        "good": (tmp_path / "out" / "good.txt").resolve()
    }
