"""N4: a known field is taken out, the range is recorded, the result is reproducible."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from neuromf.config import BiasField
from neuromf.preprocess.bias_field import bias_correct_file, bias_field
from neuromf.volume import VolumeError, read_volume, write_volume

SPACING = np.array([3.0, 3.0, 3.0])
SETTINGS = BiasField(shrink_factor=2, iterations=(30, 30))


def brain() -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Two tissues with noise in an ellipsoid, the mask and the bias field on it."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (44, 52, 40)], indexing="ij")
    mask = x**2 + y**2 + z**2 < 0.8
    tissue = ndimage.gaussian_filter(rng.normal(size=mask.shape), 2.0) > 0
    field = np.exp(0.35 * x - 0.25 * y * z + 0.2 * z).astype(np.float32)
    scan = (np.where(tissue, 100, 60) + rng.normal(0, 2, mask.shape)) * field * mask
    return scan.astype(np.float32), mask, field


def test_a_known_field_is_found() -> None:
    scan, mask, field = brain()
    found = bias_field(scan, mask, SPACING, SETTINGS)
    error = np.log(found / field)[mask]
    assert np.log(found[mask]).mean() == pytest.approx(0, abs=1e-5)
    assert error.std() < 0.2 * np.log(field)[mask].std()


def test_units_of_intensity_do_not_matter() -> None:
    scan, mask, _ = brain()
    small, large = (bias_field(scan * np.float32(unit), mask, SPACING, SETTINGS) for unit in (1e-3, 1e4))
    assert np.allclose(small[mask], large[mask], rtol=0.02)


def test_file(tmp_path: Path) -> None:
    scan, mask, field = brain()
    affine = np.diag([-3.0, 3, 3, 1])
    write_volume(tmp_path / "brain.nii.gz", scan, affine, np.float32)
    write_volume(tmp_path / "mask.nii.gz", mask, affine, np.uint8)
    inputs = (tmp_path / "brain.nii.gz", tmp_path / "mask.nii.gz")
    figures = bias_correct_file(inputs, (tmp_path / "a.nii.gz",), settings=SETTINGS)
    bias_correct_file(inputs, (tmp_path / "b.nii.gz",), settings=SETTINGS)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    corrected = read_volume(tmp_path / "a.nii.gz")
    assert nib.aff2axcodes(corrected.affine) == ("R", "A", "S")
    values = corrected.get_fdata()[::-1]
    assert np.array_equal(values != 0, (scan != 0) & mask)
    assert np.std(np.log(values[mask])) < 0.9 * np.std(np.log(scan[mask]))
    true = field[mask] / np.exp(np.log(field[mask]).mean())
    assert float(figures["field_min"]) == pytest.approx(true.min(), abs=0.12)
    assert float(figures["field_max"]) == pytest.approx(true.max(), abs=0.3)


def test_unusable_masks_are_refused() -> None:
    scan, mask, _ = brain()
    with pytest.raises(VolumeError, match="mask is empty"):
        bias_field(scan, np.zeros_like(mask), SPACING, SETTINGS)
    with pytest.raises(VolumeError, match="only 0 voxels"):
        bias_field(np.zeros_like(scan), mask, SPACING, SETTINGS)
