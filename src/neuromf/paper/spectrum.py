"""The picture of the power spectra of real, reconstructed and generated volumes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuromf.evaluation.rows import REFERENCE_RUNS, read_parquet
from neuromf.paper import style
from neuromf.tables import atomic_path

_REFERENCES = ("real", "reconstruction")


@dataclass(frozen=True)
class Line:
    """One set of volumes in the picture: its rows of the table and its look."""

    label: str
    rows: pd.DataFrame
    colour: str
    dashes: str


def draw_spectra(table: Path, out: Path, *, k0: float) -> None:
    """Write the figure of the power spectra as PNG.

    Args:
        table: parquet of `neuromf.evaluation.spectrum.merge_spectra`.
        out: the PNG.
        k0: where high frequencies begin, as a share of Nyquist.
    """
    with style.themed(style.LIGHT), atomic_path(out) as temporary:
        temporary.write_bytes(style.as_png(spectra(read_parquet(table), k0=k0)))


def spectra(table: pd.DataFrame, *, k0: float) -> Figure:
    """Plot the mean power spectra with their intervals, and what is left of the real and of the reconstructions' power.

    Each run is drawn at its fewest and (dashed) its most network evaluations, first seed; one that has none, once.
    """
    titles = {
        "power": "power per frequency",
        "power_to_real": "beside real scans",
        "power_to_reconstruction": "beside reconstructions",
    }
    titles = {spectrum: title for spectrum, title in titles.items() if (table["spectrum"] == spectrum).any()}
    figure = Figure(figsize=(3 * len(titles), 3.6))
    axes = figure.subplots(1, len(titles))
    middles = sorted(table["cycles_per_mm"].unique())
    nyquist = middles[0] + middles[-1]
    for axis, (spectrum, title) in zip(axes, titles.items(), strict=True):
        for line in _lines(table[table["spectrum"] == spectrum]):
            _draw(axis, line)
        axis.axvline(k0 * nyquist, color=style.REFERENCE_GREY, linewidth=1, linestyle=":")
        axis.set(title=title, xlabel="cycles per mm", xlim=(0, nyquist))
        if spectrum == "power":
            axis.set(yscale="log")
        else:
            axis.axhline(1, color=style.REFERENCE_GREY, linewidth=1)
            axis.set(ylim=(0, None))
    axes[0].set_ylabel("mean |F(k)|²")
    axes[1].set_ylabel("ratio")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _lines(rows: pd.DataFrame) -> list[Line]:
    """Return the sets to draw, references first."""
    others = rows[~rows["run"].isin(REFERENCE_RUNS)]
    colours = style.run_colours(list(dict.fromkeys(others["run"])))
    lines = []
    for name in _REFERENCES:
        chosen = rows[(rows["run"] == name) & rows["nfe"].isna()]
        if len(chosen):
            lines.append(Line(style.run_label(name), chosen, colours[name], "-"))
    for run in dict.fromkeys(others["run"]):
        own = others[others["run"] == run]
        if own["nfe"].isna().all():
            lines.append(Line(style.run_label(run), own, colours[run], "-"))
            continue
        own = own[own["seed"] == own["seed"].min()]
        for nfe, dashes in dict.fromkeys([(own["nfe"].min(), "-"), (own["nfe"].max(), "--")]):
            if dashes == "-" or nfe != own["nfe"].min():
                lines.append(Line(f"{style.run_label(run)}, {nfe} NFE", own[own["nfe"] == nfe], colours[run], dashes))
    return lines


def _draw(axis: Axes, line: Line) -> None:
    rows = line.rows.sort_values("cycles_per_mm")
    n = int(rows["n"].iloc[0])
    axis.plot(rows["cycles_per_mm"], rows["value"], color=line.colour, linestyle=line.dashes, linewidth=1.4,
              label=f"{line.label} (n = {n})")  # fmt: skip
    if rows["ci_low"].notna().all():
        axis.fill_between(rows["cycles_per_mm"], rows["ci_low"], rows["ci_high"], color=line.colour, alpha=0.2,
                          linewidth=0)  # fmt: skip
