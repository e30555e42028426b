import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch_fidelity.metric_kid import kernel_mmd

from neuromf.evaluation import frechet
from neuromf.evaluation.frechet import frechet_distance, frechet_estimate, kernel_distance, kernel_estimate


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


def test_kernel_distance_equals_torch_fidelitys():
    x, y = features(0, 40, 16), features(1, 40, 16, shift=0.3)
    expected = kernel_mmd(x, y)  # its defaults
    assert kernel_distance(x, y) == pytest.approx(float(expected), rel=1e-9)


def test_kernel_distance_is_unbiased():
    draws = [kernel_distance(features(i, 10, 8), features(i + 1000, 6, 8)) for i in range(300)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(300)


def test_intervals_hold_the_value_repeat_and_shrink_with_scans(settings):
    for estimate in (frechet_estimate, kernel_estimate):
        few = estimate(features(0, 12, 8), features(1, 12, 8, shift=0.5), settings)
        many = estimate(features(0, 120, 8), features(1, 120, 8, shift=0.5), settings)
        assert few.low <= few.value <= few.high and few.n == 12
        assert many.high - many.low < few.high - few.low
        assert estimate(features(0, 12, 8), features(1, 12, 8, shift=0.5), settings) == few


def test_kernel_resamples_are_unbiased_for_the_value(settings):
    x, y = features(0, 15, 8), features(1, 12, 8, shift=0.5)
    wide = settings.model_copy(update={"bootstrap": 4000})
    counts = frechet.resample_counts(15, wide, 0), frechet.resample_counts(12, wide, 1)
    draws = frechet._weighted_kernel_distance(x, y, *counts)
    assert draws.mean() == pytest.approx(kernel_distance(x, y), abs=4 * draws.std() / np.sqrt(4000))


def test_resampled_distance_equals_the_distance_of_the_repeated_rows():
    x, y = features(0, 6, 5), features(1, 5, 5, shift=0.2)
    w, v = np.array([[2, 0, 1, 3, 0, 0.0]]), np.array([[1, 1, 0, 2, 1.0]])
    expected = frechet_distance(np.repeat(x, w[0].astype(int), axis=0), np.repeat(y, v[0].astype(int), axis=0))
    assert frechet._weighted_frechet(x, y, w, v)[0] == pytest.approx(expected)


@pytest.mark.parametrize("shapes", [((1, 4), (5, 4)), ((5, 4), (5, 3)), ((5,), (5, 3))])
def test_refuses_too_few_scans_and_different_features(shapes):
    with pytest.raises(ValueError, match="scans of each|one F"):
        frechet_distance(np.zeros(shapes[0]), np.zeros(shapes[1]))
