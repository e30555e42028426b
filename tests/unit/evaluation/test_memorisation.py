import numpy as np
import pytest
from scipy.stats import binom

from neuromf.evaluation import memorisation
from neuromf.evaluation.memorisation import (
    Candidates,
    brain_of,
    feature_distances,
    nearest,
    p_values,
    resolved,
    search,
    standardised,
    suspect,
    thumbnail,
    thumbnail_distances,
)


def test_thumbnails_are_block_means_of_at_most_32_voxels(brain):
    volume = brain(0, side=64)
    small = thumbnail(volume)
    assert small.shape == (32, 32, 32) and small.dtype == np.float16
    assert small[10, 12, 14] == pytest.approx(volume[20:22, 24:26, 28:30].mean(), abs=1e-3)
    assert thumbnail(volume[:16, :40]).shape == (16, 32, 32)


def test_distances_of_thumbnails_are_pearsons_correlation_inside_the_brain(brain):
    thumbs = np.stack([thumbnail(brain(seed)) for seed in range(5)])
    mask = brain_of(thumbs)
    assert 0 < mask.mean() < 0.5 and (mask == mask[::-1]).all()
    direct, mirrored = thumbnail_distances(thumbs[:2], standardised(thumbs, mask), mask)
    flipped = thumbs[:, ::-1].astype(float)
    for i in range(2):
        for j in range(5):
            r = np.corrcoef(thumbs[i][mask].astype(float), thumbs[j][mask].astype(float))[0, 1]
            assert 1 - direct[i, j] ** 2 / 2 == pytest.approx(r, abs=1e-5)
            r = np.corrcoef(flipped[i][mask], thumbs[j][mask].astype(float))[0, 1]
            assert 1 - mirrored[i, j] ** 2 / 2 == pytest.approx(r, abs=1e-5)
    grey = np.full_like(thumbs[:1], 0.5)
    constant = nearest(*thumbnail_distances(grey, standardised(thumbs, mask), mask), np.ones((1, 5), bool), 2)
    assert constant.correlation[0] == pytest.approx(0, abs=1e-6)


def test_the_relative_distance_is_over_the_mean_of_the_next_ones():
    direct = np.array([[5.0, 1.0, 2.0, 4.0], [3.0, 9.0, 9.0, 9.0]])
    mirrored = np.array([[9.0, 9.0, 9.0, 3.0], [9.0, 9.0, 9.0, 1.5]])
    every = np.ones((2, 4), dtype=bool)
    found = nearest(direct, mirrored, every, 2)
    assert found.index.tolist() == [1, 3] and found.mirrored.tolist() == [False, True]
    assert found.distance.tolist() == [1.0, 1.5] and found.relative == pytest.approx([1 / 2.5, 1.5 / 6])
    without = nearest(direct, mirrored, np.array([[True, False, True, True], [True, True, True, False]]), 2)
    assert without.index.tolist() == [2, 0] and without.relative == pytest.approx([2 / 4, 3 / 9])
    assert nearest(direct[:, :1], mirrored[:, :1], every[:, :1], 0).relative is None  # there is no next one
    assert nearest(np.zeros((1, 4)), np.zeros((1, 4)), every[:1], 3).relative.tolist() == [1.0]  # all are the same


def test_features_are_compared_by_euclidean_distance():
    x, y = np.random.default_rng(0).normal(size=(2, 3, 4))
    direct, mirrored = feature_distances(x, x[:, ::-1], y)
    assert direct[1, 2] == pytest.approx(np.sqrt(((x[1] - y[2]) ** 2).sum()))
    assert mirrored[2, 0] == pytest.approx(np.sqrt(((x[2, ::-1] - y[0]) ** 2).sum()))


def test_candidates_are_drawn_from_those_allowed_and_repeatably():
    rows = np.arange(8)
    drawn = Candidates(rows, 8, most=3)
    found = drawn.of(rows)
    assert (found.sum(axis=1) == 3).all() and not found.diagonal().any() and drawn.fewest == 3
    assert (found == np.concatenate([drawn.of(rows[:5]), drawn.of(rows[5:])])).all(), "whichever are asked for together"
    assert (found != Candidates(rows, 8, most=3, seed=1).of(rows)).any()
    every = Candidates(rows, 8, most=99)
    assert (every.of(rows) == ~np.eye(8, dtype=bool)).all() and every.fewest == 7
    strangers = Candidates(np.array([-1, 2]), 4)
    assert strangers.of(np.arange(2)).tolist() == [[True] * 4, [True, True, False, True]] and strangers.fewest == 3


def test_a_search_by_parts_finds_what_one_at_once_does(monkeypatch):
    x = np.random.default_rng(0).normal(size=(30, 4))
    candidates = Candidates(np.arange(30), 30, most=20)

    def distances(rows):
        return feature_distances(x[rows], x[rows, ::-1], x)

    whole = search(distances, candidates)
    assert whole.distance == pytest.approx(
        nearest(*distances(np.arange(30)), candidates.of(np.arange(30)), 10).distance
    )
    monkeypatch.setattr(memorisation, "_CHUNK_ENTRIES", 100)  # of 30 scans: three volumes at a time
    parts = search(distances, candidates)
    for name in ("index", "mirrored", "distance", "relative"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    alone = search(lambda rows: feature_distances(x[:2][rows], x[:2][rows], x[:2]), Candidates(np.arange(2), 2))
    assert alone.index.tolist() == [1, 0] and alone.relative is None


def test_p_values_count_the_null_and_go_no_lower_than_it_allows():
    null = np.array([3.0, 1.0, 2.0])
    assert p_values(np.array([0.5, 1.0, 2.5, 9.0]), null).tolist() == [0.25, 0.5, 0.75, 1.0]
    assert [m for m in (9, 18, 19, 98, 99) if resolved(0.05, m)] == [19, 98, 99]
    assert [m for m in (98, 99) if resolved(0.01, m)] == [99]
    assert suspect(np.array([0.1, 0.2]), 9).tolist() == [True, False]  # nine scans tell no less than 10 %
    assert suspect(np.array([0.05, 0.06]), 99).tolist() == [True, False]


@pytest.mark.parametrize("size", [19, 99])
def test_what_is_like_the_null_has_a_small_p_no_more_often_than_chance_allows(size):
    random = np.random.default_rng(size)
    draws = [p_values(random.normal(size=1), random.normal(size=size))[0] for _ in range(4000)]
    hits = (np.array(draws) <= 0.05 + 1e-9).sum()
    assert binom.ppf(0.001, 4000, 0.05) <= hits <= binom.ppf(0.999, 4000, 0.05)
