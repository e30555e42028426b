"""What tells two sets of samples of a release apart: every figure's difference with its paired bootstrap interval.

Volume i of every run has the same noise, (seed, i), and all sets are compared with the same real scans. So both sides of a
difference are resampled together: a resample draws the same numbers i of both and the same real scans, and what
they share cancels. Features come from the cache, the other figures from the table of scans; no network runs.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests
from tqdm import tqdm

from neuromf.config import Evaluate
from neuromf.evaluation.distances import bootstrap_rows
from neuromf.evaluation.extractors.base import Identity
from neuromf.evaluation.features import gather
from neuromf.evaluation.inference import Bootstrap, Estimate, expanded, mean_bootstrap, percentile_interval, tail_of
from neuromf.evaluation.morphometry import TISSUES, bootstrap_volumes
from neuromf.evaluation.rows import DIFFERENCE_COLUMNS, NO_EXTRACTOR, read_parquet, write_parquet
from neuromf.evaluation.scans import EvaluationError, Reference, compared, read_reference
from neuromf.tensors import TensorError

log = logging.getLogger(__name__)
SampleSet = tuple[str, int, int]  # run, seed, NFE
Figure = tuple[str, str, str]  # metric, region, extractor
_COMPARED = ("run", "nfe", "other_run", "other_nfe", "seed")
SCAN_FIGURES: dict[str, Figure] = {  # column of the table of scans: the figure whose mean over scans it is
    "nearest_correlation": ("nearest_training_correlation", "brain", "pixels"),
    "nearest_relative": ("nearest_training_relative", "brain", "pixels"),
    "nearest_distance_codec": ("nearest_training_distance", "brain", "codec"),
    "nearest_relative_codec": ("nearest_training_relative", "brain", "codec"),
    "other_correlation": ("nearest_other_correlation", "brain", "pixels"),
    "other_relative": ("nearest_other_relative", "brain", "pixels"),
    "other_distance_codec": ("nearest_other_distance", "brain", "codec"),
    "other_relative_codec": ("nearest_other_relative", "brain", "codec"),
    "high_frequency_ratio": ("high_frequency_ratio", "volume", NO_EXTRACTOR),
}


def compare_sample_sets(scans: Path, reference: Path, cache: Path, settings: Evaluate, out: Path) -> None:
    """Write the differences of all figures between any two runs of one seed and NFE, and between a run's NFE and its fewest.

    Args:
        scans: scans.parquet of `neuromf.evaluation.evaluate.merge_metrics`.
        reference: safetensors of `neuromf.evaluation.evaluate.evaluate_reference`.
        cache: folder of cached features.
        out: parquet to write, `DIFFERENCE_COLUMNS`: one set minus the other, its interval, and the p-value of no difference.

    Raises:
        EvaluationError: two sets hold different samples, or features are not in the cache any more.
    """
    real, table = read_reference(reference, []), read_parquet(scans)
    table = table[(table["split"] == "generated") & table["nfe"].notna()]
    sets = {
        (str(run), int(seed), int(nfe)): rows.sort_values("scan")
        for (run, seed, nfe), rows in table.groupby(["run", "seed", "nfe"], sort=False)
    }
    figures = {
        one: _figures(rows, real, cache, settings) for one, rows in tqdm(sets.items(), desc="resamples", unit="set")
    }
    written: list[dict[str, Any]] = []
    for one, other in pairs(list(sets)):
        _check_same_samples(scans, one, sets[one], other, sets[other])
        run, other_run = {"run": one[0], "nfe": one[2]}, {"other_run": other[0], "other_nfe": other[2]}
        key = {"release": sets[one]["release"].iloc[0]} | run | other_run | {"seed": one[1]}
        written += _rows(key, figures[one], figures[other], settings)
    _warn_of_few_resamples(written, settings)
    write_parquet(out, written, DIFFERENCE_COLUMNS)


def pairs(sets: Sequence[SampleSet]) -> Iterator[tuple[SampleSet, SampleSet]]:
    """Yield what is compared: each run with each later one at the same seed and NFE, more NFE with the run's fewest."""
    for one, other in itertools.combinations(sets, 2):
        if one[1:] == other[1:]:
            yield one, other
    for one in sets:
        fewest = min(nfe for run, seed, nfe in sets if (run, seed) == one[:2])
        if one[2] != fewest:
            yield one, (one[0], one[1], fewest)


def paired_difference(x: Bootstrap, y: Bootstrap, settings: Evaluate) -> tuple[Estimate, float | None]:
    """Return x − y with its percentile interval and the two-sided bootstrap p-value of no difference.

    Resamples of both must belong together draw by draw. Those of figures that are biased upwards by repeated scans
    (``distance``) lose most of that bias in the difference, but not all of it when x and y have different spreads; so their
    mean is shifted to the difference. p is twice the tail (`tail_of`) of the smaller share of draws on either side of zero,
    (count + 1) / (B + 1), at most 1 (Davison & Hinkley 1997, 4.11), so that it is small when the interval leaves out zero.
    """
    if x.value is None or y.value is None:
        return Estimate(None, None, None, x.n), None
    value = x.value - y.value
    if x.draws is None or y.draws is None:
        return Estimate(value, None, None, x.n), None
    draws = x.draws - y.draws
    draws = draws[np.isfinite(draws)]
    if draws.size == 0:
        return Estimate(value, None, None, x.n), None
    if x.distance:
        draws = draws + (value - draws.mean())
    beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    few = x.n if x.against is None else min(x.n, x.against)
    p = min(1.0, 2 * tail_of((beyond + 1) / (len(draws) + 1), few))
    return percentile_interval(value, draws, x.n, settings, against=few), p


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for their number by Holm's step-down method; missing ones stay so and do not count."""
    known = [index for index, one in enumerate(p) if one is not None]
    corrected: list[float | None] = [None] * len(p)
    if known:
        values = multipletests([p[index] for index in known], method="holm")[1]
        for index, one in zip(known, values, strict=True):
            corrected[index] = float(one)
    return corrected


def _figures(rows: pd.DataFrame, real: Reference, cache: Path, settings: Evaluate) -> dict[Figure, Bootstrap]:
    """Return every figure of one set of samples with its resamples, from its rows of the table of scans and the cache."""
    found: dict[Figure, Bootstrap] = {}
    chosen = rows["sha256"].iloc[compared(rows["scan"].tolist(), settings.compared)].tolist()
    for name, regions in real.test_rows.items():
        for region, test in regions.items():
            try:
                features = gather(cache, Identity(name, real.keys[name]), chosen, region)
            except TensorError as error:
                raise EvaluationError(
                    f"features of a sample are not in the cache or damaged ({error}); evaluate the samples again"
                    " (snakemake --forcerun evaluate_samples)"
                ) from None
            for metric, one in bootstrap_rows(features, test, settings).items():
                found[metric, region, name] = one
    every = real.every
    for tissue in TISSUES:
        volumes, known = rows[f"{tissue}_ml"].to_numpy(float), every.tissue(tissue)
        found["volume_ml", tissue, NO_EXTRACTOR] = mean_bootstrap(volumes, settings)
        for metric, one in bootstrap_volumes(volumes, known, settings).items():
            found[metric, tissue, NO_EXTRACTOR] = one
        if tissue == "brain":
            inside = (volumes >= known.min()) & (volumes <= known.max())
            found["brain_volume_in_real_range", tissue, NO_EXTRACTOR] = mean_bootstrap(inside, settings)
    for column, figure in SCAN_FIGURES.items():
        values = rows[column].to_numpy(float)
        if np.isfinite(values).all():
            found[figure] = mean_bootstrap(values, settings)
    return found


def _rows(
    key: dict[str, Any], x: dict[Figure, Bootstrap], y: dict[Figure, Bootstrap], settings: Evaluate
) -> list[dict[str, Any]]:
    """Return the rows of one comparison; Holm's correction is over its figures."""
    both = [figure for figure in x if figure in y]
    found = [paired_difference(x[figure], y[figure], settings) for figure in both]
    corrected = holm([p for _, p in found])
    return [
        key
        | dict(zip(("metric", "region", "extractor"), figure, strict=True))
        | {"difference": estimate.value, "ci_low": estimate.low, "ci_high": estimate.high, "n": estimate.n}
        | {"p": p, "p_holm": adjusted}
        for figure, (estimate, p), adjusted in zip(both, found, corrected, strict=True)
    ]


def _warn_of_few_resamples(rows: Sequence[dict[str, Any]], settings: Evaluate) -> None:
    """Say so when no corrected p can fall below 1 − confidence, since none is below that of 1 / (B + 1) of the draws."""
    families = Counter(tuple(row[name] for name in _COMPARED) for row in rows if row["p"] is not None)
    largest = max(families.values(), default=0)
    fewest = min((row["n"] for row in rows if row["p"] is not None), default=1)
    enough = math.ceil(1 / expanded((1 - settings.confidence) / 2 / max(largest, 1), fewest))
    if settings.bootstrap < enough:
        log.warning(
            "evaluate.bootstrap: %d resamples are too few for p_holm of %d figures to fall below %.2g; it takes %d (the"
            " intervals do not need them)",
            settings.bootstrap, largest, 1 - settings.confidence, enough,
        )  # fmt: skip


def _check_same_samples(
    scans: Path, one: SampleSet, rows: pd.DataFrame, other: SampleSet, others: pd.DataFrame
) -> None:
    """Refuse sets that are not of the same noise volume by volume; a sample's name says its noise."""
    if rows["scan"].tolist() != others["scan"].tolist():
        names = [f"{run}, seed {seed}, {nfe} NFE" for run, seed, nfe in (one, other)]
        raise EvaluationError(
            f"{scans}: {names[0]} ({len(rows)} volumes) and {names[1]} ({len(others)}) are not of the same noise; sample"
            " both with the same sample.n and sample.seed"
        )
