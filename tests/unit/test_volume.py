"""Volumes: what is refused and with which reason, and what is written."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuromf.volume import VolumeError, read_volume, to_ras, voxel_sizes, write_volume

SIDE = 20
AFFINE = np.array([[-0.9, 0.1, 0, 80], [0.1, 1.1, 0, -90], [0, 0, 1.3, -50], [0, 0, 0, 1]])


def scan(shape: tuple[int, ...] = (SIDE, SIDE + 1, SIDE + 2)) -> np.ndarray:
    return np.random.default_rng(0).uniform(1, 100, shape).astype(np.float32)


def save(path: Path, data: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(data, AFFINE), path)


def truncated(path: Path) -> None:
    save(path, scan())
    path.write_bytes(path.read_bytes()[:-2000])


def with_nan(path: Path) -> None:
    data = scan()
    data[3, 4, 5] = np.nan
    save(path, data)


def singular(path: Path) -> None:
    image = nib.Nifti1Image(scan(), None)
    image.header.set_sform(np.diag([1, 1, 0, 1]), code=1)
    nib.save(nib.Nifti1Image.from_bytes(image.to_bytes()), path)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncated, "truncated or damaged"),
    "short header": (
        lambda p: p.write_bytes(gzip.compress(b"\x5c\x01\x00\x00")),
        "not a NIfTI file|truncated",
    ),
    "4D": (
        lambda p: save(p, scan((SIDE, SIDE, SIDE, 3))),
        r"4-dimensional \(20, 20, 20, 3\)",
    ),
    "zero": (lambda p: save(p, np.zeros((SIDE,) * 3, np.float32)), "all zero"),
    "constant": (
        lambda p: save(p, np.full((SIDE,) * 3, 7, np.int16)),
        r"constant \(7\)",
    ),
    "nan": (with_nan, "1 voxels that are NaN"),
    "small": (
        lambda p: save(p, scan((10, 10, 10))),
        r"\(10, 10, 10\) voxels; every side needs at least 16",
    ),
    "text": (lambda p: p.write_text("no scan"), "is not a NIfTI file"),
    "folder": (lambda p: p.mkdir(), "is a folder"),
    "missing": (lambda p: None, "does not exist"),
    "empty": (lambda p: p.touch(), "is empty"),
    "complex": (
        lambda p: save(p, scan().astype(np.complex64)),
        "voxels of type complex64",
    ),
    "affine": (singular, "affine that cannot be inverted"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_files_are_refused_with_their_own_reason(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "scan.nii.gz"
    make, reason = FAULTS[fault]
    make(path)
    with pytest.raises(VolumeError, match=reason) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)


def test_reasons_are_distinct() -> None:
    reasons = [reason for _, reason in FAULTS.values()]
    assert len(set(reasons)) == len(reasons)


def test_scaling_and_trailing_axis_are_resolved(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(16 * 17 * 18, dtype=np.int16).reshape(16, 17, 18, 1), AFFINE)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "scaled.nii")
    read = read_volume(tmp_path / "scaled.nii")
    assert read.shape == (16, 17, 18)
    assert read.get_fdata()[0, 0, 10] == pytest.approx(0.5 * 10 - 3)
    assert np.allclose(read.affine, AFFINE)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_written_volumes_read_back_and_are_reproducible(tmp_path: Path, dtype: str) -> None:
    data = np.rint(scan())
    first, second = tmp_path / "a" / "x.nii.gz", tmp_path / "b.nii.gz"
    for path in (first, second):
        write_volume(path, data, AFFINE, dtype)
    assert first.read_bytes() == second.read_bytes()
    image = nib.load(first)
    assert image.get_data_dtype() == np.dtype(dtype)
    assert image.header["sform_code"] == image.header["qform_code"] == 1
    assert np.array_equal(image.get_fdata(), data)
    assert np.allclose(image.affine, AFFINE)


def test_values_outside_the_type_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="do not fit in uint8"):
        write_volume(tmp_path / "x.nii.gz", np.full((16, 16, 16), 300.0), AFFINE, "uint8")
    assert not list(tmp_path.iterdir())


def test_to_ras_keeps_every_voxel_in_its_place() -> None:
    data = scan()
    ras = to_ras(nib.Nifti1Image(data, AFFINE))
    assert nib.aff2axcodes(ras.affine) == ("R", "A", "S")
    voxel = np.array([3, 4, 5])
    there = np.rint(nib.affines.apply_affine(np.linalg.inv(ras.affine) @ AFFINE, voxel)).astype(int)
    assert ras.get_fdata()[tuple(there)] == data[tuple(voxel)]
    assert np.allclose(sorted(voxel_sizes(ras.affine)), sorted(voxel_sizes(AFFINE)))
