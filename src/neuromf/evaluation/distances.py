"""All figures that compare the features of two sets of scans, for one extractor and region."""

from __future__ import annotations

from collections.abc import Sequence

from neuromf.config import Evaluate
from neuromf.evaluation.coverage import NEIGHBOURS, coverage_bootstraps
from neuromf.evaluation.features import Rows
from neuromf.evaluation.frechet import frechet_bootstraps
from neuromf.evaluation.inference import Bootstrap, Estimate, pooled
from neuromf.evaluation.kernel import gaussian_bootstrap, kernel_bootstrap

DISTANCES = ("kernel_distance", "frechet_distance_extrapolated", "frechet_distance", "gaussian_mmd")
METRICS = (*DISTANCES, *NEIGHBOURS)


def compare_rows(x: Rows, y: Rows, settings: Evaluate) -> dict[str, Estimate]:
    """Return all figures of `METRICS` of the rows x of a set of scans beside those of the reference y, with intervals.

    Fewer than two scans of either have no value.
    """
    return compare_draws([(x, y)], settings)


def compare_draws(pairs: Sequence[tuple[Rows, Rows]], settings: Evaluate) -> dict[str, Estimate]:
    """Return the same figures as the means over several pairs of sets, such as the draws of a floor."""
    found = [bootstrap_rows(x, y, settings) for x, y in pairs]
    return {metric: pooled([one[metric] for one in found]).estimate(settings) for metric in METRICS}


def bootstrap_rows(x: Rows, y: Rows, settings: Evaluate) -> dict[str, Bootstrap]:
    """Return the same figures with their resamples, which those of another set of as many scans share scan by scan."""
    if min(len(x), len(y)) < 2:
        return dict.fromkeys(METRICS, Bootstrap(None, None, len(x)))
    frechet, extrapolated = frechet_bootstraps(x, y, settings)
    return {
        "kernel_distance": kernel_bootstrap(x, y, settings),
        "frechet_distance_extrapolated": extrapolated,
        "frechet_distance": frechet,
        "gaussian_mmd": gaussian_bootstrap(x, y, settings),
    } | coverage_bootstraps(x, y, settings)


def biased_by_few_scans(scans: int, features: int) -> bool:
    """Return whether there are fewer scans than features: the Fréchet distance then says more about the number of scans."""
    return scans <= features
