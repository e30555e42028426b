"""GPUs are dealt out to processes, one job each, on made-up device lists."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from builders import REPOSITORY
from snakemake.cli import parse_args

from neuromf import gpu
from neuromf.gpu import GpuError, claim, installed_gpus, shared_gpus

SCRIPT = """
import sys
from pathlib import Path
from neuromf import gpu
gpu._SECONDS_BETWEEN_TRIES = 0.05
taken = gpu.claim(int(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3]))
import os
assert os.environ.get("CUDA_VISIBLE_DEVICES", "") == ",".join(taken)
print(",".join(taken), flush=True)
sys.stdin.read()
"""
SMI = """#!/bin/sh
echo "GPU-aaaa, NVIDIA A, 81559"
echo "GPU-bbbb, NVIDIA B, 24576"
"""


@pytest.fixture(autouse=True)
def nobody_deals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


class Holder:
    """A process that takes GPUs and keeps them until it is told to end."""

    def __init__(self, count: int, devices: str, folder: Path) -> None:
        command = [sys.executable, "-c", SCRIPT, str(count), devices, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def taken(self) -> set[str]:
        assert self.process.stdout is not None
        return set(self.process.stdout.readline().strip().split(","))

    def end(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait()


def test_two_jobs_get_a_gpu_each_and_a_third_waits_for_one_that_is_killed(tmp_path: Path) -> None:
    first, second = Holder(1, "a,b", tmp_path), Holder(1, "a,b", tmp_path)
    assert first.taken() | second.taken() == {"a", "b"}
    third = Holder(1, "a,b", tmp_path)
    assert not select.select([third.process.stdout], [], [], 1.0)[0], "it has nothing to say yet"
    assert third.process.poll() is None
    first.end(signal.SIGKILL)
    assert third.taken() <= {"a", "b"}
    for holder in (second, third):
        holder.end()


def test_jobs_of_two_gpus_take_both_or_none(tmp_path: Path) -> None:
    one = Holder(1, "a,b,c", tmp_path)
    (single,) = one.taken()
    pair = Holder(2, "a,b,c", tmp_path)
    assert pair.taken() == {"a", "b", "c"} - {single}
    for holder in (one, pair):
        holder.end()


def test_slurm_and_a_given_list_of_devices_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert claim(1, ["a"], tmp_path) == () and "CUDA_VISIBLE_DEVICES" not in os.environ
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert claim(1, ["a"], tmp_path) == () and os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert not list(tmp_path.iterdir())


def test_jobs_without_gpu_and_machines_without_one_are_left_alone(tmp_path: Path) -> None:
    assert claim(0, ["a"], tmp_path) == claim(1, [], tmp_path) == ()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_more_gpus_than_the_machine_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GpuError, match="3 GPUs are asked for and the machine has 2; lower train.devices"):
        claim(3, ["a", "b"], tmp_path)


def test_the_drivers_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert installed_gpus() == () and shared_gpus() == 1
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert [one.uuid for one in installed_gpus()] == ["GPU-aaaa", "GPU-bbbb"]
    assert installed_gpus()[1] == gpu.Gpu("GPU-bbbb", "NVIDIA B", 24576 * 2**20)
    assert shared_gpus() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert shared_gpus() == 1


def test_a_lock_that_another_user_made_is_enough(tmp_path: Path) -> None:
    """Its file may be read and not be written to."""
    lock = tmp_path / "a.lock"
    lock.touch(0o444)
    holder = Holder(1, "a", tmp_path)
    assert holder.taken() == {"a"}
    holder.end()


@pytest.mark.parametrize(("given", "expected"), [([], 2), (["--resources", "gpu=1"], 1)])
def test_a_workstations_profile_lets_as_many_jobs_run_as_there_are_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], expected: int
) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    _, arguments = parse_args(["--snakefile", str(REPOSITORY / "Snakefile"), *given])
    assert arguments.resources["gpu"].value == expected


def test_all_users_share_the_locks_whatever_their_folder_of_temporary_files(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from neuromf import gpu; print(gpu.LOCKS)"]
    done = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "/tmp/neuromf-gpus"


def test_a_gpu_that_shares_the_machines_memory_and_hidden_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text('#!/bin/sh\necho "GPU-aaaa, NVIDIA GB10, [N/A]"\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (one,) = installed_gpus()
    assert one.uuid == "GPU-aaaa" and one.memory_bytes == psutil.virtual_memory().total
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert installed_gpus() == ()
