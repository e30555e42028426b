"""Costs are those of earlier jobs, scaled; where none is comparable there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neuromf.config import Config, validate
from neuromf.planning.costs import Costs, records
from neuromf.planning.jobs import Call, Job, Kind
from neuromf.tables import ManifestRow, TableError, write_json, write_manifest

PLACES = {"run": "meanflow", "seed": "0", "nfe": "1"}


def job(rule: str, why: Kind = "new", output: str = "", gpus: int = 0, **wildcards: str) -> Job:
    return Job(rule, wildcards, gpus, "", output, "", "", why)


def stage(rule: str, shard: int, why: Kind) -> Job:
    folder = "latents/small" if rule == "encode" else f"preprocessed/manifests/{rule}"
    suffix = "safetensors" if rule == "encode" else "tsv"
    codec = {"codec": "small"} if rule == "encode" else {}
    output = f"results/cohorts/study/{folder}/shard-{shard:04d}.{suffix}"
    return job(rule, why, output, cohort="study", shard=f"{shard:04d}", **codec)


def costs(project: Path, config: Config, *jobs: Job, **changes: Any) -> Costs:
    settings = config.model_dump(mode="json") | changes
    return Costs(Call(str(project), settings, jobs), records(project / "results"))


def seconds(project: Path, config: Config, one: Job, **changes: Any) -> float | None:
    estimate = costs(project, config, one, **changes).of(one)
    return estimate and estimate.seconds


def test_a_stage_costs_its_median_a_scan_and_counts_only_what_each_earlier_job_did(project, config) -> None:
    one = stage("conform", 0, "code")
    known = costs(project, config, one)
    assert known.scans(one) == 4
    estimate = known.of(one)
    assert estimate is not None
    assert (estimate.seconds, estimate.bytes, estimate.jobs) == (4 * (2 + 5) / 2, 400, 2)


def test_what_is_done_is_not_done_again_for_new_scans(project, config) -> None:
    assert costs(project, config).scans(stage("conform", 1, "new data")) == 2
    assert costs(project, config).scans(stage("conform", 1, "setting")) == 4
    assert costs(project, config).scans(stage("encode", 0, "new data")) == 1
    assert costs(project, config).scans(stage("skull_strip", 0, "new")) == 4


def test_a_stage_does_what_the_stages_before_it_did(project, config) -> None:
    before, after = stage("conform", 0, "code"), stage("encode", 0, "after")
    assert costs(project, config, before, after).scans(after) == 4
    before = stage("bias_correct", 1, "new data")
    after = stage("conform", 1, "after")
    assert costs(project, config, before, after).scans(after) == 4, "bias correction has done none of them"


def test_encoding_is_known_by_codec(project, config) -> None:
    one = stage("encode", 1, "new")
    assert seconds(project, config, one) == 4 * 10.0
    assert seconds(project, config, replace(one, wildcards=one.wildcards | {"codec": "other"})) is None


def test_a_training_costs_its_updates_unless_it_is_of_another_kind(project, config) -> None:
    train = job("train", run="meanflow", seed="1")
    estimate = costs(project, config, train).of(train)
    assert estimate is not None and estimate.seconds == 1000 * 100 / 500
    assert estimate.bytes > 5000, "model folder and checkpoints"
    for change in ({"batch_size": 3}, {"precision": "bf16"}):
        changed = config.train.model_dump(mode="json") | change
        assert seconds(project, config, train, train=changed) is None
    assert (
        seconds(project, config, train, network=config.network.model_dump(mode="json") | {"residual_blocks": 1}) is None
    )


def test_trainings_that_were_replaced_are_remembered(project, config) -> None:
    runs = project / "results/releases/first/runs/meanflow"
    (runs / "replaced").mkdir()
    (runs / "seed-0").rename(runs / "replaced" / "seed-0-abc")
    assert seconds(project, config, job("train", run="meanflow", seed="0")) == 200


def test_samples_cost_by_volume_and_releases_by_scan(project, config) -> None:
    decode = job("decode", **PLACES)
    assert seconds(project, config, decode) == 10 * 10.0 / 5
    assert seconds(project, config, replace(decode, wildcards=PLACES | {"nfe": "25"})) is None
    assert seconds(project, config, job("evaluate_reference")) == 8.0
    assert seconds(project, config, job("report")) == 7.0
    assert seconds(project, config, job("check_failures", cohort="another")) == 1.0


def test_another_grid_is_not_compared(project, config) -> None:
    grid = config.preprocess.model_dump(mode="json")
    grid["conform"]["shape"] = [64, 64, 64]
    for one in (job("decode", **PLACES), job("report"), job("train", run="meanflow", seed="0")):
        assert seconds(project, config, one, preprocess=grid) is None


def test_a_codecs_training_costs_its_updates(project, config) -> None:
    settings = config.model_dump(mode="json")
    architecture = {key: settings["codec"][key] for key in ("channels", "residual_blocks", "latent_channels")}
    figures = {"updates": 10, "minutes": 2.0}
    about = {"architecture": architecture, "recipe": settings["codec_training"], "figures": figures}
    write_json(project / "results/codecs/small/codec.json", about)
    assert seconds(project, config, job("train_codec")) == settings["codec_training"]["updates"] * 12
    slower = settings["codec_training"] | {"adversarial_weight": 0.1}
    assert seconds(project, config, job("train_codec"), codec_training=slower) is None


def test_nothing_recorded_is_no_cost(tmp_path: Path) -> None:
    assert records(tmp_path / "results") == []
    one = job("report")
    assert Costs(Call(str(tmp_path), validate({}).model_dump(mode="json"), (one,)), []).of(one) is None


def test_a_benchmark_whose_shard_is_gone_is_passed_over(project, config) -> None:
    before = records(project / "results")
    (project / "results" / "benchmarks" / "conform" / "study-0007.tsv").write_text("s\n5\n")
    assert records(project / "results") == before


def test_a_benchmark_that_was_not_written_to_its_end_is_passed_over(project, config) -> None:
    (project / "results" / "benchmarks" / "report" / "first.tsv").write_text("")
    (project / "results" / "benchmarks" / "decode" / "first-meanflow-0-1.tsv").write_text("s\th:m:s\n-\t-\n")
    assert seconds(project, config, job("report")) is None
    assert seconds(project, config, job("decode", **PLACES)) is None
    assert seconds(project, config, job("evaluate_reference")) == 8.0


def test_a_damaged_model_is_named(project) -> None:
    about = project / "results/releases/first/runs/meanflow/seed-0/model.json"
    for text in ("{", '{"config": {}}'):
        about.write_text(text)
        with pytest.raises(TableError, match=r"meanflow/seed-0/model\.json"):
            records(project / "results")


def test_another_codec_encodes_all_scans_again(project, config) -> None:
    one = replace(stage("encode", 0, "after"), after=("train_codec",))
    write_manifest(
        project / "results/cohorts/study/latents/small/shard-0000.tsv",
        [ManifestRow(f"sub-p{i}_T1w", "ok") for i in range(4)],
    )
    assert costs(project, config, one).scans(one) == 4
