"""The gate's table, and the scans that the codec reproduces worst beside their reconstructions and differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from neuromf.paper import style
from neuromf.paper.mosaics import Volume
from neuromf.paper.pairs import Block, Pair, pairs_figure
from neuromf.paper.tables import read_csv
from neuromf.tables import atomic_path, read_json
from neuromf.volume import read_volume

_GATE_TITLES = {
    "ssim_brain": "SSIM",
    "psnr_brain": "PSNR (dB)",
    "lpips_sagittal": "LPIPS, sagittal",
    "lpips_coronal": "LPIPS, coronal",
    "lpips_axial": "LPIPS, axial",
}


def gate_table(path: Path) -> pd.DataFrame:
    """Return the codec gate's table (TSV) as text: figure, mean with its interval, n, threshold and verdict."""
    table = read_csv(path, "\t")
    means = [
        "–" if pd.isna(row.mean_) else f"{row.mean_:.3f}" + (
            "" if pd.isna(row.ci_low) else f" [{row.ci_low:.3f}, {row.ci_high:.3f}]"
        )
        for row in table.rename(columns={"mean": "mean_"}).itertuples()
    ]  # fmt: skip
    return pd.DataFrame(
        {
            "Inside the brain": table["figure"].map(_GATE_TITLES),
            "Mean over scans": means,
            "n": table["n"].astype(str),
            "Threshold": table["threshold"],
            "Verdict": table["verdict"],
        }
    )


def draw_worst(validation: Path, folder: Path, out: Path) -> None:
    """Write the picture of a codec's worst scans as PNG.

    Args:
        validation: JSON of `neuromf.codec.validate.validate_codec`.
        folder: what that function wrote as ``worst``.

    Raises:
        ValueError: the folder holds no scans.
    """
    rows = {row["scan"]: row for row in read_json(validation, "rows")["rows"] if row["codec"] == "vae"}
    scans = []
    for path in sorted(folder.glob("*_real.nii.gz")):
        scan = path.name.removesuffix("_real.nii.gz").split("_", 1)[1]
        label = (
            f"{scan.replace('_desc-preproc', '')}\nSSIM {rows[scan]['ssim_brain']:.3f}\n"
            f"PSNR {rows[scan]['psnr_brain']:.1f} dB"
        )
        rebuilt = path.with_name(path.name.replace("_real.nii.gz", "_reconstruction.nii.gz"))
        scans.append(Pair(label, _read(path), _read(rebuilt)))
    if not scans:
        raise ValueError(f"{folder} holds no *_real.nii.gz; validate the codec first")
    with atomic_path(out) as temporary:
        titles = ("scan", "reconstruction", "reconstruction − scan")
        temporary.write_bytes(style.as_png(pairs_figure([Block(titles, scans)])))


def _read(path: Path) -> Volume:
    return np.asarray(read_volume(path).dataobj, dtype=np.float32)
