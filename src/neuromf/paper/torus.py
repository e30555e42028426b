"""The picture of the torus experiment, from the tables that `neuromf.training.toy.torus_experiment` wrote."""

from __future__ import annotations

from pathlib import Path

from neuromf.evaluation.rows import read_parquet
from neuromf.paper import figures, style
from neuromf.tables import atomic_path, read_json


def draw_torus(folder: Path, out: Path) -> None:
    """Write the figure of losses, samples and angles as PNG.

    Args:
        folder: holds torus.json, losses.parquet and samples.parquet.
        out: the PNG.
    """
    rows = read_json(folder / "torus.json", "rows")["rows"]
    losses, samples = (read_parquet(folder / f"{name}.parquet") for name in ("losses", "samples"))
    with style.themed(style.LIGHT), atomic_path(out) as temporary:
        temporary.write_bytes(style.as_png(figures.torus(losses, samples, rows)))
