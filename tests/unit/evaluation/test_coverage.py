import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

from neuromf.evaluation.coverage import _inside, _lost, _lost_density, coverage_bootstraps, radii
from neuromf.evaluation.features import Rows, one_row_each


def features(seed, n, dims=5, shift=0.0, scale=1.0):
    return shift + scale * np.random.default_rng(seed).normal(size=(n, dims))


def estimates(x, y, settings):
    return {name: found.estimate(settings) for name, found in coverage_bootstraps(x, y, settings).items()}


def brute_force(fake, real, k):
    """Density and coverage as Naeem et al. define them, by loops."""

    def radius(rows, i):
        return sorted(np.linalg.norm(rows[j] - rows[i]) for j in range(len(rows)) if j != i)[k - 1]

    limits = [radius(real, j) for j in range(len(real))]
    inside = [[np.linalg.norm(f - r) < limit for r, limit in zip(real, limits, strict=True)] for f in fake]
    return np.sum(inside) / (k * len(fake)), np.any(inside, axis=0).mean()


@pytest.mark.parametrize("shift", [0.0, 0.7, 1.5])
def test_agrees_with_torch_fidelity_and_brute_force(settings, shift):
    x, y = features(0, 40, shift=shift, scale=0.8), features(1, 30)
    found = estimates(one_row_each(x), one_row_each(y), settings)
    precision, recall = calculate_precision_recall_full(torch.from_numpy(x), torch.from_numpy(y))
    density, coverage = brute_force(x, y, 5)
    assert found["precision"].value == pytest.approx(precision) and found["recall"].value == pytest.approx(recall)
    assert found["density"].value == pytest.approx(density) and found["coverage"].value == pytest.approx(coverage)
    assert all(e.low <= e.value <= e.high and e.n == 40 for e in found.values())


def test_copies_and_strangers(settings):
    y = features(1, 20)
    same = estimates(one_row_each(y), one_row_each(y), settings)
    assert same["precision"].value == same["recall"].value == same["coverage"].value == 1
    far = estimates(one_row_each(y + 100), one_row_each(y), settings)
    assert all(e.value == 0 for e in far.values())


def test_slices_of_one_scan_are_resampled_together(settings):
    own = np.repeat(features(0, 8, scale=2), 6, axis=0)
    x = Rows(own + 0.1 * features(1, 48), np.full(8, 6))
    y = one_row_each(features(2, 30))
    grouped = estimates(x, y, settings)["precision"]
    alone = estimates(one_row_each(x.values), y, settings)["precision"]
    assert grouped.value == alone.value and grouped.high - grouped.low > alone.high - alone.low and grouped.n == 8


def test_too_few_rows_have_no_value(settings):
    found = estimates(one_row_each(features(0, 4)), one_row_each(features(1, 5)), settings)
    assert found["density"].value is None and found["coverage"].value is None
    assert found["precision"].value is not None and found["recall"].value is not None
    assert radii(features(0, 6), 5).shape == (6,)


def test_resamples_know_what_each_scan_of_the_other_set_adds(settings):
    """What a scan alone covers, by taking it out."""
    x = Rows(features(0, 24, shift=0.4), np.full(8, 3))
    y = Rows(features(1, 20), np.full(10, 2))
    inside = _inside(x, y, radii(y.values, 5), closed=False)
    covered = np.linalg.norm(x.values[:, None] - y.values[None], axis=2) < radii(y.values, 5)
    for scan in range(8):
        without = np.delete(covered, range(3 * scan, 3 * scan + 3), axis=0)
        lost = covered.any(axis=0).mean() - without.any(axis=0).mean()
        assert _lost(inside.only_point, x, 20)[scan] == pytest.approx(lost)
    for scan in range(10):
        without = np.delete(covered, range(2 * scan, 2 * scan + 2), axis=1)
        lost = covered.any(axis=1).mean() - without.any(axis=1).mean()
        assert _lost(inside.only_ball, y, 24)[scan] == pytest.approx(lost)
    assert inside.balls_of_point.tolist() == covered.sum(axis=1).tolist()
    assert inside.points_in_ball.tolist() == covered.sum(axis=0).tolist()


@pytest.mark.parametrize("rows_of_a_scan", [1, 2])
def test_resamples_know_what_density_loses_with_each_real_scan(settings, rows_of_a_scan):
    """By measuring density without it, the other balls' radii anew."""
    x = Rows(features(0, 24, shift=0.4), np.full(8, 3))
    y = Rows(features(1, 20), np.full(20 // rows_of_a_scan, rows_of_a_scan))
    lost = _lost_density(x, y, 5)
    density = brute_force(x.values, y.values, 5)[0]
    for scan in range(len(y)):
        rest = np.delete(y.values, range(scan * rows_of_a_scan, (scan + 1) * rows_of_a_scan), axis=0)
        assert lost[scan] == pytest.approx(density - brute_force(x.values, rest, 5)[0]), scan
    assert np.isfinite(_lost_density(x, one_row_each(features(1, 6)), 5)).all(), (
        "without a scan there is no fifth neighbour"
    )


def test_intervals_hold_the_mean_over_repetitions_of_both_sets(settings):
    """Without the other set's scans coverage's had 33 %, without its balls' growth density's 88 %."""
    found = [
        estimates(one_row_each(features(i, 30, 3)), one_row_each(features(i + 500, 30, 3)), settings)
        for i in range(100)
    ]
    for metric, least in (("precision", 0.9), ("recall", 0.9), ("density", 0.95), ("coverage", 0.95)):
        truth = np.mean([one[metric].value for one in found])
        assert np.mean([one[metric].low <= truth <= one[metric].high for one in found]) >= least, metric
