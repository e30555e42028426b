from dataclasses import replace

import numpy as np
import pytest

from neuromf.evaluation.extractors.registry import VOLUME, Extractor, codec_extractor
from neuromf.evaluation.features import gather
from neuromf.evaluation.scans import (
    ARRAYS,
    EvaluationError,
    Grid,
    Reference,
    compared,
    describe,
    describe_files,
    grid_of,
    read_reference,
    write_reference,
)
from neuromf.tensors import TensorError
from neuromf.volume import VolumeError, read_volume, write_volume

GRID = Grid((32, 32, 32), 6.0)


def test_files_are_described_in_their_order_and_features_cached(write_brains, codec, tmp_path):
    files = write_brains("real", [3, 1, 2])
    extractor = codec_extractor(codec)
    scans = describe_files(files, [extractor], tmp_path / "cache", GRID, label="real", most=9)
    assert scans.ids == tuple(files) and scans.features.shape == (3, 64) and scans.thumbnails.shape == (3, 32, 32, 32)
    assert scans.tissue("brain") == pytest.approx(scans.tissues[:, 0]) and scans.spectra.shape == (3, 16)
    again = describe_files(files, [extractor], tmp_path / "cache", GRID, label="real", most=9)
    assert codec.encoded == 6 and (again.features == scans.features).all()  # each and its mirror image
    assert (again.mirrored_features == scans.mirrored_features).all()
    mirrored = describe(
        "m",
        np.ascontiguousarray(read_volume(files["sub-003_T1w"]).get_fdata()[::-1]),
        "m",
        [extractor],
        tmp_path / "cache",
        GRID,
    )
    assert mirrored.features[0] == pytest.approx(scans.mirrored_features[0], abs=1e-6)


def test_of_many_volumes_the_same_are_compared_and_a_growing_cohort_keeps_them(codec, write_brains, tmp_path):
    ids = [f"sub-{number:03d}" for number in range(50)]
    chosen = [ids[row] for row in compared(ids, 20)]
    assert len(chosen) == 20 and chosen == sorted(chosen) and chosen != ids[:20]
    grown = [*reversed(ids), "sub-new"]
    assert len(set(chosen) - {grown[row] for row in compared(grown, 20)}) <= 1
    assert compared(ids, 99) == list(range(50)) and compared(ids, 0) == []

    files = write_brains("real", [1, 2, 3])
    by_mean = Extractor("other", "0" * 64, lambda volume, voxel_mm: {VOLUME: volume.reshape(1, -1)[:, :5]})
    scans = describe_files(files, [codec_extractor(codec), by_mean], tmp_path / "cache", GRID, label="real", most=1)
    assert (scans.features != 0).any(axis=1).all(), "the search for copies takes all"
    gather(tmp_path / "cache", by_mean, scans.compared(1), VOLUME)
    with pytest.raises(TensorError):
        gather(tmp_path / "cache", by_mean, scans.hashes, VOLUME)


@pytest.mark.parametrize(
    ("affine", "shape", "message"),
    [
        (np.diag([3.0, 3.0, 3.0, 1.0]), (32, 32, 32), "voxels of"),
        (np.diag([-6.0, 6.0, 6.0, 1.0]), (32, 32, 32), "LAS"),
        (np.diag([6.0, 6.0, 6.0, 1.0]), (32, 32, 36), "36"),
    ],
)
def test_a_volume_on_another_grid_is_refused_by_name(affine, shape, message, codec, tmp_path):
    path = tmp_path / "odd.nii.gz"
    write_volume(path, np.random.default_rng(0).random(shape, np.float32), affine, np.float32)
    with pytest.raises(EvaluationError, match=rf"odd\.nii\.gz.*{message}"):
        describe_files({"odd": path}, [codec_extractor(codec)], tmp_path / "cache", GRID, label="odd", most=9)


def test_unreadable_missing_and_no_volumes_are_errors(codec, tmp_path):
    extractor = codec_extractor(codec)
    with pytest.raises(VolumeError, match="does not exist"):
        describe_files({"a": tmp_path / "a.nii.gz"}, [extractor], tmp_path, GRID, label="x", most=9)
    with pytest.raises(EvaluationError, match="no volumes"):
        describe_files({}, [extractor], tmp_path, GRID, label="x", most=9)


def test_the_grid_must_be_isotropic_and_ras(tmp_path):
    path = tmp_path / "flat.nii.gz"
    volume = np.random.default_rng(0).random((32, 32, 32), np.float32)
    write_volume(path, volume, np.diag([1.0, 1.0, 2.0, 1.0]), np.float32)
    with pytest.raises(EvaluationError, match="conform it first"):
        grid_of(path)
    write_volume(path, volume, np.diag([2.0, 2.0, 2.0, 1.0]), np.float32)
    assert grid_of(path) == Grid((32, 32, 32), 2.0)


def test_reference_is_the_same_after_reading_and_tied_to_its_codec(write_brains, codec, tmp_path):
    extractor = codec_extractor(codec)
    splits = {
        split: describe_files(write_brains(split, seeds), [extractor], tmp_path / "cache", GRID, label=split, most=9)
        for split, seeds in {"train": [1, 2, 3], "val": [4], "test": [5, 6]}.items()
    }
    rows = gather(tmp_path / "cache", extractor, splits["test"].hashes, VOLUME)
    reference = Reference(splits, GRID, {"codec": extractor.key}, {"codec": {VOLUME: rows}})
    write_reference(tmp_path / "reference.safetensors", reference)
    found = read_reference(tmp_path / "reference.safetensors", [extractor])
    assert found.grid == GRID and len(found.every) == 6 and found.held_out.ids[0] == "sub-004_T1w"
    for name in ARRAYS:
        assert (getattr(found.splits["train"], name) == getattr(splits["train"], name)).all()
    assert (found.test_rows["codec"][VOLUME].values == splits["test"].features).all()
    assert found.splits["val"].hashes == splits["val"].hashes
    codec.sha256 = "1" * 64
    with pytest.raises(EvaluationError, match="another codec"):
        read_reference(tmp_path / "reference.safetensors", [codec_extractor(codec)])
    with pytest.raises(EvaluationError, match="another extractor squeezenet or without it"):
        read_reference(tmp_path / "reference.safetensors", [extractor, replace(extractor, name="squeezenet")])
    with pytest.raises(EvaluationError, match="does not exist"):
        read_reference(tmp_path / "none.safetensors", [extractor])
