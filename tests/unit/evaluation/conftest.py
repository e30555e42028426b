"""Ellipsoid brains with three tissues, and a codec that needs no weights: what the evaluation is tested on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool3d, interpolate

from neuromf.config import Evaluate
from neuromf.volume import write_volume

SIDE, VOXEL_MM = 32, 6.0
AFFINE = np.diag([VOXEL_MM, VOXEL_MM, VOXEL_MM, 1.0])


def make_brain(seed, side=SIDE, scale=1.0):
    """White matter around a dark ventricle, grey matter at the border, a little noise; left and right differ."""
    random = np.random.default_rng(seed)
    radii = scale * random.normal([0.33, 0.4, 0.33], 0.015)
    x, y, z = np.meshgrid(*[(np.arange(side) + 0.5) / side - 0.5] * 3, indexing="ij")
    depth = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2)
    ventricle = np.sqrt((x / 0.09) ** 2 + (y / random.normal(0.16, 0.02)) ** 2 + (z / 0.09) ** 2) < 1
    volume = np.where(depth < 0.75, 0.85, 0.55) + random.normal(0, 0.02, x.shape) + 0.1 * (x > 0.1)
    volume[ventricle] = 0.25
    return np.where(depth < 1, volume, 0).clip(0, 1).astype(np.float32)


class BlockCodec:
    """Latents are means of 4×4×4 blocks, seen through four different curves; decoding repeats them."""

    sha256 = "0" * 64

    def __init__(self):
        self.encoded = 0

    def encode(self, volumes):
        self.encoded += len(volumes)
        mean = avg_pool3d(volumes, 4)
        return torch.cat([mean, mean**2, avg_pool3d(volumes**2, 4) - mean**2, mean.sqrt()], dim=1)

    def decode(self, latents):
        return interpolate(latents[:, :1], scale_factor=4)


@pytest.fixture
def brain():
    return make_brain


@pytest.fixture
def codec():
    return BlockCodec()


@pytest.fixture
def settings():
    return Evaluate(bootstrap=200)


@pytest.fixture
def write_brains(tmp_path):
    """Write brains as files and return scan id → path."""

    def write(folder, seeds, **kwargs):
        paths = {f"sub-{seed:03d}_T1w": tmp_path / folder / f"sub-{seed:03d}_T1w.nii.gz" for seed in seeds}
        for seed, path in zip(seeds, paths.values(), strict=True):
            write_volume(path, make_brain(seed, **kwargs), AFFINE, np.float32)
        return paths

    return write
