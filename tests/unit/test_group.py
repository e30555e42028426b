"""The folder of a group: files have the mode that the umask lets them have, and a second user goes on."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neuromf import lock, provenance
from neuromf.shards import Figures, Task, run_shard
from neuromf.tables import atomic_path, read_manifest, write_json, write_text

GROUP, FIRST, SECOND = 54321, 54322, 54323
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes the right to become other users")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o007, 0o660)])
def test_files_have_the_mode_that_the_umask_lets_them_have(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "new" / "table.tsv", "x")
        with atomic_path(tmp_path / "volume.nii.gz") as temporary:
            assert temporary.name.endswith(".nii.gz") and temporary.parent == tmp_path
            temporary.write_bytes(b"x")
    finally:
        assert os.umask(before) == umask, "the umask is the process's: other threads write too"
    for file in (tmp_path / "new" / "table.tsv", tmp_path / "volume.nii.gz"):
        assert stat.S_IMODE(file.stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o777 & ~umask


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that the group can write to, as `chmod g+ws` makes it."""
    folder = Path(tempfile.mkdtemp(prefix="neuromf-group-"))  # pytest's own are closed to others
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2775)
    yield folder
    shutil.rmtree(folder)


def become(user: int, umask: int, act: Callable[[], object]) -> None:
    """Do something as a user of the group, in a process of its own."""
    if not (child := os.fork()):
        code = 1
        try:
            os.setgroups([])
            os.setgid(GROUP)
            os.setuid(user)
            os.umask(umask)
            act()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def work(inputs: tuple[Path, ...], outputs: tuple[Path, ...], **_: object) -> Figures:
    write_text(outputs[0], inputs[0].read_text())
    return {"owner": float(os.geteuid())}


def shard(folder: Path, *scans: str) -> None:
    tasks = [Task(scan, (folder / "raw",), (folder / "results" / scan,)) for scan in scans]
    run_shard(tasks, work, folder / "results" / "shard-0000.tsv", settings={}, code="c", workers=1, label="test")


@as_root
@pytest.mark.parametrize("first_umask", [0o002, 0o022])
def test_a_second_user_goes_on_with_a_shard(shared: Path, first_umask: int) -> None:
    """With a umask of 022 the folders were made writable for the group afterwards; the files are the first user's alone."""
    (shared / "raw").write_text("scan")
    become(FIRST, first_umask, lambda: shard(shared, "a", "b"))
    if first_umask == 0o022:
        (shared / "results").chmod(0o2775)
    become(SECOND, 0o002, lambda: shard(shared, "a", "b", "c"))
    become(FIRST, 0o002, lambda: shard(shared, "a", "b", "c", "d"))
    rows = read_manifest(shared / "results" / "shard-0000.tsv")
    assert [row.figures["owner"] for row in rows] == [FIRST, FIRST, SECOND, FIRST], "nobody does again what is done"
    assert {path.stat().st_gid for path in shared.rglob("*")} - {0} == {GROUP}


@as_root
def test_a_second_user_writes_over_the_firsts_files(shared: Path) -> None:
    become(FIRST, 0o002, lambda: write_json(shared / "model" / "model.json", {"by": 1}))
    become(SECOND, 0o002, lambda: write_json(shared / "model" / "model.json", {"by": 2}))
    assert (shared / "model" / "model.json").stat().st_uid == SECOND


@as_root
@pytest.mark.parametrize("umask", [0o002, 0o022])
def test_the_lock_of_another_user_is_a_lock(shared: Path, umask: int) -> None:
    (shared / ".snakemake" / "locks").mkdir(parents=True)
    for folder in (shared / ".snakemake", shared / ".snakemake" / "locks"):
        os.chown(folder, FIRST, GROUP)
        folder.chmod(0o2775)
    stale = shared / ".snakemake" / "locks" / "0.input.lock"

    def first() -> None:
        assert lock.remove_stale_locks(shared / ".snakemake")
        stale.touch()

    def second() -> None:
        assert lock.remove_stale_locks(shared / ".snakemake") and not stale.exists(), (
            "the first user's process has ended"
        )

    become(FIRST, umask, first)
    become(SECOND, umask, second)


@as_root
def test_the_commit_of_a_checkout_that_is_another_users(shared: Path) -> None:
    git = ["git", "-C", str(shared), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "safe.directory=*"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    for path in (shared, *shared.rglob("*")):
        os.chown(path, FIRST, GROUP)
    assert provenance.git_commit(shared) == head[:12]
