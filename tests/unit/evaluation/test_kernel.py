import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kernel_mmd, kid_features_to_metric

from neuromf.evaluation.features import Rows, one_row_each
from neuromf.evaluation.inference import resample_counts
from neuromf.evaluation.kernel import (
    _sums,
    _weighted,
    gaussian,
    gaussian_bootstrap,
    kernel_bootstrap,
    kernel_distance,
    median_distance,
    polynomial,
)


def features(seed, n, dims, shift=0.0):
    return shift + np.random.default_rng(seed).normal(size=(n, dims)) * np.linspace(1, 0.2, dims)


def slices(seed, scans, each, dims, shift=0.0):
    """Rows of scans, those of one scan alike."""
    own = np.repeat(features(seed, scans, dims, shift), each, axis=0)
    return Rows(own + 0.3 * features(seed + 500, scans * each, dims), np.full(scans, each))


def test_kernel_distance_equals_torch_fidelitys():
    x, y = features(0, 40, 16), features(1, 40, 16, shift=0.3)
    assert kernel_distance(x, y) == pytest.approx(float(kernel_mmd(x, y)), rel=1e-9)
    kid = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=1, kid_subset_size=40, verbose=False
    )
    assert kernel_distance(x, y) == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-9)


def test_slices_give_torch_fidelitys_value_and_other_intervals(settings):
    x, y = slices(0, 10, 4, 6), slices(1, 10, 4, 6, shift=0.4)
    grouped = kernel_bootstrap(x, y, settings).estimate(settings)
    assert grouped.value == pytest.approx(float(kernel_mmd(x.values, y.values)), rel=1e-9) and grouped.n == 10
    alone = kernel_bootstrap(one_row_each(x.values), one_row_each(y.values), settings).estimate(settings)
    assert alone.value == pytest.approx(grouped.value)
    assert grouped.high - grouped.low > 1.3 * (alone.high - alone.low)  # forty dependent slices are ten scans


def test_gaussian_kernel_equals_torch_fidelitys_and_brute_force(settings):
    x, y = slices(0, 9, 2, 5), slices(3, 9, 2, 5, shift=0.4)
    sigma = median_distance(y)
    expected = kernel_mmd(x.values, y.values, kid_kernel="rbf", kid_kernel_rbf_sigma=sigma)
    assert gaussian_bootstrap(x, y, settings).value == pytest.approx(float(expected), rel=1e-9)
    pairs = [np.linalg.norm(y.values[i] - y.values[j]) for i in range(18) for j in range(i + 1, 18) if i // 2 != j // 2]
    assert sigma == pytest.approx(np.median(pairs))
    assert median_distance(Rows(np.ones((4, 3)), np.ones(4, int))) == 1.0


def test_resampled_values_are_those_of_the_repeated_scans_without_their_own_copies():
    x, y = slices(0, 4, 3, 5), slices(1, 3, 2, 5)
    w, v = np.array([2, 0, 1, 1.0]), np.array([0, 2, 1.0])
    for kernel in (polynomial, gaussian(1.3)):

        def mean(rows, counts, kernel=kernel):
            drawn = [i for i, times in enumerate(counts) for _ in range(int(times))]
            total = pairs = 0.0
            for a, i in enumerate(drawn):
                for b, j in enumerate(drawn):
                    block = kernel(rows.of_scans([i]).values, rows.of_scans([j]).values)
                    if a == b:
                        total, pairs = total + block.sum() - np.trace(block), pairs + block.size - len(block)
                    elif i != j:
                        total, pairs = total + block.sum(), pairs + block.size
            return total / pairs

        between = kernel(
            x.of_scans([0, 0, 2, 3]).values,
            y.of_scans([1, 1, 2]).values,
        ).mean()
        expected = mean(x, w) + mean(y, v) - 2 * between
        assert _weighted(_sums(kernel, x, y), w[None], v[None])[0] == pytest.approx(expected)


def test_kernel_distance_is_unbiased():
    draws = [kernel_distance(features(i, 10, 8), features(i + 1000, 6, 8)) for i in range(300)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(300)


def test_kernel_resamples_are_unbiased_for_the_value(settings):
    x, y = one_row_each(features(0, 15, 8)), one_row_each(features(1, 12, 8, shift=0.5))
    wide = settings.model_copy(update={"bootstrap": 4000})
    draws = _weighted(_sums(polynomial, x, y), resample_counts(15, wide, 0), resample_counts(12, wide, 1))
    assert draws.mean() == pytest.approx(kernel_distance(x.values, y.values), abs=4 * draws.std() / np.sqrt(4000))


@pytest.mark.parametrize("shapes", [((1, 4), (5, 4)), ((5, 4), (5, 3)), ((5,), (5, 3))])
def test_refuses_too_few_scans_and_different_features(shapes):
    with pytest.raises(ValueError, match="scans of each|one F"):
        kernel_distance(np.zeros(shapes[0]), np.zeros(shapes[1]))
