"""The report's opening: key figures with their intervals, and what they mean in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from neuromf.paper.report.quality import Quality
from neuromf.paper.style import run_label
from neuromf.paper.tables import figure_of


@dataclass(frozen=True)
class KeyFigure:
    """One figure at the top of the report."""

    title: str
    value: str
    interval: str
    note: str


def key_figures(metrics: pd.DataFrame, run: str, nfe: int) -> list[KeyFigure]:
    """Return the figures of the main run that a reader asks for first; what was not measured is left out."""
    floor = figure_of(metrics, "real", "frechet_distance", "volume", extractor="codec")
    network = figure_of(metrics, run, "seconds_per_volume", "network", nfe)
    psnr = figure_of(metrics, "reconstruction", "psnr", "brain_box")
    copies, beside, _ = _copies(metrics, run, nfe)
    cards = [
        _card(
            "Fréchet distance (codec)",
            figure_of(metrics, run, "frechet_distance", "volume", nfe, "codec"),
            "{:.2f}",
            "" if floor is None else f"real train vs real test: {floor['value']:.2f}",
        ),
        _card(
            "Brain volume in the real range",
            figure_of(metrics, run, "brain_volume_in_real_range", "brain", nfe),
            "{:.0%}",
            "from the smallest to the largest real brain",
        ),
        _card(
            "Seconds per volume",
            figure_of(metrics, run, "seconds_per_volume", "total", nfe),
            "{:.2f}",
            "" if network is None else f"of which network: {network['value']:.3f}",
        ),
        _card(
            "Suspiciously close to a training scan",
            copies,
            "{:.0%}",
            f"relatively closer than {beside}",
        ),
        _card(
            "Codec SSIM",
            figure_of(metrics, "reconstruction", "ssim", "brain_box"),
            "{:.3f}",
            "" if psnr is None else f"PSNR {psnr['value']:.1f} dB",
        ),
    ]
    return [card for card in cards if card is not None]


def sentences(
    metrics: pd.DataFrame, quality: Quality, counts: Mapping[str, int], modality: str, run: str, nfe: int
) -> list[str]:
    """Return the summary: where the data came from, how good the samples are and what to compare them with."""
    evaluations = "one network evaluation" if nfe == 1 else f"{nfe} network evaluations"
    failed = len(quality.failures)
    lost = {0: "none failed preprocessing", 1: "one scan of the cohorts failed preprocessing"}.get(
        failed, f"{failed} scans of the cohorts failed preprocessing"
    )
    text = [
        f"The release has {sum(counts.values())} {modality} scans: {counts['train']} to train on, {counts['val']} to"
        f" validate and {counts['test']} held back for testing; {lost}.",
    ]
    if leaks := sum(same.leaks for same in quality.duplicates):
        scans = "One scan is" if leaks == 1 else f"{leaks} scans are"
        text.append(
            f"{scans} in training and in another split under another name, so the figures below are not of unseen scans"
            " alone: see Cohort and quality."
        )
    sample = figure_of(metrics, run, "frechet_distance", "volume", nfe, "codec")
    if sample is not None:
        text.append(
            f"With {evaluations}, {run_label(run)} generates brains whose distribution lies {sample['value']:.2f} from the"
            f" held-back real scans (Fréchet distance on codec features, n = {int(sample['n'])}; smaller is better)."
        )
        text += _comparisons(metrics, run, nfe, float(sample["value"]))
    copies, beside, chance = _copies(metrics, run, nfe)
    if copies is not None:
        text.append(
            f"{100 * copies['value']:.0f} % of the generated brains lie closer to one training scan, compared with the next"
            f" ones, than {beside} that were never trained on (by chance alone: up to {100 * chance:.0f} %); a large share"
            " would mean copies."
        )
    return text


def _copies(metrics: pd.DataFrame, run: str, nfe: int) -> tuple[pd.Series | None, str, float]:
    """Return the share of brains that are suspect, the real scans it is counted by and what chance alone gives: the null's
    5th percentile, or its closest scan where there are too few for that."""
    share = figure_of(metrics, run, "relatively_closer_to_training_than_null_5th", "brain", nfe, "pixels")
    if share is not None:
        return share, "95 % of held-back real scans", 0.05
    share = figure_of(metrics, run, "relatively_closer_to_training_than_null_closest", "brain", nfe, "pixels")
    null = figure_of(metrics, run, "training_null_scans", "brain", nfe, "pixels")
    if share is None or null is None:
        return None, "", 0.0
    return share, f"each of {int(null['value'])} held-back real scans", 1 / (int(null["value"]) + 1)


def _comparisons(metrics: pd.DataFrame, run: str, nfe: int, distance: float) -> list[str]:
    text = []
    floor, noise = (
        figure_of(metrics, name, "frechet_distance", "volume", extractor="codec") for name in ("real", "noise")
    )
    if floor is not None:
        text.append(
            f"Two groups of real scans, train and test, lie {floor['value']:.2f} apart by the same measure: a perfect"
            " generator would come out near that, not at zero."
        )
    if noise is not None and distance > 0:
        text.append(
            f"Decoded noise, the bad end of the scale, lies at {noise['value']:.2f},"
            f" {noise['value'] / distance:.0f} times as far."
        )
    others = metrics[metrics["nfe"].notna() & (metrics["nfe"] == nfe) & (metrics["run"] != run)]["run"].unique()
    for other in others:
        row = figure_of(metrics, other, "frechet_distance", "volume", nfe, "codec")
        if row is not None:
            text.append(f"{run_label(other).capitalize()} at the same cost lies at {row['value']:.2f}.")
    return text


def _card(title: str, row: pd.Series | None, form: str, note: str) -> KeyFigure | None:
    if row is None:
        return None
    interval = f"n = {int(row['n'])}"
    if pd.notna(row["ci_low"]):
        interval = f"{form.format(row['ci_low'])} to {form.format(row['ci_high'])}, {interval}"
    return KeyFigure(title, form.format(row["value"]), interval, note)
