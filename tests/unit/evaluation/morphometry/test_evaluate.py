"""The jobs that segment a release: bounded, cached, compared with the drawn real scans and with each sample's nearest."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from neuromf.config import Evaluate
from neuromf.evaluation.morphometry.evaluate import drawn_scans, evaluate_real_regions, evaluate_sample_regions
from neuromf.evaluation.rows import Part, write_parts
from neuromf.evaluation.scans import EvaluationError
from neuromf.meshnet import WeightsError
from neuromf.volume import read_volume, write_volume

SETTINGS = Evaluate(bootstrap=100, segmenters=("tissues",), segmented=6)


@pytest.fixture
def real(write_brains):
    return {"train": write_brains("train", range(8)), "test": write_brains("test", range(20, 24))}


@pytest.fixture
def samples(tmp_path, real):
    """Copies of the last training scans as samples, and the part that names their neighbours."""
    folder = tmp_path / "samples"
    folder.mkdir()
    copied = list(real["train"].items())[-3:]
    for index, (_, path) in enumerate(copied):
        shutil.copy(path, folder / f"sub-{index:05d}_T1w.nii.gz")
    rows = [{"scan": f"sub-{i:05d}_T1w", "nearest_scan_codec": scan_id} for i, (scan_id, _) in enumerate(copied)]
    part = tmp_path / "part.json"
    write_parts(part, [Part("release", "run", scans=rows)], {})
    return folder, part


def read(path):
    (part,) = json.loads(path.read_text())["parts"]
    return part, {(row["metric"], row["region"]): row for row in part["metrics"]}


def of_samples(samples, real, settings, tmp_path):
    folder, nearest = samples
    evaluate_sample_regions(
        folder, real, nearest, settings, release="demo", run="meanflow", seed=0, nfe=1, cache=tmp_path / "cache",
        part=tmp_path / "out.json",
    )  # fmt: skip
    return read(tmp_path / "out.json")


def test_real_scans_are_drawn_once_and_split_for_the_floors(real, tmp_path):
    chosen = drawn_scans(real, SETTINGS)
    assert len(chosen) == 6 and chosen == drawn_scans(real, SETTINGS)
    neighbour = next(iter(chosen))
    rows = [{"scan": scan_id, "nearest_scan_codec": neighbour} for scan_id in real["test"]]
    nearest, out = tmp_path / "part.json", tmp_path / "out.json"
    write_parts(nearest, [Part("release", "run", scans=rows)], {})
    evaluate_real_regions(real, nearest, SETTINGS, release="demo", n=2, cache=tmp_path / "cache", part=out)
    part, figures = read(out)
    assert (part["run"], part["seed"], part["nfe"]) == ("real", None, None)
    assert figures["volume_ml", "brain"]["n"] == 6 and figures["volume_ml", "brain"]["extractor"] == "tissues"
    for metric in ("cohens_d", "kl_divergence", "wasserstein_ml", "kolmogorov_smirnov", "volume_in_real_range"):
        assert figures[metric, "brain"]["n"] == 2, "the floor has as many scans as a run"
    assert figures["nearest_dice", "brain"]["n"] == 3 and 0.5 < figures["nearest_dice", "brain"]["value"] < 1
    assert len(list((tmp_path / "cache").rglob("*.nii.gz"))) == 6


def test_samples_are_compared_with_their_own_neighbours(samples, real, tmp_path):
    part, figures = of_samples(samples, real, SETTINGS, tmp_path)
    provenance = json.loads((tmp_path / "out.json").read_text())["provenance"]
    assert provenance["inputs"]["samples"]["volumes"] == 3 and len(provenance["inputs"]["samples"]["sha256"]) == 64
    assert (part["run"], part["seed"], part["nfe"]) == ("meanflow", 0, 1)
    assert figures["nearest_dice", "grey"]["value"] == 1 and figures["nearest_dice", "grey"]["n"] == 3
    assert figures["nearest_volume_correlation", "brain"]["value"] == pytest.approx(1)
    real_volumes = drawn_scans(real, SETTINGS)
    known = {path.name for path in real_volumes.values()} | {path.name for path in list(real["train"].values())[-3:]}
    assert len(list((tmp_path / "cache").rglob("*.nii.gz"))) == len(known)  # samples are copies: none of their own


def test_a_mirrored_neighbours_labels_are_flipped_before_they_overlap(samples, real, tmp_path):
    """A sample that is a training scan's mirror image has Dice 1 with it, which an unflipped overlap does not give."""
    folder, nearest = samples
    sample = folder / "sub-00000_T1w.nii.gz"
    image, rows = read_volume(sample), json.loads(nearest.read_text())["parts"][0]["scans"]
    data = np.array(image.dataobj)
    data[: len(data) // 2] *= 0.8  # no brain is its own mirror image
    for path in (sample, real["train"][rows[0]["nearest_scan_codec"]]):
        write_volume(path, data if path != sample else data[::-1], image.affine, np.float32)
    for flag, exact in ((True, True), (False, False)):
        write_parts(
            nearest, [Part("release", "run", scans=[rows[0] | {"nearest_mirrored_codec": flag}, *rows[1:]])], {}
        )
        _, figures = of_samples((folder, nearest), real, SETTINGS, tmp_path)
        assert (figures["nearest_dice", "grey"]["value"] > 0.999) == exact


def test_no_more_samples_than_the_setting_allows(samples, real, tmp_path):
    _, figures = of_samples(samples, real, SETTINGS.model_copy(update={"segmented": 2}), tmp_path)
    assert figures["volume_ml", "brain"]["n"] == 2


def test_what_is_missing_is_named(samples, real, tmp_path, monkeypatch):
    folder, part = samples
    monkeypatch.setenv("NEUROMF_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match="subcortical"):
        of_samples(samples, real, SETTINGS.model_copy(update={"segmenters": ("subcortical",)}), tmp_path)
    write_parts(part, [Part("release", "run", scans=[])], {})
    with pytest.raises(EvaluationError, match="no training scan that is nearest to sub-00000_T1w"):
        of_samples(samples, real, SETTINGS, tmp_path)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(EvaluationError, match=r"holds no sub-\*\.nii\.gz"):
        of_samples(samples, real, SETTINGS, tmp_path)
    with pytest.raises(EvaluationError, match="no preprocessed training scan"):
        drawn_scans({}, SETTINGS)
