"""How the energy of volumes is spread over spatial frequencies: what the codec smooths, and what the generator.

The discrete Fourier transform is taken of the volume as it is: no window, since a skull-stripped volume falls to zero
before its grid ends, and no mask, so the edge of the brain counts for real and for other volumes alike. Frequency zero,
the mean, is left out, and so are the corners of the cube of frequencies beyond the Nyquist frequency of one axis:
what is left is a ball, the same in all directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuromf.config import Evaluate
from neuromf.evaluation.inference import Estimate, mean_estimate, percentile_interval, ratio_estimate, resample_counts
from neuromf.evaluation.rows import SPECTRUM_COLUMNS, Part, read_parts, write_parquet

Array = NDArray[np.float64]


def radial_energy(volume: NDArray[np.floating]) -> Array:
    """Return the energy of each shell of spatial frequencies, (S,), of a volume (X, Y, Z) with isotropic voxels.

    Shell s holds the frequencies in (s, s + 1] · Nyquist / S; S is half the shortest side. With the mean and the corners
    the energies would sum to the mean square of the voxels (Parseval).
    """
    shell, twice, _ = _shells(volume.shape)
    transform = np.fft.rfftn(volume.astype(np.float64)) / volume.size
    return _by_shell(shell, twice * (transform.real**2 + transform.imag**2).ravel())


def modes(shape: tuple[int, ...]) -> Array:
    """Return how many frequencies each shell of a grid holds, (S,); energy divided by it is the power spectrum."""
    return _shells(shape)[2]


def frequencies(shells: int, voxel_mm: float) -> Array:
    """Return the middle of each shell in cycles per mm, (S,)."""
    return (np.arange(shells) + 0.5) / shells * 0.5 / voxel_mm


@lru_cache(maxsize=4)
def _shells(shape: tuple[int, ...]) -> tuple[NDArray[np.int64], Array, Array]:
    """Return of the modes of ``rfftn``, flat: their shell (0: the mean, S + 1: beyond Nyquist) and how many of the full
    transform's modes each stands for; and the number of modes of each shell, (S,)."""
    count = min(shape) // 2
    axes = [np.fft.fftfreq(side) for side in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    radius = np.linalg.norm(np.meshgrid(*axes, indexing="ij"), axis=0)  # cycles per voxel; Nyquist is 0.5
    shell = np.ceil(radius * 2 * count - 1e-9).astype(np.int64).clip(max=count + 1)
    twice = np.full(shell.shape, 2.0)  # a real volume's modes k and −k are conjugate: rfftn has one of them
    twice[..., 0] = 1
    if shape[-1] % 2 == 0:
        twice[..., -1] = 1
    return shell.ravel(), twice.ravel(), _by_shell(shell.ravel(), twice.ravel())


def _by_shell(shell: NDArray[np.int64], values: Array) -> Array:
    """Return the sums of values over the shells from the mean's to the corners', these two left out."""
    return np.bincount(shell, weights=values).astype(np.float64)[1:-1]


def high_frequency_ratio(energy: NDArray[np.floating], k0: float) -> Array:
    """Return ρ(k0), the share of the energy above k0, (N,), of volumes' shells (N, S); ``k0`` is a share of Nyquist.

    A shell that k0 cuts counts in proportion. White noise has 1 − k0³; a volume without energy has none above k0.
    """
    above = np.clip(np.arange(1, energy.shape[1] + 1) - k0 * energy.shape[1], 0, 1)
    total = energy.sum(axis=1)
    return np.divide(energy @ above, total, out=np.zeros(len(energy)), where=total > 0)


def add_spectrum(
    part: Part,
    energy: NDArray[np.floating],
    shape: tuple[int, int, int],
    voxel_mm: float,
    settings: Evaluate,
    others: Mapping[str, NDArray[np.floating]],
    *,
    paired: bool = False,
) -> None:
    """Add ρ(k0) and the power spectrum of volumes, and both relative to other sets of volumes.

    Args:
        energy: shells of the volumes, (N, S), as `radial_energy` returns them.
        shape, voxel_mm: the grid they lie on.
        others: name of a set (real, reconstruction) → its shells (M, S); an empty one is left out.
        paired: the other sets hold the same scans in the same order, and are resampled with them.
    """
    ratio = high_frequency_ratio(energy, settings.spectrum_k0)
    k = frequencies(energy.shape[1], voxel_mm)
    power = energy / modes(shape)
    part.add("high_frequency_ratio", "volume", mean_estimate(ratio, settings))
    part.add_spectrum("power", k, _mean_spectrum(power, settings))
    for name, other in others.items():
        if not len(other):
            continue
        known = high_frequency_ratio(other, settings.spectrum_k0)
        part.add(f"high_frequency_to_{name}", "volume", ratio_estimate(ratio, known, settings, paired=paired))
        beside = [
            ratio_estimate(power[:, s], other[:, s] / modes(shape)[s], settings, paired=paired) for s in range(len(k))
        ]
        part.add_spectrum(f"power_to_{name}", k, beside)


def _mean_spectrum(power: NDArray[np.floating], settings: Evaluate) -> list[Estimate]:
    """Return the mean of each shell over volumes (N, S) with its interval."""
    n = len(power)
    means = power.mean(axis=0)
    if n < 2:
        return [Estimate(float(value), None, None, n) for value in means]
    draws = resample_counts(n, settings) @ power / n
    return [percentile_interval(float(value), draws[:, s], n, settings) for s, value in enumerate(means)]


def merge_spectra(parts: Sequence[Path], out: Path) -> None:
    """Merge the spectra in the jobs' JSON files to one parquet table."""
    rows = [row for path in parts for part in read_parts(path)[0] for row in part["spectra"]]
    write_parquet(out, rows, SPECTRUM_COLUMNS)
