"""``neuromf plan``: what a call of Snakemake would do, why, and what it is expected to cost."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neuromf.config import validate
from neuromf.messages import message_in
from neuromf.planning.costs import Costs, Estimate, records
from neuromf.planning.jobs import Call, Job, read_call
from neuromf.planning.retraining import refusal
from neuromf.tables import SPLITS, read_release

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class PlanError(RuntimeError):
    """Snakemake could not tell what it would do; the message is its own."""


@dataclass(frozen=True)
class Line:
    """The jobs of one rule that would run for the same reason.

    Attributes:
        rule: their rule.
        reason: why they would run.
        scans: that they work on; 0 where they do not go by scans.
        costs: of each job, None where none comparable was recorded.
    """

    rule: str
    reason: str
    jobs: tuple[Job, ...]
    scans: int
    costs: tuple[Estimate | None, ...]

    @property
    def gpu_seconds(self) -> float:
        """Times the GPUs asked for, of the jobs whose cost is known."""
        return sum(cost.seconds * job.gpus for job, cost in zip(self.jobs, self.costs, strict=True) if cost)

    @property
    def other_seconds(self) -> float:
        """Of the jobs whose cost is known and that ask for no GPU, one after another."""
        return sum(cost.seconds for job, cost in zip(self.jobs, self.costs, strict=True) if cost and not job.gpus)

    @property
    def bytes(self) -> float:
        return sum(cost.bytes for cost in self.costs if cost)

    @property
    def unknown(self) -> tuple[Job, ...]:
        """The jobs without a recorded cost."""
        return tuple(job for job, cost in zip(self.jobs, self.costs, strict=True) if cost is None)


@dataclass(frozen=True)
class Plan:
    """What a call would do, in the order of the work.

    Attributes:
        call: what Snakemake said.
        lines: its jobs by rule and reason.
        refusal: why Snakemake would refuse the call; empty where it would not.
    """

    call: Call
    lines: tuple[Line, ...]
    refusal: str

    @property
    def gpu_hours(self) -> float:
        return sum(line.gpu_seconds for line in self.lines) / 3600

    @property
    def bytes(self) -> float:
        """Of what would be written, files that are written over included."""
        return sum(line.bytes for line in self.lines)

    @property
    def unknown(self) -> list[Job]:
        return [job for line in self.lines for job in line.unknown]

    def over_budget(self, gpu_hours: float) -> str:
        """Return why the plan does not keep to a budget of GPU-hours, with the remedy; nothing where it does."""
        if self.gpu_hours > gpu_hours:
            dear = max(self.lines, key=lambda line: line.gpu_seconds)
            return (
                f"{self.gpu_hours:.2f} GPU-hours are expected and --max-gpu-hours {gpu_hours:g} allows fewer; most are"
                f" {dear.rule}'s ({dear.gpu_seconds / 3600:.2f}). Raise it, run a part (name a target, e.g. encode_all), or"
                " lower what costs most (train.updates, train.seeds, sample.n, runs)"
            )
        if rules := ", ".join(sorted({job.rule for job in self.unknown if job.gpus})):
            return (
                f"--max-gpu-hours {gpu_hours:g} cannot be kept to: no earlier job says what {rules} cost with these"
                " settings. Run one on a GPU first (for train: a run of its own with train.updates of a hundred), or leave"
                " --max-gpu-hours out"
            )
        return ""


def make_plan(arguments: Sequence[str] = ()) -> Plan:
    """Ask Snakemake what it would do and look up what that costs.

    Args:
        arguments: as one would give them to `snakemake`, targets included.

    Raises:
        PlanError: Snakemake refuses, with its message.
    """
    call = ask(arguments)
    costs = Costs(call, records(Path(call.folder) / "results"))
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in call.jobs:
        groups.setdefault((job.rule, job.reason), []).append(job)
    lines = tuple(
        Line(rule, reason, tuple(jobs), sum(map(costs.scans, jobs)), tuple(map(costs.of, jobs)))
        for (rule, reason), jobs in groups.items()
    )
    return Plan(call, lines, refusal(call.jobs, costs.config.retrain, Path(call.folder)))


def ask(arguments: Sequence[str]) -> Call:
    """Return what `snakemake` with these arguments would do: a dry run, which writes it to a file for us.

    Raises:
        PlanError: Snakemake refuses, with its message.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "call.json"
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments, "--dry-run", "--quiet", "rules"],
            env={**os.environ, "NEUROMF_PLAN": str(answer)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not answer.is_file():
            raise PlanError(message_in(done.stderr + done.stdout) or "snakemake ended without a word")
        return read_call(answer)


def describe(plan: Plan) -> str:
    """Return the plan as text for a terminal."""
    config = plan.call.config
    rows = read_release(Path(plan.call.folder) / "config" / "releases" / f"{config['release']}.tsv")
    splits = ", ".join(f"{sum(row.split == split for row in rows)} {split}" for split in SPLITS)
    head = f"Release {config['release']}: {len(rows)} scans ({splits}), preset {config['preset']}"
    head += f", runs {', '.join(config['runs'])}"
    if not plan.lines:
        return f"{head}\nNothing to do: every result is up to date."
    titles = ("rule", "jobs", "scans", "GPU time", "other time", "disk", "why")
    table = [titles, *(_cells(line) for line in plan.lines)]
    widths = [max(len(row[i]) for row in table) for i in range(len(titles))]
    lines = ["  ".join(map(_aligned, row, widths, range(len(row)))).rstrip() for row in table]
    jobs, seconds = sum(len(line.jobs) for line in plan.lines), sum(line.other_seconds for line in plan.lines)
    scans = max(
        sum(line.scans for line in plan.lines if line.rule == rule) for rule in {one.rule for one in plan.lines}
    )
    said = [head, "", *lines, ""]
    said.append(
        f"{jobs} jobs, {scans} scans to work on: {plan.gpu_hours:.2f} GPU-hours, {duration(seconds)} of other jobs one after"
        f" another, at most {size(plan.bytes)} on disk"
    )
    if plan.unknown:
        rules = ", ".join(dict.fromkeys(job.rule for job in plan.unknown))
        said.append(f"Not in these sums (-), since no earlier job with these settings was recorded: {rules}")
    said += [f"Warning: {line}" for line in costly_trainings(plan)]
    if plan.refusal:
        said += ["", f"Snakemake refuses this call: {plan.refusal}"]
    return "\n".join(said)


def costly_trainings(plan: Plan) -> list[str]:
    """Return a line for each planned training that asks for bf16 and would not gain by it on this machine."""
    config = validate(plan.call.config)
    runs = dict.fromkeys(job.wildcards["run"] for job in plan.call.jobs if job.rule == "train")
    codec = any(job.rule == "train_codec" for job in plan.call.jobs)
    asked = [config.for_run(run).train.precision for run in runs] + [config.codec_training.precision] * codec
    if "bf16" not in asked:
        return []
    from neuromf.device import choose_device
    from neuromf.training.precision import costly_settings  # loads PyTorch

    found = costly_settings(config, runs, choose_device(config.device), codec=codec)
    return [f"on this machine {setting} is asked for and {cost}; set it to auto or 32" for setting, cost in found]


def duration(seconds: float) -> str:
    """Return seconds in words, e.g. ``3.5 h``."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def size(count: float) -> str:
    """Return bytes in words, e.g. ``1.5 GiB``."""
    power = 0
    while count >= 1024 and power < len(_UNITS) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.1f} {_UNITS[power]}" if power else f"{count:.0f} B"


def _cells(line: Line) -> tuple[str, ...]:
    """Return a line's cells; a + behind a figure: it leaves jobs out; - stands for no figure at all."""
    known = len(line.jobs) > len(line.unknown)
    more = "+" if line.unknown else ""
    time = f"{duration(line.gpu_seconds + line.other_seconds)}{more}" if known else "-"
    gpu = any(job.gpus for job in line.jobs)
    disk = f"{size(line.bytes)}{more}" if line.bytes else ""
    return (
        line.rule,
        str(len(line.jobs)),
        str(line.scans or ""),
        time if gpu else "",
        "" if gpu else time,
        disk if known else "-",
        line.reason,
    )


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column in (0, 6) else cell.rjust(width)
