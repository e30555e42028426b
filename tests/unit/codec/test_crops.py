"""Crops: shape, places, flips and whole volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from neuromf.codec.crops import Crops
from neuromf.volume import write_volume


def numbered(tmp_path: Path, shape: tuple[int, int, int] = (24, 20, 16)) -> Path:
    path = tmp_path / "numbered.nii.gz"
    x = np.arange(1, shape[0] + 1)[:, None, None] / 32  # exact in float16
    write_volume(path, np.broadcast_to(x, shape), np.eye(4), np.float32)
    return path


def test_crops_come_from_the_volume_and_flip_left_right(tmp_path: Path) -> None:
    crops = Crops.read([numbered(tmp_path)], (8, 8, 8), 0.5)
    x = crops.draw(64, torch.Generator().manual_seed(0))
    assert x.shape == (64, 1, 8, 8, 8)
    steps = x[:, 0].diff(dim=1) * 32
    assert set(steps.unique().tolist()) == {1.0, -1.0}  # along left-right only, both ways round
    assert torch.equal(x, crops.draw(64, torch.Generator().manual_seed(0)))


def test_a_crop_larger_than_the_volume_is_the_volume(tmp_path: Path) -> None:
    crops = Crops.read([numbered(tmp_path)], (64, 64, 64), 0.0)
    assert torch.equal(crops.draw(1, torch.Generator())[0], crops.volume(0))


def test_whole_volumes_keep_the_number_of_voxels(tmp_path: Path) -> None:
    crops = Crops.read([numbered(tmp_path)], (8, 8, 8), 0.0)
    assert crops.draw(30, torch.Generator(), whole=True).shape == (2, 1, 24, 20, 16)
    assert crops.draw(2, torch.Generator(), whole=True).shape == (1, 1, 24, 20, 16)


def test_crops_are_drawn_around_the_brain(tmp_path: Path) -> None:
    data = np.zeros((32, 32, 32))
    data[20:28, 20:28, 20:28] = 0.5
    write_volume(tmp_path / "corner.nii.gz", data, np.eye(4), np.float32)
    crops = Crops.read([tmp_path / "corner.nii.gz"], (8, 8, 8), 0.0)
    assert (crops.draw(50, torch.Generator().manual_seed(0)).flatten(1).amax(1) > 0).all()


def test_bad_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one volume"):
        Crops.read([], (8, 8, 8), 0.0)
    with pytest.raises(ValueError, match="multiple of 4"):
        Crops.read([numbered(tmp_path)], (10, 8, 8), 0.0)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ValueError, match="need one grid"):
        Crops.read([numbered(tmp_path), numbered(other, (16, 16, 16))], (8, 8, 8), 0.0)
