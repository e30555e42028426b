"""Rows of the evaluation's tables: every figure with n and interval, neighbours compared as told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuromf.evaluation.morphometry.backends import find_segmenter
from neuromf.evaluation.morphometry.regions import (
    add_nearest_regions,
    add_region_comparison,
    add_regions,
    describe_regions,
)
from neuromf.evaluation.morphometry.segmentation import file_scans
from neuromf.evaluation.rows import METRIC_COLUMNS, Part


@pytest.fixture
def sets(tmp_path: Path, write_brains):
    segmenter, cache = find_segmenter("tissues"), tmp_path / "cache"
    real = describe_regions(file_scans(write_brains("real", range(6))), segmenter, cache, label="real")
    files = write_brains("generated", range(2, 6)) | write_brains("large", [20], scale=1.15)
    return describe_regions(file_scans(files), segmenter, cache, label="generated"), real


def rows(part: Part, metric: str) -> dict[str, dict]:
    return {row["region"]: row for row in part.metrics if row["metric"] == metric}


def test_every_figure_has_n_and_interval(sets, settings) -> None:
    generated, real = sets
    part = Part("demo", "meanflow", 0, 1)
    add_regions(part, generated, settings)
    add_region_comparison(part, generated, real, settings)
    for row in part.metrics:
        assert set(row) == set(METRIC_COLUMNS) and row["extractor"] == "tissues" and row["n"] == 5
        if row["value"] is None:  # these brains' white matter is exactly symmetric
            assert (row["metric"], row["region"]) == ("asymmetry_cohens_d", "white")
        else:
            assert row["ci_low"] <= row["ci_high"], (row["metric"], row["region"])
    for metric in ("volume_ml", "cohens_d", "kl_divergence", "wasserstein_ml", "volume_in_real_range"):
        assert list(rows(part, metric)) == ["brain", "csf", "grey", "white", "deep_csf"]
    assert set(rows(part, "asymmetry")) == set(rows(part, "asymmetry_cohens_d")) == {"csf", "grey", "white"}
    ratio = rows(part, "volume_ratio")["grey/white"]["value"]
    assert ratio == pytest.approx((generated.volume("grey") / generated.volume("white")).mean())
    assert rows(part, "volume_in_real_range")["brain"]["value"] == pytest.approx(0.8)  # the large one is outside
    assert not rows(part, "quality")


def test_quality_passes_where_every_score_does(sets, settings) -> None:
    generated, _ = sets
    scored = replace(
        generated,
        scores=("thalamus", "csf"),
        quality=np.array([[0.9, 0.9], [0.9, 0.6], [0.7, 0.7], [0.5, 0.9], [1, 1]]),
    )
    part = Part("demo", "meanflow", 0, 1)
    add_regions(part, scored, settings)
    assert rows(part, "quality_pass")["all"]["value"] == pytest.approx(0.6)
    assert rows(part, "quality")["thalamus"]["value"] == pytest.approx(0.8)


def test_nearest_scans_are_compared_in_pairs(sets, settings) -> None:
    generated, real = sets
    part, twins = Part("demo", "meanflow", 0, 1), [2, 3, 4, 5]
    four = generated.of_scans(range(4))
    add_nearest_regions(part, four, real, twins, [False] * 4, settings)
    assert rows(part, "nearest_volume_correlation")["grey"]["value"] == pytest.approx(1)
    assert rows(part, "nearest_volume_correlation")["all"]["value"] == pytest.approx(1)
    assert {row["value"] for row in rows(part, "nearest_dice").values()} == {1.0}
    other = Part("demo", "meanflow", 0, 1)
    add_nearest_regions(other, four, real, [0, 0, 1, 1], [False] * 4, settings)
    assert rows(other, "nearest_dice")["white"]["value"] < 0.99
    with pytest.raises(ValueError, match="one row of the real scans per generated scan"):
        add_nearest_regions(part, generated, real, twins, [False] * 4, settings)


def test_sets_of_different_segmenters_are_refused(sets, settings) -> None:
    generated, real = sets
    with pytest.raises(ValueError, match="use one segmenter"):
        add_region_comparison(Part("demo", "x", 0, 1), generated, replace(real, segmenter="atropos"), settings)
    with pytest.raises(ValueError, match="no volumes to segment"):
        describe_regions([], find_segmenter("tissues"), Path("unused"), label="none")


def test_regions_that_all_lie_one_way_have_no_correlation(sets, settings) -> None:
    """Of two real brains the larger one is so in every region: standardised, each is a constant."""
    _, real = sets
    volumes = np.array([[1200.0, 300, 500, 400, 30], [1567, 397, 657, 527, 46]])
    part, two = Part("demo", "meanflow", 0, 1), replace(real.of_scans([0, 1]), volumes=volumes)
    add_nearest_regions(part, two, two, [1, 0], [False] * 2, settings)
    assert rows(part, "nearest_volume_correlation")["all"]["value"] is None
