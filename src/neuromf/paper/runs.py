"""Tables of what tells runs apart: differences between sets of samples, spread over seeds, and tests over seeds."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from neuromf.evaluation.rows import read_parquet
from neuromf.paper.style import run_label
from neuromf.paper.tables import MISSING, Column, latex_table, rows_of, with_interval
from neuromf.tables import write_text

FIGURES = (
    Column("kernel_distance", "volume", "KID (codec) ×1000", 1, "↓", 1000.0, "codec"),
    Column("frechet_distance", "volume", "Fréchet distance (codec)", 2, "↓", extractor="codec"),
    Column("volume_ml", "brain", "Brain volume (ml)", 0, extractor="none"),
    Column("nearest_training_correlation", "brain", "Nearest training scan, r", 3, extractor="pixels"),
    Column("high_frequency_ratio", "volume", "High-frequency energy ρ", 4),
)
TESTS = {"welch": "Welch", "anova": "ANOVA", "tukey": "Tukey"}
SMALLEST_P = 0.001


def write_run_tables(differences: Path, seed_tests: Path, folder: Path) -> None:
    """Write differences.{csv,tex}, seeds.{csv,tex} and seed_tests.{csv,tex} of the chosen `FIGURES` to ``folder``."""
    tests = read_parquet(seed_tests)
    tables = {
        "differences": difference_table(read_parquet(differences)),
        "seeds": seed_table(tests),
        "seed_tests": seed_test_table(tests),
    }
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table.to_csv(index=False))
        latex_table(table, folder / f"{name}.tex")


def difference_table(differences: pd.DataFrame) -> pd.DataFrame:
    """Return one row per comparison and one cell ``difference [low, high]`` per figure, the first set minus the second."""
    rows = []
    keys = ["run", "nfe", "other_run", "other_nfe", "seed"]
    for key, chosen in differences.groupby(keys, sort=False):
        run, nfe, other, other_nfe, seed = key
        row = {"Set": _set(run, nfe), "minus": _set(other, other_nfe), "Seed": str(seed), "n": str(chosen["n"].iloc[0])}
        rows.append(row | {_title(figure): _difference(chosen, figure) for figure in FIGURES})
    return pd.DataFrame(rows, columns=["Set", "minus", "Seed", "n", *map(_title, FIGURES)])


def seed_table(tests: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run and NFE: seeds and ``mean ± SD`` over them per figure, the mean alone with one seed."""
    rows = []
    for (run, nfe), chosen in tests[tests["test"] == "seeds"].groupby(["run", "nfe"], sort=False):
        row = {"Run": run_label(str(run)), "NFE": str(nfe), "Seeds": str(chosen["n"].max())}
        for figure in FIGURES:
            found = rows_of(chosen, figure)
            row[_title(figure)] = _mean_and_sd(found.iloc[0], figure) if len(found) else MISSING
        rows.append(row)
    return pd.DataFrame(rows, columns=["Run", "NFE", "Seeds", *map(_title, FIGURES)])


def seed_test_table(tests: pd.DataFrame) -> pd.DataFrame:
    """Return one row per figure, NFE and test that the seeds allow: difference of means, p, corrected p and effect size."""
    rows = []
    for figure in FIGURES:
        found = rows_of(tests[tests["test"].isin(list(TESTS)) & tests["p"].notna()], figure)
        for one in found.to_dict("records"):
            title, run = figure.title, ", ".join(run_label(name) for name in one["run"].split(", "))
            other = MISSING if one["test"] == "anova" else run_label(one["other_run"])
            row = {"Figure": title, "NFE": str(one["nfe"]), "Test": TESTS[one["test"]], "Run": run, "minus": other}
            value, low, high = (float(one[name]) * figure.scale for name in ("value", "ci_low", "ci_high"))
            row |= {
                "Difference": with_interval(value, low, high, figure.digits),
                "p": _p(one["p"]),
                "p (Holm)": _p(one["p_holm"]),
            }
            effect = with_interval(one["effect"], one["effect_low"], one["effect_high"], 2)
            rows.append(row | {"Effect": f"η² = {effect}" if one["test"] == "anova" else effect})
    return pd.DataFrame(
        rows, columns=["Figure", "NFE", "Test", "Run", "minus", "Difference", "p", "p (Holm)", "Effect"]
    )


def most_seeds(tests: pd.DataFrame) -> int:
    """Return with how many seeds the run that has most of them was trained."""
    return int(tests.loc[tests["test"] == "seeds", "n"].max())


def _set(run: object, nfe: object) -> str:
    return f"{run_label(str(run))}, {nfe} NFE"


def _title(figure: Column) -> str:
    return f"{figure.title} {figure.better}".strip()


def _difference(rows: pd.DataFrame, figure: Column) -> str:
    found = rows_of(rows, figure)
    if not len(found):
        return MISSING
    value, low, high = (float(found.iloc[0][name]) * figure.scale for name in ("difference", "ci_low", "ci_high"))
    return with_interval(value, low, high, figure.digits)


def _mean_and_sd(row: pd.Series, figure: Column) -> str:
    mean, sd = (float(row[name]) * figure.scale for name in ("value", "sd"))
    text = f"{mean:.{figure.digits}f}"
    return text if pd.isna(sd) else f"{text} ± {sd:.{figure.digits}f}"


def _p(value: float) -> str:
    return f"< {SMALLEST_P}" if value < SMALLEST_P else f"{value:.3f}"
