"""All figures that compare the features of two sets of scans, for one extractor and region."""

from __future__ import annotations

from neuromf.config import Evaluate
from neuromf.evaluation.coverage import NEIGHBOURS, coverage_estimates
from neuromf.evaluation.features import Rows
from neuromf.evaluation.frechet import extrapolated_frechet, frechet_estimate
from neuromf.evaluation.inference import Estimate
from neuromf.evaluation.kernel import gaussian_estimate, kernel_estimate

DISTANCES = ("kernel_distance", "frechet_distance_extrapolated", "frechet_distance", "gaussian_mmd")
METRICS = (*DISTANCES, *NEIGHBOURS)


def compare_rows(x: Rows, y: Rows, settings: Evaluate) -> dict[str, Estimate]:
    """Return all figures of `METRICS` of the rows x of a set of scans beside those of the reference y.

    Fewer than two scans of either have no value.
    """
    if min(len(x), len(y)) < 2:
        return dict.fromkeys(METRICS, Estimate(None, None, None, len(x)))
    return {
        "kernel_distance": kernel_estimate(x, y, settings),
        "frechet_distance_extrapolated": extrapolated_frechet(x, y, settings),
        "frechet_distance": frechet_estimate(x, y, settings),
        "gaussian_mmd": gaussian_estimate(x, y, settings),
    } | coverage_estimates(x, y, settings)


def biased_by_few_scans(scans: int, features: int) -> bool:
    """Return whether there are fewer scans than features: the Fréchet distance then says more about the number of scans."""
    return scans <= features
