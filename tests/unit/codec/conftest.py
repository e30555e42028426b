"""Small volumes that look like preprocessed scans: a bright ellipsoid with a darker centre on zero."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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
