"""`neuromf evaluate` on folders of ellipsoids: figures, provenance, resumption, refusals."""

import json
import logging
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from neuromf.cli import app
from neuromf.evaluation import compare
from neuromf.evaluation.compare import evaluate_folders
from neuromf.evaluation.distances import METRICS
from neuromf.evaluation.extractors.registry import CARDS, CODEC, Extractor, ExtractorError, codec_extractor
from neuromf.evaluation.extractors.slices import by_slice
from neuromf.evaluation.rows import METRIC_COLUMNS
from neuromf.evaluation.scans import EvaluationError
from neuromf.paper.comparison import write_comparison


@pytest.fixture(autouse=True)
def quick_networks(monkeypatch):
    """Every registered extractor is the mean and spread of slices; `squeezenet` alone has weights."""
    computed = []

    def load(name, *, codec=None, **kwargs):
        def moments(slices):
            computed.append(len(slices))
            return torch.stack([slices.mean((1, 2)), slices.std((1, 2)), slices.amax((1, 2))], dim=1)

        return codec_extractor(codec) if name == CODEC else Extractor(name, "0" * 64, by_slice(moments))

    monkeypatch.setattr(compare, "load_extractor", load)
    monkeypatch.setattr(compare, "available", lambda _: {name: "" if name == "squeezenet" else "x" for name in CARDS})
    return computed


@pytest.fixture
def folders(tmp_path, write_brains):
    write_brains("real", range(12)), write_brains("good", range(100, 110)), write_brains("train", range(200, 206))
    write_brains("large", range(120, 128), scale=1.2), write_brains("copies", range(200, 204))
    return tmp_path


def run(folders, synthetic, settings, **kwargs):
    out = folders / f"out_{synthetic}"
    evaluate_folders(folders / "real", folders / synthetic, out, settings=settings, **kwargs)
    return pd.read_parquet(out / "metrics.parquet"), json.loads((out / "metrics.json").read_text())


def value(metrics, run, metric, region, extractor=None):
    rows = metrics[(metrics["run"] == run) & (metrics["metric"] == metric) & (metrics["region"] == region)]
    rows = rows if extractor is None else rows[rows["extractor"] == extractor]
    assert len(rows) == 1
    return rows.iloc[0]["value"]


def test_good_and_large_brains_are_told_apart_by_every_extractor(folders, settings, codec, caplog):
    good, about = run(folders, "good", settings, codec=codec)
    large, _ = run(folders, "large", settings, codec=codec)
    assert tuple(good.columns) == METRIC_COLUMNS
    for extractor, region in ((CODEC, "volume"), ("squeezenet", "axial"), ("squeezenet", "coronal")):
        for metric in ("frechet_distance", "kernel_distance"):
            assert value(good, "synthetic", metric, region, extractor) < value(
                large, "synthetic", metric, region, extractor
            )
        assert {m for m in METRICS if not np.isnan(value(good, "real", m, region, extractor))} == set(METRICS)
    assert value(large, "synthetic", "brain_volume_in_real_range", "brain") == 0
    assert value(good, "synthetic", "ms_ssim", "volume") > 0 and value(good, "real", "ms_ssim", "volume") > 0
    assert value(good, "synthetic", "high_frequency_to_real", "volume") == pytest.approx(1, abs=0.1)
    spectra = pd.read_parquet(folders / "out_good" / "spectra.parquet").groupby(["run", "spectrum"]).size()
    assert spectra.to_dict() == {("real", "power"): 16, ("synthetic", "power"): 16, ("synthetic", "power_to_real"): 16}
    assert not good["metric"].str.contains("training").any()
    assert value(good, "synthetic", "closer_to_other_than_null_closest", "brain", "pixels") < 0.4
    assert "inception is left out: x" in caplog.text and "12 and 10 scans, 64 features" in caplog.text

    provenance = about["provenance"]
    assert provenance["inputs"]["real"]["volumes"] == 12 and provenance["extractors"]["squeezenet"]["features"] == 3
    assert provenance["grid"] == {
        "shape": [32, 32, 32],
        "voxel_mm": 6.0,
        "resampled": False,
        "intensity": "kept, 0 to 1",
    }
    assert len(about["rows"]) == len(good)


def test_copies_of_training_scans_are_found(folders, settings, codec, caplog):
    metrics, _ = run(folders, "copies", settings, codec=codec, train=folders / "train", extractors=[CODEC])
    for extractor in ("pixels", "codec"):
        assert value(metrics, "synthetic", "closer_to_training_than_null_closest", "brain", extractor) == 1
    scans = pd.read_parquet(folders / "out_copies" / "scans.parquet")
    copied = scans[scans["run"] == "synthetic"]
    assert copied["nearest_scan"].tolist() == copied["scan"].tolist()
    assert "4 files of --synthetic are in --train too" in caplog.text
    text = write_comparison(folders / "out_copies")
    table = pd.read_csv(folders / "out_copies" / "copies.csv", dtype=str).set_index(["Nearest", "By"])
    assert table.loc["training scan", "Null, scans"].tolist() == ["12", "12"]
    assert table.loc[("training scan", "pixels"), "Closer, closest"].startswith("1 [0.51")
    assert table.loc[("training scan", "codec"), "Closer, 5th"] == "–" and "the 5th 19" in text
    assert (folders / "out_copies" / "copies.png").read_bytes().startswith(b"\x89PNG")
    kept = {path.name for path in (folders / "out_copies" / "suspects" / "train").iterdir()}
    assert kept == {f"sub-{seed}_T1w.nii.gz" for seed in range(200, 204)}
    with pytest.raises(EvaluationError, match="12 files are in both --real and --train"):
        run(folders, "good", settings, train=folders / "real")


def test_an_interrupted_evaluation_goes_on(folders, settings, quick_networks, monkeypatch):
    calls = []
    describe = compare.describe

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return describe(*args)

    monkeypatch.setattr(compare, "describe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folders, "good", settings)
    before = len(quick_networks)
    assert before == 5 * 3
    first, _ = run(folders, "good", settings)
    assert len(quick_networks) == 22 * 3  # none was computed twice
    again, _ = run(folders, "good", settings)
    assert len(quick_networks) == 22 * 3 and first.equals(again)


def test_an_extractor_asked_for_by_name_must_be_there(folders, settings, monkeypatch):
    from neuromf.evaluation.extractors.registry import load_extractor

    monkeypatch.setattr(compare, "load_extractor", load_extractor)
    monkeypatch.setenv("NEUROMF_WEIGHTS", str(folders))
    with pytest.raises(ExtractorError, match=r"needs .*resnet_50_23dataset\.pth: fetch"):
        run(folders, "good", settings, extractors=["medicalnet_resnet50"])
    assert not (folders / "out_good" / "cache").exists()  # found out before any volume is read


def test_tables_quote_kid_first_and_say_why(folders, settings, codec):
    run(folders, "good", settings, codec=codec)
    out = folders / "out_good"
    text = write_comparison(out)
    table = pd.read_csv(out / "distances.csv")
    assert set(pd.read_csv(out / "copies.csv")["Nearest"]) == {"other volume"} and (out / "copies.png").stat().st_size
    titles = list(table.columns)
    assert titles.index("KID") < titles.index("Fréchet ∞") < titles.index("Fréchet")
    notes = dict(zip(table["Extractor"], table["Note"], strict=True))
    assert notes["codec"] == "fewer scans than features (10, 64)" and pd.isna(notes["squeezenet"])
    assert "so KID (unbiased) and the distance extrapolated" in text
    assert "Fréchet distance (squeezenet)" in text and "FID" not in text
    latex = (out / "distances.tex").read_text()
    assert latex.startswith(r"\begin{tabular}") and latex.isascii() and "so KID (unbiased)" in latex
    assert (out / "distances.png").stat().st_size
    assert len(pd.read_csv(out / "volumes.csv")) == 5


def test_the_command(folders, settings, caplog):
    arguments = [
        "evaluate",
        "--real",
        str(folders / "real"),
        "--synthetic",
        str(folders / "good"),
        "--bootstrap",
        "100",
        "--segmenter",
        "tissues",
    ]
    with caplog.at_level(logging.WARNING):
        done = CliRunner().invoke(app, [*arguments, "--out", str(folders / "o")])
    assert done.exit_code == 0 and "Cohen's d" in done.output
    names = {path.name for path in (folders / "o").iterdir()}
    assert {
        "metrics.parquet",
        "metrics.json",
        "scans.parquet",
        "distances.csv",
        "volumes.tex",
        "distances.png",
        "regions.png",
        "volumes.png",
        "spectrum.png",
        "copies.png",
        "ratios.tex",
    } <= names
    regions = pd.read_csv(folders / "o" / "regions.csv")
    assert regions["Region"].tolist() == ["brain", "csf", "grey", "white", "deep csf"]
    assert all("[" in cell for cell in regions["Cohen's d"]) and "Dice with nearest" in regions
    about = json.loads((folders / "o" / "metrics.json").read_text())["provenance"]
    assert list(about["segmenters"]) == ["tissues"]
    refused = CliRunner().invoke(app, [*arguments, "--out", str(folders / "p"), "--intensity", "minmax"])
    assert refused.exit_code == 2
    missing = CliRunner().invoke(app, ["evaluate", "--real", "none", "--synthetic", "x", "--out", str(folders / "q")])
    assert missing.exit_code == 1 and "none is no folder" in missing.output


def test_one_real_scan_has_no_distances_and_ends_well(folders, write_brains, settings):
    write_brains("one", [0])
    evaluate_folders(folders / "one", folders / "good", folders / "out", settings=settings)
    metrics = pd.read_parquet(folders / "out" / "metrics.parquet")
    assert metrics[metrics["metric"].isin(METRICS)]["value"].isna().all()
    assert "squeezenet" in write_comparison(folders / "out")


def test_out_and_the_folders_of_volumes_do_not_lie_in_each_other(folders, settings):
    kept = folders / "out" / "suspects"
    kept.parent.mkdir()
    (folders / "good").rename(kept)
    with pytest.raises(EvaluationError, match="--out .* and --synthetic .* lie in each other"):
        evaluate_folders(folders / "real", kept, folders / "out", settings=settings)
    assert len(list(kept.iterdir())) == 10
    with pytest.raises(EvaluationError, match="--out .* and --real .* lie in each other"):
        evaluate_folders(folders / "real", kept, folders / "real" / "out", settings=settings)


def test_real_scans_among_the_training_scans_are_found_however_they_are_packed(folders, settings):
    (folders / "real").rename(folders / "others"), shutil.copytree(folders / "train", folders / "real")
    for path in list((folders / "train").iterdir()):
        image = nib.load(path).as_reoriented(np.array([[0, -1], [2, 1], [1, 1]]))
        nib.save(image, folders / "train" / path.name.removesuffix(".gz"))
        path.unlink()
    with pytest.raises(EvaluationError, match=r"6 files are in both --real and --train .*sub-200"):
        run(folders, "copies", settings, train=folders / "train")


def test_tables_of_an_earlier_call_do_not_stay(folders, settings):
    run(folders, "good", settings, segmenters=["tissues"])
    write_comparison(folders / "out_good")
    assert (folders / "out_good" / "regions.csv").is_file()
    run(folders, "good", settings)
    write_comparison(folders / "out_good")
    assert not list((folders / "out_good").glob("r*ions.*")) and not list((folders / "out_good").glob("ratios.*"))
