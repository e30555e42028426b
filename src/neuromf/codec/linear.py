"""The linear codec that every VAE is measured against: principal components of 4×4×4 blocks, as many kept as
the VAE has latent channels, so both store the same number of values per voxel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

BLOCK = 4  # voxels of a block's side: the VAE's downsampling


@dataclass(frozen=True)
class LinearCodec:
    """x ≈ m + Wᵀ W (x − m) for each block x of 64 voxels; the rows of W are the leading principal components."""

    mean: torch.Tensor  # (64,)
    components: torch.Tensor  # (k, 64), orthonormal rows

    @property
    def kept(self) -> int:
        """Components kept per block."""
        return len(self.components)

    def encode(self, volume: torch.Tensor) -> torch.Tensor:
        """Return the coefficients (k, D/4, H/4, W/4) of a volume (1, D, H, W)."""
        coefficients = (blocks(volume) - self.mean) @ self.components.T
        return coefficients.T.reshape(self.kept, *(n // BLOCK for n in volume.shape[1:]))

    def decode(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the volume (1, 4D, 4H, 4W) of coefficients (k, D, H, W)."""
        d, h, w = coefficients.shape[1:]
        values = coefficients.flatten(1).T @ self.components + self.mean
        cubes = values.reshape(d, h, w, BLOCK, BLOCK, BLOCK).permute(0, 3, 1, 4, 2, 5)
        return cubes.reshape(1, d * BLOCK, h * BLOCK, w * BLOCK)

    def reconstruct(self, volume: torch.Tensor) -> torch.Tensor:
        """Return the volume (1, D, H, W) after encoding and decoding."""
        return self.decode(self.encode(volume))


def fit(volumes: Iterable[torch.Tensor], kept: int) -> LinearCodec:
    """Return the linear codec with the least squared error on ``volumes`` (each (1, D, H, W), sides multiples of 4).

    The 64×64 second moment is summed volume by volume: memory does not grow with their number.

    Raises:
        ValueError: no volume, or not 1 ≤ ``kept`` ≤ 64.
    """
    if not 1 <= kept <= BLOCK**3:
        raise ValueError(f"kept is {kept}; a 4x4x4 block has 1 to {BLOCK**3} components")
    count = 0
    total = torch.zeros(BLOCK**3, dtype=torch.float64)
    moment = torch.zeros(BLOCK**3, BLOCK**3, dtype=torch.float64)
    for volume in volumes:
        x = blocks(volume).double()
        count += len(x)
        total += x.sum(0)
        moment += x.T @ x
    if count == 0:
        raise ValueError("no volume to fit the linear codec on")
    mean = total / count
    _, vectors = torch.linalg.eigh(moment / count - torch.outer(mean, mean))  # ascending eigenvalues
    return LinearCodec(mean.float(), vectors[:, -kept:].flip(1).T.float().contiguous())


def blocks(volume: torch.Tensor) -> torch.Tensor:
    """Return the 4×4×4 blocks (D/4·H/4·W/4, 64) of a volume (1, D, H, W).

    Raises:
        ValueError: a side that is no multiple of 4.
    """
    if volume.ndim != 4 or volume.shape[0] != 1 or any(n % BLOCK for n in volume.shape[1:]):
        raise ValueError(f"volume of shape {tuple(volume.shape)}; expected (1, D, H, W), sides multiples of {BLOCK}")
    d, h, w = (n // BLOCK for n in volume.shape[1:])
    cubes = volume.reshape(d, BLOCK, h, BLOCK, w, BLOCK).permute(0, 2, 4, 1, 3, 5)
    return cubes.reshape(d * h * w, BLOCK**3)
