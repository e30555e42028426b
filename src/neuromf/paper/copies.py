"""The picture of the generated volumes that most look like copies, of training scans and of one another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from neuromf.evaluation.copies import PIXELS, Target, most_suspect, pairs
from neuromf.evaluation.memorisation import LEVEL
from neuromf.evaluation.rows import read_parquet
from neuromf.paper import style
from neuromf.paper.mosaics import Volume
from neuromf.paper.pairs import FLAGGED, INK, Block, Pair, pairs_figure
from neuromf.tables import atomic_path
from neuromf.volume import read_volume

Key = tuple[str, int | None, int | None]  # run, seed, NFE
_WORDS: dict[Target, tuple[str, str, str]] = {  # of a search: its title, the nearest scan, and the null's scans
    "training": ("Copies of training scans", "nearest training scan", "real scans that no model was trained on"),
    "other": ("Duplicates among the generated volumes", "nearest other volume", "real scans among one another"),
}


def draw_copies(scans: Path, samples: Mapping[Key, Path], training: Mapping[str, Path], out: Path) -> None:
    """Write the picture of the most suspect pairs, also where none is flagged, as PNG.

    Args:
        scans: the evaluation's scans.parquet.
        samples: run, seed and NFE → folder of the generated volumes, ``<scan>.nii.gz``.
        training: name → training scan, on the same grid.

    Raises:
        ValueError: the table has no generated volume with a nearest scan.
    """
    table = read_parquet(scans)
    blocks = []
    for target in _WORDS:
        shown = []
        for row in most_suspect(table, target).to_dict("records"):
            folder = samples[row["run"], _whole(row["seed"]), _whole(row["nfe"])]
            other = training[row["nearest"]] if target == "training" else folder / f"{row['nearest']}.nii.gz"
            nearest = _read(other)
            flagged = row["closer"] or row["relatively_closer"]
            shown.append(
                Pair(
                    pair_label(row),
                    nearest[::-1] if row["mirrored"] else nearest,
                    _read(folder / f"{row['scan']}.nii.gz"),
                    FLAGGED if flagged else INK,
                )
            )
        if shown:
            title, nearest_title, _ = _WORDS[target]
            titles = (nearest_title, "generated volume", "generated − nearest")
            blocks.append(Block(titles, shown, f"{title}: {verdict(pairs(table, target), target)}"))
    if not blocks:
        raise ValueError(f"{scans} has no generated volume with a nearest scan; evaluate samples first")
    with atomic_path(out) as temporary:
        temporary.write_bytes(style.as_png(pairs_figure(blocks, label_inches=2.3)))


def verdict(found: pd.DataFrame, target: Target) -> str:
    """Return how many volumes of `neuromf.evaluation.copies.pairs` are flagged, beside which null and with which chance."""
    volumes = found.groupby(["run", "seed", "nfe", "scan"], dropna=False)[["closer", "relatively_closer"]].any()
    size = int(found["null_size"].iloc[0])
    if found["p"].isna().all():
        return "no null to set them against; these are the closest pairs."
    chance = 100 * max(LEVEL, 1 / (size + 1))
    beside = f"(null: {size} {_WORDS[target][2]}; each test flags up to {chance:.0f} % by chance"
    closer, relatively = int(volumes["closer"].sum()), int(volumes["relatively_closer"].sum())
    if not closer and not relatively:
        return f"none of {len(volumes)} is flagged; these are the closest pairs.\n{beside})"
    return (
        f"of {len(volumes)}, {relatively} flagged by relative distance (near to one), {closer} by distance (as volumes"
        f" are that are smoother than real ones).\n{beside}, by pixels and by features; orange: flagged)"
    )


def pair_label(row: Mapping[str, object]) -> str:
    """Return the text beside a pair: which volumes, how near they are and how rarely the null is as near."""
    run = style.run_label(str(row["run"]))
    nfe = f", {_whole(row['nfe'])} NFE" if _whole(row["nfe"]) is not None else ""
    sign = "r" if row["by"] == PIXELS else "feature distance"
    lines = [f"{run}{nfe}", str(row["scan"]), f"↔ {row['nearest']}"] + ["shown mirrored"] * bool(row["mirrored"])
    for name, value, p in ((sign, row["value"], row["p"]), ("relative", row["relative"], row["relative_p"])):
        if pd.notna(value):
            lines.append(f"{name} {value:.3f}" + (f", p {p:.2g}" if pd.notna(p) else ""))
    return "\n".join(lines).replace("$", r"\$")  # the label is drawn, and two dollars would be a formula


def _whole(value: object) -> int | None:
    return None if pd.isna(value) else int(value)  # type: ignore[call-overload]


def _read(path: Path) -> Volume:
    return np.asarray(read_volume(path).dataobj, dtype=np.float32)
