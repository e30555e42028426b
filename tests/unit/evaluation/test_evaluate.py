"""The whole evaluation on ellipsoids: jobs, parts, merge."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from neuromf.evaluation import evaluate
from neuromf.evaluation.distances import METRICS
from neuromf.evaluation.evaluate import evaluate_noise, evaluate_reference, evaluate_samples, merge_metrics
from neuromf.evaluation.extractors.registry import Extractor, codec_extractor
from neuromf.evaluation.extractors.slices import by_slice
from neuromf.evaluation.rows import METRIC_COLUMNS, SCAN_COLUMNS
from neuromf.evaluation.scans import EvaluationError
from neuromf.tables import file_sha256


class Release:
    """A small release on disk and the evaluation's jobs on it."""

    def __init__(self, tmp_path, write_brains, codec, settings):
        self.folder, self.write, self.codec, self.settings = tmp_path, write_brains, codec, settings
        self.reference = tmp_path / "reference.safetensors"
        self.parts = []
        rows = [{"scan": f"s{i}", "codec": c, "psnr": 30.0 + i, "ssim": 0.9, "mae": 0.02, "psnr_brain": 27.0 + i,
                 "ssim_brain": 0.85, "lpips_sagittal": None, "lpips_coronal": None, "lpips_axial": None}
                for i in range(3) for c in ("vae", "linear")]  # fmt: skip
        (tmp_path / "codec.json").write_text(json.dumps({"rows": rows}))

    def part(self, name):
        self.parts.append(self.folder / "parts" / f"{name}.json")
        return self.parts[-1]

    def real(self, **seeds):
        files = {split: self.write(split, numbers) for split, numbers in seeds.items()}
        evaluate_reference(
            files, self.codec, self.settings, release="demo", n=4, codec_validation=self.folder / "codec.json",
            cache=self.folder / "cache", part=self.part("reference"), reference=self.reference,
            reconstructions=self.folder / "reconstructions",
        )  # fmt: skip

    def samples(self, run, seeds, nfe=1, joules_of=None, **kwargs):
        files = self.write(run, seeds, **kwargs)
        folder = next(iter(files.values())).parent if files else self.folder / run
        seconds = {"network": [0.1] * len(seeds), "decode": [0.4] * len(seeds), "total": [0.5] * len(seeds)}
        folder.mkdir(exist_ok=True)
        joules = {stage: [20 * value for value in values] for stage, values in seconds.items()}
        about = {"joules": joules | (joules_of or {}), "hardware": {"network": {"name": "Fast CPU"}}}
        (folder / "sample_timing.json").write_text(json.dumps(seconds | about))
        evaluate_samples(
            folder, self.reference, self.codec, self.settings, release="demo", run=run, seed=0, nfe=nfe,
            cache=self.folder / "cache", part=self.part(run),
        )  # fmt: skip

    def noise(self):
        evaluate_noise(
            self.reference, self.codec, self.settings, release="demo", latent_mean=[0.2] * 4, latent_std=[0.3] * 4,
            latent_shape=(4, 8, 8, 8), n=6, seed=0,
            cache=self.folder / "cache", part=self.part("noise"),
        )  # fmt: skip

    def merged(self):
        merge_metrics(self.parts, metrics=self.folder / "metrics.parquet", scans=self.folder / "scans.parquet")
        return pd.read_parquet(self.folder / "metrics.parquet"), pd.read_parquet(self.folder / "scans.parquet")


@pytest.fixture
def release(tmp_path, write_brains, codec, settings):
    return Release(tmp_path, write_brains, codec, settings)


def figure(metrics, run, metric, region=None, extractor=None):
    rows = metrics[(metrics["run"] == run) & (metrics["metric"] == metric)]
    rows = rows if region is None else rows[rows["region"] == region]
    rows = rows if extractor is None else rows[rows["extractor"] == extractor]
    assert len(rows) == 1
    return rows.iloc[0]


def test_good_samples_copies_odd_sizes_and_noise_are_told_apart(release):
    release.real(train=range(20), val=range(20, 24), test=range(24, 34))
    release.samples("good", range(100, 112))
    release.samples("copies", range(8), joules_of={"network": [None] * 8, "total": [None] * 8})
    release.samples("large", range(120, 130), scale=1.25)
    release.noise()
    metrics, scans = release.merged()
    assert tuple(metrics.columns) == METRIC_COLUMNS and tuple(scans.columns) == SCAN_COLUMNS

    distance = {run: figure(metrics, run, "frechet_distance")["value"] for run in ("good", "large", "noise", "real")}
    assert max(distance["real"], distance["good"]) < min(distance["large"], distance["noise"]) / 5
    assert figure(metrics, "good", "kernel_distance")["value"] < figure(metrics, "noise", "kernel_distance")["value"]
    assert figure(metrics, "good", "frechet_distance")["extractor"] == "codec"
    assert figure(metrics, "good", "brain_volume_in_real_range")["value"] > 0.6
    assert figure(metrics, "large", "brain_volume_in_real_range")["value"] == 0
    assert figure(metrics, "large", "cohens_d", "brain")["value"] > 2
    assert figure(metrics, "copies", "closer_to_training_than_null_closest", extractor="pixels")["value"] == 1
    assert figure(metrics, "copies", "closer_to_training_than_null_closest", extractor="codec")["value"] == 1
    assert figure(metrics, "good", "closer_to_training_than_null_closest", extractor="pixels")["value"] < 0.4
    assert np.isnan(figure(metrics, "copies", "closer_to_training_than_null_5th", extractor="pixels")["value"])
    assert figure(metrics, "good", "training_null_scans", extractor="codec")["value"] == 14
    assert figure(metrics, "good", "closer_to_other_than_null_5th", extractor="codec")["value"] < 0.4
    assert figure(metrics, "real", "nearest_other_correlation")["n"] == 34
    assert figure(metrics, "good", "seconds_per_volume", "total")["value"] == pytest.approx(0.5)
    joules = figure(metrics, "good", "joules_per_volume", "total")
    assert (joules["value"], joules["ci_low"], joules["n"]) == (pytest.approx(10), pytest.approx(10), 12)
    untold = figure(metrics, "copies", "joules_per_volume", "network")
    assert np.isnan(untold["value"]) and untold["n"] == 8
    assert figure(metrics, "copies", "joules_per_volume", "decode")["value"] == pytest.approx(8)
    assert figure(metrics, "reconstruction", "psnr", "brain_box")["value"] == pytest.approx(31)
    assert figure(metrics, "reconstruction", "psnr", "brain")["value"] == pytest.approx(28)
    assert figure(metrics, "linear_reconstruction", "ssim", "brain")["n"] == 3
    unmeasured = figure(metrics, "reconstruction", "lpips", "axial")
    assert np.isnan(unmeasured["value"]) and unmeasured["n"] == 3
    # the codec repeats its blocks' means: less energy than real at mid frequencies, edges of blocks above them
    assert figure(metrics, "reconstruction", "high_frequency_to_real")["n"] == 10
    assert figure(metrics, "good", "high_frequency_to_real")["value"] == pytest.approx(1, abs=0.1)
    to_codec = figure(metrics, "good", "high_frequency_to_reconstruction")["value"]
    ratio = {run: figure(metrics, run, "high_frequency_ratio")["value"] for run in ("good", "reconstruction")}
    assert to_codec == pytest.approx(ratio["good"] / ratio["reconstruction"])
    spectra = [
        row for path in release.parts for part in json.loads(path.read_text())["parts"] for row in part["spectra"]
    ]
    assert {row["run"] for row in spectra} == {"real", "reconstruction", "good", "copies", "large", "noise"}

    for metric in METRICS:
        assert figure(metrics, "good", metric, "volume", "codec")["n"] == 12
    assert figure(metrics, "copies", "ms_ssim")["value"] > 0 and figure(metrics, "real", "ms_ssim")["n"] == 34
    assert figure(metrics, "noise", "coverage")["value"] < 0.2 < figure(metrics, "good", "coverage")["value"]

    distances = metrics[metrics["metric"].isin(["frechet_distance", "kernel_distance"])]
    assert (distances["ci_low"] <= distances["value"]).all() and (distances["value"] <= distances["ci_high"]).all()
    copied = scans[scans["run"] == "copies"]
    path = release.folder / "copies/sub-003_T1w.nii.gz"
    assert copied.set_index("scan").loc["sub-003_T1w", "sha256"] == file_sha256(path)
    assert copied["high_frequency_ratio"].mean() == pytest.approx(
        figure(metrics, "copies", "high_frequency_ratio")["value"]
    )
    assert copied["nearest_scan"].tolist() == copied["scan"].tolist()
    assert scans[(scans["run"] == "real") & (scans["split"] == "train")]["nearest_scan"].isna().all()
    assert scans[scans["run"] == "real"]["other_scan"].notna().all()

    readable = json.loads((release.folder / "metrics.json").read_text())
    assert readable["provenance"][1]["hardware"] == {"network": {"name": "Fast CPU"}}
    assert len(readable["rows"]) == len(metrics) and readable["provenance"][0]["codec_sha256"] == "0" * 64
    kept = sorted(path.name for path in (release.folder / "reconstructions").iterdir())
    assert len(kept) == 8 and kept[0] == "sub-024_T1w_real.nii.gz"


def test_the_same_files_give_the_same_figures(release, tmp_path):
    release.real(train=range(4), val=[4], test=range(5, 8))
    release.samples("good", range(100, 104))
    first = release.parts[-1].read_text()
    release.parts.pop()
    release.samples("good", range(100, 104))
    assert release.parts[-1].read_text() == first


def test_a_release_without_test_scans_has_rows_without_values(release):
    release.real(train=range(4))
    release.samples("good", range(100, 103))
    metrics, _ = release.merged()
    row = figure(metrics, "good", "frechet_distance")
    assert np.isnan(row["value"]) and row["n"] == 3
    assert not metrics["metric"].str.contains("to_training_than_null").any()
    assert not np.isnan(figure(metrics, "good", "volume_ml", "brain")["value"])


def test_what_cannot_be_evaluated_is_refused_with_the_remedy(release, write_brains):
    with pytest.raises(EvaluationError, match="no preprocessed training scan"):
        release.real(train=[], test=[1, 2])
    release.parts.clear()
    release.real(train=range(3), test=[5, 6])
    with pytest.raises(EvaluationError, match="rename the run"):
        release.samples("noise", [1, 2])
    with pytest.raises(EvaluationError, match="decode the samples first"):
        release.samples("empty", [])
    with pytest.raises(EvaluationError, match="decode to"):
        evaluate_noise(
            release.reference, release.codec, release.settings, release="demo", latent_mean=[0.0] * 4,
            latent_std=[1.0] * 4, latent_shape=(4, 4, 4, 4), n=2, seed=0,
            cache=release.folder / "cache", part=release.folder / "x.json",
        )  # fmt: skip


def test_two_parts_with_the_same_figure_are_refused(release):
    release.real(train=range(3), test=[5, 6])
    with pytest.raises(ValueError, match="both hold .*'run': 'real'.*'metric': 'kernel_distance'"):
        merge_metrics(release.parts * 2, metrics=release.folder / "m.parquet", scans=release.folder / "s.parquet")
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_metrics([], metrics=release.folder / "m.parquet", scans=release.folder / "s.parquet")


def test_distances_are_taken_over_so_many_scans_and_copies_looked_for_among_all(release, caplog):
    release.settings = release.settings.model_copy(update={"compared": 5})
    release.real(train=range(8), val=[8], test=range(9, 17))
    release.samples("good", range(100, 108))
    metrics, scans = release.merged()
    assert figure(metrics, "good", "kernel_distance")["n"] == 5
    assert figure(metrics, "real", "kernel_distance")["n"] == 4, "a floor has as many scans as the runs' volumes"
    for metric in ("volume_ml", "nearest_training_distance"):
        assert (metrics[(metrics["run"] == "good") & (metrics["metric"] == metric)]["n"] == 8).all()
    assert scans[scans["run"] == "good"]["nearest_distance_codec"].notna().all()
    assert "of 8 volumes the features of 5 are compared (evaluate.compared)" in caplog.text


def test_slices_of_another_extractor_are_compared_plane_by_plane(release, monkeypatch):
    def load(name, *, codec, **kwargs):
        by_mean = by_slice(lambda slices: torch.stack([slices.mean((1, 2)), slices.std((1, 2))], dim=1))
        return codec_extractor(codec) if name == "codec" else Extractor(name, "0" * 64, by_mean)

    monkeypatch.setattr(evaluate, "load_extractor", load)
    release.settings = release.settings.model_copy(update={"extractors": ("codec", "squeezenet")})
    release.real(train=range(8), val=[8], test=range(9, 17))
    release.samples("good", range(100, 108))
    metrics, _ = release.merged()
    for plane in ("axial", "coronal", "sagittal"):
        row = figure(metrics, "good", "frechet_distance", plane, "squeezenet")
        assert row["n"] == 8 and row["ci_low"] <= row["value"] <= row["ci_high"]
    assert figure(metrics, "real", "coverage", "axial", "squeezenet")["value"] > 0
    release.settings = release.settings.model_copy(update={"extractors": ("codec", "squeezenet", "inception")})
    with pytest.raises(EvaluationError, match="without it; evaluate the release's real scans again"):
        release.samples("other", range(100, 103))
