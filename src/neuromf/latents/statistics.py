"""Per-channel statistics of the training latents, in one pass: memory does not grow with the number of scans.

Moments about the mean are merged scan by scan (Chan, Golub & LeVeque 1979; third and fourth order: Pébay 2008), so no
large sum of squares is ever subtracted from another. All are population moments (÷ N) over scans and space.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from neuromf.latents.store import LatentError
from neuromf.tables import read_json, write_json


class Latents(Protocol):
    """A data set of latents, items (C, D, H, W)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


@dataclass(frozen=True)
class LatentStatistics:
    """What training normalises with and generation undoes: z → (z − mean_c) / std_c."""

    mean: list[float]  # per channel
    std: list[float]  # per channel
    skewness: list[float]  # per channel, 0 for a normal distribution
    kurtosis: list[float]  # per channel, excess: 0 for a normal distribution
    correlation: list[list[float]]  # C×C, between channels at the same place
    pca_spectrum: list[float]  # eigenvalues of the C×C covariance between channels, largest first; their sum is Σ std²
    n: int  # scans
    release_sha256: str  # of the release table whose train split this is

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able content."""
        return asdict(self)

    def write(self, path: Path) -> None:
        """Write the JSON file."""
        write_json(path, self.to_dict())

    @classmethod
    def read(cls, path: Path) -> LatentStatistics:
        """Read what `write` wrote.

        Raises:
            LatentError: a missing file or one that is no latent statistics.
        """
        if not path.is_file():
            raise LatentError(f"{path} does not exist; run the rule latent_statistics")
        try:
            found = cls(**read_json(path))
            channels = len(found.mean)
            by_channel = (found.mean, found.std, found.skewness, found.kurtosis, found.pca_spectrum, *found.correlation)
            if (
                any(len(row) != channels or not all(map(math.isfinite, row)) for row in by_channel)
                or min(found.std) <= 0
            ):
                raise ValueError("not as many finite numbers as channels")
        except (ValueError, TypeError) as error:
            raise LatentError(f"{path} is no latent statistics ({error}); remove it and run the rule again") from None
        return found


@dataclass(frozen=True)
class Moments:
    """Sums over n values of C channels x: of x/n, and of powers and products of d = x − mean (float64)."""

    n: int
    mean: Tensor  # (C,)
    products: Tensor  # (C, C): Σ d dᵀ
    cubes: Tensor  # (C,): Σ d³
    fourths: Tensor  # (C,): Σ d⁴

    @classmethod
    def of(cls, latent: Tensor) -> Moments:
        """Return the moments of one latent (C, D, H, W)."""
        x = latent.double().flatten(1)
        mean = x.mean(1)
        d = x - mean[:, None]
        return cls(x.shape[1], mean, d @ d.T, d.pow(3).sum(1), d.pow(4).sum(1))

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of values together."""
        a, b = self, other
        n = a.n + b.n
        delta = b.mean - a.mean
        squares_a, squares_b = a.products.diagonal(), b.products.diagonal()
        # Pébay 2008 (SAND2008-6212), eqs. 2.1 and 3.1 for two sets
        products = a.products + b.products + torch.outer(delta, delta) * (a.n * b.n / n)
        cubes = (
            a.cubes
            + b.cubes
            + delta**3 * (a.n * b.n * (a.n - b.n) / n**2)
            + 3 * delta * (a.n * squares_b - b.n * squares_a) / n
        )
        fourths = (
            a.fourths
            + b.fourths
            + delta**4 * (a.n * b.n * (a.n**2 - a.n * b.n + b.n**2) / n**3)
            + 6 * delta**2 * (a.n**2 * squares_b + b.n**2 * squares_a) / n**2
            + 4 * delta * (a.n * b.cubes - b.n * a.cubes) / n
        )
        return Moments(n, a.mean + delta * (b.n / n), products, cubes, fourths)


def compute_statistics(store: Latents, release_sha256: str = "") -> LatentStatistics:
    """Return the statistics of all latents of a store (the train split of a release).

    Raises:
        LatentError: an empty store, a latent that is not finite, or a channel that never varies.
    """
    if len(store) == 0:
        raise LatentError("no latents to take statistics of: the release's train split is empty or was not encoded")
    moments: Moments | None = None
    for latent in tqdm(_items(store), desc="latent statistics", unit="scan", total=len(store)):
        one = Moments.of(latent)
        if not torch.isfinite(one.fourths).all():
            raise LatentError("a latent is not finite; encode the cohort again")
        moments = moments.merge(one) if moments else one
    assert moments is not None
    covariance = moments.products / moments.n
    variance = covariance.diagonal()
    if (variance <= 0).any():
        constant = torch.nonzero(variance <= 0).flatten().tolist()
        raise LatentError(f"latent channel {constant} never varies; the codec does not use it")
    std = variance.sqrt()
    return LatentStatistics(
        mean=moments.mean.tolist(),
        std=std.tolist(),
        skewness=(moments.cubes / moments.n / std**3).tolist(),
        kurtosis=(moments.fourths / moments.n / variance**2 - 3).tolist(),
        correlation=(covariance / torch.outer(std, std)).clamp(-1, 1).tolist(),
        pca_spectrum=torch.linalg.eigvalsh(covariance).flip(0).tolist(),
        n=len(store),
        release_sha256=release_sha256,
    )


def _items(store: Latents) -> Iterator[Tensor]:
    return (store[i] for i in range(len(store)))
