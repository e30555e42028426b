"""Folders of volumes on one grid: what is brought together, and what is refused with which remedy."""

import json
import logging
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from neuromf.evaluation.folders import MULTIPLE, common_rules, on_grid, survey, volume_files, volumes
from neuromf.evaluation.morphometry import brain_mask
from neuromf.evaluation.scans import EvaluationError
from neuromf.volume import VolumeError, write_volume

AXES = {"RAS": [1, 1, 1], "LAS": [-1, 1, 1]}


@pytest.fixture
def write(tmp_path, brain):
    """Write a brain; scale is of the intensities, shift rolls it in its grid."""

    def one(name, seed=0, *, voxel_mm=6.0, axes="RAS", scale=1.0, shift=0, dtype=np.float32, side=32):
        data = np.roll(scale * brain(seed, side=side), shift, axis=1)
        image = nib.Nifti1Image(data, np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0]))
        now, wanted = (nib.orientations.axcodes2ornt(a) for a in ("RAS", axes))
        image = image.as_reoriented(nib.orientations.ornt_transform(now, wanted))
        write_volume(tmp_path / name, np.asarray(image.dataobj), image.affine, dtype)
        return tmp_path / name

    return one


def found_in(tmp_path, *names):
    return survey([tmp_path / name for name in names], tmp_path / "cache", label="x")


def test_files_below_a_folder_are_found_and_hidden_ones_are_not(tmp_path, write):
    for name in ("b.nii.gz", "sub/a.nii", ".hidden/c.nii", "._d.nii.gz"):
        write(name)
    (tmp_path / "sub/a.nii").rename(tmp_path / "sub/a.NII")
    (tmp_path / "notes.txt").write_text("x")
    assert [path.name for path in volume_files(tmp_path)] == ["b.nii.gz", "a.NII"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="holds no .nii"):
        volume_files(tmp_path / "empty")
    with pytest.raises(EvaluationError, match="is no folder"):
        volume_files(tmp_path / "none")


def test_volumes_on_one_grid_stay_as_they_are(tmp_path, write, brain):
    write("a.nii.gz", 0), write("b.nii.gz", 1)
    found = found_in(tmp_path, "a.nii.gz", "b.nii.gz")
    rules = common_rules({"real": found[:1], "synthetic": found[1:]})
    assert rules.as_is and rules.grid.shape == (32, 32, 32) and rules.grid.voxel_mm == 6.0 and rules.upper == 1.0
    assert np.allclose(on_grid(found[1], rules), brain(1), atol=1e-6)
    assert [one.path for one, _ in volumes(found, rules, label="x")] == [one.path for one in found]


def test_a_shared_grid_is_padded_for_the_networks(tmp_path, write, brain):
    write("a.nii.gz", side=30)
    found = found_in(tmp_path, "a.nii.gz")
    rules = common_rules({"real": found, "synthetic": found})
    assert rules.grid.shape == (32, 32, 32)
    assert np.allclose(on_grid(found[0], rules)[1:31, 1:31, 1:31], brain(0, side=30), atol=1e-6)


def test_other_spacing_orientation_place_and_shape_come_to_one_grid(tmp_path, write, caplog):
    """The same head four times, stored differently."""
    write("a.nii.gz"), write("b.nii.gz", axes="LIP"), write("c.nii.gz", shift=2)
    write("d.nii.gz", side=64, voxel_mm=3.0)
    found = found_in(tmp_path, *(f"{name}.nii.gz" for name in "abcd"))
    assert [one.axes for one in found] == ["RAS", "LIP", "RAS", "RAS"]
    with caplog.at_level(logging.WARNING):
        rules = common_rules({"real": found[:1], "synthetic": found[1:]})
    assert "synthetic: LIP/RAS with voxels of 3.0, 6.0 mm, brought to RAS, 6 mm" in caplog.text
    assert not rules.as_is and rules.grid.voxel_mm == 6.0 and all(side % MULTIPLE == 0 for side in rules.grid.shape)
    a, b, c, d = (on_grid(one, rules) for one in found)
    assert np.allclose(a, b, atol=1e-4) and np.allclose(a, c, atol=1e-4)
    assert np.corrcoef(a.ravel(), d.ravel())[0, 1] > 0.97
    assert brain_mask(a).sum() == pytest.approx(brain_mask(on_grid(found[0], replace(rules, upper=1.0))).sum())
    middle = [float(np.mean(np.nonzero(d > 0.15)[axis])) for axis in range(3)]
    assert middle == pytest.approx([(side - 1) / 2 for side in rules.grid.shape], abs=0.6)
    assert max(rules.key(one) != rules.key(other) for one in found for other in found if one is not other)


def test_another_spacing_may_be_asked_for(tmp_path, write, caplog):
    write("a.nii.gz")
    found = found_in(tmp_path, "a.nii.gz")
    coarse = common_rules({"real": found, "synthetic": found}, spacing_mm=8.0)
    assert coarse.grid.voxel_mm == 8.0 and not coarse.as_is
    ml = [brain_mask(on_grid(found[0], r)).sum() * r.grid.voxel_mm**3
          for r in (coarse, common_rules({"real": found, "synthetic": found}))]  # fmt: skip
    assert ml[0] == pytest.approx(ml[1], rel=0.1)
    common_rules({"real": found, "synthetic": found}, spacing_mm=3.0)
    assert "finer than the coarsest" in caplog.text


def test_bytes_keep_their_range(tmp_path, write, brain):
    write("a.nii.gz", scale=200, dtype=np.uint8)
    found = found_in(tmp_path, "a.nii.gz")
    rules = common_rules({"real": found, "synthetic": found})
    assert rules.upper == 255 and on_grid(found[0], rules).max() < 0.8  # nothing is stretched
    assert np.allclose(on_grid(found[0], rules), np.rint(200 * brain(0)) / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (
            (1.0, 200.0),
            r"b\.nii\.gz has intensities from 0 to 200.*a\.nii\.gz from 0 to .*one is in \[0, 1\], the other",
        ),
        ((1.0, 1000.0), r"b\.nii\.gz has intensities from 0 to .*neither \[0, 1\] nor \[0, 255\]"),
    ],
)
def test_other_intensity_ranges_are_refused_or_scaled_alike(tmp_path, write, scales, message):
    write("a.nii.gz", 0, scale=scales[0]), write("b.nii.gz", 0, scale=scales[1])
    found = found_in(tmp_path, "a.nii.gz", "b.nii.gz")
    sets = {"real": found[:1], "synthetic": found[1:]}
    with pytest.raises(EvaluationError, match=message + ".*--intensity percentile"):
        common_rules(sets)
    rules = common_rules(sets, intensity="percentile")
    a, b = (on_grid(one, rules) for one in found)
    assert rules.upper is None and np.allclose(a, b, atol=1e-5) and a.max() == 1


def test_a_folder_of_darker_brains_is_told_of(tmp_path, write, caplog):
    write("a.nii.gz", 0), write("b.nii.gz", 0, scale=0.9), write("c.nii.gz", 0, scale=0.5)
    a, b, c = found_in(tmp_path, "a.nii.gz", "b.nii.gz", "c.nii.gz")
    common_rules({"real": [a], "synthetic": [b]})
    assert not caplog.text
    assert common_rules({"real": [a], "synthetic": [c]}).upper == 1.0
    assert (
        "(real)" in caplog.text
        and "(synthetic) of the range" in caplog.text
        and "--intensity percentile" in caplog.text
    )
    caplog.clear()
    common_rules({"real": [a], "synthetic": [c]}, intensity="percentile")
    assert not caplog.text


def test_an_unknown_orientation_beside_a_known_one_is_refused(tmp_path, write, brain, caplog):
    write("a.nii.gz")
    for name in ("b.nii.gz", "c.nii.gz"):
        nib.save(nib.Nifti1Image(brain(0), None), tmp_path / name)
    a, b, c = found_in(tmp_path, "a.nii.gz", "b.nii.gz", "c.nii.gz")
    with pytest.raises(EvaluationError, match=r"b\.nii\.gz has neither sform nor qform.*a\.nii\.gz says it \(RAS\)"):
        common_rules({"real": [a], "synthetic": [b]})
    assert common_rules({"real": [b], "synthetic": [c]}) and "no volume has a sform or qform" in caplog.text


def test_sheared_volumes_are_resampled_and_told_of(tmp_path, brain, caplog):
    shear = np.eye(4)
    shear[0, 2] = 0.35
    for name, matrix in (("a.nii.gz", np.eye(4)), ("b.nii.gz", shear)):
        nib.save(nib.Nifti1Image(brain(0), matrix @ np.diag([6.0, 6, 6, 1])), tmp_path / name)
    a, b = found_in(tmp_path, "a.nii.gz", "b.nii.gz")
    assert not a.warning and "sheared by 19.3°" in b.warning and b.oriented
    rules = common_rules({"real": [a], "synthetic": [b]})
    assert (
        "synthetic: the headers of 1 of 1 volumes are doubtful, such as" in caplog.text
        and "real: the" not in caplog.text
    )
    light = [on_grid(one, rules).sum() for one in (a, b)]
    assert light[0] == pytest.approx(light[1], rel=0.01)


def test_headers_that_contradict_themselves_and_contents_that_were_not_fetched_are_refused(tmp_path, brain):
    content = bytearray(nib.Nifti1Image(brain(0), np.diag([6.0, 6, 6, 1])).to_bytes())
    content[80:92] = np.array([3] * 3, "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(VolumeError, match=r"a\.nii has an sform \(RAS, 6 × 6 × 6 mm\) and a pixdim .* disagree"):
        found_in(tmp_path, "a.nii")
    (tmp_path / "b.nii.gz").symlink_to(".git/annex/objects/a/b/c/c")
    with pytest.raises(VolumeError, match=r"datalad get .*b\.nii\.gz"):
        found_in(tmp_path, "b.nii.gz")


def test_oblique_volumes_are_told_of(tmp_path, brain, caplog):
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    for name, matrix in (("a.nii.gz", np.eye(3)), ("b.nii.gz", turn)):
        write_volume(tmp_path / name, brain(0), nib.affines.from_matvec(6 * matrix), np.float32)
    a, b = found_in(tmp_path, "a.nii.gz", "b.nii.gz")
    assert (a.oblique, b.oblique) == (0, pytest.approx(20, abs=0.01))
    common_rules({"real": [a], "synthetic": [b]})
    assert "synthetic: 1 of 1 volumes are oblique, by up to 20°" in caplog.text and "real: " not in caplog.text


def test_a_background_that_is_not_zero_is_mapped_to_zero_by_the_percentile_rule(tmp_path, write, brain):
    write_volume(tmp_path / "z.nii.gz", brain(0) * 5 - 1, np.eye(4) * 6, np.float32)
    write("a.nii.gz")
    shifted, plain = (found_in(tmp_path, name) for name in ("z.nii.gz", "a.nii.gz"))
    assert shifted[0].background == -1
    with pytest.raises(EvaluationError, match=r"z\.nii\.gz .* its background is -1; .*--intensity percentile"):
        common_rules({"real": shifted, "synthetic": plain})
    rules = common_rules({"real": shifted, "synthetic": plain}, intensity="percentile")
    assert np.allclose(on_grid(shifted[0], rules), on_grid(plain[0], rules), atol=1e-4)


def test_a_brain_on_both_sides_of_its_background_is_refused(tmp_path, brain):
    data = np.where(brain(0) > 0, (brain(0) - 0.5) * 4, 0)
    write_volume(tmp_path / "z.nii.gz", data, np.eye(4) * 6, np.float32)
    found = found_in(tmp_path, "z.nii.gz")
    for intensity in ("keep", "percentile"):
        with pytest.raises(EvaluationError, match=r"z\.nii\.gz .* about a background of 0; shift the brain"):
            common_rules({"real": found, "synthetic": found}, intensity=intensity)


def test_whole_heads_are_told_of(tmp_path, write, caplog):
    x, y, z = np.meshgrid(*[np.linspace(-96, 96, 64)] * 3, indexing="ij")
    radius = np.sqrt((x / 62) ** 2 + (y / 76) ** 2 + (z / 60) ** 2)
    inside = 0.6 + 0.3 * np.cos(radius * 2) + 0.05 * np.sin(x / 7)
    head = np.where(radius < 1, inside, np.where(radius < 1.15, 0.05, np.where(radius < 1.28, 0.8, 0)))
    write_volume(tmp_path / "head.nii.gz", head, np.diag([3.0, 3.0, 3.0, 1.0]), np.float32)
    write("brain.nii.gz")
    heads, brains = (found_in(tmp_path, name) for name in ("head.nii.gz", "brain.nii.gz"))
    assert heads[0].head and not brains[0].head
    common_rules({"real": heads, "synthetic": brains}, intensity="percentile")
    assert "real: 1 of 1 volumes are whole heads" in caplog.text and "synthetic: 1 of" not in caplog.text


def test_two_modalities_in_a_folder_are_refused_and_in_two_told_of(tmp_path, write, caplog):
    write("a/sub-1_T1w.nii.gz"), write("b/sub-1_FLAIR.nii.gz"), write("b/other.nii.gz")
    with pytest.raises(
        EvaluationError, match=r"several modalities: FLAIR \(sub-1_FLAIR.nii.gz\), T1w .* a folder of its own"
    ):
        volume_files(tmp_path)
    common_rules({name: survey(volume_files(tmp_path / name), tmp_path / "cache", label=name) for name in ("a", "b")})
    assert "different modalities: a T1w, b FLAIR" in caplog.text


def test_what_is_no_scan_is_refused_by_name(tmp_path, brain):
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    odd = {
        "four.nii.gz": (np.ones((20, 20, 20, 3), np.float32), "give one 3D volume per scan"),
        "empty.nii.gz": (np.zeros((20, 20, 20), np.float32), "all zero"),
        "nan.nii.gz": (np.full((20, 20, 20), np.nan, np.float32), "NaN"),
        "speck.nii.gz": (np.eye(20, dtype=np.float32)[:, :, None] * (np.arange(20) == 3), "holds no brain"),
        "rgb.nii.gz": (np.zeros((20, 20, 20), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "real numbers"),
    }
    for name, (data, message) in odd.items():
        nib.save(nib.Nifti1Image(data, affine), tmp_path / name)
        with pytest.raises(VolumeError, match=f"{name}.*{message}"):
            found_in(tmp_path, name)


def test_the_survey_is_kept_by_the_files_content(tmp_path, write, monkeypatch):
    write("a.nii.gz")
    first = found_in(tmp_path, "a.nii.gz")
    monkeypatch.setattr("neuromf.evaluation.folders.read_volume", lambda path: pytest.fail("read again"))
    assert found_in(tmp_path, "a.nii.gz") == first


@pytest.mark.parametrize("change", [{"low": -5.0}, {"low": "much"}, {"unknown": 1}])
def test_an_altered_survey_is_made_again(tmp_path, write, change):
    write("a.nii.gz")
    first = found_in(tmp_path, "a.nii.gz")
    (kept,) = (tmp_path / "cache" / "survey").iterdir()
    known = json.loads(kept.read_text())
    kept.write_text(json.dumps(known | {"content": known["content"] | change}))
    assert found_in(tmp_path, "a.nii.gz") == first


def test_a_folder_that_would_be_read_wrongly_is_refused(tmp_path, write):
    write("a.nii.gz"), write("b.nii.gz")
    (tmp_path / "c.nii.gz").symlink_to(tmp_path / "nowhere")
    with pytest.raises(VolumeError, match=r"c\.nii\.gz is no file"):
        found_in(tmp_path, "c.nii.gz")
    write("a.nii")
    with pytest.raises(EvaluationError, match=r"a\.nii and .*a\.nii\.gz have one name"):
        volume_files(tmp_path)
    (tmp_path / "site").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(EvaluationError, match="site is a link to a folder"):
        volume_files(tmp_path)
    write("odd/x\udcff.nii.gz")
    with pytest.raises(EvaluationError, match="a name that no table can hold"):
        volume_files(tmp_path / "odd")


def test_masks_and_a_bright_background_are_refused(tmp_path, brain):
    write_volume(tmp_path / "mask.nii.gz", (brain(0) > 0).astype(np.uint8), np.eye(4) * 6, np.uint8)
    with pytest.raises(VolumeError, match=r"mask\.nii\.gz has 1 different values in its brain: a mask"):
        found_in(tmp_path, "mask.nii.gz")
    write_volume(tmp_path / "bright.nii.gz", 0.3 + 0.7 * brain(0), np.eye(4) * 6, np.float32)
    found = found_in(tmp_path, "bright.nii.gz")
    with pytest.raises(EvaluationError, match=r"bright\.nii\.gz .* shift it so that the background is 0"):
        common_rules({"real": found, "synthetic": found})


@pytest.mark.parametrize("spacing_mm", [0.05, 100, float("inf")])
def test_a_grid_that_holds_no_brain_or_no_memory_holds_is_refused(tmp_path, write, spacing_mm):
    write("a.nii.gz")
    found = found_in(tmp_path, "a.nii.gz")
    with pytest.raises(EvaluationError, match="choose another --spacing"):
        common_rules({"real": found, "synthetic": found}, spacing_mm=spacing_mm)
