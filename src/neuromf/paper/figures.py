"""Plots of the evaluation's tables. Each function returns a matplotlib figure; `neuromf.paper.style` gives it its look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, ScalarFormatter

from neuromf.paper.style import NOISE_COLOUR, RECONSTRUCTION_COLOUR, REFERENCE_GREY, run_colours, run_label

TISSUES = ("brain", "csf", "grey", "white", "deep_csf")
TISSUE_LABELS = {
    "brain": "brain",
    "csf": "CSF",
    "grey": "grey matter",
    "white": "white matter",
    "deep_csf": "deep CSF",
}
SMOOTHED = 5  # the running mean of a training's log is over this part of its rows: a fifth
_REFERENCES = {"real": REFERENCE_GREY, "reconstruction": RECONSTRUCTION_COLOUR, "noise": NOISE_COLOUR}


def training_curves(runs: Mapping[str, tuple[pd.DataFrame, pd.DataFrame, str]]) -> Figure:
    """Plot each run's raw losses and sample distance against the updates.

    Thin: rows of the log, and their running mean; dots: validation, of the exported average (line) and of the weights
    themselves (dashed).

    Args:
        runs: label → metrics.csv, val.csv and the exported average.
    """
    panels = {"raw_fm": "flow matching |ṽ − v|²", "raw_mf": "MeanFlow |V − v|²", "sample_distance": "one-step samples"}
    figure = Figure(figsize=(11, 3.6))
    axes = figure.subplots(1, len(panels))
    colours = run_colours(list(runs))
    for axis, (column, title) in zip(axes, panels.items(), strict=True):
        for label, (train, val, exported) in runs.items():
            colour = colours[label]
            if column in train:
                rows = train[["step", column]].dropna()
                axis.plot(rows["step"], rows[column], color=colour, alpha=0.25, linewidth=0.7)
                smooth = rows[column].rolling(max(1, len(rows) // SMOOTHED), min_periods=1, center=True).mean()
                axis.plot(rows["step"], smooth, color=colour, alpha=0.6, linewidth=1.2)
            for average, style in ((exported, "-"), ("online", "--")):
                rows = val[val["average"].astype(str) == average]
                name = f"{label}: {'average' if average == exported else 'weights themselves'}"
                axis.plot(
                    rows["step"], rows[column], style, color=colour, marker="o", markersize=3, linewidth=1.4, label=name
                )
        axis.set(title=title, xlabel="updates", ylabel="raw loss (unweighted)", yscale="log")
        _plain_ticks(axis)
    axes[-1].set(ylabel="energy distance", yscale="linear")  # chance may make it negative
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def torus(losses: pd.DataFrame, samples: pd.DataFrame, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot the torus experiment: for each prediction its raw losses, its samples in the first plane and their angles.

    Args:
        losses, samples, rows: losses.parquet, samples.parquet and the rows of torus.json (`neuromf.training.toy`).
    """
    predictions = list(dict.fromkeys(row["prediction"] for row in rows))
    steps = list(dict.fromkeys(row["steps"] for row in rows))
    figure = Figure(figsize=(3.1 * (1 + 2 * len(steps)), 3.1 * len(predictions)))
    axes = figure.subplots(len(predictions), 1 + 2 * len(steps), squeeze=False)
    colours = run_colours([str(n) for n in steps])
    for line, prediction in zip(axes, predictions, strict=True):
        history = losses[losses["prediction"] == prediction]
        for column, label in (("raw_fm", "flow matching"), ("raw_mf", "MeanFlow")):
            smooth = history[column].rolling(100, min_periods=1).mean()
            line[0].plot(history["update"], smooth, label=label, linewidth=1)
        line[0].set(title=f"{prediction}-prediction", xlabel="updates", ylabel="raw loss")
        line[0].set(xscale="log", yscale="log")
        _plain_ticks(line[0])
        line[0].legend(frameon=False, loc="lower left")
        for place, row in enumerate(row for row in rows if row["prediction"] == prediction):
            points = samples[(samples["prediction"] == prediction) & (samples["steps"] == row["steps"])]
            _torus_samples(line[1 + 2 * place], line[2 + 2 * place], points, row, colours[str(row["steps"])])
    return figure


def _plain_ticks(axis: Axes) -> None:
    """Label a logarithmic y-axis with few plain numbers."""
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_locator(NullLocator())


def _torus_samples(plane: Axes, histogram: Axes, points: pd.DataFrame, row: Mapping[str, Any], colour: str) -> None:
    """Plot the first plane of samples with the circle that the torus is there, and the histograms of both angles."""
    plane.scatter(points["x1"], points["x2"], s=1, color=colour)
    plane.add_patch(Circle((0, 0), 1 / np.sqrt(2), fill=False, color=REFERENCE_GREY, linewidth=1))
    steps = f"{row['steps']} step{'s' * (row['steps'] > 1)}"
    plane.set(aspect="equal", title=f"{steps}: distance {row['distance']:.3f}", xlabel="x1", ylabel="x2")
    plane.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    for name, (x, y), line in (("θ1", ("x1", "x2"), "-"), ("θ2", ("x3", "x4"), ":")):
        turns = (np.arctan2(points[y], points[x]) / (2 * np.pi)) % 1
        histogram.hist(
            turns, bins=24, range=(0, 1), density=True, histtype="step", color=colour, linestyle=line, label=name
        )
    histogram.axhline(1, color=REFERENCE_GREY, linewidth=1)
    p_values = ", ".join(f"{p:.2f}" for p in row["p_values"])
    histogram.set(title=f"{steps}: p = {p_values}", xlabel="angle, turns", ylabel="density", xlim=(0, 1), ylim=(0, 1.9))
    histogram.legend(frameon=False, loc="upper right", ncols=2)


def metric_against_nfe(metrics: pd.DataFrame, metric: str, title: str, unit: str, *, log_scale: bool) -> Figure:
    """Plot a metric against the number of network evaluations with its intervals; floors and noise as bands.

    Seeds of a run are drawn as separate lines of one colour.
    """
    rows = metrics[(metrics["metric"] == metric) & metrics["value"].notna()]
    figure = Figure(figsize=(5.2, 3.6))
    axis = figure.subplots()
    trained = rows[rows["nfe"].notna()]
    colours = run_colours(list(dict.fromkeys(trained["run"])))
    for run, colour in _REFERENCES.items():
        for row in rows[(rows["run"] == run) & rows["nfe"].isna()].itertuples():
            if run == "noise" and not log_scale:
                continue  # it would squeeze everything else
            axis.axhline(row.value, color=colour, linestyle="--", linewidth=1.2, label=_reference_label(run))
            if pd.notna(row.ci_low):
                low = row.ci_low if not log_scale else max(row.ci_low, row.value / 3)
                axis.axhspan(low, row.ci_high, color=colour, alpha=0.13, linewidth=0)
    for index, ((run, seed), line) in enumerate(trained.groupby(["run", "seed"], sort=False)):
        line = line.sort_values("nfe")
        beside = 1.05**index  # so that intervals do not hide each other
        first = seed == trained.loc[trained["run"] == run, "seed"].min()
        values = line["value"].to_numpy(float)
        errors = np.nan_to_num(np.abs(line[["ci_low", "ci_high"]].to_numpy(float).T - values))
        label = run_label(run) if first else None
        axis.errorbar(beside * line["nfe"].to_numpy(float), values, errors, color=colours[run], label=label,
                      marker="o", markersize=4, capsize=2.5, elinewidth=1)  # fmt: skip
    steps = sorted({int(k) for k in trained["nfe"]})
    axis.set(title=title, xlabel="network evaluations (NFE)", ylabel=unit, xscale="log")
    if log_scale:
        axis.set_yscale("log")
    axis.xaxis.set_major_locator(FixedLocator(steps))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_locator(NullLocator())
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _reference_label(run: str) -> str:
    return "real train vs real test" if run == "real" else run_label(run)


def tissue_distributions(scans: pd.DataFrame, groups: Mapping[str, pd.Series]) -> Figure:
    """Plot each group's tissue volumes (label → which rows of ``scans``): one dot per scan beside a box."""
    figure = Figure(figsize=(9, 3.2))
    axes = figure.subplots(1, len(TISSUES))
    colours = run_colours([label for label in groups if label != "real"])
    for axis, tissue in zip(axes, TISSUES, strict=True):
        for position, (label, chosen) in enumerate(groups.items()):
            values = scans.loc[chosen, f"{tissue}_ml"].to_numpy(float)
            jitter = np.random.default_rng(position).uniform(-0.13, 0.13, len(values))
            axis.scatter(position + jitter, values, s=9, color=colours[label], alpha=0.6, linewidths=0)
            axis.boxplot(values, positions=[position], widths=0.55, showfliers=False, showcaps=False,
                         medianprops={"color": colours[label], "linewidth": 2},
                         boxprops={"color": colours[label]}, whiskerprops={"color": colours[label]})  # fmt: skip
        axis.set_title(TISSUE_LABELS[tissue], fontsize=9)
        axis.set_xticks([])
        axis.grid(visible=False, axis="x")
    axes[0].set_ylabel("volume (ml)")
    handles = [axes[0].scatter([], [], s=25, color=colours[label]) for label in groups]
    labels = [f"{run_label(label)} (n = {int(chosen.sum())})" for label, chosen in groups.items()]
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def nearest_histogram(scans: pd.DataFrame, groups: Mapping[str, pd.Series]) -> Figure:
    """Plot how near each group's volumes are to the training set (label → which rows): correlation, feature distance."""
    columns = {
        "nearest_correlation": "highest correlation with a training scan →  closer",
        "nearest_distance_codec": "closer  ← smallest codec-feature distance",
    }
    figure = Figure(figsize=(9, 3.2))
    axes = figure.subplots(1, len(columns))
    colours = run_colours([label for label in groups if label != "real"])
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        values = {group: scans.loc[chosen, column].dropna().to_numpy(float) for group, chosen in groups.items()}
        every = np.concatenate(list(values.values()))
        edges = np.linspace(every.min(), every.max() + 1e-9, 25) if every.size else np.linspace(0, 1, 25)
        for group, data in values.items():
            if not data.size:
                continue
            name = "real, never trained on" if group == "real" else run_label(group)
            axis.hist(data, edges, weights=np.full(len(data), 1 / len(data)), color=colours[group], alpha=0.4,
                      label=f"{name} (n = {len(data)})")  # fmt: skip
            axis.axvline(float(np.median(data)), color=colours[group], linewidth=1.5)
        axis.set(xlabel=label, ylabel="share of volumes")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def distributions(values: Mapping[str, Sequence[float]]) -> Figure:
    """Plot one histogram per figure (axis label → values)."""
    figure = Figure(figsize=(min(9, 3.2 * len(values)), 2.6))
    axes = np.atleast_1d(figure.subplots(1, len(values)))
    for axis, (label, given) in zip(axes, values.items(), strict=True):
        data = np.asarray(given, dtype=float)
        alike = np.ptp(data) < 1e-3  # an axis of its own noise would mislead
        limits = (data.min() - 0.01, data.max() + 0.01) if alike else (data.min(), data.max())
        axis.hist(data, bins=min(30, max(8, len(data) // 3)), range=limits, color=run_colours(["qc"])["qc"])
        axis.set(xlabel=label, ylabel="scans")
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.ticklabel_format(axis="x", useOffset=False, style="plain")
    return figure
