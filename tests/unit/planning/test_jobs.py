"""Reasons of jobs, read from what stands for Snakemake's DAG here; tests/workflow/test_plan.py reads the real one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neuromf.planning.jobs import Call, Job, planned_jobs, read_call, write_call


class Changes(SimpleNamespace):
    def __bool__(self) -> bool:
        return bool(self.only_old or self.only_new)


class Params(dict[str, Any]):
    """Params by key and as attributes, as Snakemake has them."""

    __getattr__ = dict.__getitem__


class FakeJob:
    """A job with the parts of Snakemake's that are read."""

    def __init__(self, rule: str, output: str, params: dict[str, Any], **reason: Any) -> None:
        self.rule = SimpleNamespace(name=rule, norun=rule == "all")
        self.output, self.params, self.benchmark = [output], Params(params), f"{output}.benchmark"
        self.wildcards_dict, self.resources = {"shard": "0000"}, {"gpu": 1, "stamp": "a-stamp"}
        self.old = reason.pop("old", params)
        self.incomplete = reason.pop("incomplete", [])
        nothing: dict[str, Any] = {"updated_input": set(), "updated_input_run": set(), "params_changed": False}
        flags = dict.fromkeys(("forced", "input_changed", "software_stack_changed"), False)
        self.reason = SimpleNamespace(**nothing | flags | reason)


class FakeWorkflow:
    """Jobs in a chain, each after the one before; those in ``idle`` are up to date."""

    def __init__(self, *jobs: FakeJob, idle: tuple[FakeJob, ...] = ()) -> None:
        self.dag = self.persistence = self
        self.jobs, self.idle = jobs, idle
        self.dependencies = {job: {before: set()} for before, job in pairwise(jobs)} | {jobs[0]: {}}

    def toposorted(self) -> list[list[FakeJob]]:
        return [[job] for job in self.jobs]

    def needrun_jobs(self, exclude_finished: bool) -> list[FakeJob]:
        assert not exclude_finished, "a dry run has finished them all"
        return [job for job in self.jobs if job not in self.idle]

    def reason(self, job: FakeJob) -> SimpleNamespace:
        return job.reason

    def params_changed(self, job: FakeJob) -> Changes:
        old, new = ({repr(value) for value in params.values()} for params in (job.old, job.params))
        return Changes(only_old=old - new, only_new=new - old)

    async def incomplete(self, job: FakeJob) -> list[str]:
        return job.incomplete


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("made", "made.benchmark", "lost.benchmark"):
        Path(name).touch()


def reason_of(job: FakeJob) -> tuple[str, str]:
    (found,) = planned_jobs(FakeWorkflow(job))
    return found.why, found.detail


def test_what_was_never_made_is_new_and_what_was_made_and_is_gone_is_missing() -> None:
    assert reason_of(FakeJob("conform", "never", {})) == ("new", "not made yet")
    assert reason_of(FakeJob("conform", "lost", {})) == ("missing file", "lost")


def test_a_setting_is_named_with_both_values() -> None:
    old = {"config": {"train": {"rate": 0.1, "seeds": [0]}, "flow": {"p": 2}}, "code": "a" * 16, "share": 0.1}
    new = {"config": {"train": {"rate": 0.2, "seeds": [0]}, "flow": {"p": 2}}, "code": "b" * 16, "share": 0.5}
    assert reason_of(FakeJob("train", "made", new, old=old)) == ("setting", "share 0.1 → 0.5, train.rate 0.1 → 0.2")


@pytest.mark.parametrize(
    ("param", "why"),
    [("code", "code"), ("rows", "new data"), ("release", "new data"), ("upstream", "new data")],
)
def test_hashes_are_told_apart_by_their_param(param: str, why: str) -> None:
    assert reason_of(FakeJob("conform", "made", {param: "new"}, old={param: "old"}))[0] == why


def test_files_that_a_shard_has_lost_are_missing() -> None:
    old, new = {"lost": "", "rows": "same"}, {"lost": "123\na.nii.gz\nb.nii.gz\n", "rows": "same"}
    job = FakeJob("conform", "made", new, old=old)
    assert reason_of(job) == ("missing file", "a.nii.gz and 1 more")


def test_raw_scans_that_changed_or_changed_back_are_named() -> None:
    first, second = (f"sub-{name}_T1w {name * 64}\n" for name in "ab")
    old, new = {"raw": first, "lost": "", "rows": "x"}, {"raw": first + second, "lost": "", "rows": "y"}
    assert reason_of(FakeJob("skull_strip", "made", new, old=old)) == ("changed scan", "sub-b_T1w")
    assert reason_of(FakeJob("skull_strip", "made", old, old=new)) == ("changed scan", "sub-b_T1w")


def test_failures_that_pass_are_tried_again() -> None:
    old, new = {"lost": ""}, {"lost": "123\nagain sub-a_T1w\nagain sub-b_T1w\n"}
    assert reason_of(FakeJob("conform", "made", new, old=old)) == ("tried again", "sub-a_T1w and 1 more")
    new = {"lost": "123\na.nii.gz\nagain sub-b_T1w\n"}
    assert reason_of(FakeJob("conform", "made", new, old=old)) == ("missing file", "a.nii.gz")


def test_code_and_settings_go_before_new_rows_since_they_do_all_scans_again() -> None:
    old, new = {"code": "old", "rows": "old"}, {"code": "new", "rows": "new"}
    assert reason_of(FakeJob("conform", "made", new, old=old))[0] == "code"


def test_other_inputs_are_new_data() -> None:
    assert reason_of(FakeJob("report", "made", {}, input_changed=True)) == ("new data", "other input files")
    newer = {"updated_input": {"a.tsv"}, "updated_input_run": set()}
    assert reason_of(FakeJob("report", "made", {}, **newer)) == ("new data", "newer a.tsv")


def test_a_killed_job_is_told_from_a_forced_one() -> None:
    assert reason_of(FakeJob("encode", "made", {}, forced=True, incomplete=["made"]))[0] == "interrupted"
    assert reason_of(FakeJob("encode", "made", {}, forced=True))[0] == "asked for"


def test_jobs_that_follow_name_what_they_follow_unless_their_own_params_changed() -> None:
    first = FakeJob("conform", "made", {"code": "new"}, old={"code": "old"})
    second = FakeJob("encode", "made", {"upstream": "new"}, old={"upstream": "old"})
    third = FakeJob("train", "made", {"config": {"rate": 2}}, old={"config": {"rate": 1}})
    target = FakeJob("all", "nothing", {})
    found = planned_jobs(FakeWorkflow(first, second, third, target))
    assert [job.rule for job in found] == ["conform", "encode", "train"]
    assert [job.reason for job in found] == ["code: of this rule", "after conform", "setting: rate 1 → 2"]


def test_what_is_up_to_date_is_no_job_and_nothing_comes_after_it() -> None:
    first, second = FakeJob("conform", "made", {}), FakeJob("encode", "never", {"upstream": "a-hash"})
    (found,) = planned_jobs(FakeWorkflow(first, second, idle=(first,)))
    assert (found.rule, found.after, found.gpus) == ("encode", (), 1)
    assert (found.stamp, found.upstream) == ("a-stamp", "a-hash")


def test_many_rules_before_a_job_are_counted() -> None:
    job = Job("report", {}, 0, "", "", "", "", "after", after=("a", "b", "c", "d", "e"))
    assert job.reason == "after a, b, c and 2 more"


def test_a_call_is_read_as_it_was_written(tmp_path: Path) -> None:
    workflow = FakeWorkflow(FakeJob("conform", "never", {}))
    write_call(tmp_path / "call.json", workflow, {"release": "first"})
    assert read_call(tmp_path / "call.json") == Call(str(tmp_path), {"release": "first"}, planned_jobs(workflow))


def test_nothing_is_written_without_a_dag(tmp_path: Path) -> None:
    write_call(tmp_path / "call.json", SimpleNamespace(dag=None), {})
    assert not (tmp_path / "call.json").exists()
