"""Where networks run."""

from __future__ import annotations

import torch


def choose_device(name: str = "auto") -> torch.device:
    """Return the device for ``auto`` (the GPU when there is one), ``cpu`` or ``cuda``.

    Raises:
        RuntimeError: ``cuda`` is asked for where PyTorch sees no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device: cuda was asked for but PyTorch sees no GPU; set `device: auto` or check the driver")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
