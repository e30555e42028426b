"""The picture of the training latents' distribution, from what `neuromf.evaluation.latents` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import norm

from neuromf.paper import style
from neuromf.tables import atomic_path, read_json

SHOWN = 8  # channels whose histogram is drawn
COMPONENTS = 50  # over scans
_SMALLEST = 1e-4  # density; the axis of the histograms ends there


def draw_latents(description: Path, out: Path) -> None:
    """Write the figure of the latents' distribution as PNG.

    Args:
        description: JSON of `neuromf.evaluation.latents.describe_latents`.
        out: the PNG.
    """
    content = read_json(description)
    with style.themed(style.LIGHT), atomic_path(out) as temporary:
        temporary.write_bytes(style.as_png(latents(content)))


def latents(content: Mapping[str, Any]) -> Figure:
    """Plot each channel's histogram beside N(0, 1), the channels' correlation and the spectra of both PCAs."""
    channels = min(len(content["density"]), SHOWN)
    lines = 1 + (channels - 1) // 4
    figure = Figure(figsize=(9, 2.3 * lines + 2.6))
    grid = figure.add_gridspec(2, 1, height_ratios=[2.3 * lines, 2.6])
    above, below = (figure.add_subfigure(place) for place in (grid[0], grid[1]))
    axes = np.atleast_1d(above.subplots(lines, min(channels, 4), sharex=True, sharey=True, squeeze=False)).ravel()
    for channel, axis in enumerate(axes):
        if channel < channels:
            _histogram(axis, content, channel)
        else:
            axis.set_axis_off()
    axes[0].legend(fontsize=8, loc="lower center")
    for axis in axes[:: min(channels, 4)]:
        axis.set_ylabel("density")
    correlation, over_channels, over_scans = below.subplots(1, 3)
    _correlation(correlation, np.array(content["correlation"]))
    _spectrum(over_channels, content, "effective_dimension_channels", content["channel_pca"])
    over_channels.set(xlabel="component over channels", ylabel="share of variance")
    _spectrum(over_scans, content, "effective_dimension_scans", content["scan_pca"]["explained"][:COMPONENTS])
    over_scans.set(xlabel="component over scans")
    return figure


def latent_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """Return the figures of each channel as text with their intervals."""
    titles = {
        "mean": "Mean",
        "std": "σ",
        "skewness": "Skewness",
        "kurtosis": "Excess kurtosis",
        "kolmogorov_smirnov": "KS distance to N(0, 1)",
    }
    channels = range(len(content["density"]))
    columns = {title: [figure_text(content, name, c, 3) for c in channels] for name, title in titles.items()}
    return pd.DataFrame({"Channel": [str(c) for c in channels], **columns})


def figure_text(content: Mapping[str, Any], name: str, channel: int | None, digits: int) -> str:
    """Return a figure as text, its interval in brackets; a dash where it was not measured."""
    row = next(row for row in content["figures"] if row["figure"] == name and row["channel"] == channel)
    if row["value"] is None:
        return "–"
    text = f"{row['value']:.{digits}f}"
    return text if row["ci_low"] is None else f"{text} [{row['ci_low']:.{digits}f}, {row['ci_high']:.{digits}f}]"


def _histogram(axis: Axes, content: Mapping[str, Any], channel: int) -> None:
    edges = np.array(content["edges"])
    centres = (edges[:-1] + edges[1:]) / 2
    axis.stairs(np.maximum(content["density"][channel], _SMALLEST / 10), edges, color=style.run_colours(["z"])["z"],
                fill=True, alpha=0.5, label="latents")  # fmt: skip
    axis.plot(centres, norm.pdf(centres), color=style.REFERENCE_GREY, linewidth=1.2, label="N(0, 1)")
    axis.set(yscale="log", ylim=(_SMALLEST, None), xlim=(-6, 6), xlabel="(z − μ) / σ")
    skewness, kurtosis = (
        next(r["value"] for r in content["figures"] if r["figure"] == name and r["channel"] == channel)
        for name in ("skewness", "kurtosis")
    )
    axis.set_title(
        f"channel {channel}: KS {figure_text(content, 'kolmogorov_smirnov', channel, 2)}\n"
        f"skewness {skewness:.2f}, kurtosis {kurtosis:.2f}",
        fontsize=8,
    )


def _correlation(axis: Axes, correlation: np.ndarray) -> None:
    axis.imshow(correlation, cmap="RdBu_r", vmin=-1, vmax=1)
    axis.grid(visible=False)
    ticks = range(len(correlation))
    axis.set(xlabel="channel", ylabel="channel")
    axis.set_title("correlation", fontsize=9)
    if len(correlation) <= SHOWN:
        axis.set(xticks=ticks, yticks=ticks)
        for (i, j), value in np.ndenumerate(correlation):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8,
                      color="white" if abs(value) > 0.6 else "black")  # fmt: skip


def _spectrum(axis: Axes, content: Mapping[str, Any], name: str, shares: list[float]) -> None:
    axis.bar(np.arange(1, len(shares) + 1), shares, color=style.run_colours(["z"])["z"])
    row = next(row for row in content["figures"] if row["figure"] == name)
    axis.set_title(f"effective dimension\n{figure_text(content, name, None, 1)}, n = {row['n']}", fontsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
