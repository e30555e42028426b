"""From noise to data in a chosen number of network evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from neuromf.flow.path import expand
from neuromf.flow.velocity import AverageVelocity, Field


@torch.no_grad()
def sample(
    velocity: Field, noise: Tensor, nfe: int = 1, schedule: Literal["uniform"] | Sequence[float] = "uniform"
) -> Tensor:
    """Return z0 by ``nfe`` steps z_r = z_t − (t − r) u(z_t, r, t) from t = 1 to 0; equation (13) of docs/methods.md.

    Args:
        velocity: average velocity u(z, r, t); for one step z0 = ε − u(ε, 0, 1).
        noise: ε, (B, C, …).
        nfe: number of steps, each one evaluation.
        schedule: times at which the steps begin and end; ``uniform``: evenly from 1 to 0, but no step of an
            `AverageVelocity` begins below its ``t_min``, where no network was trained: with more than 1/t_min steps all
            but the last are even from 1 to t_min, and the last one goes from there to 0 (an x-prediction then ends on x̂
            exactly). Or nfe + 1 falling numbers from 1 to 0.

    Raises:
        ValueError: ``nfe`` below 1, an unknown schedule, times that do not fall from 1 to 0 in ``nfe`` steps, or a step that
            begins below the velocity's ``t_min``.

    Example:
        >>> sample(lambda z, r, t: z, torch.ones(2, 3)).abs().max().item()
        0.0
        >>> sample(lambda z, r, t: z, torch.ones(2, 3), 2, (1.0, 0.5, 0.0)).max().item()
        0.25
    """
    t_min = velocity.t_min if isinstance(velocity, AverageVelocity) else 0.0
    times = torch.tensor(_times(nfe, schedule, t_min), dtype=noise.dtype, device=noise.device)
    z = noise
    for t, r in zip(times[:-1].unsqueeze(1), times[1:].unsqueeze(1), strict=True):
        t, r = t.expand(len(z)), r.expand(len(z))
        z = z - expand(t - r, z) * velocity(z, r, t)  # (13)
    return z


def _times(nfe: int, schedule: Literal["uniform"] | Sequence[float], t_min: float) -> list[float]:
    if nfe < 1:
        raise ValueError(f"nfe is {nfe}; at least one network evaluation is needed")
    if schedule == "uniform":
        last = max(1 / nfe, t_min)  # where the last step begins
        return [*torch.linspace(1, last, nfe, dtype=torch.float64).tolist(), 0.0]
    if isinstance(schedule, str):
        raise ValueError(f"schedule is {schedule!r}; use 'uniform' or the times themselves")
    times = [float(time) for time in schedule]
    if len(times) != nfe + 1 or times[0] != 1 or times[-1] != 0 or any(a <= b for a, b in pairwise(times)):
        raise ValueError(f"schedule is {times}; {nfe} steps need {nfe + 1} times that fall from 1 to 0")
    if times[-2] < t_min:
        raise ValueError(
            f"schedule is {times}: the last step begins below t_min = {t_min:g}, where no network was trained"
        )
    return times
