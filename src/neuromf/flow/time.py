"""The times (r, t) at which the flow is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class TimeSampler:
    """Draws pairs r ≤ t; equation (4) of docs/methods.md.

    Args:
        distribution: of t before clipping; ``logit_normal``: logit(t) ~ N(mean, std²); ``uniform``: on [0, 1].
        mean: of logit(t).
        std: standard deviation of logit(t).
        t_min: t is clipped to [t_min, 1].
        r_equals_t: share of rows with r = t, exact in every batch (rounded down to whole rows).
        r_given_t: r of the other rows; ``uniform`` on [0, t), or ``pair``: two draws, of which t is the larger and r
            the smaller (Geng et al. 2025, MeanFlow).

    Example:
        >>> r, t = TimeSampler(r_equals_t=0.25).sample(8)
        >>> int((r == t).sum())
        2
    """

    distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    mean: float = 0.8
    std: float = 0.8
    t_min: float = 0.05
    r_equals_t: float = 0.5
    r_given_t: Literal["uniform", "pair"] = "uniform"

    def __post_init__(self) -> None:
        if self.distribution not in ("logit_normal", "uniform"):
            raise ValueError(f"distribution is {self.distribution!r}; use 'logit_normal' or 'uniform'")
        if self.r_given_t not in ("uniform", "pair"):
            raise ValueError(f"r_given_t is {self.r_given_t!r}; use 'uniform' or 'pair'")
        if not 0 <= self.r_equals_t <= 1:
            raise ValueError(f"r_equals_t is {self.r_equals_t}; a share lies in [0, 1]")
        if not 0 <= self.t_min < 1 or self.std <= 0:
            raise ValueError(f"t_min is {self.t_min} and std {self.std}; needed: 0 <= t_min < 1 and std > 0")

    def sample(
        self, batch: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (r, t), each (batch,) float32; the rows with r < t come first, so that shapes are static."""
        drawn_on = generator.device if generator is not None else device
        t = self._draw(batch, generator, drawn_on)
        r = t * torch.rand(batch, generator=generator, device=drawn_on)
        if self.r_given_t == "pair":
            other = self._draw(batch, generator, drawn_on)
            smaller, t = torch.minimum(t, other), torch.maximum(t, other)
            r = torch.where(smaller < t, smaller, r)  # both clipped to the same bound: r uniform below it
        r = torch.minimum(r, torch.nextafter(t, torch.zeros_like(t)))  # t·U may round up to t
        equal = math.floor(batch * self.r_equals_t + 1e-9)
        r = torch.cat([r[: batch - equal], t[batch - equal :]])
        return r.to(device), t.to(device)

    def _draw(self, batch: int, generator: torch.Generator | None, device: torch.device | str | None) -> Tensor:
        if self.distribution == "uniform":
            t = torch.rand(batch, generator=generator, device=device)
        else:
            t = torch.sigmoid(self.mean + self.std * torch.randn(batch, generator=generator, device=device))
        return t.clamp(self.t_min, 1.0)
