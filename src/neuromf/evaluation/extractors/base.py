"""What an extractor is, and how published weights get into its network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neuromf.evaluation.extractors.published import WEIGHTS, ExtractorError
from neuromf.published import PublishedError, misfit, plain_state, read_published
from neuromf.tables import content_hash, file_sha256

VOLUME = "volume"  # the region of features that see a whole volume; the others are planes of slices
Compute = Callable[[Tensor, float], dict[str, Tensor]]


@dataclass(frozen=True)
class Identity:
    """Whose features they are: all that is needed to find them in the cache.

    ``name`` stands at every figure computed with an extractor; ``key`` hashes its weights and its rule, and so decides
    whether cached features are still valid.
    """

    name: str
    key: str


@dataclass(frozen=True)
class Extractor(Identity):
    """``compute`` turns one volume (D, H, W) in [0, 1], RAS, and its voxel size in mm into features (S, F) per region:
    one row for the region `VOLUME`, one per slice for a plane."""

    compute: Compute


@dataclass(frozen=True)
class Card:
    """What the registry knows of an extractor: its features per row, the regions it has rows for and how it wants its input;
    ``load`` builds its ``compute`` from the weights' path (None: not there) on a device."""

    name: str
    features: int
    regions: tuple[str, ...]
    preprocessing: str
    load: Callable[[Path | None, torch.device], Compute]


def load_published(network: torch.nn.Module, path: Path, *, optional: tuple[str, ...] = ()) -> torch.nn.Module:
    """Copy a published .pt's state dict, bare or under ``state_dict``, into a network, ready for inference.

    Every key and shape must agree; ``optional`` names prefixes of keys that are left out.

    Raises:
        ExtractorError: an unreadable file, other keys or shapes.
    """
    try:
        content = read_published(path)
    except PublishedError as error:
        raise ExtractorError(str(error)) from None
    inner = content.get("state_dict", content)
    if not isinstance(inner, Mapping) or not all(isinstance(value, Tensor) for value in inner.values()):
        raise ExtractorError(f"{path} holds no state dict (keys {', '.join(map(str, list(content)[:5]))})")
    state = {key: value for key, value in plain_state(inner).items() if not key.startswith(optional or ("\0",))}
    if found := misfit(state, network.state_dict()):
        raise ExtractorError(f"{path} is no file of this network: {found}; fetch the published one")
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def extractor_of(card: Card, path: Path | None, device: torch.device, rule: object) -> Extractor:
    """Return a registered extractor; its key hashes the weights' file, or its published name where it has no path yet."""
    compute = card.load(path, device)
    weights = file_sha256(path) if path is not None else WEIGHTS[card.name].file
    return Extractor(card.name, content_hash({"weights": weights, "rule": rule}), compute)
