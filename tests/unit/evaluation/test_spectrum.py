"""Spectra against NumPy's FFT written out, and on fields whose spectrum is known."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from neuromf.config import Evaluate
from neuromf.evaluation.rows import Part, write_parts
from neuromf.evaluation.spectrum import (
    add_spectrum,
    frequencies,
    high_frequency_ratio,
    merge_spectra,
    modes,
    radial_energy,
)

SETTINGS = Evaluate(bootstrap=200)


def noise(seed, shape=(32, 32, 32)):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("shape", [(8, 8, 8), (8, 10, 12), (9, 8, 11), (7, 7, 7)])
def test_shells_are_those_of_numpys_whole_transform(shape):
    volume = noise(0, shape)
    power = np.abs(np.fft.fftn(volume) / volume.size) ** 2
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")))
    count = min(shape) // 2
    energy, number = np.zeros(count), np.zeros(count)
    for s in range(count):
        inside = (radius > 0.5 * s / count + 1e-12) & (radius <= 0.5 * (s + 1) / count + 1e-12)
        energy[s], number[s] = power[inside].sum(), inside.sum()
    np.testing.assert_allclose(radial_energy(volume), energy, rtol=1e-9)
    np.testing.assert_allclose(modes(shape), number)


def test_energies_mean_and_corners_are_the_mean_square():
    volume = noise(1) + 3
    power = np.abs(np.fft.fftn(volume) / volume.size) ** 2
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*[np.fft.fftfreq(32)] * 3, indexing="ij")))
    corners = power[radius > 0.5 + 1e-12].sum()
    assert radial_energy(volume).sum() + corners + volume.mean() ** 2 == pytest.approx((volume**2).mean())


def test_a_wave_has_its_energy_in_its_shell():
    x = np.arange(32)
    wave = 5 + 0.7 * np.cos(2 * np.pi * 6 * x / 32)[:, None, None] * np.ones((32, 32, 32))
    energy = radial_energy(wave)
    assert energy[5] == pytest.approx(0.7**2 / 2)  # 6 cycles per side: the upper end of the sixth of 16 shells
    assert np.delete(energy, 5) == pytest.approx(0, abs=1e-20)
    assert high_frequency_ratio(energy[None], 0.25) == pytest.approx(1)
    assert high_frequency_ratio(energy[None], 0.5) == pytest.approx(0)


def test_white_noise_has_a_flat_spectrum():
    power = np.mean([radial_energy(noise(seed)) for seed in range(40)], axis=0) / modes((32, 32, 32))
    expected = 1 / 32**3  # variance, spread over all modes
    np.testing.assert_allclose(power[2:], expected, rtol=0.05)
    ratio = high_frequency_ratio(np.stack([radial_energy(noise(seed, (64, 64, 64))) for seed in range(3)]), 0.25)
    assert ratio == pytest.approx(1 - 0.25**3, abs=0.002)


def test_blur_multiplies_the_spectrum_by_its_transfer_function():
    """SciPy's Gaussian, in frequency and in space, against exp(−(2πσk)²) of the power."""
    volume = noise(2, (64, 64, 64))
    sigma = 1.3
    smooth = np.fft.ifftn(ndimage.fourier_gaussian(np.fft.fftn(volume), sigma)).real
    transfer = radial_energy(smooth) / radial_energy(volume)
    expected = np.exp(-((2 * np.pi * sigma * frequencies(32, 1.0)) ** 2))
    np.testing.assert_allclose(transfer[2:], expected[2:], rtol=0.06)
    sampled = ndimage.gaussian_filter(volume, sigma, mode="wrap", truncate=8)
    np.testing.assert_allclose(radial_energy(sampled)[2:16], radial_energy(smooth)[2:16], rtol=0.02)
    ratios = high_frequency_ratio(np.stack([radial_energy(volume), radial_energy(smooth)]), 0.25)
    assert ratios[1] < ratios[0]


def test_the_voxel_size_scales_the_frequencies():
    assert frequencies(4, 1.0) == pytest.approx([0.0625, 0.1875, 0.3125, 0.4375])
    assert frequencies(4, 3.0) == pytest.approx(frequencies(4, 1.0) / 3)


def test_a_shell_that_k0_cuts_counts_in_part_and_nothing_has_no_ratio():
    energy = np.array([[4.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert high_frequency_ratio(energy, 0.5) == pytest.approx([2 / 8, 0])
    assert high_frequency_ratio(energy, 0.375) == pytest.approx([3 / 8, 0])


def figures(part):
    return {row["metric"]: row for row in part.metrics}


def test_smoothing_shows_beside_real_and_beside_the_reconstruction(tmp_path):
    real = np.stack([radial_energy(noise(seed)) for seed in range(8)])
    rebuilt = np.stack([radial_energy(ndimage.gaussian_filter(noise(s), 0.5, mode="wrap")) for s in range(8)])
    generated = np.stack([radial_energy(ndimage.gaussian_filter(noise(s), 1.0, mode="wrap")) for s in range(50, 60)])
    parts = [Part("demo", "real"), Part("demo", "reconstruction"), Part("demo", "meanflow", 0, 1)]
    grid = ((32, 32, 32), 2.0, SETTINGS)
    add_spectrum(parts[0], real, *grid, {})
    add_spectrum(parts[1], rebuilt, *grid, {"real": real}, paired=True)
    add_spectrum(parts[2], generated, *grid, {"real": real, "reconstruction": rebuilt, "none": real[:0]})

    assert list(figures(parts[0])) == ["high_frequency_ratio"]
    to_real, to_rebuilt = (figures(parts[2])[f"high_frequency_to_{name}"] for name in ("real", "reconstruction"))
    assert to_real["value"] < to_rebuilt["value"] < 1 and to_real["n"] == 10
    assert to_real["ci_low"] < to_real["value"] < to_real["ci_high"]
    ratio = figures(parts[1])["high_frequency_to_real"]
    means = [high_frequency_ratio(e, 0.25).mean() for e in (rebuilt, real)]
    assert ratio["value"] == pytest.approx(means[0] / means[1])

    for part in parts:
        write_parts(tmp_path / f"{part.run}.json", [part], {})
    merge_spectra([tmp_path / f"{part.run}.json" for part in parts], tmp_path / "spectra.parquet")
    table = pd.read_parquet(tmp_path / "spectra.parquet")
    assert table.groupby(["run", "spectrum"]).size().to_dict() == dict.fromkeys(
        [("real", "power"), ("reconstruction", "power"), ("reconstruction", "power_to_real"), ("meanflow", "power"),
         ("meanflow", "power_to_real"), ("meanflow", "power_to_reconstruction")], 16)  # fmt: skip
    assert table["cycles_per_mm"].max() == pytest.approx(0.25 * 15.5 / 16)
    rows = table[(table["run"] == "reconstruction") & (table["spectrum"] == "power_to_real")]
    np.testing.assert_allclose(rows["value"], rebuilt.mean(axis=0) / real.mean(axis=0))
    assert (rows["ci_low"] <= rows["value"]).all() and (rows["value"] <= rows["ci_high"]).all()
    assert json.loads((tmp_path / "real.json").read_text())["parts"][0]["spectra"]


def test_one_volume_has_no_interval():
    part = Part("demo", "meanflow", 0, 1)
    energy = radial_energy(noise(0))[None]
    add_spectrum(part, energy, (32, 32, 32), 1.0, SETTINGS, {"real": energy})
    assert figures(part)["high_frequency_to_real"]["value"] == pytest.approx(1)
    assert all(row["ci_low"] is None for row in part.spectra)
