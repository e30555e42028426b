"""The straight path between data (t = 0) and noise (t = 1)."""

from __future__ import annotations

from torch import Tensor


def expand(t: Tensor, like: Tensor) -> Tensor:
    """Return times of shape (B,) as (B, 1, …, 1), to be multiplied with ``like`` of shape (B, C, …)."""
    return t.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def interpolate(z0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return z_t = (1 − t) z0 + t ε, equation (1) of docs/methods.md.

    Args:
        z0: data, (B, C, …).
        noise: ε, the shape of ``z0``.
        t: times in [0, 1], (B,).

    Example:
        >>> import torch
        >>> interpolate(torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([0.0, 0.5])).flatten().tolist()
        [0.0, 0.5]
    """
    t = expand(t, z0)
    return (1 - t) * z0 + t * noise  # (1)
