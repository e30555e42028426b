"""Extractor `codec`: the latent of the release's own codec, pooled in octants."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

from neuromf.evaluation.extractors.base import VOLUME, Extractor
from neuromf.tables import content_hash

CODEC_BLOCKS = 2  # per axis: octants; finer blocks mostly tell head sizes apart and need more scans than a study has


class VolumeCodec(Protocol):
    """What evaluation needs of an autoencoder (`neuromf.codec.maisi.FrozenCodec` has it)."""

    @property
    def sha256(self) -> str:
        """Hash of the weights."""

    def encode(self, volumes: Tensor) -> Tensor:
        """Return the posterior mean (B, C, d, h, w) of volumes (B, 1, D, H, W) in [0, 1]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return volumes (B, 1, D, H, W) of latents (B, C, d, h, w)."""


def codec_extractor(codec: VolumeCodec) -> Extractor:
    """Return the extractor ``codec``: mean and standard deviation of each latent channel in octants (F = 16 C)."""

    def compute(volume: Tensor, voxel_mm: float) -> dict[str, Tensor]:
        return {VOLUME: pool_latents(codec.encode(volume[None, None]))}

    key = content_hash({"weights": codec.sha256, "rule": ["mean", "std", CODEC_BLOCKS]})
    return Extractor("codec", key, compute)


def pool_latents(latents: Tensor) -> Tensor:
    """Return pooled statistics (B, 2·C·2³) of latents (B, C, d, h, w): block means first, then standard deviations.

    The blocks are those of PyTorch's adaptive average pooling, so any latent of at least 4³ voxels will do.
    """
    z = latents.detach().to(device="cpu", dtype=torch.float64)
    mean = adaptive_avg_pool3d(z, CODEC_BLOCKS)
    variance = adaptive_avg_pool3d(z**2, CODEC_BLOCKS) - mean**2
    return torch.stack([mean, variance.clamp(min=0).sqrt()], dim=1).flatten(1)
