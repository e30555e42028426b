from neuromf.paper.report.quality import Quality, SameScan
from neuromf.paper.report.summary import key_figures, sentences

NOTHING = Quality([], [], [], {})
COUNTS = {"train": 20, "val": 3, "test": 4}


def test_key_figures_have_value_interval_and_count(metrics):
    cards = {card.title: card for card in key_figures(metrics, "meanflow", 1)}
    assert cards["Fréchet distance (codec)"].value == "2.00"
    assert cards["Fréchet distance (codec)"].interval == "1.90 to 2.10, n = 16"
    assert cards["Brain volume in the real range"].value == "90%"
    assert cards["Codec SSIM"].note == "PSNR 27.5 dB"


def test_the_summary_compares_with_floor_noise_and_the_other_run(metrics):
    text = " ".join(sentences(metrics, NOTHING, COUNTS, "FLAIR", "meanflow", 1))
    for part in (
        "27 FLAIR scans",
        "none failed",
        "one network evaluation",
        "lies 2.00",
        "0.50 apart",
        "6 times as far",
        "4.00",
    ):
        assert part in text


def test_what_was_not_measured_is_left_out(metrics):
    left = metrics[~metrics["metric"].isin(["frechet_distance", "seconds_per_volume"])]
    assert "Fréchet distance (codec)" not in {card.title for card in key_figures(left, "meanflow", 1)}
    assert "Decoded noise" not in " ".join(sentences(left, NOTHING, COUNTS, "FLAIR", "meanflow", 1))


def test_copies_are_counted_by_the_null_there_is(metrics):
    text = " ".join(sentences(metrics, NOTHING, COUNTS, "FLAIR", "meanflow", 1))
    assert "6 % of the generated brains" in text and "than 95 % of held-back" in text and "up to 5 %" in text
    small = metrics[~metrics["metric"].str.endswith("_5th")].copy()
    small.loc[small["metric"] == "training_null_scans", "value"] = 9
    text = " ".join(sentences(small, NOTHING, COUNTS, "FLAIR", "meanflow", 1))
    assert "4 % of the generated brains" in text and "than each of 9 held-back" in text and "up to 10 %" in text
    assert "never trained on" not in " ".join(
        sentences(metrics[~metrics["metric"].str.contains("null")], NOTHING, COUNTS, "FLAIR", "meanflow", 1)
    )


def test_a_scan_in_two_splits_is_told(metrics):
    leaking = Quality(
        [], [], [], {}, [SameScan(("a/x", "a/y"), ("train", "test")), SameScan(("a/u", "a/v"), ("train",))]
    )
    text = " ".join(sentences(metrics, leaking, COUNTS, "T1w", "meanflow", 1))
    assert "One scan is in training and in another split under another name" in text
    assert "another split" not in " ".join(sentences(metrics, NOTHING, COUNTS, "T1w", "meanflow", 1))
