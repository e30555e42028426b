"""Labels become volumes and sides, and results are kept by the volume's hash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuromf.evaluation.morphometry.atlas import APARC50, SUBCORTICAL, TISSUE_MAP, Atlas
from neuromf.evaluation.morphometry.backends import SEGMENTERS, find_segmenter, without_choroid_plexus
from neuromf.evaluation.morphometry.hemispheres import left_half
from neuromf.evaluation.morphometry.segmentation import (
    Segmentation,
    Segmenter,
    file_scans,
    measure_labels,
    mirrored,
    segment_scan,
    upright,
)
from neuromf.evaluation.morphometry.tissues import brain_mask, tissue_volumes
from neuromf.meshnet import WeightsError, conform_256
from neuromf.volume import write_volume

ATLAS = Atlas({"hippocampus": (1,), "both": (1, 2), "brain_stem": (3,)}, ("hippocampus",), {})


def tilted_brain() -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid turned about the vertical and the front-back axis, and each voxel's place left (-) or right (+)."""
    x, y, z = np.meshgrid(*[np.arange(n) - n / 2 + 0.5 for n in (60, 70, 50)], indexing="ij")
    across = x - 3 - 0.12 * y + 0.08 * z
    return (across / 22) ** 2 + (y / 30) ** 2 + (z / 20) ** 2 < 1, across


@pytest.mark.parametrize("axes", ["RAS", "LIA", "PSR"])
def test_plane_follows_yaw_and_roll_in_any_orientation(axes: str) -> None:
    brain, across = tilted_brain()
    image = nib.Nifti1Image(brain.astype(np.uint8), np.diag([1.0, 1.5, 2.0, 1.0]))
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    turned = nib.orientations.apply_orientation(brain & (across < 0), turn).astype(bool)
    left = left_half(image.as_reoriented(turn)) & (nib.orientations.apply_orientation(brain, turn) > 0)
    assert (left ^ turned).sum() < 0.005 * brain.sum()


def test_volumes_and_sides_of_labels() -> None:
    brain, across = tilted_brain()
    labels = np.where(brain, 3, 0).astype(np.uint8)
    labels[brain & (np.abs(across + 10) < 2)] = 1  # left
    labels[brain & (np.abs(across - 10) < 1)] = 1  # right, half as thick
    found = measure_labels(nib.Nifti1Image(labels, np.diag([2.0, 2, 2, 1])), ATLAS)
    assert found.volumes["hippocampus"] == pytest.approx((labels == 1).sum() * 0.008)
    left, right = found.sides["hippocampus"]
    assert left + right == pytest.approx(found.volumes["hippocampus"]) and left == pytest.approx(2 * right, rel=0.1)


def bright_parts(image: nib.Nifti1Image) -> Segmentation:
    """Labels on the grid of `conform_256`, as the published networks give them: by intensity."""
    conformed = conform_256(image)
    labels = np.digitize(np.asarray(conformed.dataobj), (0.31, 0.62)).astype(
        np.uint8
    )  # no value that thirds of a voxel give
    return measure_labels(nib.Nifti1Image(labels, conformed.affine), ATLAS)


def test_a_scans_rotation_does_not_turn_its_labels(tmp_path: Path) -> None:
    """Preprocessing keeps an oblique scan's slabs; its labels were turned to the world's axes, a generated one's not."""
    brain, across = tilted_brain()
    volume = np.where(brain, np.where(across < 0, 0.5, 0.9), 0).astype(np.float32)
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, 0.25) * 3.0, [5, -8, 11])
    segmenter, found = Segmenter("test", "key", ATLAS, bright_parts), []
    for name, affine in (("straight", np.diag([3.0, 3, 3, 1])), ("oblique", turn)):
        write_volume(tmp_path / f"{name}.nii.gz", volume, affine, np.float32)
        (scan,) = file_scans({name: tmp_path / f"{name}.nii.gz"})
        found.append(np.asarray(segment_scan(scan, segmenter, tmp_path / "cache").labels.dataobj))
    assert found[0].max() == 2 and (found[0] != found[1]).mean() < 1e-5  # sizes are stored in single precision


@pytest.mark.parametrize(("size", "side"), [(1.0, 60), (1.4, 61), (3.0, 61)])
def test_mirrored_labels_are_those_of_the_mirrored_volume(size: float, side: int) -> None:
    brain, across = tilted_brain()
    volume = np.where(brain, np.where(across < 0, 0.5, 0.9), 0)[:side].astype(np.float32)
    volume = np.pad(volume, ((0, side - len(volume)), (0, 0), (0, 0)))
    labels, flipped = (
        bright_parts(upright(nib.Nifti1Image(data, np.diag([size, size, size, 1])))).labels
        for data in (volume, volume[::-1])
    )
    ours, theirs = (np.asarray(image.dataobj) for image in (mirrored(labels), flipped))
    assert (ours != theirs).mean() < (1e-3 if size == 1.4 else 1e-12), "to the nearest voxel; whole ones exactly"
    assert (np.asarray(labels.dataobj) != theirs).mean() > 2 * (ours != theirs).mean()


def test_results_are_kept_and_damaged_ones_made_again(tmp_path: Path, write_brains) -> None:
    (scan,) = file_scans(write_brains("scans", [1]))
    seen = []

    def compute(image: nib.Nifti1Image) -> Segmentation:
        seen.append(image.shape)
        labels = nib.Nifti1Image((np.asarray(image.dataobj) > 0.5).astype(np.uint8), image.affine)
        return measure_labels(labels, ATLAS)

    segmenter = Segmenter("test", "0123456789abcdef0", ATLAS, compute)
    first, again = (segment_scan(scan, segmenter, tmp_path / "cache") for _ in range(2))
    assert len(seen) == 1 and again.volumes == first.volumes and again.sides == first.sides
    assert np.array_equal(np.asarray(again.labels.dataobj), np.asarray(first.labels.dataobj))
    entry = next((tmp_path / "cache").glob("test-*/*.json"))
    entry.write_text(entry.read_text()[:40])
    assert segment_scan(scan, segmenter, tmp_path / "cache").volumes == first.volumes and len(seen) == 2
    next((tmp_path / "cache").rglob("*.nii.gz")).write_bytes(b"torn")
    segment_scan(scan, segmenter, tmp_path / "cache")
    segment_scan(scan, replace(segmenter, key="other rule"), tmp_path / "cache")
    assert len(seen) == 4


def test_atlases_name_every_class_once() -> None:
    assert list(SUBCORTICAL.regions.values()) == [(label,) for label in range(1, 18)]
    assert list(APARC50.regions.values()) == [(label,) for label in range(1, 50)]
    assert set(SUBCORTICAL.regions) - set(SUBCORTICAL.paired) == {"3rd_ventricle", "4th_ventricle", "brain_stem"}
    for atlas in (SUBCORTICAL, APARC50):
        assert all(atlas.tissues.values())
        mixed = set(atlas.regions) - {region for regions in atlas.tissues.values() for region in regions}
        assert mixed == {"brain_stem", "ventraldc"}


def test_missing_weights_and_unknown_names_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEUROMF_WEIGHTS", raising=False)
    for name in ("subcortical", "aparc50"):
        with pytest.raises(WeightsError, match=rf"net_{name}\.safetensors is missing: fetch .*weights_dir"):
            find_segmenter(name, tmp_path)
    with pytest.raises(ValueError, match=f"no segmenter 'other'; there are {', '.join(SEGMENTERS)}"):
        find_segmenter("other")


def layered(side: int = 48) -> np.ndarray:
    """Nested balls: ventricle, white matter, grey matter, fluid; 3 mm voxels."""
    axis = (np.arange(side) + 0.5 - side / 2) * 3.0
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    volume = np.select([radius < 16, radius < 46, radius < 58, radius < 64], [0.25, 0.9, 0.6, 0.25], 0.0)
    noise = np.random.default_rng(0).normal(0, 0.03, volume.shape) * (volume > 0)
    return (volume + noise).clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("name", ["tissues", "atropos"])
def test_tissues_of_nested_balls(name: str) -> None:
    segmenter = find_segmenter(name)
    found = segmenter.compute(nib.Nifti1Image(layered(), np.diag([3.0, 3, 3, 1])))
    ml = {radius: 4 / 3 * np.pi * radius**3 / 1000 for radius in (16, 46, 58, 64)}
    assert found.volumes["brain"] == pytest.approx(ml[64], rel=0.03)
    assert found.volumes["white"] == pytest.approx(ml[46] - ml[16], rel=0.1)
    assert found.volumes["grey"] == pytest.approx(ml[58] - ml[46], rel=0.1)
    assert found.volumes["csf"] == pytest.approx(ml[64] - ml[58] + ml[16], rel=0.1)
    assert found.volumes["deep_csf"] == pytest.approx(ml[16], rel=0.15)
    assert set(np.unique(np.asarray(found.labels.dataobj))) == {0, 1, 2, 3, 4}
    for left, right in found.sides.values():
        assert left == pytest.approx(right, rel=0.05)
    assert set(found.volumes) == set(TISSUE_MAP.regions)


def test_tissue_segmenter_has_the_volumes_of_the_evaluation() -> None:
    volume = layered()
    found = find_segmenter("tissues").compute(nib.Nifti1Image(volume, np.diag([3.0, 3, 3, 1])))
    assert found.volumes["grey"] == tissue_volumes(volume, 3.0).grey
    assert (np.asarray(found.labels.dataobj) > 0).sum() == brain_mask(volume).sum()


@pytest.mark.parametrize("name", ["tissues", "atropos"])
def test_no_brain_has_no_volume(name: str) -> None:
    found = find_segmenter(name).compute(nib.Nifti1Image(np.zeros((20, 20, 20), np.float32), np.eye(4)))
    assert set(found.volumes.values()) == {0.0}


def test_bright_voxels_are_no_ventricle() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[:10], labels[12:] = 1, 3  # white matter, lateral ventricle
    scan = np.select([labels == 1, labels == 3], [110.0, 25.0], 70.0)
    scan[15, 5:10] = 56  # choroid plexus
    found = without_choroid_plexus(nib.Nifti1Image(labels, np.eye(4)), nib.Nifti1Image(scan, np.eye(4)))
    changed = np.asarray(found.dataobj) != labels
    assert changed.sum() == 5 * 20 and changed[15, 5:10].all()
