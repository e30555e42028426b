"""Regional volumes: whose rows are shown, the picture and the tables."""

import pandas as pd
import pytest

from neuromf.paper.regions import draw_regions, ratio_table, region_table, regional, regions

RUNS = (("real", None, None), ("meanflow", 0, 1), ("meanflow", 0, 5), ("meanflow", 1, 1), ("rectified_flow", 0, 5))
COLUMNS = ["release", "run", "seed", "nfe", "metric", "region", "extractor", "value", "ci_low", "ci_high", "n"]


@pytest.fixture
def metrics():
    rows = []
    for segmenter, names in (("subcortical", ("hippocampus", "brain_stem")), ("atropos", ("grey", "white", "csf"))):
        for place, (run, seed, nfe) in enumerate(RUNS):
            for region in names:
                for metric in ("volume_ml", "cohens_d", "volume_in_real_range", "asymmetry_cohens_d", "nearest_dice"):
                    if run != "real" or not metric.startswith("nearest"):
                        rows.append(
                            ("demo", run, seed, nfe, metric, region, segmenter, place, place - 1, place + 1, 16)
                        )
            rows.append(("demo", run, seed, nfe, "volume_ratio", "grey/white", segmenter, 1.2, 1.1, 1.3, 16))
            rows.append(
                ("demo", run, seed, nfe, "volume_ratio_cohens_d", "grey/white", segmenter, None, None, None, 16)
            )
    rows.append(("demo", "meanflow", 0, 1, "cohens_d", "brain", "none", 9.0, 8.0, 10.0, 16))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"seed": "Int64", "nfe": "Int64", "value": float})


def test_each_run_is_shown_once_at_its_fewest_evaluations_and_first_seed(metrics):
    shown = regional(metrics)[["run", "seed", "nfe"]].drop_duplicates().fillna(-1).values.tolist()
    assert shown == [["real", -1, -1], ["meanflow", 0, 1], ["rectified_flow", 0, 5]]
    assert set(regional(metrics)["extractor"]) == {"subcortical", "atropos"}


def test_the_picture_has_a_row_of_panels_per_segmenter_and_a_line_per_region(metrics, tmp_path):
    figure = regions(metrics)
    assert len(figure.axes) == 2 * 3
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["hippocampus", "brain stem"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "real against real scans",
        "meanflow",
        "rectified flow",
    ]
    metrics.to_parquet(tmp_path / "metrics.parquet")
    draw_regions(tmp_path / "metrics.parquet", tmp_path / "regions.png")
    assert (tmp_path / "regions.png").read_bytes().startswith(b"\x89PNG")


def test_tables_have_real_and_generated_means_and_dashes_for_what_has_no_value(metrics):
    table = region_table(metrics, "meanflow")
    assert table["Region"].tolist() == ["hippocampus", "brain stem", "grey", "white", "csf"]
    assert table["Real, ml"][0] == "0.00 [-1.00, 1.00]" and table["Meanflow, ml"][0] == "1.00 [0.00, 2.00]"
    assert table["KL divergence"][0] == "–"
    ratios = ratio_table(metrics, "meanflow")
    assert ratios["Segmenter"].tolist() == ["subcortical", "atropos"] and ratios["Real"][0] == "1.200 [1.100, 1.300]"
    assert ratios["Cohen's d"][0] == "–"
