"""Tests over seeds against SciPy called directly and formulas written out."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from neuromf.evaluation.rows import SEED_TEST_COLUMNS
from neuromf.evaluation.seeds import ONE_SEED, compare_seeds, hedges_g, seed_tests

A, B, C = np.array([1.0, 1.3, 0.9, 1.1]), np.array([1.6, 1.9, 1.5]), np.array([1.2, 0.8, 1.0])


def found(rows, test, *runs):
    chosen = [r for r in rows if r["test"] == test and (r["run"], *filter(None, [r.get("other_run")])) == runs]
    assert len(chosen) == 1
    return chosen[0]


def test_spread_and_welch_equal_the_formulas():
    rows = seed_tests({"a": A, "b": B}, 0.95)
    spread = found(rows, "seeds", "a")
    assert (spread["n"], spread["value"], spread["sd"]) == (4, A.mean(), pytest.approx(np.std(A, ddof=1)))
    low, high = scipy.stats.t.interval(0.95, 3, A.mean(), scipy.stats.sem(A))
    assert (spread["ci_low"], spread["ci_high"]) == pytest.approx((low, high))

    welch = found(rows, "welch", "a", "b")
    sa, sb = A.var(ddof=1) / 4, B.var(ddof=1) / 3
    t, df = (A.mean() - B.mean()) / math.sqrt(sa + sb), (sa + sb) ** 2 / (sa**2 / 3 + sb**2 / 2)
    assert (welch["statistic"], welch["df"]) == pytest.approx((t, df)) and (welch["n"], welch["other_n"]) == (4, 3)
    assert welch["p"] == pytest.approx(2 * scipy.stats.t.sf(abs(t), df))
    half = scipy.stats.t.ppf(0.975, df) * math.sqrt(sa + sb)
    assert (welch["ci_low"], welch["ci_high"]) == pytest.approx((welch["value"] - half, welch["value"] + half))
    assert {row["test"] for row in rows} == {"seeds", "welch"}, "two runs need no ANOVA"


def test_anova_and_tukey_equal_scipys():
    rows = seed_tests({"a": A, "b": B, "c": C}, 0.9)
    anova = found(rows, "anova", "a, b, c")
    expected = scipy.stats.f_oneway(A, B, C)
    assert (anova["statistic"], anova["p"]) == pytest.approx((expected.statistic, expected.pvalue))
    assert (anova["df"], anova["df_within"], anova["n"]) == (2, 7, 10)
    share = anova["effect"]  # η² = F df / (F df + df_within)
    assert share == pytest.approx(2 * expected.statistic / (2 * expected.statistic + 7))
    honest = scipy.stats.tukey_hsd(A, B, C)
    interval = honest.confidence_interval(0.9)
    pair = found(rows, "tukey", "b", "c")
    assert pair["value"] == pytest.approx(B.mean() - C.mean()) and pair["p"] == pytest.approx(honest.pvalue[1, 2])
    assert (pair["ci_low"], pair["ci_high"]) == pytest.approx((interval.low[1, 2], interval.high[1, 2]))


def test_hedges_g_is_cohens_d_without_its_bias_and_its_interval_covers_the_truth():
    pooled = math.sqrt((3 * A.var(ddof=1) + 2 * B.var(ddof=1)) / 5)
    d = (A.mean() - B.mean()) / pooled
    effect = hedges_g(A, B, 0.95)
    assert effect.value == pytest.approx(d * (1 - 3 / (4 * 5 - 1)), rel=0.01) and effect.n == 7  # Hedges' approximation
    t = d / math.sqrt(1 / 4 + 1 / 3)
    exact = effect.value / d * math.sqrt(1 / 4 + 1 / 3)
    assert scipy.stats.nct.sf(t, 5, effect.low / exact) == pytest.approx(0.025, abs=1e-4)
    assert scipy.stats.nct.cdf(t, 5, effect.high / exact) == pytest.approx(0.025, abs=1e-4)
    random = np.random.default_rng(0)
    estimates = [hedges_g(random.normal(1, 1, 5), random.normal(0, 1, 5), 0.95) for _ in range(400)]
    assert np.mean([e.value for e in estimates]) == pytest.approx(1, abs=0.1)  # Cohen's d has 1.11
    assert 0.92 < np.mean([e.low <= 1 <= e.high for e in estimates]) < 0.98


def test_one_seed_or_no_spread_allows_no_test_and_the_rows_say_so():
    rows = seed_tests({"a": A, "b": B[:1], "c": C}, 0.95)
    assert found(rows, "seeds", "b")["note"] == ONE_SEED and "sd" not in found(rows, "seeds", "b")
    for name, runs in (("welch", ("a", "b")), ("anova", ("a, b, c",)), ("tukey", ("a", "c"))):
        row = found(rows, name, *runs)
        assert row["note"] == ONE_SEED and "p" not in row
    assert "p" in found(rows, "welch", "a", "c")
    constant = found(seed_tests({"a": np.ones(3), "b": np.zeros(3)}, 0.95), "welch", "a", "b")
    assert "no spread" in constant["note"] and "p" not in constant and constant["value"] == 1
    assert hedges_g(np.ones(3), np.zeros(3), 0.95).value is None and hedges_g(A[:1], B, 0.95).value is None


def test_the_table_keeps_nfe_apart_and_corrects_over_figures(tmp_path):
    random = np.random.default_rng(0)
    rows = [
        {"release": "r", "run": run, "seed": seed, "nfe": nfe, "metric": metric, "region": "volume", "extractor": "codec",
         "value": random.normal(3 * (run == "b"), 0.5)}
        for nfe in (1, 5) for metric in ("x", "y") for run in ("a", "b") for seed in range(4)
    ]  # fmt: skip
    rows.append(rows[0] | {"run": "real", "seed": None, "nfe": None})
    rows.append(rows[0] | {"seed": 4, "value": None})
    pd.DataFrame(rows).astype({"seed": "Int64", "nfe": "Int64", "value": float}).to_parquet(
        tmp_path / "metrics.parquet"
    )
    compare_seeds(tmp_path / "metrics.parquet", tmp_path / "seed_tests.parquet", confidence=0.95)
    table = pd.read_parquet(tmp_path / "seed_tests.parquet")
    assert tuple(table.columns) == SEED_TEST_COLUMNS and "real" not in set(table["run"]) and (table["n"] == 4).all()
    welch = table[(table["test"] == "welch") & (table["nfe"] == 1)].set_index("metric")
    values = {run: [r["value"] for r in rows if (r["run"], r["nfe"], r["metric"]) == (run, 1, "x") and r["seed"] != 4]
              for run in "ab"}  # fmt: skip
    assert welch.loc["x", "p"] == pytest.approx(scipy.stats.ttest_ind(*values.values(), equal_var=False).pvalue)
    smaller, larger = sorted(welch["p"])
    assert sorted(welch["p_holm"]) == pytest.approx(sorted([min(1, 2 * smaller), max(2 * smaller, larger)]))
    assert len(table) == 2 * 2 * 3
