"""Comparisons of volumes against SciPy and closed forms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from neuromf.config import Evaluate
from neuromf.evaluation.morphometry.compare import (
    asymmetry,
    compare_volumes,
    correlation,
    dice,
    effect_size,
    histogram_edges,
    overlaps,
)

FEW = Evaluate(bootstrap=100)
volumes = st.lists(st.floats(0.5, 2000).map(lambda v: round(v, 2)), min_size=4, max_size=40)


@given(volumes, volumes)
@hypothesis_settings(max_examples=60, deadline=None)
def test_divergence_and_distance_equal_scipys(x: list[float], y: list[float]) -> None:
    found = compare_volumes(x, y, FEW)
    edges = np.concatenate([[-np.inf], histogram_edges(y), [np.inf]])
    p, q = (np.array([((v >= a) & (v < b)).sum() for a, b in pairwise(edges)]) + 0.5 for v in map(np.array, (y, x)))
    assert found["kl_divergence"].value == pytest.approx(scipy.stats.entropy(p, q), abs=1e-9)
    assert found["wasserstein_ml"].value == pytest.approx(scipy.stats.wasserstein_distance(x, y), abs=1e-6)
    for name in ("kl_divergence", "wasserstein_ml"):
        assert 0 <= found[name].low <= found[name].high and found[name].n == len(x)


def test_divergence_is_zero_for_itself_and_grows_with_the_shift() -> None:
    y = np.random.default_rng(0).normal(8, 0.8, 40)
    found = [compare_volumes(y + shift, y, FEW)["kl_divergence"].value for shift in (0, 0.5, 1.5, 5)]
    assert found[0] == pytest.approx(0, abs=1e-12) and found == sorted(found)


def test_bins_are_freedman_and_diaconis_of_the_real_scans_and_never_more_than_scans() -> None:
    y = np.random.default_rng(1).normal(8, 1, 50)
    assert np.array_equal(histogram_edges(y), np.histogram_bin_edges(y, "fd"))
    assert len(histogram_edges(np.append(y, 1e6))) <= 51
    assert len(histogram_edges(np.ones(5))) >= 2


def test_asymmetry_is_positive_where_left_is_larger() -> None:
    found = asymmetry([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [0.0, 0.0]])
    assert found[:3].tolist() == [1.0, -1.0, 0.0] and np.isnan(found[3])


def test_correlation_equals_scipys_and_its_interval_covers_it() -> None:
    random = np.random.default_rng(2)
    x = random.normal(1000, 100, 30)
    y = x + random.normal(0, 60, 30)
    found = correlation(x, y, FEW)
    assert found.value == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    assert found.low < found.value < found.high <= 1 and found.n == 30
    assert correlation(x, -x, FEW).high == pytest.approx(-1)
    assert correlation([1, 1, 1], [1, 2, 3], FEW).value is None
    assert correlation([1, 2], [1, 2], FEW).value is None


def test_effect_leaves_out_scans_without_the_figure() -> None:
    x, y = [1.0, 2.0, 3.0, np.nan], [2.0, 3.0, 4.0]
    found = effect_size([(x, y)], FEW)
    assert found.value == pytest.approx(-1) and found.n == 3


def test_overlap_of_masks_and_of_regions_of_several_labels() -> None:
    random = np.random.default_rng(3)
    a, b = random.integers(0, 4, (2, 8, 9, 10)).astype(np.uint8)
    found = overlaps(a, b, {"one": (1,), "both": (1, 3), "none": (7,)})
    assert found["one"] == pytest.approx(dice(a == 1, b == 1))
    assert found["both"] == pytest.approx(dice(np.isin(a, (1, 3)), np.isin(b, (1, 3))))
    assert np.isnan(found["none"]) and np.isnan(dice(a > 9, b > 9)) and dice(a == 1, a == 1) == 1


def test_resamples_without_spread_have_no_effect_size(settings) -> None:
    """A resample that draws one scan of each group has a spread of rounding errors: Cohen's d of 1e14."""
    x, y = [384.1, 357.3, 418.2], [343.3, 381.9, 382.7]
    found = compare_volumes(x, y, settings)["cohens_d"]
    assert found.low is not None and found.high is not None and max(-found.low, found.high) < 1e3
