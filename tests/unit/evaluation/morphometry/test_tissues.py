import numpy as np
import pytest
import scipy.stats
from scipy import ndimage

from neuromf.evaluation.morphometry import TISSUES, brain_mask, compare_volumes, tissue_volumes


def layered_brain(side=64, voxel_mm=3.0, ventricle_mm=16.0):
    """Nested balls of known volumes: ventricle, white matter to 50 mm, grey to 62 mm, fluid to 67 mm."""
    x, y, z = np.meshgrid(*[(np.arange(side) + 0.5 - side / 2) * voxel_mm] * 3, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    volume = np.select([radius < ventricle_mm, radius < 50, radius < 62, radius < 67], [0.25, 0.9, 0.6, 0.25], 0.0)
    noisy = volume + np.random.default_rng(0).normal(0, 0.02, volume.shape) * (volume > 0)
    return noisy.clip(0, 1).astype(np.float32)


def ball_ml(radius_mm):
    return 4 / 3 * np.pi * radius_mm**3 / 1000


def test_volumes_of_nested_balls():
    found = tissue_volumes(layered_brain(), 3.0)
    assert found.brain == pytest.approx(ball_ml(67), rel=0.02)
    assert found.white == pytest.approx(ball_ml(50) - ball_ml(16), rel=0.08)
    assert found.grey == pytest.approx(ball_ml(62) - ball_ml(50), rel=0.08)
    assert found.csf == pytest.approx(ball_ml(67) - ball_ml(62) + ball_ml(16), rel=0.08)
    assert found.deep_csf == pytest.approx(ball_ml(16), rel=0.15)
    assert found.csf + found.grey + found.white == pytest.approx(found.brain, rel=1e-6)


def test_contrast_does_not_change_the_volumes_much():
    volume = layered_brain()
    plain, gamma = tissue_volumes(volume, 3.0).as_array(), tissue_volumes(volume**0.8, 3.0).as_array()
    assert gamma == pytest.approx(plain, rel=0.1)


def test_deep_fluid_grows_with_the_ventricle():
    volumes = [tissue_volumes(layered_brain(ventricle_mm=r), 3.0).deep_csf for r in (10, 14, 18, 22)]
    assert (np.diff(volumes) > 0).all()


def test_mask_is_the_largest_component_without_holes_and_little_moved_by_blur():
    volume = layered_brain()
    volume[:3, :3, :3] = 1.0  # a bright crumb
    volume[32, 32, 32] = 0.0  # a hole
    mask = brain_mask(volume)
    assert not mask[0, 0, 0] and mask[32, 32, 32]
    assert brain_mask(ndimage.gaussian_filter(volume, 0.7)).sum() == pytest.approx(mask.sum(), rel=0.03)


def test_no_brain_has_no_volume():
    assert tissue_volumes(np.zeros((16, 16, 16), np.float32), 3.0).as_array().sum() == 0
    assert tissue_volumes(np.full((16, 16, 16), 0.5, np.float32), 3.0).brain == pytest.approx(16**3 * 0.027)


def test_comparisons_equal_scipys(settings):
    random = np.random.default_rng(0)
    x, y = random.normal(1400, 100, 16), np.round(random.normal(1450, 80, 30))
    y[:3] = y[3]
    found = compare_volumes(x, y, settings)
    assert found["kolmogorov_smirnov"].value == pytest.approx(scipy.stats.ks_2samp(x, y).statistic)
    assert found["wasserstein_ml"].value == pytest.approx(scipy.stats.wasserstein_distance(x, y))
    pooled = np.sqrt((15 * x.var(ddof=1) + 29 * y.var(ddof=1)) / 44)
    assert found["cohens_d"].value == pytest.approx((x.mean() - y.mean()) / pooled)
    for estimate in found.values():
        assert estimate.low <= estimate.value <= estimate.high and estimate.n == 16


def test_comparison_of_one_scan_or_of_constants_has_no_value(settings):
    assert compare_volumes([1.0], [1.0, 2.0], settings)["wasserstein_ml"].value is None
    constant = compare_volumes([1.0, 1.0], [1.0, 1.0], settings)
    assert constant["cohens_d"].value is None and constant["wasserstein_ml"].value == 0


def test_names_of_the_tissues():
    assert TISSUES == ("brain", "csf", "grey", "white", "deep_csf")
