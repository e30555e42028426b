"""Differences between sets of samples: exact where they must be, honest where they are estimated."""

import json

import numpy as np
import pandas as pd
import pytest

from neuromf.config import Evaluate
from neuromf.evaluation.differences import compare_sample_sets, holm, paired_difference, pairs
from neuromf.evaluation.distances import METRICS, bootstrap_rows
from neuromf.evaluation.evaluate import evaluate_reference, evaluate_samples, merge_metrics
from neuromf.evaluation.features import one_row_each
from neuromf.evaluation.inference import Bootstrap, mean_bootstrap, tail_of
from neuromf.evaluation.rows import DIFFERENCE_COLUMNS
from neuromf.evaluation.scans import EvaluationError

FEW = Evaluate(bootstrap=200)


def figure(table, run, other, metric, region="volume", nfe=1, other_nfe=1):
    rows = table[(table["run"] == run) & (table["other_run"] == other) & (table["metric"] == metric)]
    rows = rows[(rows["region"] == region) & (rows["nfe"] == nfe) & (rows["other_nfe"] == other_nfe)]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.fixture
def release(tmp_path, write_brains, codec):
    """Evaluate sets of samples (run, NFE, seeds of the brains, how they are made) and return their table of differences."""

    def evaluate(*sets, settings=FEW):
        real = {"train": write_brains("train", range(8)), "test": write_brains("test", range(8, 16))}
        (tmp_path / "codec.json").write_text(json.dumps({"rows": []}))
        reference, cache, parts = tmp_path / "reference.safetensors", tmp_path / "cache", [tmp_path / "reference.json"]
        evaluate_reference(
            real, codec, settings, release="demo", n=4, codec_validation=tmp_path / "codec.json", cache=cache,
            part=parts[0], reference=reference, reconstructions=tmp_path / "reconstructions",
        )  # fmt: skip
        for run, nfe, seeds, how in sets:
            folder = next(iter(write_brains(f"{run}-{nfe}", seeds, **how).values())).parent
            stages = {stage: [0.1] * len(seeds) for stage in ("network", "decode", "total")}
            (folder / "sample_timing.json").write_text(json.dumps(stages))
            parts.append(tmp_path / f"{run}-{nfe}.json")
            evaluate_samples(
                folder,
                reference,
                codec,
                settings,
                release="demo",
                run=run,
                seed=0,
                nfe=nfe,
                cache=cache,
                part=parts[-1],
            )
        merge_metrics(parts, metrics=tmp_path / "metrics.parquet", scans=tmp_path / "scans.parquet")
        encoded = codec.encoded
        compare_sample_sets(tmp_path / "scans.parquet", reference, cache, settings, tmp_path / "differences.parquet")
        assert codec.encoded == encoded, "no network runs again"
        return pd.read_parquet(tmp_path / "differences.parquet"), pd.read_parquet(tmp_path / "metrics.parquet")

    return evaluate


def test_the_same_samples_differ_by_nothing_and_larger_heads_by_their_volume(release, caplog):
    seeds = range(100, 110)
    table, metrics = release(
        ("a", 1, seeds, {}),
        ("same", 1, seeds, {}),
        ("large", 1, seeds, {"scale": 1.1}),
        ("a", 4, seeds, {"scale": 1.1}),
    )
    assert tuple(table.columns) == DIFFERENCE_COLUMNS and (table["n"] == 10).all()
    figures = int((table[(table["other_run"] == "same")]["p"].notna()).sum())
    assert f"200 resamples are too few for p_holm of {figures} figures" in caplog.text
    assert (table["p_holm"].dropna() > 0.05).all()
    same = table[table["other_run"] == "same"]
    assert len(same) > 25 and (same["difference"] == 0).all()
    assert (same[["ci_low", "ci_high"]] == 0).all(axis=None) and (same["p"] == 1).all()

    values = metrics[metrics["nfe"] == 1].set_index(["run", "metric", "region", "extractor"])["value"]
    against = table[table["other_run"] == "large"].set_index(["run", "metric", "region", "extractor"])["difference"]
    for run, metric, region, extractor in against.index:
        key = metric, region, extractor
        assert against[run, *key] == pytest.approx(values[run, *key] - values["large", *key], rel=1e-9, abs=1e-12)
    for metric, region, few in (
        ("volume_ml", "brain", 10),
        ("frechet_distance", "volume", 8),
        ("cohens_d", "brain", 10),
    ):
        row = figure(table, "a", "large", metric, region)
        assert row["ci_low"] <= row["difference"] <= row["ci_high"] < 0
        assert row["p"] == pytest.approx(2 * tail_of(1 / 201, few))
        assert row["p"] < row["p_holm"] <= 1

    steps = table[(table["run"] == table["other_run"])]
    assert set(zip(steps["nfe"], steps["other_nfe"], strict=True)) == {(4, 1)}
    assert figure(table, "a", "a", "volume_ml", "brain", 4, 1)["ci_low"] > 0


def test_sets_of_other_noise_and_a_lost_cache_are_refused(release, tmp_path):
    with pytest.raises(EvaluationError, match="a, seed 0, 1 NFE .3 volumes. and b, .*same sample.n and sample.seed"):
        release(("a", 1, range(100, 103), {}), ("b", 1, range(100, 104), {}))
    next(path for path in (tmp_path / "cache").rglob("*.safetensors")).unlink()
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(EvaluationError, match="forcerun evaluate_samples"):
        compare_sample_sets(
            tmp_path / "scans.parquet",
            tmp_path / "reference.safetensors",
            tmp_path / "cache",
            FEW,
            tmp_path / "d.parquet",
        )


def test_runs_are_compared_at_one_seed_and_nfe_and_with_their_own_fewest():
    sets = [("a", 0, 1), ("a", 0, 5), ("a", 1, 1), ("b", 0, 1), ("b", 1, 5)]
    assert list(pairs(sets)) == [(("a", 0, 1), ("b", 0, 1)), (("a", 0, 5), ("a", 0, 1))]


def samples(seed, n=30, dims=4, shared=0.8, spread=1.0):
    """Two sets whose rows share part of their noise, and a reference; all of one distribution."""
    random = np.random.default_rng(seed)
    common = random.normal(size=(n, dims))
    own = random.normal(size=(2, n, dims))
    return *(spread * (shared * common + np.sqrt(1 - shared**2) * own)), random.normal(size=(n, dims))


def differences(x, y, real, settings=FEW):
    found = [bootstrap_rows(one_row_each(rows), one_row_each(real), settings) for rows in (x, y)]
    return {metric: paired_difference(found[0][metric], found[1][metric], settings) for metric in found[0]}


@pytest.mark.parametrize("spread", [1.0, 1.6])
def test_the_interval_of_a_difference_contains_zero_as_often_as_it_says(spread):
    """Distances at the null and away from it; with a spread that both sets share, their difference is truly zero."""
    covered, rejected = {metric: [] for metric in (*METRICS, "mean")}, []
    settings = Evaluate(bootstrap=100)
    for seed in range(100):
        x, y, real = samples(seed, spread=spread)
        found = differences(x, y, real, settings)
        means = (mean_bootstrap(rows[:, 0], settings) for rows in (x, y))
        found["mean"] = paired_difference(*means, settings)
        for metric, one in covered.items():
            one.append(found[metric][0].low <= 0 <= found[metric][0].high)
        rejected.append(found["mean"][1] < 0.05)
    rates = {metric: np.mean(one) for metric, one in covered.items()}
    assert all(rate >= 0.88 for rate in rates.values()), rates
    assert rates["mean"] <= 0.99 and 0.01 <= np.mean(rejected) <= 0.12


def test_pairing_narrows_the_interval_of_samples_that_belong_together():
    x, y, real = samples(0, shared=0.95)
    paired = differences(x, y, real)
    shuffled = differences(x, y[np.random.default_rng(1).permutation(len(y))], real)
    for metric in ("frechet_distance", "kernel_distance", "gaussian_mmd"):
        narrow, wide = (found[metric][0].high - found[metric][0].low for found in (paired, shuffled))
        assert narrow < 0.7 * wide, metric
        assert paired[metric][0].value == pytest.approx(shuffled[metric][0].value)


def test_draws_of_a_biased_distance_are_centred_on_the_difference_and_not_cut_at_zero():
    draws = np.random.default_rng(0).normal(size=4000)
    x, y = Bootstrap(1.0, 5 + draws, 9999, distance=True), Bootstrap(2.5, 2 + 0 * draws, 9999, distance=True)
    estimate, p = paired_difference(x, y, FEW)
    assert estimate.value == -1.5 and (estimate.low, estimate.high) == pytest.approx((-3.46, 0.46), abs=0.12)
    assert p == pytest.approx(2 * 0.0668, abs=0.02)  # twice the normal tail beyond 1.5
    plain, _ = paired_difference(Bootstrap(1.0, 5 + draws, 9999), Bootstrap(2.5, 2 + 0 * draws, 9999), FEW)
    assert plain.low > 0.9, "an unbiased figure's draws stay where they are"


def test_figures_without_value_or_resamples_have_no_interval():
    known, alone, none = Bootstrap(1.0, np.ones(9), 4), Bootstrap(3.0, None, 4), Bootstrap(None, None, 4)
    assert paired_difference(known, none, FEW)[0].value is None
    estimate, p = paired_difference(known, alone, FEW)
    assert estimate.value == -2 and estimate.low is None and p is None


def test_holms_correction_by_hand():
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([None]) == [None]


@pytest.mark.parametrize("n", [5, 8])
def test_p_of_few_scans_is_small_as_often_as_the_interval_leaves_out_zero(n):
    """The plain share of draws is below 0.05 in 19 and 13 % of pairs that do not differ."""
    random, rejected = np.random.default_rng(0), []
    for _ in range(300):
        x, y = random.normal(size=(2, n))
        estimate, p = paired_difference(mean_bootstrap(x, FEW), mean_bootstrap(y, FEW), FEW)
        rejected.append(p < 0.05)
        assert (p < 0.05) <= (not estimate.low <= 0 <= estimate.high)
    assert np.mean(rejected) < 0.12
