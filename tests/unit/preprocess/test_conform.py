"""Conforming: place, range, anti-aliasing and what is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.processing import resample_from_to
from scipy import ndimage

from neuromf.config import Conform
from neuromf.preprocess.conform import conform_shard, conform_volume
from neuromf.preprocess.derivatives import mask_path, volume_path
from neuromf.tables import ManifestRow, Scan, file_sha256, write_manifest
from neuromf.volume import VolumeError, read_volume, voxel_sizes, write_volume

SETTINGS = Conform(shape=(48, 48, 48), spacing_mm=2.0)
CENTRE = np.array([6.0, -11.0, 8.0])  # of the brain in mm: off the image's centre, as in real scans


def head(
    axes: str = "RAS",
    spacing: tuple[float, float, float] = (1.1, 1.3, 1.0),
    tilt: float = 0.0,
) -> nib.Nifti1Image:
    """An ellipsoid of radii 30, 38 and 28 mm with smooth texture, 0 outside, in any orientation."""
    c, s = np.cos(tilt), np.sin(tilt)
    affine = np.diag([*spacing, 1.0])
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ affine[:3, :3]
    shape = (90, 88, 96)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) / 2)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    x, y, z = np.moveaxis(nib.affines.apply_affine(affine, grid) - CENTRE, -1, 0)
    inside = (x / 30) ** 2 + (y / 38) ** 2 + (z / 28) ** 2 < 1
    texture = 100 + 30 * np.sin(x / 7) + 25 * np.cos(y / 9 + 1) + 20 * np.sin(z / 8 + x / 20)
    image = nib.Nifti1Image(np.where(inside, texture, 0).astype(np.float32), affine)
    now = nib.orientations.io_orientation(affine)
    return image.as_reoriented(nib.orientations.ornt_transform(now, nib.orientations.axcodes2ornt(axes)))


def mask_of(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image((image.get_fdata() > 0).astype(np.float32), image.affine)


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PIL", "ASR"])
@pytest.mark.parametrize("spacing", [1.0, 2.0])
def test_the_result_overlays_the_input(axes: str, spacing: float) -> None:
    image = head(axes, tilt=0.2)
    settings = Conform(shape=(96, 96, 96) if spacing == 1 else (48, 48, 48), spacing_mm=spacing)
    data, mask, affine, figures = conform_volume(image, mask_of(image), settings)
    assert data.shape == mask.shape == settings.shape
    assert nib.aff2axcodes(affine) == ("R", "A", "S")
    assert np.allclose(voxel_sizes(affine), spacing)
    back = resample_from_to(nib.Nifti1Image(data, affine), image, order=3).get_fdata()
    inner = ndimage.binary_erosion(image.get_fdata() > 0, iterations=5)
    low, high = float(figures["intensity_low"]), float(figures["intensity_high"])
    expected = np.clip((image.get_fdata() - low) / (high - low), 0, 1)
    assert (
        np.sqrt(np.mean((back - expected)[inner] ** 2)) < 0.01
    )  # of the range; half a voxel of shift would give 0.03+
    dice = resample_from_to(nib.Nifti1Image(mask.astype(np.float32), affine), image, order=1).get_fdata() > 0.5
    truth = image.get_fdata() > 0
    assert 2 * (dice & truth).sum() / (dice.sum() + truth.sum()) > 0.98


def test_the_brain_is_centred_and_whole() -> None:
    image = head("LPI")
    _, mask, affine, figures = conform_volume(image, mask_of(image), SETTINGS)
    assert np.allclose(ndimage.center_of_mass(mask), 23.5, atol=0.1)
    assert np.allclose(nib.affines.apply_affine(affine, [23.5] * 3), CENTRE, atol=0.1)
    assert figures["cut_fraction"] == 0 and figures["warning"] == ""
    assert figures["brain_ml"] == pytest.approx(4 / 3 * np.pi * 30 * 38 * 28 / 1000, rel=0.02)


def test_what_is_cut_off_is_counted_and_warned_about() -> None:
    image = head()
    _, mask, _, figures = conform_volume(image, mask_of(image), Conform(shape=(48, 24, 48), spacing_mm=2.0))
    share = 1 - (1.5 * (24 / 38) - 0.5 * (24 / 38) ** 3)  # of an ellipsoid beyond ±24 mm of its 38 mm half-axis
    assert figures["cut_fraction"] == pytest.approx(share, abs=0.02)  # voxels of 1.3 mm
    assert "of the brain lies outside the grid" in str(figures["warning"])
    assert mask[:, 0].any() and mask[:, -1].any()


def test_equal_spacing_copies_voxels() -> None:
    image = head(spacing=(1.0, 1.0, 1.0))
    data, mask, _, figures = conform_volume(image, mask_of(image), Conform(shape=(96, 96, 96), percentiles=(0, 100)))
    low, high = float(figures["intensity_low"]), float(figures["intensity_high"])
    original = image.get_fdata()[image.get_fdata() > 0]
    assert np.allclose(np.sort(data[mask] * (high - low) + low), np.sort(original), atol=1e-3)


def test_fine_texture_is_filtered_not_aliased() -> None:
    image = head(spacing=(1.0, 1.0, 1.0))
    values = image.get_fdata()
    stripes = np.where(values > 0, 100 + 50 * (np.indices(values.shape)[0] % 2 * 2 - 1), 0).astype(
        np.float32
    )  # at the Nyquist frequency
    data, mask, _, figures = conform_volume(
        nib.Nifti1Image(stripes, image.affine),
        mask_of(image),
        Conform(shape=(32, 32, 32), spacing_mm=3.0),
    )
    low, high = float(figures["intensity_low"]), float(figures["intensity_high"])
    inner = ndimage.binary_erosion(mask, iterations=2)
    assert np.std(data[inner] * (high - low) + low) < 5  # nearest neighbours would leave 50


@pytest.mark.parametrize("clip", [True, False])
def test_range(clip: bool) -> None:
    image = head()
    settings = Conform(shape=(48, 48, 48), spacing_mm=2.0, percentiles=(2, 95), clip=clip)
    data, mask, _, _ = conform_volume(image, mask_of(image), settings)
    assert np.all(data[~mask] == 0)
    assert np.mean(data[mask] >= 1) == pytest.approx(0.05, abs=0.01)
    assert (data.max() == 1 and data.min() == 0) if clip else (data.max() > 1 and data.min() < 0)


def test_percentiles_of_the_whole_volume() -> None:
    image = head()
    settings = Conform(
        shape=(48, 48, 48),
        spacing_mm=2.0,
        percentiles=(0, 99.5),
        percentile_mask="volume",
    )
    data, _, _, figures = conform_volume(image, mask_of(image), settings)
    assert figures["intensity_low"] == 0
    assert np.mean(data == 1) == pytest.approx(0.005, abs=0.001)


def test_unusable_input_is_refused() -> None:
    image = head()
    empty = nib.Nifti1Image(np.zeros(image.shape), image.affine)
    with pytest.raises(VolumeError, match="mask is empty"):
        conform_volume(image, empty, SETTINGS)
    with pytest.raises(VolumeError, match="different grids"):
        conform_volume(image, nib.Nifti1Image(empty.dataobj, 2 * image.affine), SETTINGS)
    with pytest.raises(VolumeError, match="no contrast"):
        conform_volume(mask_of(image), mask_of(image), SETTINGS)


def test_shard(tmp_path: Path) -> None:
    scans = [
        Scan("01", None, "x", "T1w"),
        Scan("02", "a", "x", "T1w"),
        Scan("03", None, "x", "T1w"),
    ]
    upstream = tmp_path / "manifests" / "bias_correct" / "shard-0000.tsv"
    rows = []
    for scan in scans[:2]:
        image, volume = head("LAS"), volume_path(tmp_path, scan, "n4")
        write_volume(volume, image.get_fdata(), image.affine, np.float32)
        write_volume(
            mask_path(volume_path(tmp_path, scan, "brain")),
            mask_of(image).get_fdata(),
            image.affine,
            np.uint8,
        )
        file = f"../../{volume.relative_to(tmp_path)}"
        rows.append(ManifestRow(scan.scan_id, "ok", file=file, sha256=file_sha256(volume)))
    rows.append(ManifestRow(scans[2].scan_id, "failed", "all zero"))
    write_manifest(upstream, rows)
    manifest = tmp_path / "manifests" / "conform" / "shard-0000.tsv"
    made = conform_shard(scans, upstream, tmp_path, manifest, SETTINGS, code="c", workers=1)
    assert [row.status for row in made] == ["ok", "ok", "failed"]
    assert made[2].reason == "all zero"
    assert made[1].file == "../../sub-02/ses-a/anat/sub-02_ses-a_desc-preproc_T1w.nii.gz"
    volume = read_volume(manifest.parent / made[1].file)
    mask = read_volume(mask_path(manifest.parent / made[1].file))
    assert volume.shape == SETTINGS.shape and np.array_equal(mask.get_fdata() > 0, mask.get_fdata() == 1)
