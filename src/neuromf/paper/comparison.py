"""The tables and the picture of `neuromf evaluate`, from the metrics.json it wrote: CSV, LaTeX, PNG and text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from neuromf.evaluation.copies import PIXELS
from neuromf.evaluation.rows import NO_EXTRACTOR, read_parquet
from neuromf.paper import regions
from neuromf.paper.copies import draw_copies
from neuromf.paper.figures import tissue_distributions
from neuromf.paper.spectrum import draw_spectra
from neuromf.paper.style import LIGHT, REFERENCE_GREY, as_png, run_colours, themed
from neuromf.paper.tables import MISSING, distance_names, latex_table
from neuromf.tables import atomic_path, read_json, write_text

FEW_SCANS = "fewer scans than features"
WHY = (
    "the plain Fréchet distance then grows with each scan that is missing, so KID (unbiased) and the distance"
    " extrapolated to infinitely many scans stand first"
)
UNRESOLVED = (
    "Shares of synthetic volumes closer than the 1st and 5th percentile of the null, and than its closest scan. A null of m"
    " scans tells no share below 1/(m + 1): the 1st percentile takes 99 scans, the 5th 19."
)
_DISTANCES = {  # metric: title; the column `Called` says what the first three are called for this extractor
    "kernel_distance": "KID",
    "frechet_distance_extrapolated": "Fréchet ∞",
    "frechet_distance": "Fréchet",
    "gaussian_mmd": "MMD²",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
}
OPTIONAL = (
    "distances.png", "copies.png", "regions.csv", "regions.tex", "regions.png", "ratios.csv", "ratios.tex"
)  # fmt: skip
_FLOORS = ("kernel_distance", "frechet_distance")
_VOLUMES = {  # metric of the synthetic volumes against the real: title
    "cohens_d": "Cohen's d",
    "kolmogorov_smirnov": "Kolmogorov-Smirnov",
    "wasserstein_ml": "Wasserstein, ml",
    "kl_divergence": "KL divergence",
}


def write_comparison(folder: Path) -> str:
    """Write {distances,volumes,copies}.{csv,tex,png}, spectrum.png and, of segmenters, regions.{csv,tex,png} and
    ratios.{csv,tex} beside metrics.json; return the tables as text.

    ``folder`` is what `neuromf.evaluation.compare.evaluate_folders` wrote.
    """
    for name in OPTIONAL:
        (folder / name).unlink(missing_ok=True)  # of an earlier call with other segmenters or extractors
    content = read_json(folder / "metrics.json")
    metrics, about = pd.DataFrame(content["rows"]), content["provenance"]
    tables = {
        "distances": distance_table(metrics, about),
        "volumes": volume_table(metrics),
        "copies": copies_table(metrics),
    }
    if about["segmenters"]:
        tables["regions"] = regions.region_table(metrics, "synthetic")
        tables["ratios"] = regions.ratio_table(metrics, "synthetic")
    notes = dict.fromkeys(tables, "")
    if len(tables["distances"]) and tables["distances"]["Note"].any():
        notes["distances"] = f"{FEW_SCANS}: {WHY}."
    if (tables["copies"] == MISSING).any(axis=None):
        notes["copies"] = UNRESOLVED
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table.to_csv(index=False))
        latex_table(table, folder / f"{name}.tex", notes[name])
    _draw(folder, metrics, about)
    texts = [
        text for name, table in tables.items() if len(table) for text in (table.to_string(index=False), notes[name])
    ]
    return "\n\n".join([*filter(None, texts), f"Written to {folder}"])


def _draw(folder: Path, metrics: pd.DataFrame, about: dict[str, Any]) -> None:
    """Write a picture of each family of figures."""
    scans = read_parquet(folder / "scans.parquet")
    plots: dict[str, Callable[[], Figure]]
    groups = {run: scans["run"] == run for run in ("real", "synthetic")}
    plots = {"volumes": lambda: tissue_distributions(scans, groups)}
    if (metrics["metric"] == "frechet_distance").any():
        plots["distances"] = lambda: distance_figure(metrics)
    for name, draw in plots.items():
        with themed(LIGHT), atomic_path(folder / f"{name}.png") as temporary:
            temporary.write_bytes(as_png(draw()))
    draw_spectra(folder / "spectra.parquet", folder / "spectrum.png", k0=about["settings"]["spectrum_k0"])
    if (metrics["metric"] == "other_null_scans").any():
        suspects = folder / "suspects"
        training = {
            str(path.relative_to(suspects / "train")).removesuffix(".nii.gz"): path
            for path in (suspects / "train").rglob("*.nii.gz")
        }
        draw_copies(
            folder / "scans.parquet",
            {("synthetic", None, None): suspects / "synthetic"},
            training,
            folder / "copies.png",
        )
    if about["segmenters"]:
        regions.draw_regions(folder / "metrics.parquet", folder / "regions.png")


def distance_table(metrics: pd.DataFrame, about: dict[str, Any]) -> pd.DataFrame:
    """Return one row per extractor and plane: synthetic against real with intervals, the floor, and why to read which.

    The floor is as many real scans as there are synthetic ones, half of them at most, against the others: the mean of five
    draws.
    """
    rows = []
    keys = metrics[metrics["metric"] == "kernel_distance"][["extractor", "region"]].drop_duplicates()
    for extractor, region in keys.itertuples(index=False):
        chosen = metrics[(metrics["extractor"] == extractor) & (metrics["region"] == region)]
        features = about["extractors"][extractor]["features"]
        scans = min(about["inputs"][name]["volumes"] for name in ("real", "synthetic"))
        row = {"Extractor": extractor, "Region": region, "Called": " / ".join(distance_names(extractor))}
        row |= {title: _figure(chosen, "synthetic", metric) for metric, title in _DISTANCES.items()}
        row |= {f"{_DISTANCES[metric]}, floor": _figure(chosen, "real", metric) for metric in _FLOORS}
        rows.append(row | {"Note": f"{FEW_SCANS} ({scans}, {features})" if scans <= features else ""})
    return pd.DataFrame(rows)


def volume_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return one row per tissue: mean volumes of both folders and how the synthetic differ from the real."""
    rows = []
    metrics = metrics[metrics["extractor"] == NO_EXTRACTOR]
    for tissue in metrics[(metrics["metric"] == "cohens_d") & (metrics["run"] == "synthetic")]["region"]:
        chosen = metrics[metrics["region"] == tissue]
        row = {"Tissue": tissue, "Real, ml": _figure(chosen, "real", "volume_ml")}
        row["Synthetic, ml"] = _figure(chosen, "synthetic", "volume_ml")
        for metric, title in _VOLUMES.items():
            row[title] = _figure(chosen, "synthetic", metric)
        rows.append(row)
    return pd.DataFrame(rows)


def copies_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return one row per search (training scans, other volumes) and way to look (pixels, codec): how near the synthetic
    volumes come, how many real scans are the null, and the shares of volumes that come closer than the null."""
    rows = []
    synthetic = metrics[metrics["run"] == "synthetic"]
    for target in ("training", "other"):
        for by in synthetic[synthetic["metric"] == f"{target}_null_scans"]["extractor"]:
            chosen = synthetic[synthetic["extractor"] == by]
            nearness = f"nearest_{target}_{'correlation' if by == PIXELS else 'distance'}"
            row = {"Nearest": "training scan" if target == "training" else "other volume", "By": by}
            row["r or distance"] = _figure(chosen, "synthetic", nearness)
            row["Relative distance"] = _figure(chosen, "synthetic", f"nearest_{target}_relative")
            row["Null, scans"] = _figure(chosen, "synthetic", f"{target}_null_scans")
            for closer, word in (("closer", "Closer"), ("relatively_closer", "Relatively closer")):
                for rank in ("1st", "5th", "closest"):
                    row[f"{word}, {rank}"] = _figure(chosen, "synthetic", f"{closer}_to_{target}_than_null_{rank}")
            rows.append(row)
    return pd.DataFrame(rows)


def distance_figure(metrics: pd.DataFrame) -> Figure:
    """Plot the Fréchet distance of each extractor and plane with its interval, as a multiple of the floor's.

    Distances of different extractors have different scales; the floor is that of some real scans to the others.
    """
    chosen = metrics[(metrics["metric"] == "frechet_distance") & metrics["value"].notna()]
    chosen = chosen.set_index(chosen["extractor"] + ", " + chosen["region"])
    synthetic, floor = (chosen[chosen["run"] == run] for run in ("synthetic", "real"))
    synthetic = synthetic[synthetic.index.isin(floor.index)]
    figure = Figure(figsize=(6, 1.2 + 0.35 * len(synthetic)), layout="constrained")
    axis = figure.subplots()
    for rows, colour, label, shift in (
        (synthetic, run_colours(["synthetic"])["synthetic"], "synthetic to real", 0.12),
        (floor.loc[synthetic.index], REFERENCE_GREY, "real scans to other real scans", -0.12),
    ):
        unit = floor.loc[synthetic.index, "value"].to_numpy(float)
        values = rows["value"].to_numpy(float) / unit
        ends = rows[["ci_low", "ci_high"]].to_numpy(float).T / unit
        places = [place + shift for place in range(len(rows))]
        axis.errorbar(values, places, xerr=abs(ends - values), fmt="o", color=colour, label=label, markersize=4)
    axis.set_yticks(range(len(synthetic)), list(synthetic.index), fontsize=8)
    axis.set(xlabel="Fréchet distance / floor", xlim=(0, None))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def _figure(metrics: pd.DataFrame, run: str, metric: str) -> str:
    """Return ``value [low, high]`` with three digits; the scale of a distance depends on its extractor's features."""
    chosen = metrics[(metrics["run"] == run) & (metrics["metric"] == metric)]
    if chosen.empty or pd.isna(chosen.iloc[0]["value"]):
        return MISSING
    value, low, high = (chosen.iloc[0][name] for name in ("value", "ci_low", "ci_high"))
    return _digits(value) if pd.isna(low) else f"{_digits(value)} [{_digits(low)}, {_digits(high)}]"


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
