"""Extractor `subcortical`: what the small segmentation network computes before it names a structure (`neuromf.meshnet`).

The network was trained at 1 mm, where a whole head takes a minute on a CPU. It is given the brain's box alone, at 1.5 mm.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from neuromf import meshnet
from neuromf.evaluation.extractors.base import VOLUME, Card, Compute
from neuromf.evaluation.extractors.slices import brain_extent

SPACING_MM = 1.5  # seen on real brains: the deep structures are still found at 1.5 mm, none of them at 2 mm
BRAIN_INTENSITY = 0.05
MARGIN = 4  # voxels of background around the brain's box
LARGEST_SIDE = 160  # voxels: what no brain reaches at 1.5 mm, but a volume of noise may


def brain_box(volume: Tensor, voxel_mm: float) -> Tensor:
    """Return the brain's box of a volume (D, H, W) in RAS at 1.5 mm with a margin, in the network's orientation LIA.

    Larger voxels are interpolated, smaller ones low-pass filtered first: σ² = (k² - 1) / (8 ln 2) voxels² for a ratio k.
    """
    box = tuple(slice(first, last + 1) for first, last in (brain_extent(volume, axis) for axis in range(3)))
    data = volume[box].numpy()
    ratio = max(SPACING_MM, voxel_mm * max(data.shape) / LARGEST_SIDE) / voxel_mm
    if ratio > 1:
        data = ndimage.gaussian_filter(data, math.sqrt((ratio**2 - 1) / (8 * math.log(2))))
    if ratio != 1:
        data = ndimage.zoom(data, 1 / ratio, order=1)
    data = np.pad(data, MARGIN)[::-1, :, ::-1].transpose(0, 2, 1)  # RAS -> LAI -> LIA
    return torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))


def load(path: Path | None, device: torch.device) -> Compute:
    """Return the extractor's ``compute``; ``path`` is that of the published file."""
    assert path is not None
    network = meshnet.load_meshnet("subcortical", path.parent, device)

    def compute(volume: Tensor, voxel_mm: float) -> dict[str, Tensor]:
        box = brain_box(volume, voxel_mm).to(device)
        activations = box[None, None]
        for layer in list(network.model)[:-1]:  # one layer at a time frees each input early
            activations = layer(activations)
        brain = box > BRAIN_INTENSITY
        if brain.sum() < 2:
            brain = torch.ones_like(brain)
        inside = activations[0][:, brain]
        return {VOLUME: torch.cat([inside.mean(1), inside.std(1)])[None].cpu()}

    return compute


_FILE = meshnet.PUBLISHED["subcortical"]
CARD = Card(
    "subcortical",
    2 * _FILE.channels,
    (VOLUME,),
    f"the brain's box at {SPACING_MM} mm in LIA, intensities as they are; mean and standard deviation of the last hidden"
    " layer's channels over the brain",
    load,
)
