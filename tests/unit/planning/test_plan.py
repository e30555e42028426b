"""The plan as text, and the budget; tests/workflow/test_plan.py asks Snakemake itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from neuromf import precision
from neuromf.cli import app
from neuromf.planning import plan
from neuromf.planning.jobs import Call, Job, Kind
from neuromf.planning.plan import Plan, PlanError, describe, make_plan


def training(seed: int, why: Kind = "setting") -> Job:
    folder = f"results/releases/first/runs/meanflow/seed-{seed}"
    stamp = f"results/releases/first/.made_from/train-meanflow-{seed}"
    place = {"run": "meanflow", "seed": str(seed)}
    return Job("train", place, 2, "", f"{folder}/model.safetensors", stamp, "", why, "train.updates 500 → 1000")


REPORT = Job("report", {}, 0, "", "page", "", "", "after", after=("train",))
TORUS = Job("torus_experiment", {}, 1, "", "torus", "", "", "new", "not made yet")


@pytest.fixture
def planned(project, config, monkeypatch):
    """What the plan says of some jobs that Snakemake would run."""

    def of(*jobs: Job) -> Plan:
        call = Call(str(project), config.model_dump(mode="json"), jobs)
        monkeypatch.setattr(plan, "ask", lambda arguments: call)
        return make_plan()

    return of


def test_jobs_of_a_rule_and_reason_are_one_line(planned) -> None:
    made = planned(training(0), training(1), training(2, "new"), REPORT)
    assert [(line.rule, len(line.jobs)) for line in made.lines] == [("train", 2), ("train", 1), ("report", 1)]
    assert made.gpu_hours == pytest.approx(3 * 2 * 200 / 3600), "two GPUs each, 0.2 s an update"
    said = describe(made)
    assert "Release first: 4 scans (4 train, 0 val, 0 test)" in said
    line = next(line for line in said.splitlines() if line.startswith("train"))
    assert line.split()[:4] == ["train", "2", "13.3", "min"] and line.endswith("setting: train.updates 500 → 1000")
    assert "4 jobs, 0 scans to work on: 0.33 GPU-hours, 7 s of other jobs one after another" in said


def test_what_was_never_recorded_is_said(planned) -> None:
    made = planned(TORUS, REPORT)
    said = describe(made)
    assert "no earlier job with these settings was recorded: torus_experiment" in said
    assert next(line for line in said.splitlines() if line.startswith("torus")).split()[2:4] == ["-", "-"]
    assert made.gpu_hours == 0


def test_a_budget_refuses_what_costs_more_and_what_is_not_known(planned) -> None:
    made = planned(training(0), REPORT)
    assert made.over_budget(0.2) == ""
    over = made.over_budget(0.1)
    assert "0.11 GPU-hours are expected and --max-gpu-hours 0.1 allows fewer" in over and "train's (0.11)" in over
    assert "no earlier job says what torus_experiment cost" in planned(TORUS).over_budget(100)
    assert planned(replace(TORUS, gpus=0)).over_budget(0) == ""


def test_retraining_is_refused_in_the_plan_too(planned, project) -> None:
    assert planned(training(0)).refusal == ""
    (project / "results/releases/first/.made_from").mkdir()
    (project / "results/releases/first/.made_from/train-meanflow-0").write_text("made from")
    made = planned(training(0))
    assert "Snakemake refuses this call" in describe(made) and "retrain=[meanflow]" in made.refusal


def test_bf16_that_this_machine_has_no_kernels_for_is_warned_of(planned, monkeypatch) -> None:
    monkeypatch.setattr(precision, "gains_by_bf16", lambda device: False)
    made = planned(training(0))
    assert "Warning" not in describe(made), "float32 is the default"
    call = replace(made.call, config=made.call.config | {"train": made.call.config["train"] | {"precision": "bf16"}})
    warned = next(line for line in describe(replace(made, call=call)).splitlines() if line.startswith("Warning"))
    assert "train.precision: bf16 (run meanflow) is asked for and" in warned and "set it to auto or 32" in warned
    assert "Warning" not in describe(replace(made, call=replace(call, jobs=(REPORT,))))


def test_nothing_to_do(planned) -> None:
    assert describe(planned()).endswith("Nothing to do: every result is up to date.")


def test_snakemakes_own_refusal_is_passed_on(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match="No Snakefile found"):
        make_plan()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**40, "3.0 TiB"), (2**54, "16384.0 TiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert plan.size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (90, "1.5 min"), (9000, "2.5 h")])
def test_durations(seconds: float, text: str) -> None:
    assert plan.duration(seconds) == text


def test_scans_of_a_rule_are_counted_over_its_reasons(planned) -> None:
    def lost(shard: str) -> Job:
        place = {"cohort": "study", "shard": shard}
        output = f"results/cohorts/study/preprocessed/manifests/conform/shard-{shard}.tsv"
        return Job("conform", place, 0, "", output, "", "", "missing file", f"{shard}.nii.gz")

    made = planned(lost("0000"), lost("0001"))
    assert [line.scans for line in made.lines] == [1, 2]
    assert "2 jobs, 3 scans to work on" in describe(made)


@pytest.mark.parametrize(
    "given", (["encode_all", "--config", "release=a"], ["--config", "a=1", "--", "encode_all"], ["--", "x", "--", "y"])
)
def test_snakemakes_arguments_reach_it_as_they_were_given(given: list[str], monkeypatch) -> None:
    asked: list[list[str]] = []

    def refuse(arguments: list[str]) -> Plan:
        asked.append(arguments)
        raise PlanError("enough")

    monkeypatch.setattr(plan, "make_plan", refuse)
    CliRunner().invoke(app, ["plan", "--max-gpu-hours", "3", *given])
    assert asked == [given]
