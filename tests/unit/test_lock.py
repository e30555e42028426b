"""Locks of killed workflows go, those of living ones stay."""

import subprocess
import sys

from neuromf import lock

HOLDER = """
import sys, time
from pathlib import Path
from neuromf.lock import remove_stale_locks
print(remove_stale_locks(Path(sys.argv[1])), flush=True)
time.sleep(60)
"""


def test_locks_stay_while_their_workflow_lives_and_go_when_it_was_killed(tmp_path):
    stale = tmp_path / "locks" / "0.input.lock"
    stale.parent.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "True\n"
        stale.touch()
        assert lock.remove_stale_locks(tmp_path) is False
        assert stale.exists()
    finally:
        holder.kill()
        holder.communicate()
    assert lock.remove_stale_locks(tmp_path) is True
    assert not stale.exists()
