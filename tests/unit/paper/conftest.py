"""A small evaluated release as the evaluation would have written it, made of noise and ellipsoids."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from neuromf.config import Config
from neuromf.evaluation.rows import DIFFERENCE_COLUMNS
from neuromf.evaluation.seeds import compare_seeds
from neuromf.tables import ManifestRow, ReleaseRow, write_manifest, write_release
from neuromf.volume import write_volume

AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])
NASTY = 'x.nii.gz is "truncated" <script>alert(1)</script> & damaged; copy it again'
TISSUES = ("brain", "csf", "grey", "white", "deep_csf")


def make_brain(seed):
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 32)] * 3, indexing="ij")
    inside = (x / 0.7) ** 2 + (y / 0.85) ** 2 + (z / 0.7) ** 2 < 1
    return (inside * np.random.default_rng(seed).uniform(0.5, 0.9, x.shape)).astype(np.float32)


def make_metrics(nfes=(1, 2)):
    rows = []

    def add(run, seed, nfe, metric, region, value, extractor="none", half=0.1):
        interval = (None, None) if value is None else (value - half, value + half)
        rows.append(("demo", run, seed, nfe, metric, region, extractor, value, *interval, 16))

    for run, value in (("real", 0.5), ("reconstruction", 0.2), ("noise", 12.0)):
        add(run, None, None, "frechet_distance", "volume", value, "codec")
        add(run, None, None, "kernel_distance", "volume", value / 100, "codec")
    for run in ("reconstruction", "linear_reconstruction"):
        add(run, None, None, "psnr", "brain_box", 27.5)
        add(run, None, None, "ssim", "brain_box", 0.91)
        add(run, None, None, "psnr", "brain", 24.5)
        add(run, None, None, "ssim", "brain", 0.88)
        add(run, None, None, "mae", "brain", 0.03)
        for plane in ("sagittal", "coronal", "axial"):
            add(run, None, None, "lpips", plane, None)
    for run, value in (("real", 0.1), ("reconstruction", 0.08), ("noise", 0.3)):
        add(run, None, None, "high_frequency_ratio", "volume", value, half=0.01)
    for run in ("meanflow", "rectified_flow"):
        for nfe in nfes:
            add(run, 0, nfe, "frechet_distance", "volume", 2.0 if run == "meanflow" else 4.0, "codec")
            add(run, 0, nfe, "kernel_distance", "volume", None, "codec")
            add(run, 0, nfe, "high_frequency_to_reconstruction", "volume", 0.77, half=0.01)
            add(run, 0, nfe, "brain_volume_in_real_range", "brain", 0.9)
            for target in ("training", "other"):
                add(run, 0, nfe, f"{target}_null_scans", "brain", 19, "pixels")
                for closer in ("closer", "relatively_closer"):
                    for rank, share in (("1st", None), ("5th", 0.06), ("closest", 0.04)):
                        add(run, 0, nfe, f"{closer}_to_{target}_than_null_{rank}", "brain", share, "pixels")
            for stage, seconds in (("network", 0.1 * nfe), ("decode", 0.5), ("total", 0.5 + 0.1 * nfe)):
                add(run, 0, nfe, "seconds_per_volume", stage, seconds)
    columns = ["release", "run", "seed", "nfe", "metric", "region", "extractor", "value", "ci_low", "ci_high", "n"]
    return pd.DataFrame(rows, columns=columns).astype(
        {"seed": "Int64", "nfe": "Int64", "value": float, "ci_low": float}
    )


def make_latents(channels=4, scans=20):
    """A description of latents as the evaluation writes it; without intervals and components for fewer than two scans."""
    low, high = (0.1, 0.3) if scans > 1 else (None, None)
    rows = [
        {"figure": name, "channel": c, "value": 0.2, "ci_low": low, "ci_high": high, "n": scans}
        for name in ("mean", "std", "skewness", "kurtosis", "kolmogorov_smirnov") for c in range(channels)
    ]  # fmt: skip
    whole = {"channel": None, "ci_low": low, "ci_high": high, "n": scans}
    rows.append({"figure": "effective_dimension_channels", "value": 2.5} | whole)
    rows.append({"figure": "effective_dimension_scans", "value": 9.1 if scans > 1 else None} | whole)
    return {
        "n": scans, "figures": rows, "edges": np.linspace(-6, 6, 241).tolist(),
        "density": np.full((channels, 240), 1 / 12).tolist(), "correlation": np.eye(channels).tolist(),
        "channel_pca": [1 / channels] * channels,
        "scan_pca": {"scans": scans, "explained": [0.1] * 10 if scans > 1 else []},
    }  # fmt: skip


GATE = """figure\tmean\tci_low\tci_high\tn\tthreshold\tverdict
ssim_brain\t0.91\t0.9\t0.92\t6\t≥ 0.9\tpassed
psnr_brain\t24.5\t24.1\t24.9\t6\t≥ 30\tfailed
lpips_axial\tn/a\tn/a\tn/a\t0\t≤ 0.1\tnot measured
"""


def make_scans(nfes=(1, 2)):
    random = np.random.default_rng(0)
    rows = []
    sets = [("real", None, None, split) for split in ("train", "val", "test")]
    sets += [(run, 0, nfe, "generated") for run in ("meanflow", "rectified_flow") for nfe in nfes]
    for run, seed, nfe, split in sets:
        for index in range(6):
            row = {"release": "demo", "run": run, "seed": seed, "nfe": nfe, "split": split, "scan": f"{split}{index}"}
            row |= {f"{tissue}_ml": random.normal(500, 40) for tissue in TISSUES}
            known = split != "train"
            row["nearest_correlation"] = random.uniform(0.8, 0.9) if known else np.nan
            row["nearest_distance_codec"] = random.uniform(1, 2) if known else np.nan
            rows.append(row)
    return pd.DataFrame(rows).astype({"seed": "Int64", "nfe": "Int64"})


def make_spectra(nfes=(1, 2)):
    """Spectra on a grid of 32 voxels of 6 mm: 16 shells."""
    k = (np.arange(16) + 0.5) / 16 * 0.5 / 6
    sets = [("real", None, None, 1.0), ("reconstruction", None, None, 0.8), ("noise", None, None, 2.0)]
    sets += [(run, 0, nfe, 0.5) for run in ("meanflow", "rectified_flow") for nfe in nfes]
    rows = []
    for run, seed, nfe, share in sets:
        power = share * np.exp(-40 * k)
        shown = {"power": power}
        if run != "real":
            shown["power_to_real"] = np.full(16, share)
        if run not in ("real", "reconstruction"):
            shown["power_to_reconstruction"] = np.full(16, share / 0.8)
        for spectrum, values in shown.items():
            rows += [("demo", run, seed, nfe, spectrum, f, v, 0.9 * v, 1.1 * v, 16)
                     for f, v in zip(k, values, strict=True)]  # fmt: skip
    columns = ["release", "run", "seed", "nfe", "spectrum", "cycles_per_mm", "value", "ci_low", "ci_high", "n"]
    return pd.DataFrame(rows, columns=columns).astype({"seed": "Int64", "nfe": "Int64"})


def make_differences():
    """One run against the other at two NFE and each at two NFE against one, of two figures."""
    sets = [("meanflow", n, "rectified_flow", n) for n in (1, 2)]
    sets += [(run, 2, run, 1) for run in ("meanflow", "rectified_flow")]
    figures = (("kernel_distance", "volume", "codec", -0.0124), ("volume_ml", "brain", "none", 41.4))
    rows = [
        ("demo", run, nfe, other, other_nfe, 0, *figure, v, v - abs(v) / 2, v + abs(v) / 2, 16, 0.01, 0.2)
        for run, nfe, other, other_nfe in sets for *figure, v in figures
    ]  # fmt: skip
    rows.append(
        (
            "demo",
            "meanflow",
            1,
            "rectified_flow",
            1,
            0,
            "frechet_distance",
            "volume",
            "codec",
            *[None] * 3,
            1,
            *[None] * 2,
        )
    )
    return pd.DataFrame(rows, columns=list(DIFFERENCE_COLUMNS))


def make_seed_metrics(seeds, runs=("meanflow", "rectified_flow")):
    """Figures of runs with several seeds, as far apart as their runs' numbers."""
    random = np.random.default_rng(0)
    figures = (("frechet_distance", "volume", "codec", 2.0), ("volume_ml", "brain", "none", 1200))
    rows = [
        {"release": "demo", "run": run, "seed": seed, "nfe": 1, "metric": metric, "region": region, "extractor": extractor,
         "value": level + (level / 10) * (number + random.normal(0, 0.3))}
        for metric, region, extractor, level in figures
        for number, run in enumerate(runs) for seed in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"seed": "Int64", "nfe": "Int64"})


@pytest.fixture
def differences():
    return make_differences()


@pytest.fixture
def seed_tests(tmp_path):
    """Write the tests of runs with some seeds and return their path."""

    def write(seeds, runs=("meanflow", "rectified_flow")):
        make_seed_metrics(seeds, runs).to_parquet(tmp_path / "of_seeds.parquet")
        compare_seeds(tmp_path / "of_seeds.parquet", tmp_path / "seed_tests.parquet", confidence=0.95)
        return tmp_path / "seed_tests.parquet"

    return write


@pytest.fixture
def latent_content():
    return make_latents


@pytest.fixture
def gate(tmp_path):
    (tmp_path / "codec_gate.tsv").write_text(GATE)
    return tmp_path / "codec_gate.tsv"


@pytest.fixture
def spectra_table():
    return make_spectra()


@pytest.fixture
def metrics():
    return make_metrics()


@pytest.fixture
def scans():
    return make_scans()


@pytest.fixture
def brain():
    return make_brain


@pytest.fixture
def nasty():
    return NASTY


@pytest.fixture
def manifests(tmp_path):
    """Cohort → stage → manifests: four scans done, one truncated at the start, one without contrast later."""
    done = {
        "skull_strip": {"brain_ml": 1400.0},
        "bias_correct": {"field_min": 0.8, "field_max": 1.3},
        "conform": {"brain_ml": 1300.0, "cut_fraction": 0.01, "warning": "1.0 % of the brain <lies> outside"},
    }
    found = {}
    for stage, figures in done.items():
        rows = [ManifestRow(f"sub-{i}_T1w", "ok", "", "f", 1, f"a{i}", "k", dict(figures)) for i in range(4)]
        for row in rows[1:]:
            row.figures.pop("warning", None)
        rows.append(ManifestRow("sub-8_T1w", "failed", NASTY))
        late = ManifestRow("sub-9_T1w", "failed", "no contrast") if stage == "conform" else rows[1]
        rows.append(ManifestRow("sub-9_T1w", late.status, late.reason, figures=late.figures))
        path = tmp_path / stage / "shard-0000.tsv"
        write_manifest(path, rows)
        found[stage] = [path]
    return {"demo": found}


@pytest.fixture
def evaluated(tmp_path, metrics, scans, manifests, gate, spectra_table, differences, seed_tests):
    """Everything a report is made of, on disk."""
    paths = SimpleNamespace(
        release_table=tmp_path / "demo.tsv", metrics=tmp_path / "metrics.parquet", scans=tmp_path / "scans.parquet",
        reconstructions=tmp_path / "reconstructions", samples={}, training={}, manifests=manifests, codec_gate=gate,
        codec_picture=tmp_path / "codec_worst.png", latents=tmp_path / "latents.json", spectra=tmp_path / "spectra.parquet",
        copies_picture=tmp_path / "copies.png",
        differences=tmp_path / "differences.parquet", seed_tests=seed_tests(1),
        config=Config(runs={"meanflow": {}, "rectified_flow": {}}).model_dump(mode="json"),
    )  # fmt: skip
    splits = ["train", "train", "val", "test"]
    write_release(paths.release_table, [ReleaseRow(str(i), None, "T1w", "demo", s) for i, s in enumerate(splits)])
    metrics.to_parquet(paths.metrics)
    scans.to_parquet(paths.scans)
    spectra_table.to_parquet(paths.spectra)
    differences.to_parquet(paths.differences)
    paths.latents.write_text(json.dumps(make_latents()))
    paths.codec_picture.write_bytes(b"\x89PNG of the worst scans")
    paths.copies_picture.write_bytes(b"\x89PNG of the nearest pairs")
    provenance = [{"codec_sha256": "c" * 64}]
    paths.metrics.with_suffix(".json").write_text(json.dumps({"provenance": provenance, "rows": []}))
    for kind in ("real", "reconstruction"):
        write_volume(paths.reconstructions / f"sub-3_T1w_{kind}.nii.gz", make_brain(0), AFFINE, np.float32)
    for run in ("meanflow", "rectified_flow"):
        for nfe in (1, 2):
            folder = paths.samples[run, nfe] = tmp_path / "samples" / run / f"nfe-{nfe}"
            for i in range(5):
                write_volume(folder / f"sub-synth{i}_T1w.nii.gz", make_brain(i + nfe), AFFINE, np.float32)
            machine = {"device": "cpu", "name": "Fast CPU", "threads": 2, "joules": None}
            hardware = {"network": machine, "decode": machine | {"name": "Other CPU", "joules": "RAPL"}}
            (folder / "sample_timing.json").write_text(json.dumps({"hardware": hardware}))
        folder = paths.training[run] = tmp_path / "runs" / run
        folder.mkdir(parents=True)
        steps = np.arange(10, 101, 10)
        losses = pd.DataFrame(
            {"step": steps, "raw_fm": 1 / steps, "raw_mf": 2 / steps if run == "meanflow" else np.nan}
        )
        losses.to_csv(folder / "metrics.csv", index=False)
        (folder / "progress").mkdir()
        for update in (20, 40, 60, 80):
            (folder / "progress" / f"update-{update:06d}.png").write_bytes(b"picture")
        distances = {"0.05": 0.25, "online": 0.5}
        validation = [losses.iloc[4::5].assign(average=a, sample_distance=d) for a, d in distances.items()]
        pd.concat(validation).to_csv(folder / "val.csv", index=False)
        start = {"name": "demo", "variant": "imf", "sha256": "d" * 64} if run == "meanflow" else None
        training = {"parameters": 1234567, "updates": 100, "seconds": 90.0, "device": "cpu", "warm_start": start}
        training |= {"exported": {"average": "0.05", "update": 100}, "stopped": None, "skipped": 0}
        about = {"training": training, "config": {"flow": {"variant": "imf"}}, "codec": {"name": "demo"}}
        (folder / "model.json").write_text(json.dumps(about | {"code_version": "0.1.0"}))
        (folder / "model.safetensors").write_bytes(b"weights")
    return paths
