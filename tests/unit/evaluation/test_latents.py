"""The latents' distribution against SciPy and NumPy on all values at once, and on latents made to have known answers."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from neuromf.config import Evaluate
from neuromf.evaluation.inference import resample_counts
from neuromf.evaluation.latents import EDGES, describe_latents, ks, participation, scan_components, summarise
from neuromf.latents.statistics import compute_statistics

SETTINGS = Evaluate(bootstrap=200)


def skewed(count, seed=0):
    """Skewed, correlated channels of other scales, and scans that differ."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        x = torch.randn(3, 8, 8, 8, generator=generator).exp() + 0.3 * torch.randn(3, 1, 1, 1, generator=generator)
        x[1] = 0.7 * x[0] - x[1]
        made.append(x * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1, 1) + 3)
    return made


def normal(count, channels=2, side=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(channels, side, side, side, generator=generator) for _ in range(count)]


def rows(result, figure):
    return [row for row in result["figures"] if row["figure"] == figure]


@pytest.fixture
def found(tmp_path):
    store = skewed(9)
    result = describe_latents(store, compute_statistics(store, "abc"), SETTINGS, tmp_path / "latents.json")
    assert json.loads((tmp_path / "latents.json").read_text()) == result
    return store, result


def test_moments_are_scipys(found):
    store, result = found
    x = torch.stack(store).double().transpose(0, 1).flatten(1).numpy()
    expected = {"mean": x.mean(1), "std": x.std(1), "skewness": stats.skew(x, 1), "kurtosis": stats.kurtosis(x, 1)}
    for name, values in expected.items():
        figures = rows(result, name)
        np.testing.assert_allclose([row["value"] for row in figures], values, rtol=1e-4)
        assert all(row["ci_low"] < row["value"] < row["ci_high"] and row["n"] == 9 for row in figures)


def test_intervals_of_the_correlation_are_those_of_resampled_scans(found):
    store, result = found
    x = torch.stack(store).double().flatten(2).numpy()  # (scans, channels, voxels)
    draws = []
    for counts in resample_counts(9, SETTINGS).astype(int):
        chosen = np.repeat(x, counts, axis=0)
        draws.append(np.corrcoef(chosen.transpose(1, 0, 2).reshape(3, -1)))
    np.testing.assert_allclose(result["correlation_interval"], np.percentile(draws, [2.5, 97.5], axis=0), atol=1e-6)
    np.testing.assert_allclose(result["correlation"], np.corrcoef(x.transpose(1, 0, 2).reshape(3, -1)), atol=1e-6)


def test_histograms_are_numpys_densities(found):
    store, result = found
    x = torch.stack(store).double().transpose(0, 1).flatten(1).numpy()
    z = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    for channel in range(3):
        counts, _ = np.histogram(z[channel], EDGES)
        density = counts / z.shape[1] / np.diff(EDGES)
        np.testing.assert_allclose(result["density"][channel], density, atol=1e-3)  # a value on an edge
        assert sum(result["outside"][channel]) == pytest.approx((np.abs(z[channel]) > 6).mean(), abs=1e-3)


def test_the_distance_to_the_normal_is_scipys_up_to_a_bin(found):
    store, result = found
    x = torch.stack(store).double().transpose(0, 1).flatten(1).numpy()
    for channel, row in enumerate(rows(result, "kolmogorov_smirnov")):
        z = (x[channel] - x[channel].mean()) / x[channel].std()
        expected = stats.kstest(z, "norm").statistic
        assert expected - 0.05 < row["value"] <= expected + 1e-9
        assert row["ci_low"] <= row["value"] <= row["ci_high"]


def test_normal_latents_are_near_and_uniform_ones_are_not():
    store = normal(6)
    assert all(one.value < 0.02 for one in ks(summarise(store, compute_statistics(store)), SETTINGS))
    uniform = [torch.rand(1, 12, 12, 12, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    distance = ks(summarise(uniform, compute_statistics(uniform)), SETTINGS)[0].value
    x = np.linspace(-(3**0.5), 3**0.5, 10001)
    assert distance == pytest.approx(np.abs((x / 3**0.5 + 1) / 2 - stats.norm.cdf(x)).max(), abs=0.015)


def test_effective_dimension_of_known_spectra():
    assert participation(np.eye(5)[None]) == pytest.approx(5)
    assert participation(np.diag([3.0, 0, 0])[None]) == pytest.approx(1)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))
    spectrum = np.array([4.0, 2.0, 1.0, 1.0])
    matrix = rotation @ np.diag(spectrum) @ rotation.T
    assert participation(matrix[None]) == pytest.approx(spectrum.sum() ** 2 / (spectrum**2).sum())


def test_channels_that_are_alike_are_one_dimension_and_independent_ones_all(tmp_path):
    def dimension(store):
        result = describe_latents(store, compute_statistics(store), SETTINGS, tmp_path / "x.json")
        return rows(result, "effective_dimension_channels")[0]

    independent = dimension(normal(5, channels=4))
    assert independent["value"] == pytest.approx(4, abs=0.05) and independent["n"] == 5
    same = dimension([x.repeat(4, 1, 1, 1) + 1e-3 * torch.randn(4, 12, 12, 12) for x in normal(5, channels=1)])
    assert same["value"] == pytest.approx(1, abs=0.01)
    store = skewed(5)
    spectrum = np.array(compute_statistics(store).pca_spectrum)
    assert dimension(store)["value"] == pytest.approx(spectrum.sum() ** 2 / (spectrum**2).sum(), rel=1e-6)


def test_scans_of_few_factors_have_as_many_dimensions():
    random = np.random.default_rng(0)
    factors = torch.from_numpy(random.standard_normal((3, 2, 8, 8, 8)))
    weights = random.standard_normal((200, 3))
    store = [torch.einsum("k,kcdhw->cdhw", torch.from_numpy(w), factors) for w in weights]
    components = scan_components(store, compute_statistics(store), SETTINGS)
    assert components.scans == 200 and sum(components.explained[:3]) == pytest.approx(1, abs=1e-5)
    assert (
        components.effective_dimension.low < components.effective_dimension.value < components.effective_dimension.high
    )
    assert components.effective_dimension.value == pytest.approx(3, abs=0.25)


def test_the_spectrum_over_scans_is_numpys():
    store = skewed(7)
    statistics = compute_statistics(store)
    z = torch.stack(
        [((x.flatten(1).T - torch.tensor(statistics.mean)) / torch.tensor(statistics.std)).flatten() for x in store]
    )
    spectrum = np.linalg.svd((z - z.mean(0)).numpy(), compute_uv=False)[:-1] ** 2
    found = scan_components(store, statistics, SETTINGS)
    np.testing.assert_allclose(found.explained, spectrum / spectrum.sum(), rtol=1e-4)
    assert found.effective_dimension.value == pytest.approx(spectrum.sum() ** 2 / (spectrum**2).sum(), rel=1e-4)
    assert found.effective_dimension.value < 6


def test_few_scans_have_figures_without_intervals(tmp_path):
    store = normal(1)
    result = describe_latents(store, compute_statistics(store), SETTINGS, tmp_path / "x.json")
    assert rows(result, "mean")[0]["ci_low"] is None and rows(result, "effective_dimension_scans")[0]["value"] is None
    assert result["scan_pca"] == {"scans": 1, "explained": []} and result["correlation_interval"] is None


def test_many_scans_are_thinned_out_evenly(monkeypatch):
    monkeypatch.setattr("neuromf.evaluation.latents.PCA_SCANS", 4)
    store = normal(10, side=4)
    found = scan_components(store, compute_statistics(store), SETTINGS)
    assert found.scans == 4 and found.effective_dimension.n == 4
