"""Feature extractors: a volume becomes a vector that distances between sets are computed on, cached by volume hash.

An extractor has a name, which every figure computed with it carries, and a key (its weights and its rule), which decides
whether cached features are still valid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

from neuromf.tables import atomic_path, content_hash

CODEC_BLOCKS = 2  # per axis: octants; finer blocks mostly tell head sizes apart and need more scans than a study has
_CODEC_STATISTICS = 2  # mean and standard deviation


class VolumeCodec(Protocol):
    """What evaluation needs of an autoencoder (`neuromf.codec.maisi.FrozenCodec` has it)."""

    @property
    def sha256(self) -> str:
        """Hash of the weights."""

    def encode(self, volumes: Tensor) -> Tensor:
        """Return the posterior mean (B, C, d, h, w) of volumes (B, 1, D, H, W) in [0, 1]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return volumes (B, 1, D, H, W) of latents (B, C, d, h, w)."""


@dataclass(frozen=True)
class Extractor:
    """``compute`` turns one volume (D, H, W) in [0, 1] into features (F,); ``mirror`` turns features (N, F) into those
    of the same volumes with left and right exchanged."""

    name: str
    key: str
    compute: Callable[[Tensor], Tensor]
    mirror: Callable[[NDArray[np.floating]], NDArray[np.floating]]


def codec_extractor(codec: VolumeCodec) -> Extractor:
    """Return the extractor ``codec``: mean and standard deviation of each latent channel in octants (F = 16 C)."""

    def compute(volume: Tensor) -> Tensor:
        return pool_latents(codec.encode(volume[None, None]))[0]

    key = content_hash({"weights": codec.sha256, "rule": ["mean", "std", CODEC_BLOCKS]})
    return Extractor("codec", key, compute, mirror_pooled)


def pool_latents(latents: Tensor) -> Tensor:
    """Return pooled statistics (B, 2·C·2³) of latents (B, C, d, h, w): block means first, then standard deviations.

    The blocks are those of PyTorch's adaptive average pooling, so any latent of at least 4³ voxels will do.
    """
    z = latents.detach().to(device="cpu", dtype=torch.float64)
    mean = adaptive_avg_pool3d(z, CODEC_BLOCKS)
    variance = adaptive_avg_pool3d(z**2, CODEC_BLOCKS) - mean**2
    return torch.stack([mean, variance.clamp(min=0).sqrt()], dim=1).flatten(1)


def mirror_pooled(features: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the pooled statistics (N, F) of the latents flipped along the left-right axis (the first one in RAS).

    Training flips latents in the same way, so this is the mirrored copy that a model could have memorised.
    """
    blocks = features.reshape(len(features), _CODEC_STATISTICS, -1, CODEC_BLOCKS, CODEC_BLOCKS, CODEC_BLOCKS)
    return np.flip(blocks, axis=3).reshape(features.shape)


def cached_features(
    volume: NDArray[np.floating], sha256: str, extractor: Extractor, cache: Path | None
) -> NDArray[np.float32]:
    """Return the features (F,) of a volume, from the cache when they are there.

    They lie in ``cache/<extractor>-<key>/<sha256 of the volume's file>.safetensors``; ``cache`` None computes without a
    cache, for volumes that are no files.
    """
    path = None if cache is None else cache / f"{extractor.name}-{extractor.key[:16]}" / f"{sha256}.safetensors"
    if path is not None and path.is_file():
        try:
            return load_file(path)["features"]
        except (SafetensorError, KeyError):
            path.unlink()  # damaged: computed again
    with torch.no_grad():
        features = extractor.compute(torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32)))
    values = features.to(torch.float32).numpy()
    if path is not None:
        with atomic_path(path) as temporary:
            save_file({"features": values}, temporary)
    return values
