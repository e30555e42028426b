"""The picture and the table of regional volumes: how generated brains' regions differ from real ones, by segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuromf.evaluation.rows import read_parquet
from neuromf.paper import style
from neuromf.paper.tables import MISSING
from neuromf.tables import atomic_path

_PANELS = {  # metric: title, its best value
    "cohens_d": ("volume, Cohen's d", 0.0),
    "asymmetry_cohens_d": ("asymmetry, Cohen's d", 0.0),
    "nearest_dice": ("Dice with the nearest real scan", None),
}
_COLUMNS = {  # metric: title, digits
    "cohens_d": ("Cohen's d", 2),
    "wasserstein_ml": ("Wasserstein, ml", 2),
    "kl_divergence": ("KL divergence", 2),
    "volume_in_real_range": ("In real range", 2),
    "asymmetry_cohens_d": ("Asymmetry, d", 2),
    "nearest_volume_correlation": ("r with nearest", 2),
    "nearest_dice": ("Dice with nearest", 2),
}
_LEAST_HEIGHT, _ROW_HEIGHT = 1.6, 0.24  # inches


def draw_regions(metrics: Path, out: Path) -> None:
    """Write the figure of regional volumes as PNG.

    Args:
        metrics: the evaluation's metrics.parquet, with rows of a segmenter.
        out: the PNG.
    """
    with style.themed(style.LIGHT), atomic_path(out) as temporary:
        temporary.write_bytes(style.as_png(regions(read_parquet(metrics))))


def regional(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of segmenters, each run at its fewest network evaluations and its first seed."""
    by_segmenter = metrics.loc[metrics["metric"] == "volume_in_real_range", "extractor"].unique()
    rows = metrics[metrics["extractor"].isin(by_segmenter)]
    first = rows.groupby("run", sort=False)[["nfe", "seed"]].transform("min")
    same = [(rows[name] == first[name]).fillna(False) | first[name].isna() for name in ("nfe", "seed")]
    return rows[same[0].astype(bool) & same[1].astype(bool)]


def regions(metrics: pd.DataFrame) -> Figure:
    """Plot each region's Cohen's d of volume and of asymmetry, and its Dice with the nearest real scan, with intervals.

    One row of panels per segmenter, one line of dots per run; grey: real scans against real scans.
    """
    rows = regional(metrics)
    segmenters = list(dict.fromkeys(rows["extractor"]))
    names = {one: _names(rows[rows["extractor"] == one]) for one in segmenters}
    heights = [_LEAST_HEIGHT + _ROW_HEIGHT * len(names[one]) for one in segmenters]
    figure = Figure(figsize=(10, sum(heights)))
    axes = figure.subplots(len(segmenters), len(_PANELS), squeeze=False, sharey="row", height_ratios=heights)
    runs = list(dict.fromkeys(rows["run"]))
    colours = style.run_colours([run for run in runs if run != "real"])
    for line, segmenter in zip(axes, segmenters, strict=True):
        own = rows[rows["extractor"] == segmenter]
        for axis, (metric, (title, best)) in zip(line, _PANELS.items(), strict=True):
            for place, run in enumerate(runs):
                chosen = own[(own["run"] == run) & (own["metric"] == metric)].set_index("region")
                shift = 0.5 * ((place + 1) / (len(runs) + 1) - 0.5)
                _dots(axis, chosen, names[segmenter], shift, colours[run], _label(run))
            if best is not None:
                axis.axvline(best, color=style.REFERENCE_GREY, linewidth=1)
            axis.set_title(f"{segmenter}: {title}" if metric == "cohens_d" else title, fontsize=9)
        line[0].set_yticks(range(len(names[segmenter])), [name.replace("_", " ") for name in names[segmenter]])
        line[0].tick_params(axis="y", labelsize=8)
        line[0].set_ylim(len(names[segmenter]) - 0.5, -0.5)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def region_table(metrics: pd.DataFrame, run: str) -> pd.DataFrame:
    """Return one row per segmenter and region: mean volumes of real scans and of a run, and how the run's differ."""
    rows = regional(metrics)
    table = []
    for segmenter in dict.fromkeys(rows["extractor"]):
        own = rows[rows["extractor"] == segmenter]
        for region in _names(own):
            here = own[own["region"] == region]
            row = {"Segmenter": segmenter, "Region": region.replace("_", " ")}
            row["Real, ml"] = _cell(here, "real", "volume_ml", 2)
            row[f"{style.run_label(run).capitalize()}, ml"] = _cell(here, run, "volume_ml", 2)
            row |= {title: _cell(here, run, metric, digits) for metric, (title, digits) in _COLUMNS.items()}
            table.append(row)
    return pd.DataFrame(table)


def ratio_table(metrics: pd.DataFrame, run: str) -> pd.DataFrame:
    """Return one row per segmenter and ratio of tissues: means of real scans and of a run, and Cohen's d."""
    rows = regional(metrics)
    table = []
    for segmenter, ratio in (
        rows.loc[rows["metric"] == "volume_ratio", ["extractor", "region"]].drop_duplicates().values
    ):
        here = rows[(rows["extractor"] == segmenter) & (rows["region"] == ratio)]
        row = {"Segmenter": segmenter, "Ratio": ratio, "Real": _cell(here, "real", "volume_ratio", 3)}
        row[style.run_label(run).capitalize()] = _cell(here, run, "volume_ratio", 3)
        table.append(row | {"Cohen's d": _cell(here, run, "volume_ratio_cohens_d", 2)})
    return pd.DataFrame(table)


def _names(rows: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(rows.loc[rows["metric"] == "volume_ml", "region"]))


def _label(run: str) -> str:
    return "real against real scans" if run == "real" else style.run_label(run)


def _dots(axis: Axes, rows: pd.DataFrame, names: Sequence[str], shift: float, colour: str, label: str) -> None:
    """Plot the values of the named regions with their intervals, each on its own line."""
    shown = [(place, rows.loc[name]) for place, name in enumerate(names) if name in rows.index]
    places = [place + shift for place, row in shown if pd.notna(row["value"])]
    values = np.array([[row[c] for c in ("value", "ci_low", "ci_high")] for _, row in shown if pd.notna(row["value"])])
    values = values.astype(float).reshape(-1, 3)
    errors = np.nan_to_num(np.abs(values[:, 1:].T - values[:, 0]))
    axis.errorbar(values[:, 0], places, xerr=errors, fmt="o", color=colour, label=label, markersize=3, elinewidth=1)


def _cell(rows: pd.DataFrame, run: str, metric: str, digits: int) -> str:
    chosen = rows[(rows["run"] == run) & (rows["metric"] == metric)]
    if chosen.empty or pd.isna(chosen.iloc[0]["value"]):
        return MISSING
    value, low, high = (chosen.iloc[0][name] for name in ("value", "ci_low", "ci_high"))
    text = f"{value:.{digits}f}"
    return text if pd.isna(low) else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"
