"""The times (r, t) at which the flow is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from neuromf.config import equal_rows

# Multiples of these, modulo 1, cover [0, 1]² evenly: powers of the inverse of the root of x³ = x + 1 (R₂ of Roberts 2018)
STRIDES = (0.7548776662466927, 0.5698402909980532)


@dataclass(frozen=True)
class TimeSampler:
    """Draws pairs r ≤ t; equation (4) of docs/methods.md.

    Args:
        distribution: of t before clipping; ``logit_normal``: logit(t) ~ N(mean, std²); ``uniform``: on [0, 1].
        mean: of logit(t).
        std: standard deviation of logit(t).
        t_min: t is clipped to [t_min, 1]; r is not, since samplers go down to r = 0.
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
        return self._at(torch.rand(2, batch, generator=generator, dtype=torch.float64, device=drawn_on), device)

    def spread(
        self, batch: int, number: int, generator: torch.Generator, device: torch.device | str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the times of batch ``number``, as `sample` does, spread evenly over all batches of a training.

        Each row's times have the same distribution; those of one batch and of batches that follow each other cover it more
        evenly than independent draws, so that losses and gradients vary less; equation (31) of docs/methods.md.

        Args:
            batch: rows.
            number: of the batch, from 0.
            generator: in the same state for every batch of a training; it draws where the sequence begins.
            device: of the result.
        """
        equal = self._equal(batch)
        begins = torch.rand(2, 2, generator=generator, dtype=torch.float64, device=generator.device)
        strides = begins.new_tensor(STRIDES)
        parts = [  # the rows with r < t and those with r = t each have a sequence of their own
            begin[:, None] + torch.outer(strides, torch.arange(number * rows, (number + 1) * rows).to(begins))
            for begin, rows in zip(begins.T, (batch - equal, equal), strict=True)
        ]
        return self._at(torch.cat(parts, dim=1) % 1, device)

    def _at(self, quantiles: Tensor, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
        """Return (r, t) at (2, batch) quantiles: of t, and of r / t or the pair's second draw."""
        if self.r_given_t == "pair":
            r, t = self._quantile(quantiles).aminmax(dim=0)
            t = t.clamp(self.t_min, 1.0).float()
        else:
            t = self._quantile(quantiles[0]).clamp(self.t_min, 1.0).float()
            r = t * quantiles[1].float()
        r = torch.minimum(r.float(), torch.nextafter(t, torch.zeros_like(t)))  # rounding may bring it up to t
        apart = len(t) - self._equal(len(t))
        return torch.cat([r[:apart], t[apart:]]).to(device), t.to(device)

    def _equal(self, batch: int) -> int:
        return equal_rows(batch, self.r_equals_t)

    def _quantile(self, share: Tensor) -> Tensor:
        if self.distribution == "logit_normal":
            share = torch.sigmoid(self.mean + self.std * torch.special.ndtri(share))  # (4)
        return share
