"""Extractor `medicalnet_resnet50`: the 3D ResNet-50 of MedicalNet, trained on 23 data sets (Chen et al. 2019).

MedicalNet's segmentation network keeps the resolution of its second stage by dilation; MONAI's classification network, used
here, halves it instead. The parameters are the same.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from neuromf.evaluation.extractors.base import VOLUME, Card, Compute, load_published

BRAIN_INTENSITY = 0.05


def standardised(volume: Tensor) -> Tensor:
    """Return a volume (D, H, W) with mean 0 and standard deviation 1 inside the brain, and 0 outside."""
    brain = volume > BRAIN_INTENSITY
    if brain.sum() < 2:
        return torch.zeros_like(volume)
    inside = volume[brain]
    return torch.where(brain, (volume - inside.mean()) / inside.std().clamp(min=1e-6), 0.0)


def load(path: Path | None, device: torch.device) -> Compute:
    """Return the extractor's ``compute``; ``path`` is that of MedicalNet's file."""
    from monai.networks.nets.resnet import resnet50  # takes seconds to load

    assert path is not None
    network = resnet50(
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_stride=2,
        shortcut_type="B",
        bias_downsample=False,
        feed_forward=False,
    )
    load_published(network, path, optional=("conv_seg.",)).to(device)

    def compute(volume: Tensor, voxel_mm: float) -> dict[str, Tensor]:
        return {VOLUME: network(standardised(volume)[None, None].to(device)).cpu()}

    return compute


CARD = Card(
    "medicalnet_resnet50",
    2048,
    (VOLUME,),
    "the whole volume, standardised inside the brain, at its own voxel size; last stage averaged over space",
    load,
)
