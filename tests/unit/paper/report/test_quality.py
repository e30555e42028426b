from neuromf.paper.report.quality import read_quality


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
