"""The table of metrics: one row per run, seed and NFE, every figure with its interval; HTML, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from neuromf.paper.style import run_label
from neuromf.tables import write_text


@dataclass(frozen=True)
class Column:
    """One column of the table: which metric, where, how it is called and printed, and which end is better."""

    metric: str
    region: str
    title: str
    digits: int
    better: str = ""  # ↑ | ↓ | nothing
    percent: bool = False


COLUMNS = (
    Column("frechet_distance", "test", "Fréchet distance (codec)", 2, "↓"),
    Column("kernel_distance", "test", "KID (codec) ×1000", 1, "↓"),
    Column("brain_volume_in_real_range", "brain", "Brain volume in real range (%)", 0, "↑", percent=True),
    Column("cohens_d", "brain", "Cohen's d, brain", 2),
    Column("cohens_d", "grey", "Cohen's d, grey matter", 2),
    Column("cohens_d", "deep_csf", "Cohen's d, deep fluid", 2),
    Column("nearest_training_correlation", "brain", "Nearest training scan, r", 3),
    Column("seconds_per_volume", "total", "Seconds per volume", 2, "↓"),
)
CODEC_COLUMNS = (
    Column("psnr", "brain_box", "PSNR, box (dB)", 2, "↑"),
    Column("ssim", "brain_box", "SSIM, box", 3, "↑"),
    Column("psnr", "brain", "PSNR, brain (dB)", 2, "↑"),
    Column("ssim", "brain", "SSIM, brain", 3, "↑"),
    Column("mae", "brain", "MAE, brain", 4, "↓"),
    Column("lpips", "sagittal", "LPIPS sagittal", 3, "↓"),
    Column("lpips", "coronal", "LPIPS coronal", 3, "↓"),
    Column("lpips", "axial", "LPIPS axial", 3, "↓"),
)
SPECTRUM_COLUMNS = (
    Column("high_frequency_ratio", "volume", "High-frequency energy ρ", 4),
    Column("high_frequency_to_real", "volume", "ρ over that of real scans", 2),
    Column("high_frequency_to_reconstruction", "volume", "ρ over that of reconstructions", 2),
)
EVERY_COLUMN = COLUMNS + CODEC_COLUMNS + SPECTRUM_COLUMNS
_SCALE = {"KID (codec) ×1000": 1000.0}
_ORDER = {"real": 0, "reconstruction": 1, "linear_reconstruction": 2, "noise": 9}
MISSING = "–"


def metric_table(
    metrics: pd.DataFrame, columns: Sequence[Column] = COLUMNS, *, real: str = "real train vs real test"
) -> pd.DataFrame:
    """Return the table as text: run, seed, NFE, n and one cell ``value [low, high]`` per column.

    ``metrics`` is the evaluation's tidy table. The references come first and noise last; ``real`` is what the row of the
    real scans is called: in distances it holds the floor. Runs of which no column was measured are left out.
    """
    rows = []
    keys = metrics[["run", "seed", "nfe"]].drop_duplicates()
    keys["order"] = keys["run"].map(lambda run: _ORDER.get(run, 5))
    for key in keys.sort_values(["order", "run", "seed", "nfe"]).itertuples():
        chosen = metrics[
            (metrics["run"] == key.run) & _same(metrics["seed"], key.seed) & _same(metrics["nfe"], key.nfe)
        ]
        found = [chosen[(chosen["metric"] == c.metric) & (chosen["region"] == c.region)] for c in columns]
        if all(cell.empty for cell in found):
            continue
        name = real if key.run == "real" else run_label(key.run)
        count = next(int(cell.iloc[0]["n"]) for cell in found if len(cell))
        row = {"Run": name, "Seed": _whole(key.seed), "NFE": _whole(key.nfe), "n": str(count)}
        for column, cell in zip(columns, found, strict=True):
            row[f"{column.title} {column.better}".strip()] = _cell(cell.iloc[0], column) if len(cell) else MISSING
        rows.append(row)
    return pd.DataFrame(rows)


def write_csv(metrics: pd.DataFrame, path: Path) -> None:
    """Write the table, the codec's and the spectrum's columns included, as CSV."""
    write_text(path, metric_table(metrics, EVERY_COLUMN).to_csv(index=False))


def write_latex(metrics: pd.DataFrame, path: Path) -> None:
    """Write the table, the codec's and the spectrum's columns included, as a LaTeX tabular (needs no package)."""
    table = metric_table(metrics, EVERY_COLUMN)
    header = " & ".join(_latex(title) for title in table.columns)
    body = [" & ".join(_latex(cell) for cell in row) + r" \\" for row in table.itertuples(index=False)]
    columns = "l" + "r" * (len(table.columns) - 1)
    lines = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\hline",
        header + r" \\",
        r"\hline",
        *body,
        r"\hline",
        r"\end{tabular}",
    ]
    write_text(path, "\n".join(lines) + "\n")


def figure_of(
    metrics: pd.DataFrame, run: str, metric: str, region: str, nfe: int | None = None, extractor: str | None = None
) -> pd.Series | None:
    """Return the row of one figure (of the first seed), or None when it was not measured or has no value."""
    chosen = metrics[(metrics["run"] == run) & (metrics["metric"] == metric) & (metrics["region"] == region)]
    if nfe is not None:
        chosen = chosen[chosen["nfe"] == nfe]
    if extractor is not None:
        chosen = chosen[chosen["extractor"] == extractor]
    chosen = chosen[chosen["value"].notna()].sort_values("seed")
    return chosen.iloc[0] if len(chosen) else None


def _cell(row: pd.Series, column: Column) -> str:
    if pd.isna(row["value"]):
        return MISSING
    scale = 100.0 if column.percent else _SCALE.get(column.title, 1.0)
    value, low, high = (float(row[name]) * scale for name in ("value", "ci_low", "ci_high"))
    text = f"{value:.{column.digits}f}"
    return text if pd.isna(low) else f"{text} [{low:.{column.digits}f}, {high:.{column.digits}f}]"


def _same(values: pd.Series, wanted: object) -> pd.Series:
    return values.isna() if pd.isna(wanted) else (values == wanted).fillna(False).astype(bool)  # type: ignore[call-overload]


def _whole(value: object) -> str:
    return MISSING if pd.isna(value) else str(int(value))  # type: ignore[call-overload]


_LATEX = {
    "\\": r"\textbackslash ",
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde ",
    "^": r"\textasciicircum ",
    "é": r"\'e",
    "×": r"$\times$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "–": "--",
    "ρ": r"$\rho$",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
