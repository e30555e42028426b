"""Locks of killed workflows go, those of living ones stay."""

import errno
import subprocess
import sys
from contextlib import contextmanager

from neuromf import lock

HOLDER = """
import sys, time
from pathlib import Path
from neuromf.lock import remove_stale_locks
print(remove_stale_locks(Path(sys.argv[1])), flush=True)
time.sleep(60)
"""


@contextmanager
def workflow(folder, *, alone):
    """A process that lives within the block as a workflow does, and is then killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == f"{alone}\n"
        yield
    finally:
        process.kill()
        process.communicate()


def snakemakes_lock(folder):
    file = folder / "locks" / "0.input.lock"
    file.parent.mkdir()
    file.touch()
    return file


def test_locks_stay_while_their_workflow_lives_and_go_when_it_was_killed(tmp_path):
    with workflow(tmp_path, alone=True):
        stale = snakemakes_lock(tmp_path)
        with workflow(tmp_path, alone=False):
            assert stale.exists()
    with workflow(tmp_path, alone=True):
        assert not stale.exists()


def test_a_workflow_that_began_beside_a_dry_run_keeps_its_locks_when_that_has_ended(tmp_path):
    dry_run = workflow(tmp_path, alone=True)
    dry_run.__enter__()
    with workflow(tmp_path, alone=False):
        living = snakemakes_lock(tmp_path)
        dry_run.__exit__(None, None, None)
        with workflow(tmp_path, alone=False):
            assert living.exists()


def test_a_file_system_without_locks_is_no_error(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    assert lock.remove_stale_locks(tmp_path) is False
