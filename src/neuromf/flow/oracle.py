"""A distribution whose flow is known in closed form: what proves the objective and the sampler."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neuromf.flow.path import expand


class GaussianOracle:
    """The flow of data x ~ N(m, diag(s²)), independent per element; equations (14) to (16) of docs/methods.md.

    Args:
        mean: m, a number or a tensor of the shape of one sample.
        std: s > 0, likewise.

    Example:
        >>> oracle = GaussianOracle(0.5, 0.7)
        >>> noise = torch.randn(4, 1)
        >>> z0 = noise - oracle.average_velocity(noise, torch.zeros(4), torch.ones(4))
        >>> bool(torch.allclose(z0, 0.5 + 0.7 * noise))
        True
    """

    def __init__(self, mean: float | Tensor, std: float | Tensor) -> None:
        numbers = [torch.atleast_1d(torch.as_tensor(value, dtype=torch.float64)) for value in (mean, std)]
        self.mean, self.std = torch.broadcast_tensors(*numbers)  # in double: a number like 0.7 stays exact
        self.dtype = mean.dtype if isinstance(mean, Tensor) else torch.get_default_dtype()
        if bool((self.std <= 0).any()):
            raise ValueError(f"std is {std}; every standard deviation must be positive")

    def velocity(self, z: Tensor, t: Tensor) -> Tensor:
        """Return v(z, t) = E[ε − x | z_t = z], (B, …); t is (B,)."""
        m, s, t = self._match(z, t)
        variance = (1 - t) ** 2 * s**2 + t**2  # σ_t²
        return -m + (t - (1 - t) * s**2) / variance * (z - (1 - t) * m)  # (14)

    def average_velocity(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """Return u(z, r, t), the mean of v over [r, t] along the flow through z at t, (B, …); r and t are (B,)."""
        m, s, t = self._match(z, t)
        r = self._match(z, r)[2]
        sigma_t = ((1 - t) ** 2 * s**2 + t**2).sqrt()
        sigma_r = ((1 - r) ** 2 * s**2 + r**2).sqrt()
        slope = ((1 + s**2) * (t + r) - 2 * s**2) / (sigma_t * (sigma_t + sigma_r))
        return -m + slope * (z - (1 - t) * m)  # (15)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return ``n`` draws of x, (n, …)."""
        noise = torch.randn(n, *self.mean.shape, generator=generator, dtype=torch.float64)
        return (self.mean + self.std * noise).to(self.dtype)

    def _match(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.mean.to(z), self.std.to(z), expand(torch.as_tensor(t, device=z.device).reshape(-1), z)


class FlatTorus:
    """The flat torus (cos θ1, sin θ1, cos θ2, sin θ2)/√2 in R⁴ with uniform angles: data on a thin, curved set.

    Its flow has no closed form, but samples are judged by it: their distance to the torus and the law of their angles.
    """

    radius = 1 / math.sqrt(2)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return ``n`` points, (n, 4)."""
        angles = 2 * math.pi * torch.rand(n, 2, generator=generator)
        return self.radius * torch.stack([angles.cos(), angles.sin()], dim=2).flatten(1)

    def distance(self, x: Tensor) -> Tensor:
        """Return the distance of points (n, 4) to the torus, (n,)."""
        return (x.unflatten(1, (2, 2)).norm(dim=2) - self.radius).norm(dim=1)

    def angles(self, x: Tensor) -> Tensor:
        """Return both angles of points (n, 4) as shares of a turn in [0, 1), (n, 2)."""
        planes = x.unflatten(1, (2, 2))
        return (torch.atan2(planes[..., 1], planes[..., 0]) / (2 * math.pi)) % 1
