"""Extractor `inception`: torch-fidelity's Inception v3 on slices, the only one whose Fréchet distance is called FID."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from neuromf.evaluation.extractors.base import Card, Compute
from neuromf.evaluation.extractors.published import WEIGHTS, ExtractorError
from neuromf.evaluation.extractors.slices import IN_WORDS, PLANES, by_slice, slice_bytes
from neuromf.published import PublishedError, read_published

LAYER = "2048"  # the pooled features of FID and KID


def load(path: Path | None, device: torch.device) -> Compute:
    """Return the extractor's ``compute``; without a path torch-fidelity downloads the weights to PyTorch's cache.

    Raises:
        ExtractorError: a file that holds other than weights, of another network, or a download that failed.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # takes seconds to load

    try:
        if path is not None:
            read_published(path)  # with an allow-list, which torch-fidelity reads it without
        network = FeatureExtractorInceptionV3("inception", [LAYER], feature_extractor_weights_path=path)
    except (PublishedError, RuntimeError) as error:
        raise ExtractorError(
            f"{path} is no file of Inception v3 ({str(error)[:200]}); {WEIGHTS['inception'].fetch}"
        ) from None
    except OSError as error:
        raise ExtractorError(
            f"the weights of Inception v3 could not be downloaded ({error}); {WEIGHTS['inception'].fetch}"
        ) from None
    network.to(device)

    def features(slices: Tensor) -> Tensor:
        return network(slice_bytes(slices).to(device))[0]

    return by_slice(features)


CARD = Card(
    "inception",
    2048,
    PLANES,
    f"{IN_WORDS}; [0, 255] as uint8, then torch-fidelity's own resizing to 299² and scaling",
    load,
)
