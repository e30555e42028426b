"""A distribution whose flow is known in closed form: what proves the objective and the sampler."""

from __future__ import annotations

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
