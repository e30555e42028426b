"""Pairs of brains beside their difference, in blocks with a title: what a codec does to scans, how near copies come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from skimage.filters import threshold_multiotsu

from neuromf.paper.mosaics import Volume, common_box, three_planes

DIFFERENCE = 0.3  # of the intensity range: the colours' end
INK, FLAGGED = "white", "#ffb37a"
_SOFT = "#c8ccd2"
_BRAIN_LINE, _CORTEX_LINE = "#8a8f98", "white"
_DARK_CENTRED = LinearSegmentedColormap.from_list("", ["#7fd0ff", "#1277c4", "black", "#d1432b", "#ffc29e"])
_TILE, _GAP, _TITLE, _NOTE_LINE, _FOOTER = 1.45, 0.06, 0.3, 0.2, 0.55  # inches


@dataclass(frozen=True)
class Pair:
    """Two volumes (X, Y, Z), RAS, in [0, 1], whose difference is the second less the first, and the label of their row."""

    label: str
    first: Volume
    second: Volume
    colour: str = INK


@dataclass(frozen=True)
class Block:
    """Rows of pairs below the titles of their three columns (first, second, difference) and lines of text."""

    titles: tuple[str, str, str]
    pairs: Sequence[Pair]
    note: str = ""

    @property
    def header(self) -> float:
        """Inches above the first row."""
        return _TITLE + _NOTE_LINE * (len(self.note.splitlines()) + 1) if self.note else _TITLE


def pairs_figure(blocks: Sequence[Block], *, label_inches: float = 1.75) -> Figure:
    """Draw a row of three tiles per pair: the first, the second and their difference, each in three planes.

    Thin lines over the difference are the borders of the first one's brain and of its grey and white matter. All volumes
    lie on one grid.
    """
    box = common_box([volume for block in blocks for pair in block.pairs for volume in (pair.first, pair.second)])
    shapes = [plane.shape for plane in three_planes(blocks[0].pairs[0].first, box)]
    height = max(shape[0] for shape in shapes)
    widths = [_TILE * shape[1] / height for shape in shapes]
    column = sum(widths) + 3 * _GAP
    rows = sum(len(block.pairs) for block in blocks)
    size = (label_inches + 3 * column, sum(block.header for block in blocks) + rows * (_TILE + _GAP) + _FOOTER)
    figure = Figure(figsize=size, facecolor="black")

    def write(x: float, y: float, text: str, **kwargs: object) -> None:
        figure.text(x / size[0], y / size[1], text, va="center", **kwargs)  # type: ignore[arg-type]

    bottom = size[1]
    for block in blocks:
        if block.note:
            lines = block.header - _TITLE
            write(0.1, bottom - lines / 2, block.note, color=INK, fontsize=10, linespacing=1.4)
        bottom -= block.header
        for index, title in enumerate(block.titles):
            middle = label_inches + index * column + sum(widths) / 2
            write(middle, bottom + _TITLE / 2, title, color=_SOFT, fontsize=10, ha="center")
        for pair in block.pairs:
            bottom -= _TILE + _GAP
            write(0.1, bottom + _TILE / 2, pair.label, color=pair.colour, fontsize=9, linespacing=1.4)
            levels = boundaries(pair.first)
            for index, volume in enumerate((pair.first, pair.second, pair.second - pair.first)):
                left = label_inches + index * column
                planes = zip(three_planes(volume, box), three_planes(pair.first, box), widths, strict=True)
                for plane, scan, width in planes:
                    tall = _TILE * plane.shape[0] / height
                    axis = figure.add_axes((left / size[0], bottom / size[1], width / size[0], tall / size[1]))
                    axis.set_axis_off()
                    if index < 2:
                        axis.imshow(plane, cmap="gray", vmin=0, vmax=1, interpolation="bicubic", aspect="auto")
                    else:
                        _difference(axis, plane, scan, levels)
                    left += width + _GAP
    _colours(figure, label_inches + 2 * column, sum(widths), size)
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


def _colours(figure: Figure, left: float, width: float, size: tuple[float, float]) -> None:
    """Draw the scale of the differences below their column."""
    axis = figure.add_axes((left / size[0], 0.62 * _FOOTER / size[1], width / size[0], 0.12 / size[1]))
    axis.imshow(
        np.linspace(-1, 1, 256)[None], cmap=_DARK_CENTRED, aspect="auto", extent=(-DIFFERENCE, DIFFERENCE, 0, 1)
    )
    axis.set_yticks([])
    axis.set_xticks([-DIFFERENCE, 0, DIFFERENCE])
    axis.tick_params(colors=_SOFT, labelsize=8, length=2)
    axis.grid(visible=False)
