from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from neuromf.cohort.index import index
from neuromf.cohort.phantom import draw_person, make_head, make_heads, phantom_cohort, write_dataset_files
from neuromf.cohort.phantom_head import LABELS, STORAGES, Head, Person, _exponential
from neuromf.cohort.phantom_template import FIELD_BOX, FIELD_MM, field_points, sample, smooth_noise, ventricles
from neuromf.config import Phantom
from neuromf.tables import read_cohort
from neuromf.volume import read_volume

COARSE = Phantom(voxel_mm=(2.5, 3.0))
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def head() -> Head:
    return make_head(COARSE, "a")


def test_a_head_depends_on_seed_and_participant_only(head: Head) -> None:
    again, other = make_head(COARSE, "a"), make_head(COARSE, "b")
    assert np.array_equal(again.image, head.image) and again.volumes_ml == head.volumes_ml
    assert other.volumes_ml != head.volumes_ml
    assert make_head(COARSE.model_copy(update={"seed": 1}), "a").volumes_ml != head.volumes_ml


def test_one_grid_and_plausible_volumes(head: Head) -> None:
    assert head.image.shape == head.mask.shape == head.labels.shape and np.isfinite(head.image).all()
    volumes = head.volumes_ml
    assert 1100 < volumes["brain"] < 1700 and 8 < volumes["ventricles"] < 100
    assert volumes["grey_matter"] + volumes["white_matter"] + volumes["csf"] == pytest.approx(
        volumes["brain"], rel=1e-3
    )
    assert volumes["grey_matter"] > volumes["white_matter"] > volumes["csf"] > volumes["ventricles"]
    assert set(np.unique(head.labels)) == set(LABELS.values())
    voxel_ml = abs(np.linalg.det(head.affine[:3, :3])) / 1000
    assert head.mask.sum() * voxel_ml == pytest.approx(volumes["brain"], rel=1e-3)
    assert ndimage.label(head.mask)[1] == 1


def test_it_looks_like_a_t1w_head(head: Head) -> None:
    levels = [np.median(head.image[head.labels == LABELS[t]]) for t in ("ventricles", "grey_matter", "white_matter")]
    assert levels[0] < 0.6 * levels[1] and levels[1] < 0.92 * levels[2]
    around = ndimage.binary_dilation(head.mask, iterations=12) & (head.mask == 0)
    assert (head.image[around] > 0.6 * levels[2]).sum() > 0.2 * head.mask.sum() ** (2 / 3)  # scalp
    assert np.median(head.image[around]) < levels[1]  # skull and air


def test_stripped_is_the_same_brain_without_its_head(head: Head) -> None:
    stripped = make_head(COARSE, "a", stripped=True)
    assert not stripped.image[stripped.mask == 0].any() and stripped.image.size < head.image.size
    assert stripped.volumes_ml["brain"] == pytest.approx(head.volumes_ml["brain"], rel=0.01)
    assert stripped.volumes_ml["ventricles"] == pytest.approx(head.volumes_ml["ventricles"], rel=0.03)
    centres = [nib.affines.apply_affine(h.affine, np.argwhere(h.mask).mean(0)) for h in (head, stripped)]
    assert np.allclose(*centres, atol=1.0)


def test_age_widens_the_ventricles_and_thins_the_cortex() -> None:
    young, old = (
        [make_head(COARSE, f"p{i}", person=Person(age, "F"), stripped=True).volumes_ml for i in range(4)]
        for age in (20.0, 85.0)
    )

    def share(people: list[dict[str, float]], tissue: str) -> float:
        return float(np.mean([volumes[tissue] / volumes["brain"] for volumes in people]))

    assert share(old, "ventricles") > 2 * share(young, "ventricles")
    assert share(old, "grey_matter") < 0.96 * share(young, "grey_matter")
    assert all(10 < volumes["ventricles"] < 100 for volumes in (*young, *old))


def test_the_displacement_is_a_diffeomorphism() -> None:
    rng = np.random.default_rng(0)
    import torch

    velocity = np.stack([4 * smooth_noise(rng, field_points().shape[:3], FIELD_MM / 60.0) for _ in range(3)])
    forward, back = (_exponential(torch.from_numpy(sign * velocity.astype(np.float32)), steps=5) for sign in (1, -1))
    places = field_points() + back.permute(1, 2, 3, 0)
    there_and_back = sample(forward, places, FIELD_BOX[:, 0], FIELD_MM, border=True) + back
    inside = there_and_back[:, 8:-8, 8:-8, 8:-8]
    assert float(inside.abs().max()) < 0.3 * float(forward.abs().max()) and float(inside.abs().mean()) < 0.1
    gradient = np.stack([np.stack(np.gradient(forward[a].numpy(), FIELD_MM)) for a in range(3)])
    jacobian = np.linalg.det(gradient.transpose(2, 3, 4, 0, 1) + np.eye(3))
    assert jacobian.min() > 0


def test_smooth_noise_has_unit_variance() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([smooth_noise(rng, (9, 10, 11), 0.3) for _ in range(400)])
    assert values.shape[1:] == (9, 10, 11) and values.std(0) == pytest.approx(1.0, abs=0.2)


def test_the_templates_ventricles_are_one_piece_of_known_size() -> None:
    assert ndimage.label(ventricles())[1] == 1
    assert 12_000 < ventricles().sum() < 25_000  # mm³


def test_people_and_table_are_drawn_as_the_heads(tmp_path: Path) -> None:
    cohort = phantom_cohort("c", 200, tmp_path, Phantom())
    assert cohort.scans[0].participant_id == "phantom001" and cohort.source == "phantom"
    people = [draw_person(Phantom(), scan.participant_id) for scan in cohort.scans]
    assert [float(scan.extra["age"]) for scan in cohort.scans] == [person.age for person in people]
    assert {person.sex for person in people} == {"F", "M"} and np.std([p.age for p in people]) > 15


def test_the_shipped_table_is_what_the_function_makes() -> None:
    shipped = read_cohort(REPOSITORY / "config/cohorts/demo.tsv")
    assert shipped == phantom_cohort("demo", 32, Path("results/cohorts/demo/raw"), Phantom(), digits=2)


def test_writing_a_shard(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    cohort = phantom_cohort("c", 3, root, COARSE)
    scans = (*cohort.scans[:2], replace(cohort.scans[2], skull_stripped=True))
    manifest = root / "manifests" / "shard-0000.tsv"
    rows = make_heads(scans, root, COARSE, manifest, code="x", workers=1)
    write_dataset_files(cohort)
    assert [row.status for row in rows] == ["ok"] * 3 and rows[0].figures["brain_ml"]

    for scan in scans:
        image = read_volume(root / scan.image)
        truth = root / "derivatives/truth" / f"sub-{scan.participant_id}" / "anat" / f"sub-{scan.participant_id}"
        mask = nib.load(f"{truth}_desc-brain_mask.nii.gz")
        labels = nib.load(f"{truth}_dseg.nii.gz")
        facts = json.loads(Path(f"{truth}_dseg.json").read_text())
        assert image.shape == mask.shape == labels.shape and np.allclose(image.affine, mask.affine, atol=1e-4)
        assert mask.get_data_dtype() == labels.get_data_dtype() == np.uint8
        assert facts["age"] == float(scan.extra["age"]) and 1100 < facts["brain_ml"] < 1700
        if scan.skull_stripped:
            assert not image.get_fdata()[mask.get_fdata() == 0].any()

    report = index(root, "indexed", tmp_path)  # it is a BIDS data set like any other
    assert report.layout == "BIDS" and [s.extra for s in report.added] == [s.extra for s in scans]
    again = make_heads(scans, root, COARSE, manifest, code="x", workers=1)
    assert again == rows


def test_every_way_of_storing_keeps_the_intensities(tmp_path: Path, head: Head) -> None:
    from neuromf.cohort.phantom import _write_image

    for storage in STORAGES:
        stored = replace(
            head, storage=storage, image=head.image * (165 / head.image.max() if storage == "uint8" else 1)
        )
        _write_image(tmp_path / f"{storage}.nii.gz", stored)
        image = nib.load(tmp_path / f"{storage}.nii.gz")
        assert image.get_data_dtype() == np.dtype("int16" if storage == "scaled" else storage)
        assert np.abs(image.get_fdata() - stored.image).max() <= 0.51
        assert (image.dataobj.slope != 1.0) == (storage == "scaled")
