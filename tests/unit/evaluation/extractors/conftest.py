"""A smooth brain-like volume, and published weights where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from neuromf.evaluation.extractors.published import WEIGHTS

SHARED = Path(os.environ.get("NEUROMF_SHARED", Path(__file__).parents[4] / "../shared"))


@pytest.fixture
def volume():
    """An ellipsoid with smooth texture inside, (40, 48, 36) in [0, 1]; voxels of 4 mm."""
    shape = (40, 48, 36)
    x, y, z = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape], indexing="ij")
    texture = 0.6 + 0.2 * torch.sin(5 * x + 1) * torch.cos(4 * y) + 0.1 * z
    return torch.where((x / 0.7) ** 2 + (y / 0.8) ** 2 + (z / 0.6) ** 2 < 1, texture, 0.0)


@pytest.fixture
def weights_dir():
    """Return a function: the folder of published weights when an extractor's file is there, else the test is skipped."""

    def folder(name):
        path = SHARED / "weights" / WEIGHTS[name].file
        if not path.is_file():
            pytest.skip(f"needs {path} (set NEUROMF_SHARED to the folder that holds weights/)")
        return path.parent

    return folder
