import csv

import pandas as pd

from neuromf.paper.tables import (
    CODEC_COLUMNS,
    extractor_columns,
    figure_of,
    measured,
    metric_table,
    write_csv,
    write_latex,
)


def test_references_come_first_noise_last_and_cells_have_intervals(metrics):
    table = metric_table(metrics)
    assert table["Run"].tolist() == [
        "real train vs real test", "codec reconstruction", "meanflow", "meanflow", "rectified flow", "rectified flow",
        "decoded noise",
    ]  # fmt: skip
    assert table["NFE"].tolist() == ["–", "–", "1", "2", "1", "2", "–"]
    row = table.iloc[2]
    assert row["Fréchet distance (codec) ↓"] == "2.00 [1.90, 2.10]" and row["n"] == "16"
    assert row["KID (codec) ×1000 ↓"] == "–"
    assert row["Brain volume in real range (%) ↑"] == "90 [80, 100]"
    assert metric_table(metrics, CODEC_COLUMNS)["Run"].tolist() == ["codec reconstruction", "linear codec"]


def test_columns_without_a_value_are_left_out(metrics):
    table = measured(metric_table(metrics))
    assert "NFE" in table and not (table == "–").all().any()
    assert "NFE" not in measured(metric_table(metrics, CODEC_COLUMNS))


def test_csv_and_latex_hold_the_same_cells(metrics, tmp_path):
    write_csv(metrics, tmp_path / "t.csv")
    write_latex(metrics, tmp_path / "t.tex")
    with (tmp_path / "t.csv").open(encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    latex = (tmp_path / "t.tex").read_text(encoding="utf-8")
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(body) == len(rows) == 9
    assert all(line.count(" & ") == len(rows[0]) - 1 for line in body)
    assert r"(\%)" in body[0] and r"Fr\'echet" in body[0] and "27.50 [27.40, 27.60]" in latex
    assert latex.isascii()


def test_one_figure_is_found_or_none(metrics):
    assert figure_of(metrics, "meanflow", "frechet_distance", "volume", 2, "codec")["value"] == 2.0
    assert figure_of(metrics, "meanflow", "kernel_distance", "volume", 2, "codec") is None
    assert figure_of(metrics, "other", "frechet_distance", "volume", extractor="codec") is None
    assert figure_of(metrics, "meanflow", "frechet_distance", "volume", 2) is None, (
        "another extractor's is another figure"
    )


def test_further_extractors_have_columns_and_only_inceptions_distance_is_called_fid(metrics, tmp_path):
    rows = metrics[metrics["metric"].isin(["frechet_distance", "kernel_distance"]) & (metrics["run"] == "meanflow")]
    more = [rows.assign(extractor=extractor, region=plane, value=7.0)
            for extractor, plane in (("inception", "axial"), ("subcortical", "volume"))]  # fmt: skip
    metrics = pd.concat([metrics, *more], ignore_index=True)
    titles = [column.title for column in extractor_columns(metrics)]
    assert titles == [
        "KID, axial ×1000", "FID, axial", "KID (subcortical), volume ×1000", "Fréchet distance (subcortical), volume",
    ]  # fmt: skip
    write_csv(metrics, tmp_path / "t.csv")
    table = pd.read_csv(tmp_path / "t.csv")
    row = table[(table["Run"] == "meanflow") & (table["NFE"] == "1")].iloc[0]
    assert row["FID, axial ↓"].startswith("7.00") and row["Fréchet distance (codec) ↓"].startswith("2.00")
