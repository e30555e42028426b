"""Which slices of a volume the two-dimensional networks see, and as what images: one fixed rule for all of them.

Each plane gives `SLICES` slices, evenly spaced over the central 60 % of the brain's extent across it, so that a brain
that lies elsewhere in its grid gives the same slices. Intensities are those of the volume: no slice is scaled by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from neuromf.evaluation.extractors.base import Compute

PLANES = ("sagittal", "coronal", "axial")  # across the axes x, y, z of RAS
SLICES = 12  # per plane
CENTRAL = 0.6  # share of the brain's extent
BRAIN_INTENSITY = 0.05
BATCH = 12
RULE = {"planes": PLANES, "slices": SLICES, "central": CENTRAL, "brain": BRAIN_INTENSITY}
IN_WORDS = (
    f"{SLICES} slices a plane, evenly over the central {CENTRAL:.0%} of the brain's extent, padded to squares of the"
    " volume's longest side, anterior or superior up, grey as three channels"
)


def brain_extent(volume: Tensor, axis: int) -> tuple[int, int]:
    """Return the first and last plane across ``axis`` that hold brain; all of them when none does.

    A plane holds brain when its voxels above 0.05 are at least 5 % of those of the fullest plane: stray voxels do not
    stretch the extent.
    """
    others = tuple(a for a in range(3) if a != axis)
    counts = (volume > BRAIN_INTENSITY).sum(dim=others)
    full = torch.nonzero(counts >= max(0.05 * float(counts.max()), 1.0)).flatten()
    return (int(full[0]), int(full[-1])) if len(full) else (0, volume.shape[axis] - 1)


def slice_indices(volume: Tensor, axis: int) -> list[int]:
    """Return the planes across ``axis`` (`SLICES` of them) that are taken from a volume (D, H, W)."""
    first, last = brain_extent(volume, axis)
    shares = 0.5 - CENTRAL / 2 + CENTRAL * (np.arange(SLICES) + 0.5) / SLICES
    return np.rint(first + shares * (last - first)).astype(int).tolist()


def slices_of(volume: Tensor) -> dict[str, Tensor]:
    """Return each plane's slices (S, side, side) of a volume (D, H, W) in RAS; side is the volume's longest."""
    side = max(volume.shape)
    found = {}
    for axis, plane in enumerate(PLANES):
        chosen = volume.movedim(axis, 0)[slice_indices(volume, axis)].transpose(1, 2).flip(1)
        rows, columns = side - chosen.shape[1], side - chosen.shape[2]
        found[plane] = pad(chosen, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return found


def slice_bytes(slices: Tensor) -> Tensor:
    """Return slices (S, side, side) in [0, 1] as RGB images (S, 3, side, side) uint8 in [0, 255]."""
    return (slices.clamp(0, 1) * 255).round().to(torch.uint8)[:, None].expand(-1, 3, -1, -1)


def resized(slices: Tensor, side: int) -> Tensor:
    """Return slices (S, h, h) resized bilinearly (with antialiasing) to (S, 3, side, side)."""
    scaled = interpolate(slices[:, None].float(), size=(side, side), mode="bilinear", antialias=True)
    return scaled.expand(-1, 3, -1, -1)


def by_slice(network: Callable[[Tensor], Tensor]) -> Compute:
    """Return the ``compute`` that gives each plane's slices (S, side, side) to a network that returns (S, F)."""

    def compute(volume: Tensor, voxel_mm: float) -> dict[str, Tensor]:
        return {
            plane: torch.cat([network(batch).cpu() for batch in slices.split(BATCH)])
            for plane, slices in slices_of(volume).items()
        }

    return compute
