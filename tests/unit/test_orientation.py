"""What a header says of a scan's place: which transform counts, what contradicts, what is rounding."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuromf.orientation import shear, without_shear
from neuromf.volume import VolumeError, header_warning, read_volume, voxel_sizes

SHAPE = (20, 21, 22)
LAS = nib.affines.from_matvec(np.diag([-1.0, 1.2, 0.9]), [10, -12, -10])
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, 0.05), [3, -4, 5]) @ LAS
MNI = (
    nib.affines.from_matvec([[1.15, 0.04, 0.02], [-0.03, 1.21, 0.05], [0.01, -0.06, 1.3]], [2, 8, -3]) @ LAS
)  # 12 parameters


def sheared(by: float = 0.35) -> np.ndarray:
    affine = np.diag([1.0, 1, 1, 1])
    affine[0, 2] = by
    return affine


def header(
    sform: np.ndarray | None,
    sform_code: int,
    qform: np.ndarray | None,
    qform_code: int,
    pixdim: object = None,
    units: int = 2,
) -> nib.Nifti1Header:
    """A header of these transforms; a given pixdim alters the qform's voxel sizes too, as it does in a file."""
    made = nib.Nifti1Image(np.zeros(SHAPE, np.int16), np.eye(4)).header
    made.set_qform(LAS if qform is None else qform)
    made.set_sform(np.eye(4) if sform is None else sform)
    made["qform_code"], made["sform_code"] = qform_code, sform_code
    if pixdim is not None:
        made["pixdim"][1:4] = pixdim
    made["xyzt_units"] = units
    return made


def write(path: Path, *arguments: object, **named: object) -> Path:
    """Write a scan with exactly that header: nibabel's own would alter what contradicts itself."""
    head = header(*arguments, **named)  # type: ignore[arg-type]
    head["vox_offset"], head["magic"] = 352, b"n+1"
    voxels = np.random.default_rng(0).integers(1, 999, SHAPE).astype("<i2")
    path.write_bytes(head.binaryblock + bytes(4) + voxels.tobytes(order="F"))
    return path


TAKEN = {
    "sform, as nibabel writes it": ((LAS, 2, None, 0), LAS),
    "qform alone": ((None, 0, OBLIQUE, 1), OBLIQUE),
    "both the same": ((OBLIQUE, 1, OBLIQUE, 1), OBLIQUE),
    "both of a template, resampled to it": ((LAS, 4, LAS, 4), LAS),
    "sform of a template alone": ((LAS, 4, None, 0), LAS),
    "aligned rigidly": ((OBLIQUE, 2, LAS, 1), OBLIQUE),
    "registered to MNI by 12 parameters": ((MNI, 4, LAS, 1), LAS),
    "registered to Talairach rigidly": ((OBLIQUE, 3, LAS, 1), LAS),
    "unknown units": ((LAS, 2, None, 0, None, 0), LAS),
    "units of time beside mm": ((LAS, 2, None, 0, None, 10), LAS),
    "pixdim of two decimals": ((LAS * [0.9375, 0.9375, 1, 1], 1, None, 0, np.round([0.9375, 1.125, 0.9], 2)), None),
    "pixdim of three decimals": ((LAS * [1 / 3, 1 / 3, 1, 1], 2, None, 0, [0.333, 0.4, 0.9]), None),
    "a code that does not exist": ((np.diag([9.0, 9, 9, 1]), 77, LAS, 1), LAS),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_normal_is_taken_without_a_word(tmp_path: Path, name: str) -> None:
    arguments, affine = TAKEN[name]
    image = read_volume(write(tmp_path / "x.nii", *arguments))
    assert image.extra == {"oriented": True, "warning": ""}
    assert np.allclose(image.affine, arguments[0] if affine is None else affine, atol=1e-5)


REFUSED = {
    "pixdim of half the sform": ((np.eye(4), 2, None, 0, [0.5] * 3), r"sform \(RAS, 1 × 1 × 1 mm\) and a pixdim \(0\.5 × "),
    "pixdim never filled in": ((LAS, 2, None, 0, [1, 1, 1]), "pixdim .* disagree"),
    "both, pixdim of half": ((np.eye(4), 1, np.eye(4), 1, [0.5] * 3), r"sform .* qform .*get_sform.*-copyqform2sform"),
    "4 % larger": ((LAS * [1.04, 1.04, 1.04, 1], 1, LAS, 1), "disagree"),
    "2 % larger along one axis": ((LAS * [1, 1.02, 1, 1], 1, None, 0, [1, 1.2, 0.9]), "disagree"),
    "12 parameters, called the scanner's": ((MNI, 1, LAS, 1), "disagree"),
    "a template's, and no other": ((MNI, 4, None, 0, [1, 1.2, 0.9]), "disagree"),
    "a template's of twice the size": ((LAS * [2, 2, 2, 1], 4, LAS, 1), "disagree"),
    "mirrored": ((LAS, 1, np.diag([-1, 1, 1, 1]) @ LAS, 1), r"\(LAS\) and qform \(RAS\) that disagree: one is mirrored"),
    "a template's, mirrored": ((np.diag([-1, 1, 1, 1]) @ MNI, 4, LAS, 1), "one is mirrored"),
    "turned": ((LAS[:, [0, 2, 1, 3]] * [1, -4 / 3, 3 / 4, 1], 1, LAS, 1), r"disagree: one is turned by 90°"),
    "sheared beside another pixdim": ((sheared(), 2, None, 0, [1, 1, 1]), r"sheared by 19\.3°.*pixdim"),
    "sheared by 60°": ((sheared(2.0), 2, None, 0, [1, 1, 5**0.5]), "sheared by 63"),
    "qform without voxel sizes": ((None, 0, LAS, 1, [0, 0, 0]), "has no voxel sizes"),
    "nothing at all": ((None, 0, None, 0, [0, 0, 0]), "has no voxel sizes"),
    "singular": ((np.diag([1, 1, 0, 1]), 1, None, 0, [1, 1, 1]), "cannot be inverted"),
    "an sform of zeros beside a qform": ((np.zeros((4, 4)), 1, LAS, 1), "cannot be inverted; if its qform .*get_qform"),
    "a template's sform of NaN": ((LAS * [np.nan, 1, 1, 1], 4, LAS, 1), "cannot be inverted; if its qform .*get_qform"),
    "NaN": ((np.diag([1, 1, np.nan, 1]), 1, None, 0, [1, 1, 1]), "cannot be inverted"),
    "metres called mm": ((np.diag([1e-3, 1e-3, 1e-3, 1]), 1, None, 0, [1e-3] * 3), r"voxels of 0\.001 .*units.*'meter'"),
    "microns called nothing": ((np.diag([900, 900, 900, 1]), 1, None, 0, [900] * 3, 0), r"voxels of 900 .*units.*'micron'"),
    "a micron": ((np.diag([1e-6, 1e-6, 1e-6, 1]), 1, None, 0, [1e-6] * 3), "voxels of 1e-06.*its voxel sizes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_contradictions_are_refused_with_the_true_reason(tmp_path: Path, name: str) -> None:
    arguments, reason = REFUSED[name]
    path = write(tmp_path / "x.nii", *arguments)
    with pytest.raises(VolumeError, match=reason) as caught:
        read_volume(path)
    with pytest.raises(VolumeError, match=reason):
        header_warning(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_the_remedies_are_right(tmp_path: Path) -> None:
    """What a message says to do makes a file that is read without a word, with the transform that was to be kept."""
    path = write(tmp_path / "x.nii", np.eye(4), 1, np.eye(4), 1, [0.5] * 3)
    image = nib.load(path)
    nib.save(nib.Nifti1Image(image.dataobj, image.header.get_sform()), tmp_path / "sform.nii")
    nib.save(nib.Nifti1Image(image.dataobj, image.header.get_qform()), tmp_path / "qform.nii")
    for name, size in (("sform", 1.0), ("qform", 0.5)):
        read = read_volume(tmp_path / f"{name}.nii")
        assert not read.extra["warning"] and np.allclose(voxel_sizes(read.affine), size)
    image = nib.load(write(tmp_path / "only_sform.nii", OBLIQUE, 1, None, 0, [0.5] * 3))
    affine = image.header.get_sform()
    affine[:3, :3] *= np.array(image.header["pixdim"][1:4]) / nib.affines.voxel_sizes(affine)
    nib.save(nib.Nifti1Image(image.dataobj, affine), tmp_path / "pixdim.nii")
    read = read_volume(tmp_path / "pixdim.nii")
    assert not read.extra["warning"] and np.allclose(voxel_sizes(read.affine), 0.5)


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_unknown_orientation_is_warned_of(tmp_path: Path, name: str, kind: type[nib.Nifti1Image]) -> None:
    image = kind(np.random.default_rng(0).uniform(size=SHAPE), np.diag([1.0, 1.2, 0.9, 1]))
    for form in (image.set_sform, image.set_qform):
        form(None, code=0)
    image.header.set_zooms((1, 1.2, 0.9))
    nib.save(kind(image.dataobj, None, image.header), tmp_path / name)
    read = read_volume(tmp_path / name)
    assert not read.extra["oriented"] and read.extra["warning"].startswith("orientation unknown")
    assert nib.aff2axcodes(read.affine) == ("L", "A", "S") and np.allclose(voxel_sizes(read.affine), [1, 1.2, 0.9])
    assert header_warning(tmp_path / name) == read.extra["warning"]


@pytest.mark.parametrize("code", [0, 1])
def test_a_quaternion_longer_than_1_by_rounding_is_one_of_length_1(tmp_path: Path, code: int) -> None:
    half_turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(np.pi) * [1, 1.2, 0.9], [1, 2, 3])
    path = write(tmp_path / "x.nii", half_turn, code, half_turn, 1)
    content = bytearray(path.read_bytes())
    content[256:268] = (np.array([0, 0, 1 + 9e-6], "<f4")).tobytes()
    path.write_bytes(content)
    image = read_volume(path)
    assert not image.extra["warning"] and np.allclose(image.affine, half_turn, atol=1e-5)
    content[256:268] = (np.array([0, 0, 1.5], "<f4")).tobytes()
    path.write_bytes(content)
    with pytest.raises(VolumeError, match=r"damaged qform \(a quaternion of length 1\.5"):
        read_volume(path)


def test_a_qform_is_what_nibabel_makes_of_it(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    for number in range(20):
        affine = nib.affines.from_matvec(
            nib.eulerangles.euler2mat(*dice.uniform(-3, 3, 3)) * dice.uniform(0.5, 2, 3) * dice.choice([-1, 1], 3),
            dice.uniform(-99, 99, 3),
        )
        path = write(tmp_path / f"{number}.nii", None, 0, affine, 1)
        assert np.allclose(read_volume(path).affine, nib.load(path).affine, atol=1e-4)


def test_a_missing_pixdim_beside_an_sform_is_warned_of(tmp_path: Path) -> None:
    image = read_volume(write(tmp_path / "x.nii", LAS, 1, LAS, 1, [0, 0, 0]))
    assert "pixdim 0 × 0 × 0 is no voxel size" in image.extra["warning"] and np.allclose(image.affine, LAS)


@pytest.mark.parametrize(("code", "factor"), [(1, 1e-3), (3, 1e3)])
def test_metres_and_microns_are_converted_where_they_are_a_heads(tmp_path: Path, code: int, factor: float) -> None:
    scale = np.array([[factor]] * 3 + [[1]])
    image = read_volume(write(tmp_path / "x.nii", OBLIQUE * scale, 1, OBLIQUE * scale, 1, None, code))
    assert not image.extra["warning"] and np.allclose(image.affine, OBLIQUE, atol=1e-4)
    image = read_volume(write(tmp_path / "x.nii", OBLIQUE, 1, OBLIQUE, 1, None, code))
    assert "its units say m" in image.extra["warning"] and np.allclose(image.affine, OBLIQUE, atol=1e-4)


def test_shear_of_rounding_is_made_orthogonal(tmp_path: Path) -> None:
    affine = np.round(nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, 0.05), [3, -4, 5]), 3)
    image = read_volume(write(tmp_path / "x.nii", affine, 1, None, 0, [1, 1, 1]))
    assert not image.extra["warning"] and shear(affine) > 1e-5 > shear(image.affine)
    middle = (np.array(SHAPE) - 1) / 2
    assert np.allclose(*(nib.affines.apply_affine(one, middle) for one in (affine, image.affine)), atol=1e-5)
    assert np.allclose(image.affine, affine, atol=0.02) and without_shear(image) is image


def blob(affine: np.ndarray, shape: tuple[int, int, int] = (60, 60, 60)) -> nib.Nifti1Image:
    """A ball of 20 mm around (30, 30, 30) mm whose intensities rise along x, on a grid of any axes."""
    grid = np.moveaxis(np.indices(shape), 0, -1)
    place = nib.affines.apply_affine(affine, grid) - [30, 30, 30]
    return nib.Nifti1Image(np.where((place**2).sum(-1) < 400, 500 + 5 * place[..., 0], 0).astype(np.float32), affine)


def test_a_sheared_scan_is_resampled_with_its_volume_and_intensities() -> None:
    affine = sheared()
    affine[:3, 3] = [-10, 0, 0]
    before, after = blob(affine), without_shear(blob(affine))
    assert shear(after.affine) < 1e-6 and np.allclose(voxel_sizes(after.affine), voxel_sizes(affine))
    data = np.asarray(after.dataobj)
    millilitres = [
        (np.asarray(one.dataobj) > 0).sum() * abs(np.linalg.det(one.affine)) / 1000 for one in (before, after)
    ]
    assert millilitres[1] == pytest.approx(millilitres[0], rel=0.01) == pytest.approx(4 / 3 * np.pi * 8, rel=0.01)
    place = nib.affines.apply_affine(after.affine, np.argwhere(data > 0)) - [30, 30, 30]
    assert np.allclose(data[data > 0], 500 + 5 * place[:, 0], atol=6)  # a voxel's border takes its neighbour's value
    assert np.allclose(place.mean(axis=0), 0, atol=0.1)


def test_a_resampled_scan_keeps_a_background_that_is_not_0_and_all_of_its_grid() -> None:
    affine = sheared(-0.2)
    data = np.asarray(blob(affine).dataobj) - 100
    after = without_shear(nib.Nifti1Image(data, affine))
    values = np.asarray(after.dataobj)
    assert values.min() == -100 and values[0, 0, 0] == -100 and data.max() >= values.max() > data.max() - 10
    corners = np.array(np.meshgrid([0, 59], [0, 59], [0, 59])).reshape(3, -1).T
    inside = nib.affines.apply_affine(np.linalg.inv(after.affine) @ affine, corners)
    assert (inside > -0.01).all() and (inside < np.array(after.shape) - 0.99).all()
