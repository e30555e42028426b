"""The picture of the most suspect pairs, from a table of scans and the volumes' files."""

import numpy as np
import pandas as pd
import pytest

from neuromf.evaluation.copies import pairs
from neuromf.evaluation.rows import SCAN_COLUMNS
from neuromf.paper import copies
from neuromf.paper.copies import draw_copies, verdict
from neuromf.volume import write_volume

AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])


def row(run, scan, split="generated", **figures):
    known = run == "meanflow"
    return {
        "run": run,
        "seed": 0 if known else None,
        "nfe": 1 if known else None,
        "split": split,
        "scan": scan,
    } | figures


def near(scan, p, relative_p, mirrored=False, correlation=0.9, relative=0.5):
    values = {"scan": scan, "p": p, "relative_p": relative_p, "mirrored": mirrored}
    values |= {"correlation": correlation, "relative": relative}
    return {f"nearest_{name}": value for name, value in values.items()}


def table(rows):
    return pd.DataFrame(rows, columns=list(SCAN_COLUMNS)).astype({"seed": "Int64", "nfe": "Int64"})


@pytest.fixture
def null():
    return [row("real", f"held{i}", "test", **near("t0", None, None)) for i in range(19)]


@pytest.fixture
def drawn(monkeypatch, tmp_path, brain):
    """Draw a table's picture; return its blocks."""
    seen = []
    figure = copies.pairs_figure

    def noted(blocks, **kwargs):
        seen.extend(blocks)
        return figure(blocks, **kwargs)

    monkeypatch.setattr(copies, "pairs_figure", noted)
    training = {f"t{i}": tmp_path / "train" / f"t{i}.nii.gz" for i in range(3)}
    for i, path in enumerate(training.values()):
        write_volume(path, brain(i), AFFINE, np.float32)
    for i in range(3):
        write_volume(tmp_path / "samples" / f"s{i}.nii.gz", brain(10 + i), AFFINE, np.float32)

    def draw(content):
        content.to_parquet(tmp_path / "scans.parquet")
        out = tmp_path / "copies.png"
        draw_copies(tmp_path / "scans.parquet", {("meanflow", 0, 1): tmp_path / "samples"}, training, out)
        assert out.read_bytes().startswith(b"\x89PNG")
        return seen

    return draw


def test_flagged_pairs_come_first_and_mirrored_ones_are_flipped(drawn, null, brain):
    found = table(
        [
            row("meanflow", "s0", **near("t1", 0.4, 0.5)),
            row("meanflow", "s1", **near("t2", 0.05, 0.05, mirrored=True, correlation=0.99, relative=0.1)),
            row("meanflow", "s2", **near("t0", 0.05, 0.3)),
            row("noise", "noise0", **near("t0", 0.05, 0.05)),
            *null,
        ]
    )
    (block,) = drawn(found)
    labels = [pair.label for pair in block.pairs]
    assert [label.split("\n")[1] for label in labels] == ["s1", "s2", "s0"]
    assert labels[0] == "meanflow, 1 NFE\ns1\n↔ t2\nshown mirrored\nr 0.990, p 0.05\nrelative 0.100, p 0.05"
    assert [pair.colour == copies.FLAGGED for pair in block.pairs] == [True, True, False]
    assert np.array_equal(block.pairs[0].first, brain(2)[::-1]) and np.array_equal(block.pairs[0].second, brain(11))
    assert np.array_equal(block.pairs[1].first, brain(0))
    assert block.note.startswith("Copies of training scans: of 3, 1 flagged by relative distance")
    assert "2 by distance" in block.note and "null: 19 real scans" in block.note and "up to 5 % by chance" in block.note


def test_when_nothing_is_flagged_the_closest_pairs_are_shown_and_the_picture_says_so(drawn, null):
    rows = [row("meanflow", f"s{i}", **near("t1", 0.4, 0.5 - 0.1 * i)) for i in range(3)]
    (block,) = drawn(table([*rows, *null]))
    assert [pair.label.split("\n")[1] for pair in block.pairs] == ["s2", "s1", "s0"]
    assert "none of 3 is flagged; these are the closest pairs" in block.note
    assert all(pair.colour == copies.INK for pair in block.pairs)


def test_without_a_null_or_without_volumes(drawn):
    unknown = table([row("meanflow", "s0", **near("t1", None, None))])
    assert "no null to set them against" in verdict(pairs(unknown, "training"), "training")
    (block,) = drawn(unknown)
    assert "p " not in block.pairs[0].label.split("\n", 2)[2]
    with pytest.raises(ValueError, match="evaluate samples first"):
        drawn(table([row("real", "a", "test")]))


def test_names_with_dollars_are_no_formulas(drawn, null, tmp_path):
    name = "sub$_1^$_2%&"
    write_volume(tmp_path / "samples" / f"{name}.nii.gz", np.eye(32)[None].repeat(32, 0), AFFINE, np.float32)
    (block,) = drawn(table([row("meanflow", name, **near("t1", 0.05, 0.05)), *null]))
    assert r"sub\$_1^\$_2%&" in block.pairs[0].label
