"""Extractor `radimagenet_resnet50`: ResNet-50 trained on 1.35 million radiological images (Mei et al. 2022), on slices."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from neuromf.evaluation.extractors.base import Card, Compute, load_published
from neuromf.evaluation.extractors.slices import IN_WORDS, PLANES, by_slice, resized

SIDE = 224


class RadImageNet(nn.Module):
    """Slices (S, h, h) in [0, 1] -> (S, 2048); parameters are named as in the published file, ``backbone.0.weight``, …"""

    def __init__(self) -> None:
        from torchvision.models import resnet50  # takes seconds to load

        super().__init__()
        self.backbone = nn.Sequential(*list(resnet50(weights=None).children())[:9])  # without the classifier

    def forward(self, slices: Tensor) -> Tensor:
        device = next(self.parameters()).device
        images = resized(slices.to(device), SIDE) * 2 - 1  # the publisher's (image - 127.5) · 2 / 255
        return self.backbone(images).flatten(1)


def load(path: Path | None, device: torch.device) -> Compute:
    """Return the extractor's ``compute``; ``path`` is that of the publisher's PyTorch file."""
    assert path is not None
    return by_slice(load_published(RadImageNet(), path).to(device))


CARD = Card(
    "radimagenet_resnet50",
    2048,
    PLANES,
    f"{IN_WORDS}; resized to {SIDE}², scaled to [-1, 1]",
    load,
)
