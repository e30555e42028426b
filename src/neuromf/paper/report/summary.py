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
    cards = []
    distance = figure_of(metrics, run, "frechet_distance", "test", nfe)
    if distance is not None:
        floor = figure_of(metrics, "real", "frechet_distance", "test")
        note = "" if floor is None else f"real train vs real test: {floor['value']:.2f}"
        cards.append(KeyFigure("Fréchet distance (codec)", f"{distance['value']:.2f}", _interval(distance, "{:.2f}"), note))
    inside = figure_of(metrics, run, "brain_volume_in_real_range", "brain", nfe)
    if inside is not None:
        cards.append(KeyFigure("Brain volume in the real range", f"{100 * inside['value']:.0f} %",
                               _interval(inside, "{:.0f} %", 100), "from the smallest to the largest real brain"))  # fmt: skip
    seconds = figure_of(metrics, run, "seconds_per_volume", "total", nfe)
    if seconds is not None:
        network = figure_of(metrics, run, "seconds_per_volume", "network", nfe)
        note = "" if network is None else f"of which network: {network['value']:.3f} s"
        cards.append(KeyFigure("Seconds per volume", f"{seconds['value']:.2f}", _interval(seconds, "{:.2f}"), note))
    copies = figure_of(metrics, run, "closer_to_training_than_null", "brain", nfe, "pixels")
    if copies is not None:
        cards.append(KeyFigure("Suspiciously close to a training scan", f"{100 * copies['value']:.0f} %",
                               _interval(copies, "{:.0f} %", 100), "closer than 95 % of real, held-back scans are"))  # fmt: skip
    ssim, psnr = (figure_of(metrics, "reconstruction", name, "brain_box") for name in ("ssim", "psnr"))
    if ssim is not None and psnr is not None:
        note = f"PSNR {psnr['value']:.1f} dB"
        cards.append(KeyFigure("Codec SSIM", f"{ssim['value']:.3f}", _interval(ssim, "{:.3f}"), note))
    return cards


def sentences(
    metrics: pd.DataFrame, quality: Quality, counts: Mapping[str, int], run: str, nfe: int
) -> list[str]:
    """Return the summary: where the data came from, how good the samples are and what to compare them with."""
    evaluations = "one network evaluation" if nfe == 1 else f"{nfe} network evaluations"
    failed = len(quality.failures)
    lost = {0: "none failed preprocessing", 1: "one scan of the cohorts failed preprocessing"}.get(
        failed, f"{failed} scans of the cohorts failed preprocessing"
    )
    text = [
        f"The release has {sum(counts.values())} scans: {counts['train']} to train on, {counts['val']} to validate and"
        f" {counts['test']} held back for testing; {lost}.",
    ]
    sample = figure_of(metrics, run, "frechet_distance", "test", nfe)
    if sample is not None:
        text.append(
            f"With {evaluations}, {run_label(run)} generates brains whose distribution lies {sample['value']:.2f} from the"
            f" held-back real scans (Fréchet distance on codec features, n = {int(sample['n'])}; smaller is better)."
        )
        text += _comparisons(metrics, run, nfe, float(sample["value"]))
    copies = figure_of(metrics, run, "closer_to_training_than_null", "brain", nfe, "pixels")
    if copies is not None:
        text.append(
            f"{100 * copies['value']:.0f} % of them lie closer to a training scan than 95 % of real scans that were never"
            " trained on (by chance alone: 5 %); a large share would mean copies, or brains smoother than real ones."
        )
    return text


def _comparisons(metrics: pd.DataFrame, run: str, nfe: int, distance: float) -> list[str]:
    text = []
    floor, noise = (figure_of(metrics, name, "frechet_distance", "test") for name in ("real", "noise"))
    if floor is not None:
        text.append(
            f"Two groups of real scans, train and test, lie {floor['value']:.2f} apart by the same measure: a perfect"
            " generator would come out near that, not at zero."
        )
    if noise is not None and distance > 0:
        text.append(
            f"Decoded noise, the bad end of the scale, lies at {noise['value']:.2f}, {noise['value'] / distance:.0f} times as far."
        )
    others = metrics[metrics["nfe"].notna() & (metrics["nfe"] == nfe) & (metrics["run"] != run)]["run"].unique()
    for other in others:
        row = figure_of(metrics, other, "frechet_distance", "test", nfe)
        if row is not None:
            text.append(f"{run_label(other).capitalize()} at the same cost lies at {row['value']:.2f}.")
    return text


def _interval(row: pd.Series, form: str, scale: float = 1.0) -> str:
    count = f"n = {int(row['n'])}"
    if pd.isna(row["ci_low"]):
        return count
    return f"95 % interval {form.format(scale * row['ci_low'])} to {form.format(scale * row['ci_high'])}, {count}"
