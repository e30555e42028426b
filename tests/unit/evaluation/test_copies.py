"""Planted copies and duplicates among honest volumes: what the search finds, and what it does not."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import binom

from neuromf.evaluation.copies import (
    CODEC,
    PIXELS,
    add_search,
    most_suspect,
    null_size,
    pairs,
    search_others,
    search_real,
    search_training,
)
from neuromf.evaluation.extractors.registry import VOLUME, codec_extractor
from neuromf.evaluation.measure import add_scans
from neuromf.evaluation.memorisation import thumbnail
from neuromf.evaluation.rows import SCAN_COLUMNS, Part, write_parquet
from neuromf.evaluation.scans import ScanSet, join


@pytest.fixture
def anatomy(brain):
    """Brains that differ everywhere, as real ones do, not only in the size of their parts."""

    def make(seed):
        volume = brain(seed)
        own = gaussian_filter(np.random.default_rng([seed, 1]).normal(size=volume.shape), 2.5)
        return np.where(volume > 0, (volume + 0.15 * own / own.std()).clip(0.02, 1), 0).astype(np.float32)

    return make


@pytest.fixture
def described(codec):
    """Describe volumes (name → array) by what copies are looked for with."""

    def describe_all(volumes):
        tensors = [torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32)) for volume in volumes.values()]
        compute = codec_extractor(codec).compute
        features, mirrored = (
            np.concatenate([compute(tensor, 6.0)[VOLUME].numpy() for tensor in both])
            for both in (tensors, [tensor.flip(0) for tensor in tensors])
        )
        thumbs = np.stack([thumbnail(tensor.numpy()) for tensor in tensors])
        nothing = np.zeros((len(volumes), 5))
        return ScanSet(tuple(volumes), tuple(volumes), features, mirrored, thumbs, nothing, nothing)

    return describe_all


def noisy(volume, sigma):
    noise = np.random.default_rng(0).normal(0, sigma, volume.shape)
    return np.where(volume > 0, (volume + noise).clip(0, 1), 0)


@pytest.fixture
def train(anatomy):
    return {f"train{i}": anatomy(i) for i in range(20)}


@pytest.fixture
def held_out(anatomy, described):
    return described({f"held{i}": anatomy(50 + i) for i in range(99)})


def table_of(part, tmp_path):
    write_parquet(tmp_path / "scans.parquet", part.scans, SCAN_COLUMNS)
    return pd.read_parquet(tmp_path / "scans.parquet")


def metrics_of(part):
    return {(row["metric"], row["extractor"]): row for row in part.metrics}


def test_planted_mirrored_and_noisy_copies_are_found_and_named(anatomy, described, train, held_out, settings, tmp_path):
    planted = {
        "exact": train["train3"],
        "mirrored": train["train5"][::-1],
        "noisy": noisy(train["train7"], 0.03),
    }
    honest = {f"honest{i}": anatomy(200 + i) for i in range(20)}
    trained = described(train)
    search = search_training(described(planted | honest), trained, held_out)
    part, floor = Part("demo", "meanflow", 0, 1), Part("demo", "real")
    add_search(part, search, settings)
    add_scans(part, described(planted | honest), "generated", [search], settings)
    add_scans(floor, held_out, "test", [search_training(held_out, trained)], settings)
    table = table_of(Part("demo", "x", scans=part.scans + floor.scans), tmp_path)
    found = table.set_index("scan").loc[list(planted)]
    for suffix in ("", "_codec"):
        assert found[f"nearest_scan{suffix}"].tolist() == ["train3", "train5", "train7"]
        assert found[f"nearest_mirrored{suffix}"].tolist() == [False, True, False]
        assert (found[f"nearest_p{suffix}"] == 0.01).all() and (found[f"nearest_relative_p{suffix}"] == 0.01).all()
    assert found["nearest_correlation"].iloc[:2].tolist() == pytest.approx([1, 1], abs=1e-4)
    assert found["nearest_distance_codec"].iloc[:2].tolist() == pytest.approx([0, 0], abs=1e-5)

    metrics = metrics_of(part)
    for by in (PIXELS, CODEC):
        assert metrics["training_null_scans", by]["value"] == 99
        for closer in ("closer", "relatively_closer"):
            row = metrics[f"{closer}_to_training_than_null_1st", by]
            assert row["n"] == 23 and 3 / 23 <= row["value"] < 5 / 23 and row["ci_low"] < row["value"] < row["ci_high"]
            assert metrics[f"{closer}_to_training_than_null_5th", by]["value"] <= 7 / 23

    assert null_size(table, "training") == 99
    suspects = pairs(table, "training")
    assert set(suspects["scan"].head(6)) == set(planted) and suspects.head(6)["relatively_closer"].all()
    assert suspects["relative"].iloc[0] == pytest.approx(0, abs=1e-3)
    assert sorted(most_suspect(table, "training", 3)["scan"]) == sorted(planted)


def test_what_a_search_by_pixels_or_features_does_not_see(described, train, held_out):
    """Brightness changes no correlation but features; a shift hides a copy from both."""
    changed = {
        "darker": 0.8 * train["train9"],
        "shifted": np.roll(train["train8"], 2, axis=1),
    }
    search = search_training(described(changed), described(train), held_out)
    pixels, codec = ({scan: search.p_values(by)["p"][i] for i, scan in enumerate(changed)} for by in (PIXELS, CODEC))
    assert pixels["darker"] == 0.01 and search.names[search.found[PIXELS].index[0]] == "train9"
    assert codec["darker"] > 0.05
    assert pixels["shifted"] > 0.05 and codec["shifted"] > 0.05


def test_honest_volumes_are_flagged_no_more_often_than_chance_allows(anatomy, described, train, held_out):
    honest = described({f"honest{i}": anatomy(300 + i) for i in range(150)})
    search = search_training(honest, described(train), held_out)
    for by in (PIXELS, CODEC):
        for p in search.p_values(by).values():
            # of 150 volumes 5 %; the null of 99 is drawn once for all of them, so its own chance is added (beta-binomial)
            assert (p <= 0.05).sum() <= binom.ppf(0.999, 150, 0.1)


def test_a_smooth_volume_is_near_to_all_and_relatively_near_to_none(anatomy, described, train, held_out):
    mean = np.mean([anatomy(400 + i) for i in range(30)], axis=0)
    smooth = {f"smooth{i}": 0.7 * mean + 0.3 * anatomy(500 + i) for i in range(12)}
    search = search_training(described(smooth), described(train), held_out)
    p = search.p_values(PIXELS)
    assert (p["p"] <= 0.2).all() and (p["relative_p"] > 0.2).all()


def test_too_few_held_out_scans_leave_the_percentiles_without_a_value(anatomy, described, train, settings):
    few = described({f"held{i}": anatomy(50 + i) for i in range(9)})
    search = search_training(described({"copy": train["train0"], "own": anatomy(70)}), described(train), few)
    part = Part("demo", "meanflow", 0, 1)
    add_search(part, search, settings)
    metrics = metrics_of(part)
    for percentile in ("1st", "5th"):
        row = metrics[f"closer_to_training_than_null_{percentile}", PIXELS]
        assert row["value"] is None and row["n"] == 2
    assert metrics["closer_to_training_than_null_closest", PIXELS]["value"] == 0.5
    assert metrics["training_null_scans", PIXELS]["value"] == 9


def test_duplicates_among_the_samples_are_found_and_named(anatomy, described, settings, tmp_path):
    samples = {f"s{i}": anatomy(500 + i) for i in range(20)}
    samples |= {"exact": samples["s1"], "mirrored": samples["s2"][::-1], "noisy": noisy(samples["s3"], 0.03)}
    real = described({f"real{i}": anatomy(i) for i in range(100)})
    generated = described(samples)
    search = search_others(generated, real, settings)
    part, floor = Part("demo", "meanflow", 0, 1), Part("demo", "real")
    add_search(part, search, settings)
    add_scans(part, generated, "generated", [search], settings)
    add_scans(floor, real, "test", [search_real(real, real)], settings)
    table = table_of(Part("demo", "x", scans=part.scans + floor.scans), tmp_path)
    found = table.set_index("scan")
    twins = {"exact": "s1", "mirrored": "s2", "noisy": "s3"}
    for suffix in ("", "_codec"):
        for one, other in [*twins.items(), *((b, a) for a, b in twins.items())]:
            assert found.loc[one, f"other_scan{suffix}"] == other
            assert found.loc[one, f"other_p{suffix}"] <= 0.01 and found.loc[one, f"other_relative_p{suffix}"] <= 0.01
        assert found.loc["mirrored", f"other_mirrored{suffix}"] and not found.loc["exact", f"other_mirrored{suffix}"]
    metrics = metrics_of(part)
    for by in (PIXELS, CODEC):
        assert 6 / 23 <= metrics["closer_to_other_than_null_1st", by]["value"] <= 8 / 23
        assert metrics["other_null_scans", by]["value"] == 100
    pictured = most_suspect(table, "other", 3)
    assert {frozenset(pair) for pair in zip(pictured["scan"], pictured["nearest"], strict=True)} == {
        frozenset(pair) for pair in twins.items()
    }


def test_the_null_of_duplicates_has_as_many_candidates_as_the_samples(anatomy, described, settings, caplog):
    """Among 99 others the nearest is nearer than among 9; honest samples must not look diverse for being few."""
    real = described({f"real{i}": anatomy(i) for i in range(100)})
    few = described({f"s{i}": anatomy(600 + i) for i in range(10)})
    fair, whole = search_others(few, real, settings).null[PIXELS], search_real(real, real).found[PIXELS]
    assert fair.distance.mean() > whole.distance.mean() + 0.01
    assert not caplog.records
    search_others(real, few, settings)
    assert "100 volumes and 10 real scans" in caplog.text


def test_volumes_of_one_name_are_still_others(anatomy, described, train, settings):
    half = described({f"s{i}": anatomy(800 + i) for i in range(4)})
    found = search_others(join([half, half]), described(train), settings).found
    assert found[PIXELS].index.tolist() == [4, 5, 6, 7, 0, 1, 2, 3] and (found[CODEC].distance == 0).all()


def test_one_volume_or_no_null_leaves_rows_out(anatomy, described, train, settings):
    one = described({"s0": anatomy(700)})
    assert search_others(one, described(train), settings).found == {}
    unknown = search_training(one, described(train))
    part = Part("demo", "meanflow", 0, 1)
    add_search(part, unknown, settings)
    assert {row["metric"] for row in part.metrics} == {
        "nearest_training_correlation", "nearest_training_distance", "nearest_training_relative",
    }  # fmt: skip
    assert "nearest_p" not in unknown.columns(0) and unknown.columns(0)["nearest_scan"] in train
