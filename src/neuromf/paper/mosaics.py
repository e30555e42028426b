"""Pictures of brains: slices through the middle of volumes in three planes, set in rows that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

Volume = NDArray[np.floating]
PLANES = ("axial", "coronal", "sagittal")
_MARGIN = 2  # voxels kept around the brains
_BRAIN = 0.1  # of the [0, 1] range


@dataclass(frozen=True)
class Row:
    """One row of a mosaic: a name and its volumes (X, Y, Z), RAS, in [0, 1], all on one grid."""

    label: str
    volumes: Sequence[Volume]


def three_planes(volume: Volume, box: tuple[slice, ...]) -> list[Volume]:
    """Return the axial, coronal and sagittal slices through the box's centre, up is superior or anterior, left is left.

    The sagittal slice lies an eighth of the box's width beside the middle, through a ventricle and not the gap
    between the hemispheres.
    """
    x, y, z = ((s.start + s.stop) // 2 for s in box)
    x -= (box[0].stop - box[0].start) // 16
    slices = [volume[box[0], box[1], z], volume[box[0], y, box[2]], volume[x, box[1], box[2]]]
    return [np.rot90(plane) for plane in slices]


def common_box(volumes: Sequence[Volume]) -> tuple[slice, ...]:
    """Return the smallest box that holds what is brain in a fifth of the volumes, with a margin; else the whole grid."""
    share = np.mean([volume > _BRAIN for volume in volumes], axis=0)
    inside = share > 0.2
    box = []
    for axis, side in enumerate(share.shape):
        found = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (int(found[0]), int(found[-1]) + 1) if found.size else (0, side)
        box.append(slice(max(0, low - _MARGIN), min(side, high + _MARGIN)))
    return tuple(box)


def mosaic(rows: Sequence[Row], *, tile_inches: float = 1.15, columns: Sequence[str] = ()) -> Figure:
    """Draw rows of brains on black, three planes of each volume side by side; ``columns`` names the volumes.

    Raises:
        ValueError: no rows, or a row without a volume.
    """
    if not rows or not all(row.volumes for row in rows):
        raise ValueError(f"a mosaic needs volumes in every row; got {[(r.label, len(r.volumes)) for r in rows]}")
    box = common_box([volume for row in rows for volume in row.volumes])
    widths = [plane.shape[1] for plane in three_planes(rows[0].volumes[0], box)]
    height = max(plane.shape[0] for plane in three_planes(rows[0].volumes[0], box))
    count = max(len(row.volumes) for row in rows)
    gap = max(2, height // 24)
    strips = [_strip(row, box, height, gap, count) for row in rows]
    pixels = strips[0].shape[1]
    scale = tile_inches / height
    label_inches, header = 1.35, 0.28 if columns else 0.08
    size = (label_inches + pixels * scale, header + len(rows) * (height + gap) * scale)
    figure = Figure(figsize=size, facecolor="black")
    for index, (row, strip) in enumerate(zip(rows, strips, strict=True)):
        bottom = 1 - (header + (index + 1) * (height + gap) * scale) / size[1]
        axis = figure.add_axes((label_inches / size[0], bottom, pixels * scale / size[0], height * scale / size[1]))
        axis.imshow(strip, cmap="gray", vmin=0, vmax=1, interpolation="bicubic", aspect="auto")
        axis.set_axis_off()
        middle = bottom + height * scale / size[1] / 2
        figure.text(0.1 / size[0], middle, row.label, color="white", fontsize=10, va="center", linespacing=1.3)
    for index, name in enumerate(columns):
        left = label_inches + (index + 0.5) * (sum(widths) + 3 * gap) * scale
        figure.text(
            left / size[0], 1 - 0.5 * header / size[1], name, color="#c8ccd2", fontsize=9, ha="center", va="center"
        )
    return figure


def _strip(row: Row, box: tuple[slice, ...], height: int, gap: int, count: int) -> Volume:
    """Return one row's tiles as one image; a row with fewer volumes than ``count`` ends black."""
    tiles: list[Volume] = []
    for index in range(count):
        volume = row.volumes[index] if index < len(row.volumes) else np.zeros_like(row.volumes[0])
        for plane in three_planes(np.clip(volume, 0, 1), box):
            above = (height - plane.shape[0]) // 2
            padding = ((above, height - plane.shape[0] - above), (0, gap if len(tiles) % 3 < 2 else 2 * gap))
            tiles.append(np.pad(plane, padding))
    return np.concatenate(tiles, axis=1)
