import numpy as np
import pytest
import torch
from monai.metrics.regression import MultiScaleSSIMMetric

from neuromf.evaluation.ms_ssim import WEIGHTS, diversity, ms_ssim, scales_of


def blobs(seed, side=48):
    noise = torch.from_numpy(np.random.default_rng(seed).random((1, 1, 12, 12, 12), np.float32))
    return torch.nn.functional.interpolate(noise, size=(side,) * 3, mode="trilinear")[0, 0]


def test_how_many_scales_fit():
    assert [scales_of((side,) * 3) for side in (11, 22, 44, 64, 88, 128, 176, 256)] == [1, 2, 3, 3, 4, 4, 5, 5]
    assert scales_of((64, 200, 20)) == 1


@pytest.mark.parametrize("side", [24, 48])
def test_agrees_with_monai(side):
    x, y = blobs(0, side), (0.7 * blobs(0, side) + 0.3 * blobs(1, side))
    weights = np.array(WEIGHTS[: scales_of((side,) * 3)])
    metric = MultiScaleSSIMMetric(3, data_range=1.0, weights=tuple(weights / weights.sum()))
    assert ms_ssim(x, y) == pytest.approx(float(metric(x[None, None], y[None, None])), abs=1e-4)


def test_equal_volumes_give_one_and_small_ones_are_refused():
    assert ms_ssim(blobs(0), blobs(0)) == pytest.approx(1, abs=1e-5)
    assert ms_ssim(blobs(0), blobs(1)) < 0.9
    with pytest.raises(ValueError, match="at least 11"):
        ms_ssim(torch.zeros(8, 20, 20), torch.zeros(8, 20, 20))


def test_a_set_without_diversity_is_told(settings):
    read = []

    def alike(index):
        read.append(index)
        return (0.9 * blobs(0, 24) + 0.1 * blobs(index, 24)).numpy()

    same = diversity(6, alike, settings)
    assert sorted(read) == list(range(6))
    different = diversity(6, lambda i: blobs(i, 24).numpy(), settings)
    assert same.value > different.value and same.low <= same.value <= same.high and same.n == 6
    assert diversity(6, lambda i: blobs(i, 24).numpy(), settings) == different
    assert diversity(1, alike, settings).value is None
    assert diversity(2, lambda i: blobs(i, 24).numpy(), settings).value is not None
    assert diversity(3, lambda i: np.zeros((8, 8, 8)), settings).value is None


def test_n_is_the_number_of_volumes_that_were_compared(settings, monkeypatch):
    monkeypatch.setattr("neuromf.evaluation.ms_ssim.LARGEST", 5)
    assert diversity(9, lambda i: blobs(i, 24).numpy(), settings).n == 5
