"""What an extractor is, what is known of its published weights, and how their file is found and read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neuromf.published import PublishedError, misfit, plain_state, read_published
from neuromf.tables import content_hash, file_sha256

VOLUME = "volume"  # the region of features that see a whole volume; the others are planes of slices
Compute = Callable[[Tensor, float], dict[str, Tensor]]


class ExtractorError(ValueError):
    """An extractor that cannot be used; the message says what is missing or wrong and the remedy."""


@dataclass(frozen=True)
class Extractor:
    """``compute`` turns one volume (D, H, W) in [0, 1], RAS, and its voxel size in mm into features (S, F) per region:
    one row for the region `VOLUME`, one per slice for a plane.

    ``name`` stands at every figure computed with it; ``key`` hashes its weights and its rule, and so decides whether cached
    features are still valid.
    """

    name: str
    key: str
    compute: Compute


@dataclass(frozen=True)
class Weights:
    """A published weights file: its name, where it is had, and its size and SHA-256 (or the first digits of it).

    ``bytes`` 0 and ``sha256`` "" stand for what the publisher does not say; the file's keys and shapes are compared in any
    case, and its hash is part of the extractor's key.
    """

    file: str
    address: str
    bytes: int = 0
    sha256: str = ""

    @property
    def fetch(self) -> str:
        """What to do to have the file."""
        known = [f"{self.bytes} bytes"] * bool(self.bytes) + [f"sha256 {self.sha256}"] * bool(self.sha256)
        about = f" ({', '.join(known)})" if known else ""
        return (
            f"fetch {self.file}{about} from {self.address}, put it in a folder and name that folder in `weights_dir`,"
            " `--weights-dir` or NEUROMF_WEIGHTS"
        )


@dataclass(frozen=True)
class Card:
    """What the registry knows of an extractor: its features per row, the regions it has rows for, how it wants its input,
    and its weights. ``load`` builds its ``compute`` from the weights' path (None: not there) on a device."""

    name: str
    features: int
    regions: tuple[str, ...]
    preprocessing: str
    weights: Weights
    load: Callable[[Path | None, torch.device], Compute]
    fetches_itself: bool = False  # its library downloads the weights when it is asked for by name


def weights_file(card: Card, weights_dir: Path | None) -> Path:
    """Return the path of an extractor's weights after checking what is known of them.

    Looked for in ``weights_dir``, or in the folder that the environment variable NEUROMF_WEIGHTS names.

    Raises:
        ExtractorError: no folder is given, the file is missing, or it is not the published one.
    """
    weights = card.weights
    folder = weights_dir or (Path(os.environ["NEUROMF_WEIGHTS"]) if os.environ.get("NEUROMF_WEIGHTS") else None)
    if folder is None:
        raise ExtractorError(f"the extractor {card.name} needs its published weights: {weights.fetch}")
    path = folder / weights.file
    if not path.is_file():
        raise ExtractorError(f"the extractor {card.name} needs {path}: {weights.fetch}")
    size = path.stat().st_size
    if (weights.bytes and size != weights.bytes) or not file_sha256(path).startswith(weights.sha256):
        raise ExtractorError(f"{path} ({size} bytes) is not the published file: {weights.fetch}")
    return path


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
    weights = file_sha256(path) if path is not None else card.weights.file
    return Extractor(card.name, content_hash({"weights": weights, "rule": rule}), compute)
