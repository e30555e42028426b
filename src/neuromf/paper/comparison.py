"""The tables and the picture of `neuromf evaluate`, from the metrics.json it wrote: CSV, LaTeX, PNG and text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from neuromf.paper.tables import MISSING, distance_names, latex_table
from neuromf.tables import write_text

FEW_SCANS = "fewer scans than features"
WHY = (
    "the plain Fréchet distance then grows with each scan that is missing, so KID (unbiased) and the distance"
    " extrapolated to infinitely many scans stand first"
)
_DISTANCES = (  # metric, title, digits, scale; the titles of the first three get the extractor's names of them
    ("kernel_distance", "KID ×1000", 3, 1000.0),
    ("frechet_distance_extrapolated", "Fréchet ∞", 3, 1.0),
    ("frechet_distance", "Fréchet", 3, 1.0),
    ("gaussian_mmd", "MMD² ×1000", 2, 1000.0),
    ("precision", "Precision", 2, 1.0),
    ("recall", "Recall", 2, 1.0),
    ("density", "Density", 2, 1.0),
    ("coverage", "Coverage", 2, 1.0),
)
_VOLUMES = ("volume_ml", "cohens_d", "kolmogorov_smirnov", "wasserstein_ml")


def write_comparison(folder: Path) -> str:
    """Write distances.{csv,tex,png} and volumes.{csv,tex} beside metrics.json; return the tables as text."""
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    metrics, about = pd.DataFrame(content["rows"]), content["provenance"]
    tables = {"distances": distance_table(metrics, about), "volumes": volume_table(metrics)}
    notes = dict.fromkeys(tables, "")
    if len(tables["distances"]):
        notes["distances"] = f"{FEW_SCANS}: {WHY}." if tables["distances"]["Note"].any() else ""
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table.to_csv(index=False))
        latex_table(table, folder / f"{name}.tex", notes[name])
    if len(tables["distances"]):
        distance_figure(metrics).savefig(folder / "distances.png", dpi=150, bbox_inches="tight")
    texts = [
        text for name, table in tables.items() if len(table) for text in (table.to_string(index=False), notes[name])
    ]
    return "\n\n".join([*filter(None, texts), f"Written to {folder}"])


def distance_table(metrics: pd.DataFrame, about: dict[str, Any]) -> pd.DataFrame:
    """Return one row per extractor and plane: synthetic against real with intervals, the floor, and why to read which.

    The floor is one half of the real scans against the other, so it is measured with half as many scans.
    """
    rows = []
    keys = metrics[metrics["metric"] == "kernel_distance"][["extractor", "region"]].drop_duplicates()
    for extractor, region in keys.itertuples(index=False):
        chosen = metrics[(metrics["extractor"] == extractor) & (metrics["region"] == region)]
        features = about["extractors"][extractor]["features"]
        scans = min(about["inputs"][name]["volumes"] for name in ("real", "synthetic"))
        row = {"Extractor": extractor, "Region": region, "Called": " / ".join(distance_names(extractor))}
        for metric, title, digits, scale in _DISTANCES:
            row[title] = _figure(chosen, "synthetic", metric, digits, scale)
        for metric, title, digits, scale in (_DISTANCES[0], _DISTANCES[2]):
            row[f"{title}, floor"] = _figure(chosen, "real", metric, digits, scale)
        rows.append(row | {"Note": f"{FEW_SCANS} ({scans}, {features})" if scans <= features else ""})
    return pd.DataFrame(rows)


def volume_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return one row per tissue: mean volumes of both folders and how the synthetic differ from the real."""
    rows = []
    for tissue in metrics[metrics["metric"] == "cohens_d"]["region"]:
        chosen = metrics[metrics["region"] == tissue]
        row = {"Tissue": tissue, "Real, ml": _figure(chosen, "real", "volume_ml", 0, 1.0)}
        row["Synthetic, ml"] = _figure(chosen, "synthetic", "volume_ml", 0, 1.0)
        for metric, title in zip(_VOLUMES[1:], ("Cohen's d", "Kolmogorov-Smirnov", "Wasserstein, ml"), strict=True):
            row[title] = _figure(chosen, "synthetic", metric, 2, 1.0)
        rows.append(row)
    return pd.DataFrame(rows)


def distance_figure(metrics: pd.DataFrame) -> Figure:
    """Plot the Fréchet and the kernel distance of each extractor and plane with its interval, and the floor beside it."""
    figure = Figure(figsize=(8, 3.2))
    for axis, (metric, title) in zip(
        figure.subplots(1, 2), (("kernel_distance", "KID"), ("frechet_distance", "Fréchet distance")), strict=True
    ):
        chosen = metrics[(metrics["metric"] == metric) & metrics["value"].notna()]
        synthetic, floor = (chosen[chosen["run"] == run].reset_index(drop=True) for run in ("synthetic", "real"))
        for rows, colour, label, shift in (
            (synthetic, "#0072B2", "synthetic", 0.1),
            (floor, "#8a8f98", "half of real", -0.1),
        ):
            values = rows["value"].to_numpy(float)
            ends = rows[["ci_low", "ci_high"]].to_numpy(float).T
            axis.errorbar(values, rows.index + shift, xerr=abs(ends - values), fmt="o", color=colour, label=label, ms=4)
        labels = [f"{e}, {r}" for e, r in zip(synthetic["extractor"], synthetic["region"], strict=True)]
        axis.set_yticks(range(len(labels)), labels, fontsize=7)
        axis.set(title=title, xscale="symlog")
    figure.axes[1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def _figure(metrics: pd.DataFrame, run: str, metric: str, digits: int, scale: float) -> str:
    chosen = metrics[(metrics["run"] == run) & (metrics["metric"] == metric)]
    if chosen.empty or pd.isna(chosen.iloc[0]["value"]):
        return MISSING
    value, low, high = (chosen.iloc[0][name] for name in ("value", "ci_low", "ci_high"))
    text = f"{value * scale:.{digits}f}"
    return text if pd.isna(low) else f"{text} [{low * scale:.{digits}f}, {high * scale:.{digits}f}]"
