"""Runs that were trained with several seeds: spread of every figure over the seeds, and tests of runs against that spread.

The bootstrap over scans says how sure a figure of one trained model is; only seeds say whether another training of the same
run would have come out alike. Here a seed is one observation: its figure, whatever that one's own interval.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from neuromf.evaluation.differences import holm
from neuromf.evaluation.inference import Estimate
from neuromf.evaluation.rows import SEED_TEST_COLUMNS, read_parquet, write_parquet

Array = NDArray[np.float64]
ONE_SEED = "one seed: no spread and no test"
NO_SPREAD = "no spread over seeds: no test"
_FIGURE = ("release", "nfe", "metric", "region", "extractor")


def compare_seeds(metrics: Path, out: Path, *, confidence: float) -> None:
    """Write the spread over seeds and the tests between runs, for each figure and NFE.

    Rows by ``test``: ``seeds`` (mean with Student's interval and SD over one run's seeds), ``welch`` (any two runs:
    difference of means with its interval, t, degrees of freedom, p, Hedges' g with its interval), and with more than two
    runs ``anova`` (F, p, η²) and ``tukey`` (any two runs: difference, interval and p corrected for all pairs). What too few
    seeds do not allow is a row without these whose ``note`` says so. ``p_holm`` is p corrected by Holm's method over all
    figures of the same test, runs and NFE.

    Args:
        metrics: metrics.parquet of `neuromf.evaluation.evaluate.merge_metrics`.
        out: parquet to write, `SEED_TEST_COLUMNS`.
        confidence: of the intervals.
    """
    table = read_parquet(metrics)
    table = table[table["nfe"].notna()]
    rows: list[dict[str, Any]] = []
    for key, figures in table.groupby(list(_FIGURE), sort=False):
        known = figures[figures["value"].notna()].groupby("run", sort=False)["value"]
        values = {str(run): found.to_numpy(float) for run, found in known}
        rows += [dict(zip(_FIGURE, key, strict=True)) | row for row in seed_tests(values, confidence)]
    write_parquet(out, _corrected(rows), SEED_TEST_COLUMNS)


def seed_tests(values: Mapping[str, Array], confidence: float) -> list[dict[str, Any]]:
    """Return the rows of one figure from its values per run, (seeds,) each."""
    rows = [_spread(run, found, confidence) for run, found in values.items()]
    rows += [_welch(one, other, values, confidence) for one, other in itertools.combinations(values, 2)]
    if len(values) > 2:
        rows += _anova(values, confidence)
    return rows


def hedges_g(x: ArrayLike, y: ArrayLike, confidence: float) -> Estimate:
    """Return Hedges' g, Cohen's d of x minus y without its bias of small groups, with its interval; n is that of both.

    d = (mean x − mean y) / s, s the pooled SD; g = J d, J = Γ(f/2) / (√(f/2) Γ((f − 1)/2)), f = n + m − 2 (Hedges 1981).
    The interval is that of the non-central t distribution, exact for normal values of equal variance. Constant groups, or
    fewer than two values in one, have none.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n, m = len(a), len(b)
    if min(n, m) < 2 or max(np.ptp(a), np.ptp(b)) == 0:
        return Estimate(None, None, None, n + m)
    freedom = n + m - 2
    pooled = math.sqrt((((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()) / freedom)
    d, scale = float(a.mean() - b.mean()) / pooled, math.sqrt(1 / n + 1 / m)
    correction = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    tail = (1 - confidence) / 2
    low, high = (float(scipy.special.nctdtrinc(freedom, share, d / scale)) for share in (1 - tail, tail))
    return Estimate(correction * d, correction * scale * low, correction * scale * high, n + m)


def _spread(run: str, values: Array, confidence: float) -> dict[str, Any]:
    mean = float(values.mean())
    row: dict[str, Any] = {"test": "seeds", "run": run, "n": len(values), "value": mean}
    if len(values) == 1:
        return row | {"note": ONE_SEED}
    sd = float(values.std(ddof=1))
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * sd / math.sqrt(len(values))
    return row | {"sd": sd, "ci_low": mean - half, "ci_high": mean + half}


def _welch(one: str, other: str, values: Mapping[str, Array], confidence: float) -> dict[str, Any]:
    """Return Welch's t-test, which assumes no equal variances (Welch 1947), of two runs."""
    x, y = values[one], values[other]
    row = _pair("welch", one, other, values) | {"value": float(x.mean() - y.mean())}
    if note := _untestable([x, y]):
        return row | {"note": note}
    found = scipy.stats.ttest_ind(x, y, equal_var=False)
    interval, effect = found.confidence_interval(confidence), hedges_g(x, y, confidence)
    return row | {
        "ci_low": float(interval.low), "ci_high": float(interval.high), "statistic": float(found.statistic),
        "df": float(found.df), "p": float(found.pvalue),
        "effect": effect.value, "effect_low": effect.low, "effect_high": effect.high,
    }  # fmt: skip


def _anova(values: Mapping[str, Array], confidence: float) -> list[dict[str, Any]]:
    """Return one-way ANOVA over all runs and Tukey's HSD (Tukey-Kramer for unequal numbers of seeds) of each two."""
    groups = list(values.values())
    n = sum(map(len, groups))
    row: dict[str, Any] = {"test": "anova", "run": ", ".join(values), "n": n}
    both = [_pair("tukey", one, other, values) for one, other in itertools.combinations(values, 2)]
    if note := _untestable(groups):
        return [one | {"note": note} for one in (row, *both)]
    found, every = scipy.stats.f_oneway(*groups), np.concatenate(groups)
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    row |= {"statistic": float(found.statistic), "p": float(found.pvalue)}
    row |= {"df": len(groups) - 1, "df_within": n - len(groups)}
    row["effect"] = 1 - within / float(((every - every.mean()) ** 2).sum())  # η²
    honest = scipy.stats.tukey_hsd(*groups)
    interval = honest.confidence_interval(confidence)
    for (i, j), one in zip(itertools.combinations(range(len(groups)), 2), both, strict=True):
        one |= {"value": float(honest.statistic[i, j]), "p": float(honest.pvalue[i, j]), "df_within": n - len(groups)}
        one |= {"ci_low": float(interval.low[i, j]), "ci_high": float(interval.high[i, j])}
    return [row, *both]


def _pair(test: str, one: str, other: str, values: Mapping[str, Array]) -> dict[str, Any]:
    return {"test": test, "run": one, "other_run": other, "n": len(values[one]), "other_n": len(values[other])}


def _untestable(groups: Sequence[Array]) -> str:
    """Return why groups of seeds allow no test, or nothing."""
    if min(map(len, groups)) < 2:
        return ONE_SEED
    return NO_SPREAD if all(np.ptp(group) == 0 for group in groups) else ""


def _corrected(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with p corrected over the figures of the same test, runs and NFE."""
    families: dict[tuple[Any, ...], list[int]] = {}
    for index, row in enumerate(rows):
        families.setdefault((row["release"], row["nfe"], row["test"], row["run"], row.get("other_run")), []).append(
            index
        )
    corrected = [dict(row) for row in rows]
    for members in families.values():
        for index, p in zip(members, holm([rows[index].get("p") for index in members]), strict=True):
            corrected[index]["p_holm"] = p
    return corrected
