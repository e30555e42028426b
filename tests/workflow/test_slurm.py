"""The smoke DAG on a real Slurm of one node, whose jobs run out of memory and of time, are cancelled and put back."""

from __future__ import annotations

import csv
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from builders import RUNS, Project
from slurm import Cluster, NoSlurmError, processes_of, running_slurm

UPDATES = 120
STARVED = 400  # MB, of a rule that takes more
RELEASE = "results/releases/first"
TARGETS = [
    f"{RELEASE}/samples/meanflow/seed-0/nfe-1/participants.tsv",
    f"{RELEASE}/runs/rectified_flow/seed-0/model.json",
]
PATIENCE = 1200  # seconds; the DAG takes under four minutes alone
IMPATIENT = """\
import snakemake.cli
import snakemake_executor_plugin_slurm as plugin
plugin.Executor.next_seconds_between_status_checks = property(lambda self: 2, lambda self, seconds: None)
snakemake.cli.main()
"""
ARGUMENTS = (
    *("--workflow-profile", "slurm", "--latency-wait", "10", "--max-threads", "1"),
    *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2"),
)
pytestmark = pytest.mark.timeout(PATIENCE + 100)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    try:
        with running_slurm() as cluster:
            yield cluster
    except NoSlurmError as error:
        pytest.skip(str(error))


class Impatient(Project):
    """A project whose Snakemake looks at its jobs every two seconds; the plugin waits ten seconds longer each time."""

    def _command(self) -> list[str]:
        return [sys.executable, "-c", IMPATIENT, *super()._command()[1:]]


@dataclass
class Training:
    """A run's training and what happens to the jobs it has: each once a checkpoint was saved in it."""

    cluster: Cluster
    checkpoints: Path
    comment: str
    coming: list[str]
    jobs: dict[str, str] = field(default_factory=dict)
    began: dict[str, int] = field(default_factory=dict)
    seen: int = 0

    def update(self) -> int:
        """The update of the last checkpoint; 0 where there is none."""
        files = self.checkpoints.glob("update-*.safetensors")
        return max((int(path.stem.removeprefix("update-")) for path in files), default=0)

    def go_on(self) -> None:
        """Let the next thing happen if it is time."""
        for job in self.cluster.jobs(self.comment) if self.coming else []:
            began = self.began.setdefault(job, self.update())
            if job not in self.jobs.values() and self.update() > began:
                self.seen = self.update()
                self.jobs[event := self.coming.pop(0)] = job
                getattr(self, event)(job)

    def time_limit(self, job: str) -> None:
        """Its time is over amid an update, so that it gets SIGTERM, and SIGKILL after KillWait."""
        self.stop(job)
        self.cluster.end_in(job, 1)

    def warning(self, job: str) -> None:
        """Its time will be over in less than the 300 s at which the profile has Slurm tell it."""
        self.stop(job)
        self.cluster.end_in(job, 290)

    def stop(self, job: str) -> None:
        """Have an update take as long as Slurm takes, which looks at its clock twice a minute; its signals continue it."""
        for process in processes_of(job, ".train.py"):
            os.kill(process, signal.SIGSTOP)

    def cancellation(self, job: str) -> None:
        self.cluster.run("scancel", job)

    def preemption(self, job: str) -> None:
        """What a job of higher priority does to it."""
        self.cluster.run("scontrol", "requeue", job)


@dataclass(frozen=True)
class Survived:
    """A finished run, what Snakemake said, the memory that each job asked for, and the trainings."""

    project: Project
    said: str
    memory: dict[str, str]
    trainings: dict[str, Training]

    def state(self, job: str) -> str | None:
        """The state in which a job failed."""
        found = re.search(f"SLURM-job '{job}' failed, SLURM status is: '([A-Z_]+)'", self.said)
        return found[1] if found else None


@pytest.fixture(scope="module")
def survived(cluster, bids, tmp_path_factory) -> Survived:
    """The DAG from scans to samples, with all that happens to its jobs on the way."""
    checkout = Project(tmp_path_factory.mktemp("slurm")).with_checkout(tmp_path_factory.mktemp("checkout") / "neuromf")
    project = Impatient(checkout.folder, checkout.repository)
    starve(project, "latent_statistics")
    for command in (
        ("index", str(bids), "--cohort", "study", "--skull-stripped"),
        ("release", "create", "first", "--cohort", "study", "--fractions", "0.5", "0.25", "0.25"),
    ):
        assert (done := project.neuromf(*command)).returncode == 0, done.stderr
    train = {"updates": UPDATES, "checkpoint_every": 5, "validate_every": 60, "samples_every": None}
    project.configure(preset="smoke", release="first", runs=RUNS, train=train)
    trainings = {
        run: Training(
            cluster, project.folder / RELEASE / f"checkpoints/{run}-0", f"rule_train_wildcards_{run}_0", coming
        )
        for run, coming in zip(RUNS, (["time_limit", "cancellation"], ["warning", "preemption"]), strict=True)
    }
    log = project.folder / "said.txt"
    process = project.started(log, *ARGUMENTS, *TARGETS)
    try:
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None:
            assert time.monotonic() < deadline, log.read_text()[-8000:]
            for training in trainings.values():
                training.go_on()
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, log.read_text()[-8000:]
    return Survived(project, log.read_text(), cluster.memory(), trainings)


def starve(project: Project, rule: str) -> None:
    """Have a rule ask for too little memory at its first attempt."""
    file = project.repository / "rules" / "latents.smk"
    before, name, after = file.read_text().partition(f"rule {rule}:")
    less = after.replace("**CPU_JOB,", f'**(CPU_JOB | {{"mem_mb": grows({STARVED})}}),', 1)
    assert name and less != after
    file.write_text(before + name + less)


def test_the_dag_runs_through_sbatch(survived):
    for target in TARGETS:
        assert (survived.project.folder / target).stat().st_size > 0
    assert survived.project.planned(*TARGETS) == {}
    sent = re.findall(r"^Job \d+ has been submitted with SLURM jobid (\d+) ", survived.said, re.MULTILINE)
    arrays = re.findall(r"^Submitted array job with Snakemake IDs ([\d,]+) and", survived.said, re.MULTILINE)
    assert {len(jobs.split(",")) for jobs in arrays} == {2}, "the cohort has two shards"
    finished = survived.said.count("Finished jobid:")
    assert len(sent) + 2 * len(arrays) == finished + len(re.findall("SLURM-job '", survived.said)), "none ran elsewhere"


def test_a_job_out_of_memory_is_tried_again_with_more(survived):
    jobid = re.search(r"^rule latent_statistics:.*?jobid: (\d+)$", survived.said, re.MULTILINE | re.DOTALL)[1]
    jobs = re.findall(rf"^Job {jobid} has been submitted with SLURM jobid (\d+) ", survived.said, re.MULTILINE)
    assert [survived.memory[job] for job in jobs] == [f"{STARVED * attempt}M" for attempt in range(1, len(jobs) + 1)]
    assert len(jobs) > 1 and [survived.state(job) for job in jobs] == ["FAILED"] * (len(jobs) - 1) + [None]


@pytest.mark.parametrize("run", RUNS)
def test_a_training_that_was_ended_goes_on_and_finishes(survived, run):
    training, folder = survived.trainings[run], survived.project.folder
    assert not training.coming, "all that was to happen happened"
    resumed = re.search(
        r"resuming from update (\d+) of", (folder / f"results/logs/train/first-{run}-0.log").read_text()
    )
    assert resumed and int(resumed[1]) >= training.seen > 0
    with (folder / RELEASE / f"runs/{run}/seed-0/metrics.csv").open() as table:
        updates = [int(row["step"]) for row in csv.DictReader(table)]
    assert updates == list(range(1, UPDATES + 1)), "each update once"


def test_each_end_is_the_one_meant(survived):
    ended = {event: job for training in survived.trainings.values() for event, job in training.jobs.items()}
    assert survived.state(ended["time_limit"]) == "TIMEOUT"
    assert survived.state(ended["cancellation"]) == "CANCELLED"
    assert survived.state(ended["warning"]) == "FAILED", "it left before its limit, with the code of try again"
    assert survived.state(ended["preemption"]) is None, "Slurm itself started it again"


def test_an_interruption_asks_for_no_more_memory(survived):
    jobs = re.findall(r"\(log: \S+/rule_train/\w+/(\d+)\.log\)\.$", survived.said, re.MULTILINE)
    assert len(jobs) == 2 + 3, "a requeued job is the same job"
    assert {survived.memory[job] for job in jobs} == {"8000M"}


def test_arrays_that_would_wait_for_ever_are_refused(cluster, survived):
    done = survived.project.snakemake(*ARGUMENTS, "--jobs", "2", "--forcerun", "skull_strip", check=False)
    assert done.returncode == 1 and "Job arrays (slurm-array-jobs) need all of the" in done.stdout + done.stderr
