"""A real Slurm of one node, for tests: its daemons end with the process that started them and leave nothing behind."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

CONFIGURATION = Path("/etc/slurm/slurm.conf")  # no other place: Snakemake's plugin hides SLURM_CONF from the jobs
MARK = "# of NeuroMF's tests\n"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "setpriv")
# The node says it has four CPUs and much memory, whatever it has: the scheduler counts what jobs ask for, and kills those
# that take more memory than that. A job put back into the queue may start again after `cred_expire` seconds.
TEMPLATE = """\
ClusterName=neuromf
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/node
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
KillWait=20
MinJobAge=3600
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=200000
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE
"""


class NoSlurmError(RuntimeError):
    """Slurm cannot be started here; says why."""


@dataclass(frozen=True)
class Cluster:
    """The commands of a running Slurm."""

    folder: Path

    def run(self, *command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def jobs(self, comment: str) -> list[str]:
        """Return the IDs of running jobs of a comment; the plugin's is rule_<rule>_wildcards_<wildcards>."""
        lines = self.run("squeue", "--noheader", "--states=RUNNING", "--format=%i %k").splitlines()
        return [line.split()[0] for line in lines if line.split()[1] == comment]

    def end_in(self, job: str, seconds: int) -> None:
        """Bring a running job's time limit near."""
        end = datetime.now() + timedelta(seconds=seconds)
        self.run("scontrol", "update", f"JobId={job}", f"EndTime={end:%Y-%m-%dT%H:%M:%S}")

    def memory(self) -> dict[str, str]:
        """Return for each job known, by ID, the memory it asked for."""
        lines = self.run("squeue", "--noheader", "--states=all", "--array", "--format=%i %m").splitlines()
        return dict(line.split() for line in lines)


def processes_of(job: str, script: str) -> list[int]:
    """Return the processes of a job that run a script."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if command[1:2] and command[1].endswith(script.encode()) and f"SLURM_JOB_ID={job}".encode() in environment:
            found.append(int(folder.name))
    return found


@contextmanager
def running_slurm() -> Iterator[Cluster]:
    """Start munged, slurmctld and slurmd; end them after the block, with all jobs.

    Raises:
        NoSlurmError: this is not root, programs are missing, or the machine has a Slurm already.
    """
    if os.geteuid() != 0:
        raise NoSlurmError("Slurm's daemons need root")
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        raise NoSlurmError(f"{', '.join(missing)} not found: apt-get install slurm-wlm munge")
    if CONFIGURATION.exists() and not CONFIGURATION.read_text().startswith(MARK):
        raise NoSlurmError(f"{CONFIGURATION} is there: this machine has a Slurm of its own, which stays as it is")
    folder = Path(tempfile.mkdtemp(prefix="neuromf-slurm-"))
    host = socket.gethostname().split(".")[0]
    settings = TEMPLATE.format(host=host, folder=folder, controller_port=_free_port(), node_port=_free_port())
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        CONFIGURATION.write_text(MARK + settings)
        folder.chmod(0o755)
        for name in ("munge", "controller", "node"):
            (folder / name).mkdir()
        key = folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        for path in (folder / "munge", key):
            shutil.chown(path, "munge", "munge")
        munge = {name: f"{folder}/munge/{name}" for name in ("key", "socket", "pid", "log", "seed")}
        daemons.append(
            _started(
                folder / "munged.out",
                *("--reuid", "munge", "--regid", "munge", "--clear-groups", "munged", "--foreground"),
                *("--key-file", munge["key"], "--socket", munge["socket"], "--pid-file", munge["pid"]),
                *("--log-file", munge["log"], "--seed-file", munge["seed"]),
            )
        )
        _eventually(Path(munge["socket"]).exists, daemons, folder)
        daemons.append(_started(folder / "slurmctld.out", "slurmctld", "-D"))
        daemons.append(_started(folder / "slurmd.out", "slurmd", "-D"))
        _eventually(_is_idle, daemons, folder)
        yield Cluster(folder)
        subprocess.run(["scancel", "--user", "root"], check=False)
        subprocess.run(["scancel", "--signal", "KILL", "--full", "--user", "root"], check=False)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
        CONFIGURATION.unlink(missing_ok=True)
        shutil.rmtree(folder)


def _started(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("w") as file:
        return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *arguments], stdout=file, stderr=file)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _is_idle() -> bool:
    done = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, check=False)
    return done.stdout.strip() == "idle"


def _eventually(condition: Callable[[], bool], daemons: list[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if any(daemon.poll() is not None for daemon in daemons) or time.monotonic() > deadline:
            said = "\n".join(path.read_text() for path in sorted(folder.glob("*.out")))
            raise RuntimeError(f"Slurm did not start:\n{said[-4000:]}")
        time.sleep(0.2)
