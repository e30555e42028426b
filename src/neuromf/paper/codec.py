"""The gate's table, and the scans that the codec reproduces worst beside their reconstructions and differences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from skimage.filters import threshold_multiotsu

from neuromf.paper import style
from neuromf.paper.mosaics import Volume, common_box, three_planes
from neuromf.tables import atomic_path
from neuromf.volume import read_volume

DIFFERENCE = 0.3  # of the intensity range: the colours' end
_TILES = ("scan", "reconstruction", "reconstruction − scan")
_INK, _SOFT = "white", "#c8ccd2"
_BRAIN_LINE, _CORTEX_LINE = "#8a8f98", "white"
_DARK_CENTRED = LinearSegmentedColormap.from_list("", ["#7fd0ff", "#1277c4", "black", "#d1432b", "#ffc29e"])


@dataclass(frozen=True)
class WorstScan:
    """A scan, its reconstruction (X, Y, Z), RAS, in [0, 1], and the caption of its row."""

    label: str
    volume: Volume
    reconstruction: Volume


_GATE_TITLES = {
    "ssim_brain": "SSIM",
    "psnr_brain": "PSNR (dB)",
    "lpips_sagittal": "LPIPS, sagittal",
    "lpips_coronal": "LPIPS, coronal",
    "lpips_axial": "LPIPS, axial",
}


def gate_table(path: Path) -> pd.DataFrame:
    """Return the codec gate's table (TSV) as text: figure, mean with its interval, n, threshold and verdict."""
    table = pd.read_csv(path, sep="\t")
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
    rows = {
        row["scan"]: row for row in json.loads(validation.read_text(encoding="utf-8"))["rows"] if row["codec"] == "vae"
    }
    scans = []
    for path in sorted(folder.glob("*_real.nii.gz")):
        scan = path.name.removesuffix("_real.nii.gz").split("_", 1)[1]
        label = (
            f"{scan.replace('_desc-preproc', '')}\nSSIM {rows[scan]['ssim_brain']:.3f}\n"
            f"PSNR {rows[scan]['psnr_brain']:.1f} dB"
        )
        rebuilt = path.with_name(path.name.replace("_real.nii.gz", "_reconstruction.nii.gz"))
        scans.append(WorstScan(label, _read(path), _read(rebuilt)))
    if not scans:
        raise ValueError(f"{folder} holds no *_real.nii.gz; validate the codec first")
    with atomic_path(out) as temporary:
        temporary.write_bytes(style.as_png(worst_scans(scans)))


def worst_scans(scans: Sequence[WorstScan]) -> Figure:
    """Draw a block of three lines per scan: the scan, its reconstruction and their difference, in three planes.

    Thin lines over the difference are the brain's border and the border of grey and white matter.
    """
    box = common_box([one.volume for one in scans])
    shapes = [plane.shape for plane in three_planes(scans[0].volume, box)]
    height, tile, gap, label, header, footer = max(s[0] for s in shapes), 1.45, 0.06, 1.75, 0.3, 0.55
    widths = [tile * s[1] / height for s in shapes]
    columns = sum(widths) + 3 * gap
    size = (label + len(_TILES) * columns, header + footer + len(scans) * (tile + gap))
    figure = Figure(figsize=size, facecolor="black")
    for row, one in enumerate(scans):
        bottom = size[1] - header - (row + 1) * (tile + gap)
        figure.text(0.1 / size[0], (bottom + tile / 2) / size[1], one.label, color=_INK, fontsize=9, va="center",
                    linespacing=1.4)  # fmt: skip
        levels = boundaries(one.volume)
        difference = one.reconstruction - one.volume
        for column, volume in enumerate((one.volume, one.reconstruction, difference)):
            left = label + column * columns
            planes = zip(three_planes(volume, box), three_planes(one.volume, box), widths, strict=True)
            for plane, scan, width in planes:
                place = (left / size[0], bottom / size[1], width / size[0], tile * plane.shape[0] / height / size[1])
                axis = figure.add_axes(place)
                axis.set_axis_off()
                if column < 2:
                    axis.imshow(plane, cmap="gray", vmin=0, vmax=1, interpolation="bicubic", aspect="auto")
                else:
                    _difference(axis, plane, scan, levels)
                left += width + gap
    for column, title in enumerate(_TILES):
        middle = label + column * columns + sum(widths) / 2
        figure.text(middle / size[0], 1 - 0.5 * header / size[1], title, color=_SOFT, fontsize=10, ha="center",
                    va="center")  # fmt: skip
    _colours(figure, label + 2 * columns, sum(widths), footer, size)
    return figure


def boundaries(volume: Volume) -> tuple[float, float]:
    """Return the intensities of the brain's border and of the border between the two brightest of three classes (Otsu's
    thresholds over the brain's voxels): grey and white matter in T1w."""
    inside = volume[volume > 0]
    if len(np.unique(inside)) < 3:
        return 0.0, 1.0
    return 0.02, float(threshold_multiotsu(inside, classes=3)[1])


def _difference(axis: Axes, difference: Volume, scan: Volume, levels: tuple[float, float]) -> None:
    axis.imshow(
        difference, cmap=_DARK_CENTRED, vmin=-DIFFERENCE, vmax=DIFFERENCE, interpolation="nearest", aspect="auto"
    )
    for level, colour in zip(levels, (_BRAIN_LINE, _CORTEX_LINE), strict=True):
        if scan.min() < level < scan.max():
            axis.contour(scan, levels=[level], colors=[colour], linewidths=0.5, alpha=0.8)


def _colours(figure: Figure, left: float, width: float, footer: float, size: tuple[float, float]) -> None:
    """Draw the scale of the differences below their column."""
    axis = figure.add_axes((left / size[0], 0.62 * footer / size[1], width / size[0], 0.12 / size[1]))
    axis.imshow(
        np.linspace(-1, 1, 256)[None], cmap=_DARK_CENTRED, aspect="auto", extent=(-DIFFERENCE, DIFFERENCE, 0, 1)
    )
    axis.set_yticks([])
    axis.set_xticks([-DIFFERENCE, 0, DIFFERENCE])
    axis.tick_params(colors=_SOFT, labelsize=8, length=2)
    axis.grid(visible=False)


def _read(path: Path) -> Volume:
    return np.asarray(read_volume(path).dataobj, dtype=np.float32)
