"""Small volumes that look like preprocessed scans: a bright ellipsoid with a darker centre on zero."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import squeezenet1_1

from neuromf.codec import perceptual
from neuromf.codec.perceptual import SliceLpips
from neuromf.codec.weights import BACKBONE, HEADS
from neuromf.tables import file_sha256
from neuromf.volume import write_volume

Scans = Callable[..., list[Path]]


@pytest.fixture
def scans(tmp_path: Path) -> Scans:
    def make(count: int, shape: tuple[int, int, int] = (24, 24, 24)) -> list[Path]:
        paths = []
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
        for i in range(count):
            rng = np.random.default_rng(i)
            axes = rng.uniform(0.6, 0.9, 3)[:, None, None, None]
            radius = np.sqrt(((grid / axes) ** 2).sum(0))
            data = np.where(radius < 1, 0.5 + 0.4 * np.sin(6 * radius + i) + 0.02 * rng.standard_normal(shape), 0)
            paths.append(tmp_path / f"sub-{i:02d}_desc-preproc_T1w.nii.gz")
            write_volume(paths[-1], np.clip(data, 0, 1), np.diag([3.0, 3.0, 3.0, 1.0]), np.float32)
        return paths

    return make


@pytest.fixture
def lpips_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with random weights in the layouts of LPIPS's published files."""
    torch.manual_seed(0)
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save(squeezenet1_1(weights=None).state_dict(), folder / BACKBONE)
    channels = (64, 128, 256, 384, 384, 512, 512)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(channels)}
    torch.save(heads, folder / HEADS)
    monkeypatch.setattr(perceptual, "BACKBONE_SHA256", file_sha256(folder / BACKBONE)[:8])
    return folder


@pytest.fixture
def lpips(lpips_weights: Path) -> SliceLpips:
    return SliceLpips.load(lpips_weights)
