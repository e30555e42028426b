"""Skull strip of whole shards: masks, already stripped scans, faulty scans and what later stages make of them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from disks import small_disk
from scipy import ndimage

from neuromf.config import BiasField, Conform, SkullStrip
from neuromf.meshnet import WeightsError
from neuromf.preprocess.bias_field import bias_correct_shard
from neuromf.preprocess.conform import conform_shard
from neuromf.preprocess.derivatives import mask_path
from neuromf.preprocess.skull_strip import _warnings, skull_strip_shard
from neuromf.preprocess.template import _pseudo_head, _without_artefacts, template_mask
from neuromf.shards import ShardError, check_failures
from neuromf.tables import ManifestRow, Scan, StorageError
from neuromf.volume import read_volume

SHARED = Path(os.environ.get("NEUROMF_SHARED", Path(__file__).parents[3] / "../shared"))
needs_heads = pytest.mark.skipif(
    not (SHARED / "data" / "freesurfer").is_dir(), reason=f"needs the real heads in {SHARED}/data (set NEUROMF_SHARED)"
)


QUICK_N4 = BiasField(iterations=(10, 10))


def stripped(shape: tuple[int, ...] = (60, 70, 56), size: float = 3.0, dtype: str = "int16") -> nib.Nifti1Image:
    """An already stripped brain of radii 62, 80 and 60 mm, with a hole and a stray island, in LAS."""
    affine = np.diag([-size, size, size, 1])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) / 2)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    x, y, z = np.moveaxis(nib.affines.apply_affine(affine, grid), -1, 0)
    inside = (x / 62) ** 2 + (y / 80) ** 2 + (z / 60) ** 2 < 1
    data = np.where(inside, 90 + 40 * np.sin(x / 9) * np.cos(y / 11) + 10 * np.sin(z / 7), 0)
    data[tuple(n // 2 for n in shape)] = 0
    data[2, 2, 2] = 5
    return nib.Nifti1Image(data.astype(dtype), affine)


def whole_head() -> nib.Nifti1Image:
    """The brain of `stripped` in a dark skull and a bright scalp, without noise."""
    brain, size = stripped((72, 80, 70)), 3.0
    outside = ndimage.distance_transform_edt(brain.get_fdata() == 0, sampling=size)
    data = np.where(outside == 0, brain.get_fdata(), np.where(outside <= 8, 15, np.where(outside <= 15, 130, 0)))
    return nib.Nifti1Image(data.astype(np.float32), brain.affine)


def largest(mask: np.ndarray) -> np.ndarray:
    labels = ndimage.label(mask)[0]
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def strip(root: Path, scans: list[Scan], workers: int = 1, **settings: object) -> dict[str, ManifestRow]:
    manifest = root / "out" / "manifests" / "skull_strip" / "shard-0000.tsv"
    chosen = SkullStrip(**({"backend": "none"} | settings))  # type: ignore[arg-type]
    rows = skull_strip_shard(scans, root, root / "out", manifest, chosen, code="c", workers=workers)
    return {row.scan_id: row for row in rows}


def result(root: Path, row: ManifestRow) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    volume = root / "out" / "manifests" / "skull_strip" / row.file
    return read_volume(volume), read_volume(mask_path(volume))


def test_stripped_scans_take_their_own_border(tmp_path: Path) -> None:
    nib.save(stripped(), tmp_path / "a.nii.gz")
    row = strip(tmp_path, [Scan("a", "1", "a.nii.gz", "T1w", skull_stripped=True)], backend="template")[
        "sub-a_ses-1_T1w"
    ]
    assert row.ok and row.figures["backend"] == "none" and row.figures["components"] == 2
    assert row.file == "../../sub-a/ses-1/anat/sub-a_ses-1_desc-brain_T1w.nii.gz"
    volume, mask = result(tmp_path, row)
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    brain = mask.get_fdata() > 0
    assert ndimage.label(brain)[1] == 1 and np.array_equal(ndimage.binary_fill_holes(brain), brain)
    assert row.figures["brain_ml"] == pytest.approx(4 / 3 * np.pi * 62 * 80 * 60 / 1000, rel=0.02)
    assert np.array_equal(volume.get_fdata(), np.where(brain, stripped().get_fdata()[::-1], 0))
    about = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative"


def test_brats_like_scans_go_the_same_way(tmp_path: Path) -> None:
    nib.save(stripped((240, 240, 155), 1.0), tmp_path / "b.nii.gz")
    scans = [Scan("b", None, "b.nii.gz", "FLAIR", skull_stripped=True)]
    assert strip(tmp_path, scans)["sub-b_FLAIR"].ok
    manifests = tmp_path / "out" / "manifests"
    upstream = manifests / "skull_strip" / "shard-0000.tsv"
    n4 = manifests / "bias_correct" / "shard-0000.tsv"
    (row,) = bias_correct_shard(scans, upstream, tmp_path / "out", n4, QUICK_N4, code="c", workers=1)
    assert row.ok and 0 < float(row.figures["field_min"]) < 1 < float(row.figures["field_max"])
    settings, manifest = Conform(shape=(48, 56, 48), spacing_mm=3.0), manifests / "conform" / "shard-0000.tsv"
    (row,) = conform_shard(scans, n4, tmp_path / "out", manifest, settings, code="c", workers=1)
    assert row.ok and row.figures["cut_fraction"] == 0 and row.figures["warning"] == ""
    assert row.figures["brain_ml"] == pytest.approx(4 / 3 * np.pi * 62 * 80 * 60 / 1000, rel=0.02)


def faulty(root: Path) -> list[str]:
    data = stripped().get_fdata().astype(np.float32)
    nib.save(stripped(), root / "truncated.nii.gz")
    whole = (root / "truncated.nii.gz").read_bytes()
    (root / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    nib.save(nib.Nifti1Image(np.stack([data, data], -1), np.eye(4)), root / "four.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros_like(data), np.eye(4)), root / "zero.nii.gz")
    data[30, 30, 30] = np.nan
    nib.save(nib.Nifti1Image(data, np.eye(4)), root / "nan.nii.gz")
    nib.save(nib.Nifti1Image(np.arange(1000, dtype=np.float32).reshape(10, 10, 10), np.eye(4)), root / "small.nii.gz")
    (root / "text.nii.gz").write_text("not a scan")
    (root / "folder.nii.gz").mkdir()
    return ["truncated", "four", "zero", "nan", "small", "text", "folder"]


@pytest.mark.parametrize("workers", [1, 2])
def test_faulty_scans_are_rows_with_reasons(tmp_path: Path, workers: int) -> None:
    names = faulty(tmp_path)
    good = ["g1", "g2", "g3"]
    for name in good:
        nib.save(stripped(dtype="uint8"), tmp_path / f"{name}.nii.gz")
    order = ["g1", *names[:4], "g2", *names[4:], "g3"]
    scans = [Scan(name, None, f"{name}.nii.gz", "T1w") for name in order]
    rows = strip(tmp_path, scans, workers)
    assert [row.scan_id for row in rows.values() if row.ok] == [f"sub-{name}_T1w" for name in good]
    reasons = [rows[f"sub-{name}_T1w"].reason.replace(f"{name}.nii.gz", "") for name in names]
    expected = ["truncated or damaged", "4-dimensional", "all zero", "NaN", "16", "not a NIfTI", "is a folder"]
    assert all(part in reason for part, reason in zip(expected, reasons, strict=True))
    assert len(set(reasons)) == 7
    manifests = tmp_path / "out" / "manifests"
    upstream, n4 = manifests / "skull_strip" / "shard-0000.tsv", manifests / "bias_correct" / "shard-0000.tsv"
    later = bias_correct_shard(scans, upstream, tmp_path / "out", n4, QUICK_N4, code="c", workers=1)
    assert [row.reason for row in later] == [row.reason for row in rows.values()]
    check_failures([n4], 0.7)
    with pytest.raises(ShardError, match="7 of 10 scans failed"):
        check_failures([n4], 0.1)


def test_scans_that_are_not_stripped_are_told(tmp_path: Path) -> None:
    nib.save(whole_head(), tmp_path / "head.nii.gz")
    full = stripped().get_fdata()[20:40, 20:50, 18:38].astype(np.float32)
    full += np.random.default_rng(0).random(full.shape, np.float32)
    nib.save(nib.Nifti1Image(full, np.eye(4)), tmp_path / "full.nii.gz")
    rows = strip(
        tmp_path, [Scan(name, None, f"{name}.nii.gz", "T1w", skull_stripped=True) for name in ("head", "full")]
    )
    assert not rows["sub-head_T1w"].ok and "whole head" in rows["sub-head_T1w"].reason
    assert "set skull_stripped to false" in rows["sub-head_T1w"].reason
    assert not rows["sub-full_T1w"].ok and "no background" in rows["sub-full_T1w"].reason


@pytest.mark.parametrize("backend", ["template", "none"])
@pytest.mark.parametrize(
    ("name", "change", "zero", "told"),
    [
        ("z", lambda x, brain: np.where(brain, (x - 90) / 30, 0), "lowest", "darker than the background"),
        ("zall", lambda x, brain: np.where(brain, (x - 60) / 40 + 1.5, -0.43), -0.43, ""),
        ("unit", lambda x, brain: x / 70 - 1, -1.0, ""),
        ("noisy", lambda x, brain: x / 70 - 1 + 1e-3 * np.random.default_rng(0).standard_normal(x.shape), -1.0, ""),
        ("offset", lambda x, brain: x + 1000, 1000.0, ""),
        ("negative", lambda x, brain: x - 5000, -5000.0, ""),
        ("bright", lambda x, brain: np.where(brain, x, 400), "lowest", "darker than the background"),
        (
            "hot",
            lambda x, brain: np.where((np.indices(x.shape) == 30).all(axis=0), 1e8, x),
            0.0,
            "1 voxels of the brain",
        ),
        ("faint", lambda x, brain: x / 1e5, 0.0, ""),
    ],
)
def test_the_whole_brain_comes_out_of_any_scale(
    tmp_path: Path, backend: str, name: str, change: Callable[..., np.ndarray], zero: float | str, told: str
) -> None:
    """A stripped scan, whether the table says so or not, through all three stages: no voxel is lost, no value negative."""
    image, truth = stripped(), ndimage.binary_fill_holes(largest(stripped().get_fdata() > 0))
    data = image.get_fdata() * truth
    nib.save(nib.Nifti1Image(change(data, truth).astype(np.float32), image.affine), tmp_path / f"{name}.nii.gz")
    scans = [Scan(name, None, f"{name}.nii.gz", "T1w", skull_stripped=backend == "none")]
    (row,) = strip(tmp_path, scans, backend="template").values()
    assert row.ok, row.reason
    assert row.figures["backend"] == "none" and told in str(row.figures["warning"])
    assert ("set skull_stripped to true" in str(row.figures["warning"])) == (backend == "template")
    assert zero == "lowest" or row.figures["zero"] == pytest.approx(zero, abs=0.01)
    volume, mask = result(tmp_path, row)
    found = mask.get_fdata()[::-1] > 0
    assert (found != truth).sum() <= 2e-3 * truth.sum()
    values = volume.get_fdata()[mask.get_fdata() > 0]
    assert values.min() >= 0 and values.max() <= 20 * np.median(values) * (1 + 1e-6)
    manifests = tmp_path / "out" / "manifests"
    upstream, n4 = (manifests / stage / "shard-0000.tsv" for stage in ("skull_strip", "bias_correct"))
    (row,) = bias_correct_shard(scans, upstream, tmp_path / "out", n4, QUICK_N4, code="c", workers=1)
    assert row.ok, row.reason
    settings, manifest = Conform(shape=(48, 56, 48), spacing_mm=3.0), manifests / "conform" / "shard-0000.tsv"
    (row,) = conform_shard(scans, n4, tmp_path / "out", manifest, settings, code="c", workers=1)
    assert row.ok and row.figures["brain_ml"] == pytest.approx(truth.sum() * 0.027, rel=0.02)


def test_numbers_beyond_all_intensities_are_a_reason_in_words(tmp_path: Path) -> None:
    data = stripped().get_fdata().astype(np.float32)
    data[30, 30, 30] = 3e38
    nib.save(nib.Nifti1Image(data, stripped().affine), tmp_path / "a.nii.gz")
    for backend, marked in (("none", True), ("template", False)):
        row = strip(tmp_path, [Scan("a", None, "a.nii.gz", "T1w", skull_stripped=marked)], backend=backend)["sub-a_T1w"]
        assert not row.ok and "1 voxels lie beyond" in row.reason and "a.nii.gz" in row.reason


def test_implausible_volumes_are_warned_about(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(stripped().get_fdata().astype(np.uint8), np.diag([1, 1, 1, 1])), tmp_path / "a.nii.gz")
    row = strip(tmp_path, [Scan("a", None, "a.nii.gz", "T1w")])["sub-a_T1w"]
    assert row.ok and "expected 600 to 2500" in str(row.figures["warning"])


def test_an_unknown_orientation_is_a_warning_in_the_row(tmp_path: Path) -> None:
    image = stripped()
    image.header.set_sform(None, code=0)
    image.header.set_qform(None, code=0)
    image.header.set_zooms((3, 3, 3))
    (tmp_path / "a.nii").write_bytes(nib.Nifti1Image(image.dataobj, None, image.header).to_bytes())
    row = strip(tmp_path, [Scan("a", None, "a.nii", "T1w", skull_stripped=True)])["sub-a_T1w"]
    assert row.ok and str(row.figures["warning"]).startswith("orientation unknown")


def test_a_sheared_scan_is_resampled_before_anything_else(tmp_path: Path) -> None:
    """The brain keeps its volume, and what is written has one affine, in sform and qform alike."""
    image = stripped((90, 70, 56))
    ml = (image.get_fdata() > 6).sum() * 27 / 1000
    shear = np.eye(4)
    shear[0, 2] = 0.35
    nib.save(nib.Nifti1Image(image.dataobj, shear @ image.affine), tmp_path / "a.nii.gz")
    row = strip(tmp_path, [Scan("a", None, "a.nii.gz", "T1w", skull_stripped=True)])["sub-a_T1w"]
    assert row.ok and "sheared by 19.3°" in str(row.figures["warning"])
    assert row.figures["brain_ml"] == pytest.approx(ml, rel=0.005)
    volume = nib.load(tmp_path / "out" / "manifests" / "skull_strip" / row.file)
    assert np.allclose(volume.header.get_sform(), volume.header.get_qform(), atol=1e-4)
    data = volume.get_fdata()
    assert data[data > 0].mean() == pytest.approx(image.get_fdata()[image.get_fdata() > 6].mean(), rel=0.005)
    for sibling in (volume, nib.load(mask_path(Path(volume.get_filename())))):
        assert not read_volume(Path(sibling.get_filename())).extra["warning"]


def test_a_header_that_contradicts_itself_is_a_row_with_the_reason(tmp_path: Path) -> None:
    content = bytearray(nib.Nifti1Image(stripped().dataobj, np.diag([3.0, 3, 3, 1])).to_bytes())
    content[80:92] = np.array([1.5] * 3, "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    row = strip(tmp_path, [Scan("a", None, "a.nii", "T1w", skull_stripped=True)])["sub-a_T1w"]
    assert not row.ok and "sform (RAS, 3 × 3 × 3 mm) and a pixdim (1.5 × 1.5 × 1.5 mm) that disagree" in row.reason


def test_missing_weights_stop_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEUROMF_WEIGHTS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    nib.save(stripped(), tmp_path / "a.nii.gz")
    for backend in ("mindgrab", "synthstrip"):
        with pytest.raises(WeightsError, match="fetch"):
            strip(tmp_path, [Scan("a", None, "a.nii.gz", "T1w")], backend=backend)
        assert strip(tmp_path, [Scan("a", None, "a.nii.gz", "T1w", skull_stripped=True)], backend=backend)


@pytest.mark.parametrize("kind", ["slices", "slices_at_both_ends", "voxel", "huge"])
def test_artefacts_brighter_than_the_head_are_taken_away(kind: str) -> None:
    head = np.asarray(whole_head().dataobj)
    spoilt = head.copy()
    if kind.startswith("slices"):
        spoilt[:, :, :4] = 20 * 130
        spoilt[:, :, -4:] = 20 * 130 if kind == "slices_at_both_ends" else spoilt[:, :, -4:]
    else:
        spoilt[36, 40, 35] = 1e29 if kind == "huge" else 1e8
    cleaned = _without_artefacts(spoilt, np.full(3, 3.0))
    assert cleaned.max() <= head.max() and (cleaned != head).mean() < 0.12
    assert np.array_equal(_without_artefacts(head, np.full(3, 3.0)), head)


def test_what_holds_no_head_is_a_reason_in_words(tmp_path: Path) -> None:
    data = {name: np.zeros((40, 44, 40), np.float32) for name in ("slices", "voxel", "noise")}
    data["slices"][:, :, :4], data["voxel"][20, 20, 20] = 1000, 1e6
    data["noise"] = np.random.default_rng(0).uniform(0, 4095, (40, 44, 40)).astype(np.float32)
    for name, values in data.items():
        nib.save(nib.Nifti1Image(values, np.diag([5, 5, 5, 1])), tmp_path / f"{name}.nii.gz")
    rows = strip(tmp_path, [Scan(name, None, f"{name}.nii.gz", "T1w") for name in data], backend="template")
    for name, said in (("slices", "no head stands out"), ("voxel", "no head stands out"), ("noise", "MP2RAGE's UNI")):
        assert not rows[f"sub-{name}_T1w"].ok and said in rows[f"sub-{name}_T1w"].reason
        assert "Error" not in rows[f"sub-{name}_T1w"].reason


def test_a_low_agreement_with_the_template_is_a_warning() -> None:
    assert list(_warnings(1300.0, "template", "T1w", {"template_correlation": 0.6})) == []
    (told,) = _warnings(1300.0, "template", "T1w", {"template_correlation": 0.31})
    assert "hardly agrees with the template (correlation 0.31" in told


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_template_finds_a_tilted_biased_head() -> None:
    head = _pseudo_head(4.0)
    rng = np.random.default_rng(0)
    data = ndimage.rotate(head.image.numpy(), 9, axes=(1, 2), reshape=False, order=1)
    truth = ndimage.rotate(head.distance.numpy(), 9, axes=(1, 2), reshape=False, order=1, cval=60) < 0
    field = np.exp(np.linspace(-0.3, 0.3, data.shape[2], dtype=np.float32))
    data = np.abs(data * field + rng.normal(0, 0.03, data.shape)).astype(np.float32)
    image = nib.Nifti1Image(np.pad(data, ((2, 9), (0, 3), (6, 0)))[::-1], np.diag([-4.3, 4.2, 4.0, 1]))
    mask, figures = template_mask(image, 6.0)
    assert dice(mask[::-1], np.pad(truth, ((2, 9), (0, 3), (6, 0)))) > 0.93
    assert figures["template_dice"] > 0.85 and figures["template_correlation"] > 0.5
    assert np.array_equal(template_mask(image, 6.0)[0], mask)


@needs_heads
def test_template_on_a_real_head(tmp_path: Path) -> None:
    folder = SHARED / "data" / "freesurfer"
    scans = [Scan("a", None, "aomic_sub-0001_T1.nii.gz", "T1w")]
    manifest = tmp_path / "manifests" / "skull_strip" / "shard-0000.tsv"
    (row,) = skull_strip_shard(scans, folder, tmp_path, manifest, SkullStrip(), code="c", workers=1)
    assert row.ok, row.reason
    truth = nib.as_closest_canonical(nib.load(folder / "aomic_sub-0001_brainmask.nii.gz")).get_fdata() > 0
    mask = read_volume(mask_path(manifest.parent / row.file)).get_fdata() > 0
    assert dice(mask, truth) >= 0.94
    assert ndimage.label(mask)[1] == 1 and 900 < float(row.figures["brain_ml"]) < 2000


def test_a_small_tmpdir_fails_no_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registration writes its transforms there."""
    head = _pseudo_head(4.0)
    nib.save(nib.Nifti1Image(head.image.numpy(), np.diag([4.0, 4, 4, 1])), tmp_path / "a.nii.gz")
    scans = [Scan("a", None, "a.nii.gz", "T1w")]
    with small_disk(tmp_path / "scratch", 1) as disk:
        if not disk.mounted:
            pytest.skip("a small disk cannot be mounted here")
        monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
        with pytest.raises(
            StorageError, match=r"temporary files cannot be written to .*scratch.*set TMPDIR to a folder"
        ):
            strip(tmp_path, scans, backend="template")
    assert not list((tmp_path / "out").rglob("shard-*.tsv"))
