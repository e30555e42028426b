"""Volumes: what is refused and with which reason, and what is written."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuromf.volume import VolumeError, read_labels, read_volume, to_ras, voxel_sizes, write_volume

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


def huge(path: Path) -> None:
    """A NIfTI-2 header that claims 10⁶ voxels a side, and next to nothing behind it."""
    header = nib.Nifti2Image(scan(), AFFINE).header
    header["dim"][1:4] = 10**6
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + bytes(1000)))


def claiming_more(path: Path) -> None:
    """A header that claims 512³ voxels in a file of 20 × 21 × 22."""
    save(path, scan())
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = np.array([512, 512, 512], "<i2").tobytes()
    path.write_bytes(gzip.compress(content))


def with_form(path: Path, qform: np.ndarray, sform: np.ndarray = AFFINE) -> None:
    image = nib.Nifti1Image(scan(), AFFINE)
    image.set_sform(sform, code=2)
    image.set_qform(qform, code=1)
    nib.save(image, path)


def rgb(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((SIDE,) * 3, [("R", "u1"), ("G", "u1"), ("B", "u1")]), AFFINE), path)


def flipped(path: Path) -> None:
    save(path, scan())
    content = bytearray(path.read_bytes())
    content[-300] ^= 4
    path.write_bytes(content)


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
    "10⁶ voxels a side": (huge, r"claims \(1000000, 1000000, 1000000\) voxels, at most 1024³ are read"),
    "more than there is": (claiming_more, r"its header claims \(512, 512, 512\) voxels, its \d+ bytes hold fewer"),
    "mirrored qform": (
        lambda p: with_form(p, AFFINE * [[-1], [1], [1], [1]]),
        r"sform \(LAS.* and qform \(RAS.* disagree",
    ),
    "larger qform": (lambda p: with_form(p, AFFINE * [1.2, 1.2, 1.2, 1]), "sform .* disagree.*fslorient"),
    "RGB": (rgb, r"voxels of type \[\('R'"),
    "flipped bit": (flipped, "truncated or damaged .*(CRC|invalid|incorrect|Error)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_files_are_refused_with_their_own_reason(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "scan.nii.gz"
    make, reason = FAULTS[fault]
    make(path)
    with pytest.raises(VolumeError, match=reason) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)


def test_an_affine_that_is_singular_in_double_precision_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    with_form(path, AFFINE, np.array([[2, 0, 0, 0], [0, 2, 0, 0], [0, 2.5e18, 7, 0], [0, 0, 0, 1]]))
    with pytest.raises(VolumeError, match="affine that cannot be inverted"):
        read_volume(path)


def test_labels_with_an_affine_of_nan_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.nii"
    nib.save(nib.Nifti1Image(np.ones((SIDE,) * 3, np.uint8), AFFINE), path)
    content = bytearray(path.read_bytes())
    content[312:316] = np.float32(np.nan).tobytes()  # srow_z
    path.write_bytes(content)
    with pytest.raises(VolumeError, match=r"labels\.nii has an affine that cannot be inverted"):
        read_labels(path)


def test_no_flipped_bit_of_a_zipped_volume_is_read(tmp_path: Path) -> None:
    """nibabel alone never looks at the checksum: it read two thirds of these, with other voxels."""
    path, dice = tmp_path / "scan.nii.gz", random.Random(0)
    write_volume(path, np.rint(scan()), AFFINE, np.float32)
    whole, data = path.read_bytes(), read_volume(path).get_fdata()
    refused = 0
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            assert np.array_equal(
                read_volume(path).get_fdata(), data
            )  # a bit of the time or of the name in gzip's header
        except VolumeError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 90


ODD: dict[str, Callable[[nib.Nifti1Image], nib.Nifti1Image]] = {
    "big-endian": lambda image: nib.Nifti1Image(image.dataobj, image.affine, image.header.as_byteswapped(">")),
    "float64": lambda image: nib.Nifti1Image(np.asarray(image.dataobj, np.float64), image.affine),
    "NIfTI-2": lambda image: nib.Nifti2Image(np.asarray(image.dataobj), image.affine),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_but_valid_files_are_read_as_what_they_are(tmp_path: Path, kind: str) -> None:
    nib.save(ODD[kind](nib.Nifti1Image(scan(), AFFINE)), tmp_path / "scan.nii.gz")
    image = read_volume(tmp_path / "scan.nii.gz")
    assert np.array_equal(image.get_fdata(), scan()) and np.allclose(image.affine, AFFINE, atol=1e-5)
    assert image.get_data_dtype() == np.float32


def test_a_slope_of_zero_means_no_scaling(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(scan(), AFFINE), path)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([0, 5], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(content)
    assert np.array_equal(read_volume(path).get_fdata(), scan())


def test_negative_spacing_of_a_header_with_sform_does_not_mirror(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(scan(), AFFINE), path)  # the sform alone has a code
    content = bytearray(path.read_bytes())
    content[80:92] = (-np.frombuffer(content[80:92], "<f4")).tobytes()  # pixdim
    path.write_bytes(content)
    assert np.allclose(read_volume(path).affine, AFFINE, atol=1e-5)


def test_a_turned_and_moved_sform_is_a_registration(tmp_path: Path) -> None:
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, 0), [30, 0, -20])
    with_form(tmp_path / "scan.nii.gz", turn @ AFFINE)
    assert np.allclose(read_volume(tmp_path / "scan.nii.gz").affine, AFFINE, atol=1e-5)


def test_labels_keep_their_type_and_their_checksum(tmp_path: Path) -> None:
    path = tmp_path / "labels.nii.gz"
    labels = np.random.default_rng(0).integers(0, 2035, (SIDE,) * 3)
    write_volume(path, labels, AFFINE, np.int16)
    read = read_labels(path)
    assert np.asarray(read.dataobj).dtype == np.int16 and np.array_equal(read.dataobj, labels)
    write_volume(path, scan(), AFFINE, np.float32)
    with pytest.raises(VolumeError, match="labels are integers"):
        read_labels(path)
    flipped(path)
    with pytest.raises(VolumeError, match="damaged"):
        read_labels(path)


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
