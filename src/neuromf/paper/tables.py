"""The table of metrics: one row per run, seed and NFE, every figure with its interval; HTML, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from neuromf.evaluation.rows import NO_EXTRACTOR
from neuromf.paper.style import run_label
from neuromf.tables import TableError, write_text


@dataclass(frozen=True)
class Column:
    """One column of the table: which metric, where, how it is called and printed, and which end is better."""

    metric: str
    region: str
    title: str
    digits: int
    better: str = ""  # ↑ | ↓ | nothing
    scale: float = 1.0  # of what is printed
    extractor: str = NO_EXTRACTOR  # whose features


COLUMNS = (
    # fewer scans than features: the unbiased figure and the one without the bias of order 1/N come first
    Column("kernel_distance", "volume", "KID (codec) ×1000", 1, "↓", 1000.0, "codec"),
    Column("frechet_distance_extrapolated", "volume", "Fréchet distance (codec), ∞ scans", 2, "↓", extractor="codec"),
    Column("frechet_distance", "volume", "Fréchet distance (codec)", 2, "↓", extractor="codec"),
    Column("brain_volume_in_real_range", "brain", "Brain volume in real range (%)", 0, "↑", 100.0),
    Column("cohens_d", "brain", "Cohen's d, brain", 2),
    Column("cohens_d", "grey", "Cohen's d, grey matter", 2),
    Column("cohens_d", "deep_csf", "Cohen's d, deep fluid", 2),
    Column("nearest_training_correlation", "brain", "Nearest training scan, r", 3, extractor="pixels"),
    Column("seconds_per_volume", "total", "Seconds per volume", 2, "↓"),
    Column("joules_per_volume", "total", "Joules per volume", 1, "↓"),
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
_ORDER = {"real": 0, "reconstruction": 1, "linear_reconstruction": 2, "noise": 9}
MISSING = "–"


def read_csv(path: Path, separator: str = ",") -> pd.DataFrame:
    """Read a table that a training or an evaluation wrote as text.

    Raises:
        TableError: the file is missing or damaged.
    """
    try:
        return pd.read_csv(path, sep=separator)
    except Exception as error:  # ParserError, EmptyDataError, UnicodeDecodeError, OverflowError
        raise TableError(
            f"{path} is missing or damaged ({' '.join(str(error).split())[:200]}); make it again"
        ) from None


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
        found = [rows_of(chosen, column) for column in columns]
        if all(cell.empty for cell in found):
            continue
        name = real if key.run == "real" else run_label(key.run)
        count = next(int(cell.iloc[0]["n"]) for cell in found if len(cell))
        row = {"Run": name, "Seed": _whole(key.seed), "NFE": _whole(key.nfe), "n": str(count)}
        for column, cell in zip(columns, found, strict=True):
            row[f"{column.title} {column.better}".strip()] = _cell(cell.iloc[0], column) if len(cell) else MISSING
        rows.append(row)
    return pd.DataFrame(rows)


def extractor_columns(metrics: pd.DataFrame) -> tuple[Column, ...]:
    """Return the columns of KID and Fréchet distance of each extractor besides the codec, region by region."""
    rows = metrics[(metrics["metric"] == "frechet_distance") & (metrics["extractor"] != "codec")]
    found = dict.fromkeys(zip(rows["extractor"], rows["region"], strict=True))
    columns = []
    for extractor, region in found:
        kernel, frechet = distance_names(extractor)
        columns += [
            Column("kernel_distance", region, f"{kernel}, {region} ×1000", 2, "↓", 1000.0, extractor),
            Column("frechet_distance", region, f"{frechet}, {region}", 2, "↓", extractor=extractor),
        ]
    return tuple(columns)


def copies_columns(target: str) -> tuple[Column, ...]:
    """Return the columns of a search for copies by pixels; ``target`` is `training` or `other`."""
    return (
        Column(f"{target}_null_scans", "brain", "Null, scans", 0, extractor="pixels"),
        Column(f"nearest_{target}_correlation", "brain", "r", 3, extractor="pixels"),
        Column(f"nearest_{target}_relative", "brain", "Relative distance", 3, extractor="pixels"),
        *(
            Column(
                f"{closer}_to_{target}_than_null_{rank}", "brain", f"{word} than {whose} (%)", 0, "", 100.0, "pixels"
            )
            for closer, word in (("closer", "Closer"), ("relatively_closer", "Relatively closer"))
            for rank, whose in (("1st", "99 % of the null"), ("5th", "95 % of it"), ("closest", "all of it"))
        ),
    )


def measured(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `metric_table` without the columns that have no value."""
    return table.loc[:, (table != MISSING).any()]


def every_column(metrics: pd.DataFrame) -> tuple[Column, ...]:
    """Return the columns of the written tables: the report's own, of further extractors, the codec and the spectrum."""
    return COLUMNS + extractor_columns(metrics) + CODEC_COLUMNS + SPECTRUM_COLUMNS


def distance_names(extractor: str) -> tuple[str, str]:
    """Return what the kernel and the Fréchet distance of an extractor are called: only Inception's are KID and FID."""
    if extractor == "inception":
        return "KID", "FID"
    return f"KID ({extractor})", f"Fréchet distance ({extractor})"


def write_csv(metrics: pd.DataFrame, path: Path) -> None:
    """Write the table, the columns of further extractors, the codec and the spectrum included, as CSV."""
    write_text(path, metric_table(metrics, every_column(metrics)).to_csv(index=False))


def write_latex(metrics: pd.DataFrame, path: Path) -> None:
    """Write the table, the columns of further extractors, the codec and the spectrum included, as a LaTeX tabular."""
    latex_table(metric_table(metrics, every_column(metrics)), path)


def latex_table(table: pd.DataFrame, path: Path, note: str = "") -> None:
    """Write a table of text as a LaTeX tabular (needs no package), with a note below it."""
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
        *([rf"\par {{\footnotesize {_latex(note)}}}"] if note else []),
    ]
    write_text(path, "\n".join(lines) + "\n")


def figure_of(
    metrics: pd.DataFrame, run: str, metric: str, region: str, nfe: int | None = None, extractor: str = NO_EXTRACTOR
) -> pd.Series | None:
    """Return the row of one figure (of the first seed), or None when it was not measured or has no value."""
    chosen = metrics[(metrics["run"] == run) & (metrics["metric"] == metric) & (metrics["region"] == region)]
    chosen = chosen[chosen["extractor"] == extractor]
    if nfe is not None:
        chosen = chosen[chosen["nfe"] == nfe]
    chosen = chosen[chosen["value"].notna()].sort_values("seed")
    return chosen.iloc[0] if len(chosen) else None


def rows_of(metrics: pd.DataFrame, column: Column) -> pd.DataFrame:
    """Return the rows of a column's figure."""
    chosen = (metrics["metric"] == column.metric) & (metrics["region"] == column.region)
    return metrics[chosen & (metrics["extractor"] == column.extractor)]


def _cell(row: pd.Series, column: Column) -> str:
    value, low, high = (float(row[name]) * column.scale for name in ("value", "ci_low", "ci_high"))
    return with_interval(value, low, high, column.digits)


def with_interval(value: float, low: float, high: float, digits: int) -> str:
    """Return ``value [low, high]``; a missing value (NaN) is a dash, a missing interval is left out."""
    if pd.isna(value):
        return MISSING
    text = f"{value:.{digits}f}"
    return text if pd.isna(low) else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


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
    "∞": r"$\infty$",
    "²": "$^2$",
    "ρ": r"$\rho$",
    "−": "$-$",
    "±": r"$\pm$",
    "η": r"$\eta$",
    "<": "$<$",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
