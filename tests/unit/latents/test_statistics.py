"""Streamed statistics against NumPy and SciPy on all values at once."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from neuromf.latents.statistics import LatentStatistics, Moments, compute_statistics
from neuromf.latents.store import LatentError


def latents(count: int, seed: int = 0) -> list[torch.Tensor]:
    """Skewed, correlated channels with large means and means that differ between scans."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        x = torch.randn(3, 4, 4, 4, generator=generator).exp() + torch.randn(3, 1, 1, 1, generator=generator)
        x[1] += 0.7 * x[0]
        made.append(x + torch.tensor([0.0, 100.0, -3.0]).view(3, 1, 1, 1))
    return made


def test_statistics_of_all_values() -> None:
    store = latents(7)
    found = compute_statistics(store, "abc")
    x = torch.stack(store).double().transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose(found.mean, x.mean(1), rtol=1e-6)
    np.testing.assert_allclose(found.std, x.std(1), rtol=1e-5)
    np.testing.assert_allclose(found.skewness, stats.skew(x, axis=1), rtol=1e-4)
    np.testing.assert_allclose(found.kurtosis, stats.kurtosis(x, axis=1), rtol=1e-4)
    np.testing.assert_allclose(found.correlation, np.corrcoef(x), rtol=1e-5, atol=1e-7)
    spectrum = np.sort(np.linalg.eigvalsh(np.cov(x, bias=True)))[::-1]
    np.testing.assert_allclose(found.pca_spectrum, spectrum, rtol=1e-5)
    assert sum(found.pca_spectrum) == pytest.approx(sum(s**2 for s in found.std))
    assert (found.n, found.release_sha256) == (7, "abc")


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5), seed=st.integers(0, 1000))
def test_merging_in_any_grouping_gives_the_same(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(2, n, 1, 1, generator=generator) + 5 for n in sizes]
    left = Moments.of(parts[0])
    for part in parts[1:]:
        left = left.merge(Moments.of(part))
    right = Moments.of(parts[-1])
    for part in reversed(parts[:-1]):
        right = Moments.of(part).merge(right)
    whole = Moments.of(torch.cat(parts, dim=1))
    for merged in (left, right):
        assert merged.n == whole.n
        for name in ("mean", "products", "cubes", "fourths"):
            torch.testing.assert_close(getattr(merged, name), getattr(whole, name), atol=1e-8, rtol=1e-8)


def test_a_normal_distribution_has_neither_skewness_nor_excess_kurtosis() -> None:
    generator = torch.Generator().manual_seed(0)
    found = compute_statistics([torch.randn(2, 16, 16, 16, generator=generator) for _ in range(8)])
    np.testing.assert_allclose(found.skewness + found.kurtosis, 0, atol=0.1)


class Counted:
    """A store that makes its latents when asked."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng(index).standard_normal((4, 16, 16, 16)))


def test_memory_does_not_grow_with_the_number_of_scans() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        compute_statistics(Counted(count))
        value = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return value

    peak(2)  # imports and caches
    assert peak(60) < 1.5 * peak(6)


def test_json_round_trip(tmp_path: Path) -> None:
    found = compute_statistics(latents(2), "abc")
    found.write(tmp_path / "latent_statistics.json")
    assert LatentStatistics.read(tmp_path / "latent_statistics.json") == found


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LatentError, match="no latents"):
        compute_statistics([])
    with pytest.raises(LatentError, match="not finite"):
        compute_statistics([torch.full((2, 4, 4, 4), torch.inf)])
    constant = torch.rand(2, 4, 4, 4)
    constant[1] = 3
    with pytest.raises(LatentError, match=r"channel \[1\] never varies"):
        compute_statistics([constant, constant])
    with pytest.raises(LatentError, match="run the rule latent_statistics"):
        LatentStatistics.read(tmp_path / "none.json")
    (tmp_path / "odd.json").write_text('{"mean": [0]}')
    with pytest.raises(LatentError, match="no latent statistics"):
        LatentStatistics.read(tmp_path / "odd.json")
