"""Which flips and rotations commute with a codec: the measure itself, and the codec that ships."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from nilearn.datasets import load_mni152_template
from nilearn.image import resample_img
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate

from neuromf.codec.equivariance import OPERATIONS, equivariance
from neuromf.codec.maisi import load_codec
from neuromf.config import Augmentation, Codec

CHANGES = tuple(name for name in OPERATIONS if name != "none")


class Blocks:
    """A codec of block means: what it does to a volume commutes with everything, unless ``skew`` favours a side."""

    def __init__(self, skew: float = 0.0) -> None:
        self.skew = skew

    def encode(self, volumes: Tensor) -> Tensor:
        ramp = 1 + self.skew * torch.linspace(-1, 1, volumes.shape[2] // 4)[:, None, None]
        return avg_pool3d(volumes, 4) * ramp

    def decode(self, latents: Tensor) -> Tensor:
        return interpolate(latents, scale_factor=4.0)


@pytest.fixture(scope="module")
def brain() -> Tensor:
    """The template's brain, 64³ voxels of 3 mm, in [0, 1]; brightened to the left so that no half is like the other."""
    template = load_mni152_template(resolution=2)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = template.affine[:3, :3] @ np.array(template.shape) / 2 + template.affine[:3, 3] - 3 * 32
    data = resample_img(template, affine, (64, 64, 64), copy_header=True, force_resample=True).get_fdata()
    data = np.clip(data, 0, None) * np.linspace(1.1, 0.9, 64)[:, None, None]
    data = np.where(data > 0.05 * data.max(), data / np.percentile(data[data > 0], 99.5), 0)
    return torch.from_numpy(data.clip(0, 1)).float()[None, None]


def test_operations_are_those_of_the_augmentation() -> None:
    assert set(CHANGES) <= set(Augmentation.model_fields)


@pytest.mark.parametrize("name", CHANGES)
def test_operations_move_what_they_say(name: str) -> None:
    """A voxel at (right, anterior, superior) = (1, 2, 3) of a grid of 8."""
    x = torch.zeros(1, 1, 8, 8, 8)
    x[0, 0, 1, 2, 3] = 1
    expected = {
        "flip_left_right": [6, 2, 3],
        "flip_anterior_posterior": [1, 5, 3],
        "flip_inferior_superior": [1, 2, 4],
        "rotate_axial": [5, 1, 3],
    }
    assert OPERATIONS[name](x)[0, 0].nonzero().tolist() == [expected[name]]


def test_a_codec_without_sides_has_no_error(brain: Tensor) -> None:
    codec: Any = Blocks()
    figures = equivariance(codec, brain)
    for row in figures.values():
        assert row["latent_error"] == pytest.approx(0, abs=1e-5) and row["commutation_psnr"] > 100
        assert row["scan_psnr"] == pytest.approx(figures["none"]["scan_psnr"], abs=1e-3)


def test_the_error_of_a_known_skew(brain: Tensor) -> None:
    """encode(T x) − T encode(x) = T b · (ramp − T ramp) = T b · 2 skew · position for the left-right flip, 0 for others."""
    codec: Any = Blocks(skew=0.1)
    figures = equivariance(codec, brain)
    z, blocks = codec.encode(brain), avg_pool3d(brain, 4)
    expected = (blocks * 0.2 * torch.linspace(-1, 1, 16)[:, None, None]).norm() / (z - z.mean()).norm()
    assert figures["flip_left_right"]["latent_error"] == pytest.approx(float(expected), rel=1e-4)
    assert figures["flip_inferior_superior"]["latent_error"] == pytest.approx(0, abs=1e-5)
    assert figures["flip_left_right"]["commutation_psnr"] > 100  # the decoder has no sides


def test_the_shipped_codec(brain: Tensor) -> None:
    """Loose: better than a codec whose changed latents mean nothing (√2). docs/methods.md has the figures."""
    figures = equivariance(load_codec(Codec(name="demo", weights="demo")), brain)
    assert figures["none"]["latent_error"] == 0 and figures["none"]["scan_psnr"] > 20
    for name in CHANGES:
        row = figures[name]
        assert row["latent_error"] < 0.85 * math.sqrt(2), (name, row)
        assert row["commutation_psnr"] > 14 and row["scan_psnr"] > 14, (name, row)
