"""Extractor `squeezenet`: SqueezeNet 1.1 trained on ImageNet (Iandola et al. 2016), from its Keras weights.

A small stand-in for Inception: 512 features a slice, 3 MB of weights, a fraction of a second a volume on a CPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from neuromf.evaluation.extractors.base import Card, Compute
from neuromf.evaluation.extractors.published import ExtractorError
from neuromf.evaluation.extractors.slices import IN_WORDS, PLANES, by_slice, resized

SIDE = 224  # pixels, as the network was trained
_BGR_MEAN = (103.939, 116.779, 123.68)  # of ImageNet, subtracted from BGR images in [0, 255]
_FIRES = dict(zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True))  # Keras's fire modules: torchvision's layers
_LAYERS = {"conv1": "0"} | {
    f"fire{number}/{part}": f"{index}.{part.replace('squeeze1x1', 'squeeze')}"
    for number, index in _FIRES.items()
    for part in ("squeeze1x1", "expand1x1", "expand3x3")
}


class SqueezeNetFeatures(nn.Module):
    """Slices (S, h, h) in [0, 1] -> (S, 512): the last fire module's channels, averaged over the image."""

    def __init__(self) -> None:
        from torchvision.models import squeezenet1_1  # takes seconds to load

        super().__init__()
        self.features = squeezenet1_1(weights=None).features
        self.register_buffer("mean", torch.tensor(_BGR_MEAN).view(1, 3, 1, 1))

    def forward(self, slices: Tensor) -> Tensor:
        mean = self.get_buffer("mean")
        images = resized(slices.to(mean.device), SIDE) * 255 - mean
        return self.features(images).mean((2, 3))


def read_keras(path: Path) -> dict[str, Tensor]:
    """Return the Keras file's convolutions under torchvision's names.

    Keras stores kernels as (height, width, in, out), PyTorch as (out, in, height, width).

    Raises:
        ExtractorError: no HDF5 file, or a layer is missing.
    """
    import h5py

    try:
        with h5py.File(path) as file:
            arrays: dict[str, np.ndarray] = {}
            file.visititems(
                lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        state = {}
        for layer, name in _LAYERS.items():
            kernel, bias = (
                next(value for key, value in arrays.items() if key.startswith(f"{layer}/") and part in key)
                for part in ("kernel", "bias")
            )
            state[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
            state[f"{name}.bias"] = torch.from_numpy(bias)
    except (OSError, StopIteration) as error:
        raise ExtractorError(f"{path} is no Keras file of SqueezeNet 1.1 ({error}); fetch it again") from None
    return state


def load(path: Path | None, device: torch.device) -> Compute:
    """Return the extractor's ``compute``; ``path`` is that of the Keras file."""
    assert path is not None
    network = SqueezeNetFeatures()
    network.features.load_state_dict(read_keras(path), strict=True)
    return by_slice(network.to(device).eval().requires_grad_(False))


CARD = Card(
    "squeezenet",
    512,
    PLANES,
    f"{IN_WORDS}; resized to {SIDE}², [0, 255] minus ImageNet's mean",
    load,
)
