"""From noise to data in a chosen number of network evaluations."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from neuromf.flow.path import expand
from neuromf.flow.velocity import Field


@torch.no_grad()
def sample(
    velocity: Field, noise: Tensor, nfe: int = 1, schedule: Literal["uniform", "quadratic"] = "uniform"
) -> Tensor:
    """Return z0 by ``nfe`` steps z_r = z_t − (t − r) u(z_t, r, t) from t = 1 to 0; equation (13) of docs/methods.md.

    Args:
        velocity: average velocity u(z, r, t); for one step z0 = ε − u(ε, 0, 1).
        noise: ε, (B, C, …).
        nfe: number of steps, each one evaluation.
        schedule: times of the steps; ``uniform``: 1 − k/nfe; ``quadratic``: (1 − k/nfe)², finer towards the data.

    Raises:
        ValueError: ``nfe`` below 1 or an unknown schedule.

    Example:
        >>> sample(lambda z, r, t: z, torch.ones(2, 3)).abs().max().item()
        0.0
    """
    if nfe < 1:
        raise ValueError(f"nfe is {nfe}; at least one network evaluation is needed")
    if schedule not in ("uniform", "quadratic"):
        raise ValueError(f"schedule is {schedule!r}; use 'uniform' or 'quadratic'")
    times = 1 - torch.arange(nfe + 1, dtype=torch.float64) / nfe
    times = (times if schedule == "uniform" else times**2).to(noise.device, noise.dtype)
    z = noise
    for t, r in zip(times[:-1].unsqueeze(1), times[1:].unsqueeze(1), strict=True):
        t, r = t.expand(len(z)), r.expand(len(z))
        z = z - expand(t - r, z) * velocity(z, r, t)  # (13)
    return z
