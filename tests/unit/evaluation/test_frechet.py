import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from neuromf.config import Evaluate
from neuromf.evaluation import frechet
from neuromf.evaluation.features import Rows, one_row_each
from neuromf.evaluation.frechet import frechet_bootstraps, frechet_distance


def scipy_frechet(x, y):
    """The usual formula with a matrix square root."""
    sx, sy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(sx @ sy)
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(sx) + np.trace(sy) - 2 * np.trace(root).real


def features(seed, n, dims, shift=0.0, scale=1.0):
    return shift + scale * np.random.default_rng(seed).normal(size=(n, dims)) * np.linspace(1, 0.2, dims)


@hypothesis_settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), dims=st.integers(2, 12), shift=st.floats(-3, 3), scale=st.floats(0.3, 3))
def test_frechet_equals_scipys_square_root_where_that_is_well_conditioned(seed, dims, shift, scale):
    x, y = features(seed, 60, dims), features(seed + 1, 45, dims, shift, scale)
    assert frechet_distance(x, y) == pytest.approx(scipy_frechet(x, y), rel=1e-6, abs=1e-6)


def test_frechet_of_gaussians_has_the_closed_form():
    mean = np.array([1.0, -2.0, 0.5])
    x = np.random.default_rng(0).normal(size=(400, 3))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T  # moments exactly 0 and 1
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, mean + 3 * x) == pytest.approx(mean @ mean + 3 * (3 - 1) ** 2, rel=1e-9)


def test_frechet_is_finite_and_right_with_fewer_scans_than_features():
    x, y = features(0, 5, 200), features(1, 4, 200, shift=1.0)
    distance = frechet_distance(x, y)
    assert np.isfinite(distance)
    assert distance == pytest.approx(frechet_distance(y, x))
    constant = np.zeros((3, 200))
    assert frechet_distance(constant, constant + 0.1) == pytest.approx(200 * 0.01)
    assert frechet_distance(constant, y) == pytest.approx(np.sum(y.mean(0) ** 2) + np.trace(np.cov(y, rowvar=False)))


@pytest.mark.parametrize(("n", "m"), [(60, 45), (5, 45), (12, 9)])
def test_frechet_equals_torch_fidelitys(n, m):
    x, y = features(0, n, 10), features(1, m, 10, shift=0.4)
    statistics = [fid_features_to_statistics(torch.from_numpy(rows)) for rows in (x, y)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-5)


def slices(seed, scans, each, dims, shift=0.0):
    """Rows of scans, those of one scan alike."""
    own = np.repeat(features(seed, scans, dims, shift), each, axis=0)
    return Rows(own + 0.3 * features(seed + 500, scans * each, dims), np.full(scans, each))


def test_intervals_hold_the_value_repeat_and_shrink_with_scans(settings):
    def estimate(n):
        x, y = one_row_each(features(0, n, 8)), one_row_each(features(1, n, 8, shift=0.5))
        return frechet_bootstraps(x, y, settings)[0].estimate(settings)

    few, many = estimate(12), estimate(120)
    assert few.low <= few.value <= few.high and few.n == 12
    assert many.high - many.low < few.high - few.low
    assert estimate(12) == few


def test_slices_have_the_value_of_all_rows_and_intervals_of_scans(settings):
    x, y = slices(0, 12, 5, 10), slices(1, 12, 5, 10, shift=0.5)
    grouped = frechet_bootstraps(x, y, settings)[0].estimate(settings)
    assert grouped.value == frechet_distance(x.values, y.values) and grouped.low <= grouped.value <= grouped.high
    alone = frechet_bootstraps(one_row_each(x.values), one_row_each(y.values), settings)[0].estimate(settings)
    assert alone.value == grouped.value and grouped.high - grouped.low > 1.3 * (alone.high - alone.low)


@pytest.mark.parametrize("dims", [10, 200])
def test_resamples_in_leading_components_are_those_of_all_features(dims, monkeypatch):
    x, y = slices(0, 6, 3, dims), slices(1, 5, 3, dims, shift=0.3)
    w, v = np.array([[2, 0, 1, 3, 0, 0.0], [1, 1, 1, 1, 1, 1]]), np.array([[1, 1, 0, 2, 1.0], [1, 1, 1, 1, 1]])
    expected = [
        frechet_distance(*(rows.of_scans(np.repeat(np.arange(len(c)), c.astype(int))).values
                           for rows, c in ((x, w[i]), (y, v[i]))))
        for i in range(2)
    ]  # fmt: skip
    assert frechet._drawn(x, y)(w, v) == pytest.approx(expected, rel=1e-5)  # 33 rows: all is in 64 components
    monkeypatch.setattr(frechet, "LEADING", 3)
    assert (frechet._drawn(x, y)(w, v) < expected).all()


def test_extrapolation_takes_away_the_bias_of_few_scans(settings):
    few = [
        (one_row_each(features(2 * i, 40, 6)), one_row_each(features(2 * i + 1, 40, 6, shift=0.3))) for i in range(20)
    ]
    truth = 6 * 0.3**2
    plain = np.mean([frechet_distance(x.values, y.values) for x, y in few])
    extrapolated = np.mean([frechet_bootstraps(x, y, settings)[1].value for x, y in few])
    assert abs(extrapolated - truth) < 0.5 * abs(plain - truth)
    three = one_row_each(features(0, 3, 6))
    assert frechet_bootstraps(three, few[0][1], settings)[1].value is None


@pytest.mark.parametrize("n", [21, 40])
def test_the_extrapolated_distances_interval_holds_the_truth(n):
    """Its width is that of the distance itself and of the line: few scans of two Gaussians 0.74 apart."""
    few, truth, held = Evaluate(bootstrap=200), 6 * 0.35**2, []
    for i in range(60):
        x, y = one_row_each(features(2 * i, n, 6)), one_row_each(features(2 * i + 1, n, 6, shift=0.35))
        found = frechet_bootstraps(x, y, few)[1].estimate(few)
        assert found.low <= found.value <= found.high
        held.append(found.low <= truth <= found.high)
    assert np.mean(held) >= 0.88


def test_halves_share_out_what_a_resample_draws():
    counts = np.array([[2, 0, 1, 3, 0, 0.0], [1, 1, 1, 2, 1, 0]])
    one, other = frechet._halves(counts, np.random.default_rng(0))
    assert (one + other == counts).all() and (one >= 0).all() and (one.sum(1) == 3).all()


def test_resampled_distance_equals_the_distance_of_the_repeated_rows():
    x, y = features(0, 6, 5), features(1, 5, 5, shift=0.2)
    w, v = np.array([[2, 0, 1, 3, 0, 0.0], [1, 0, 1, 1, 0, 0]]), np.array([[1, 1, 0, 2, 1.0], [0, 1, 0, 1, 0]])
    for found, one, other in zip(frechet._weighted_frechet(x, y, w, v), w, v, strict=True):
        expected = frechet_distance(np.repeat(x, one.astype(int), axis=0), np.repeat(y, other.astype(int), axis=0))
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("shapes", [((1, 4), (5, 4)), ((5, 4), (5, 3)), ((5,), (5, 3))])
def test_refuses_too_few_scans_and_different_features(shapes):
    with pytest.raises(ValueError, match="scans of each|one F"):
        frechet_distance(np.zeros(shapes[0]), np.zeros(shapes[1]))


def test_memory_does_not_grow_with_the_square_of_the_larger_set():
    x, y = features(0, 20, 40), features(1, 6000, 40)
    tracemalloc.start()
    frechet_distance(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * y.nbytes, "6000² inner products are 288 MB"
