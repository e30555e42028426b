"""Checkpoints that others published as .pt: read without running what a pickle says, compared key by key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class PublishedError(ValueError):
    """A published file that cannot be read; the message names the file and the remedy."""


def read_published(path: Path) -> dict[str, Any]:
    """Return the mapping in a .pt file.

    Raises:
        PublishedError: an unreadable file, one that holds other classes than the allow-list, or no mapping.
    """
    allowed = _allowed_classes()
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are wrong in the right place raise anything: UnicodeDecodeError, IndexError
        what = next(iter(str(error).splitlines()), "an empty file")
        raise PublishedError(f"{path} cannot be read as weights: {what}; fetch the file again") from None
    if not isinstance(content, Mapping):
        raise PublishedError(f"{path} holds a {type(content).__name__}, expected a state dict")
    return dict(content)


def _allowed_classes() -> list[Any]:
    """Return what a published .pt may hold besides tensors and plain containers: its scale factor may be a MetaTensor."""
    # MONAI takes 5 s to load; most jobs that import this module read no published file
    from monai.data.meta_obj import MetaObj
    from monai.data.meta_tensor import MetaTensor
    from monai.utils.enums import MetaKeys, SpaceKeys, TraceKeys

    return [MetaTensor, MetaObj, MetaKeys, SpaceKeys, TraceKeys]


def plain_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without the names' ``module.`` of DDP and without metadata on its tensors."""
    # as_subclass: a state dict of MetaTensors would carry their metadata into every operation
    return {key.removeprefix("module."): value.as_subclass(torch.Tensor) for key, value in state.items()}


def misfit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return how the names and shapes of a state dict differ from those expected: counts and examples; "" if not."""
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
            for key, value in expected.items()
            if key in state and state[key].shape != value.shape
        ],
    }
    return "; ".join(f"{len(keys)} {what}, e.g. {', '.join(keys[:3])}" for what, keys in problems.items() if keys)


def count(state: Mapping[str, Tensor]) -> str:
    """Return "N parameters in M tensors"."""
    return f"{sum(value.numel() for value in state.values()):,} parameters in {len(state)} tensors"
