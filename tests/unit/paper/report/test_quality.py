from dataclasses import replace

from neuromf.paper.report.quality import SameScan, read_quality
from neuromf.tables import ReleaseRow, read_manifest, write_manifest


def test_a_failed_scan_is_listed_once_with_its_first_stage(manifests, nasty):
    quality = read_quality(manifests)
    assert [(note.scan, note.stage, note.text) for note in quality.failures] == [
        ("sub-8_T1w", "skull_strip", nasty), ("sub-9_T1w", "conform", "no contrast"),
    ]  # fmt: skip
    assert [(c.stage, c.done, c.failed) for c in quality.counts] == [
        ("skull_strip", 5, 1), ("bias_correct", 5, 1), ("conform", 4, 2),
    ]  # fmt: skip
    assert [count.warned for count in quality.counts] == [0, 0, 1]
    assert [note.scan for note in quality.warnings] == ["sub-0_T1w"]


def test_figures_are_collected_over_scans_that_were_done(manifests):
    figures = read_quality(manifests).figures
    assert figures["brain volume (ml)"] == [1400.0] * 5
    assert figures["share of the brain cut off"] == [0.01] * 4


def test_one_scan_under_several_names_is_listed_with_its_splits(manifests):
    assert read_quality(manifests).duplicates == []
    path = manifests["demo"]["conform"][0]
    rows = read_manifest(path)
    write_manifest(path, [replace(row, sha256={"a1": "a0", "a3": "a2"}.get(row.sha256, row.sha256)) for row in rows])
    release = [ReleaseRow(str(i), None, "T1w", "demo", s) for i, s in enumerate(["train", "train", "test", "train"])]
    same = read_quality(manifests, release).duplicates
    assert same == [
        SameScan(("demo/sub-2_T1w", "demo/sub-3_T1w"), ("train", "test")),
        SameScan(("demo/sub-0_T1w", "demo/sub-1_T1w"), ("train",)),
    ]
    assert [one.leaks for one in same] == [True, False]
