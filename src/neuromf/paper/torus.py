"""The picture of the torus experiment, from the tables that `neuromf.training.toy.torus_experiment` wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from neuromf.paper import figures, style
from neuromf.tables import atomic_path


def draw_torus(folder: Path, out: Path) -> None:
    """Write the figure of losses, samples and angles as PNG.

    Args:
        folder: holds torus.json, losses.parquet and samples.parquet.
        out: the PNG.
    """
    rows = json.loads((folder / "torus.json").read_text(encoding="utf-8"))["rows"]
    losses, samples = (pd.read_parquet(folder / f"{name}.parquet") for name in ("losses", "samples"))
    with style.themed(style.LIGHT), atomic_path(out) as temporary:
        temporary.write_bytes(style.as_png(figures.torus(losses, samples, rows)))
