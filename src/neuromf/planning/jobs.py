"""The jobs that a call of Snakemake would run, each with the reason, read from its DAG.

The Snakefile hands the DAG over; nothing of Snakemake is imported. Snakemake names a reason for the first job of a chain
only and looks at no param of those that follow, so the params of every job are compared here with those it ran with.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from neuromf.planning.lost import AGAIN
from neuromf.tables import write_json

Kind = Literal[
    "new", "missing file", "changed scan", "tried again", "new data", "setting", "code", "environment", "interrupted",
    "asked for", "after",
]  # fmt: skip
DATA = ("rows", "release")  # params that stand for rows of tables
LOST = "lost"  # param that notes the files of a shard which are gone (`neuromf.planning.lost.lost_note`)
RAW = "raw"  # param that says which raw files are others than when they were first read (`neuromf.planning.raw`)
DERIVED = ("upstream", "identity")  # hashes of what made the inputs: they change with other jobs
_RAW_LINE = re.compile(r"^(sub-\S+) ([0-9a-f]{64})$", re.MULTILINE)
_NAMED = 3  # rules named of those that a job comes after
_LONGEST = 40  # characters of a setting's value that are shown


@dataclass(frozen=True)
class Job:
    """One job that would run.

    Attributes:
        rule: its name.
        wildcards: cohort, shard, run, seed, nfe …
        gpus: that it asks for.
        benchmark: where its seconds go.
        output: its first output.
        stamp: the file that says what it was last made from, where it leaves one.
        upstream: what it would be made from now: what would be written there.
        why: kind of the reason.
        detail: what is new, missing or changed.
        after: the rules whose jobs make its inputs in the same call, the last one first.
    """

    rule: str
    wildcards: dict[str, str]
    gpus: int
    benchmark: str
    output: str
    stamp: str
    upstream: str
    why: Kind
    detail: str = ""
    after: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """The reason in words."""
        if self.why != "after":
            return f"{self.why}: {self.detail}"
        more = f" and {len(self.after) - _NAMED} more" if len(self.after) > _NAMED else ""
        return f"after {', '.join(self.after[:_NAMED])}{more}"


@dataclass(frozen=True)
class Call:
    """What one call of Snakemake would do, with what is needed to judge its cost.

    Attributes:
        folder: the project's.
        config: the resolved configuration.
        jobs: in the order of the work.
    """

    folder: str
    config: dict[str, Any]
    jobs: tuple[Job, ...]


def planned_jobs(workflow: Any) -> tuple[Job, ...]:
    """Return the jobs that Snakemake's ``workflow`` would run once its DAG is built, in the order of the work.

    Targets such as ``all``, which run nothing, are left out.
    """
    needed = set(workflow.dag.needrun_jobs(exclude_finished=False))
    found: dict[Any, Job] = {}
    place: dict[Any, int] = {}
    for level in workflow.dag.toposorted():
        for job in sorted(level, key=lambda job: (job.rule.name, sorted(job.wildcards_dict.items()))):
            if job in needed and not job.rule.norun:
                before = [other for other in workflow.dag.dependencies[job] if other in found]
                before.sort(key=place.__getitem__, reverse=True)
                place[job] = len(place)
                found[job] = _job(workflow, job, tuple(dict.fromkeys(other.rule.name for other in before)))
    return tuple(found.values())


def write_call(path: Path, workflow: Any, config: Mapping[str, Any]) -> None:
    """Write what a dry run found, for `read_call`; nothing where Snakemake ended before it had a DAG."""
    if workflow.dag is not None:
        write_json(path, asdict(Call(str(Path.cwd()), dict(config), planned_jobs(workflow))))


def read_call(path: Path) -> Call:
    """Read what `write_call` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    jobs = tuple(Job(**(job | {"after": tuple(job["after"])})) for job in content.pop("jobs"))
    return Call(**content, jobs=jobs)


def _job(workflow: Any, job: Any, after: tuple[str, ...]) -> Job:
    why, detail = _why(workflow, job, after)
    return Job(
        rule=job.rule.name,
        wildcards=dict(job.wildcards_dict),
        gpus=int(job.resources.get("gpu", 0)),
        benchmark=str(job.benchmark or ""),
        output=str(job.output[0]),
        stamp=str(job.resources.get("stamp", "")),
        upstream=str(job.params.get("upstream", "")),
        why=why,
        detail=detail,
        after=after,
    )


def _why(workflow: Any, job: Any, after: tuple[str, ...]) -> tuple[Kind, str]:
    reason = workflow.dag.reason(job)
    if reason.forced:
        killed = asyncio.run(workflow.persistence.incomplete(job))
        return ("interrupted", "the job was killed") if killed else ("asked for", "--force, --forcerun or --forceall")
    if absent := [str(file) for file in job.output if not Path(file).exists()]:
        ran = bool(job.benchmark) and Path(job.benchmark).is_file()
        return ("missing file", _listed(absent)) if ran else ("new", "not made yet")
    if changed := reason.params_changed or workflow.persistence.params_changed(job):
        names, settings = _changed_params(dict(job.params.items()), changed.only_old, changed.only_new)
        if settings:
            return "setting", ", ".join(settings)
        if "code" in names:
            return "code", "of this rule"
        if RAW in names and (scans := _changed_scans(job.params.raw, changed.only_old)):
            return "changed scan", _listed(scans)
        if names & set(DATA):
            return "new data", "rows of the table"
        if LOST in names:
            return _left(job.params.lost.splitlines()[1:])
    if reason.input_changed:
        return "new data", "other input files"
    if reason.software_stack_changed:
        return "environment", "its definition"
    if newer := sorted(str(file) for file in reason.updated_input - reason.updated_input_run):
        return "new data", f"newer {_listed(newer)}"
    return ("after", "") if after else ("new data", "what its inputs were made from")


def _left(note: Sequence[str]) -> tuple[Kind, str]:
    """Return the reason of a shard's job in the lines of its note."""
    if files := [line for line in note if not line.startswith(AGAIN)]:
        return "missing file", _listed(files)
    return "tried again", _listed([line.removeprefix(AGAIN) for line in note])


def _changed_scans(now: str, only_old: Collection[str]) -> list[str]:
    """Return the scans whose raw file has changed, or changed back, since the job ran. Its params of then have no names."""
    old = "\n".join(str(ast.literal_eval(text)) for text in only_old)
    return sorted({scan for scan, _ in set(_RAW_LINE.findall(now)) ^ set(_RAW_LINE.findall(old))})


def _changed_params(
    now: Mapping[str, Any], only_old: Collection[str], only_new: Collection[str]
) -> tuple[set[str], list[str]]:
    """Return the names of the params that changed, and the settings among them as ``key old → new``.

    Snakemake keeps the old params without their names, as Python literals: a mapping belongs to the new one with which it
    has the most keys in common, and another value to the only new one left.
    """
    names = {name for name, value in now.items() if repr(value) in only_new}
    before = [ast.literal_eval(text) for text in only_old]
    mappings = [value for value in before if isinstance(value, dict)]
    plain = {
        name: now[name]
        for name in sorted(names - {*DATA, *DERIVED, LOST, RAW, "code"})
        if not isinstance(now[name], dict)
    }
    others = [value for value in before if not isinstance(value, dict | str)]
    changes = (
        [f"{name} {_short(old)} → {_short(new)}" for (name, new), old in zip(plain.items(), others, strict=True)]
        if len(plain) == len(others) == 1
        else list(plain)
    )
    for value in (now[name] for name in sorted(names) if isinstance(now[name], dict)):
        old = max(mappings, key=lambda mapping: len(mapping.keys() & value.keys()), default={})
        changes += _differences(old, value)
    return names, changes


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return ``key old → new`` of every leaf of nested settings that differs."""
    found: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        before, now = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += _differences(before, now, f"{prefix}{key}.")
        elif before != now and key not in DERIVED:
            found.append(f"{prefix}{key} {_short(before)} → {_short(now)}")
    return found


def _listed(files: Sequence[str]) -> str:
    return f"{files[0]} and {len(files) - 1} more" if len(files) > 1 else files[0]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
