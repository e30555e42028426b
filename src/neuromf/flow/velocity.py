"""The average velocity u(z, r, t) that a network stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from neuromf.flow.path import expand

Field = Callable[[Tensor, Tensor, Tensor], Tensor]  # (z (B, C, …), r (B,), t (B,)) -> (B, C, …)


@dataclass(frozen=True)
class AverageVelocity:
    """u(z, r, t) of a network; equations (5) and (6) of docs/methods.md.

    With ``prediction="x"`` the network's output is the data that the flow arrives at (pixel MeanFlow), and the
    division by max(t, t_min) is part of the function that the JVP differentiates.

    Args:
        network: callable (z, r, t) -> output of the shape of z.
        prediction: what the network outputs, ``x`` or ``u``.
        t_min: floor of the divisor.

    Example:
        >>> import torch
        >>> u = AverageVelocity(lambda z, r, t: torch.zeros_like(z))
        >>> u(torch.ones(1, 4), torch.zeros(1), torch.ones(1)).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    network: Field
    prediction: Literal["x", "u"] = "x"
    t_min: float = 0.05

    def __post_init__(self) -> None:
        if self.prediction not in ("x", "u"):
            raise ValueError(f"prediction is {self.prediction!r}; use 'x' or 'u'")

    def __call__(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """Return u, (B, C, …) in the dtype of ``z``; r and t are (B,)."""
        return self._velocity(self.network(z, r, t), z, t)

    def heads(self, z: Tensor, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return u(z, r, t) and the instantaneous velocity of a network with two heads (`MeanFlowUNet`, ``v_head``)."""
        output, velocity = self.network.heads(z, r, t)  # type: ignore[attr-defined]
        return self._velocity(output, z, t), self._velocity(velocity, z, t)

    def with_derivative(self, z: Tensor, r: Tensor, t: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
        """Return u with its graph, and ∂u/∂z·dz + ∂u/∂t without one, in the dtype of ``z``; equation (8).

        ``dz`` may have fewer rows than ``z``: the derivative is that of the first ones then. A network with a method
        ``with_tangent`` (`MeanFlowUNet`) gives both in one pass; of any other the derivative is `torch.func.jvp`'s, in
        full precision.
        """
        if not hasattr(self.network, "with_tangent"):
            return self(z, r, t), self._jvp(z, r, t, dz)
        output, slope = self.network.with_tangent(z, r, t, *self._direction(dz, t))
        u = self._velocity(output, z, t)
        return u, self._slope(slope, u, t, dz)

    def heads_with_derivative(self, z: Tensor, r: Tensor, t: Tensor, dz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `heads` returns, with graph, and du/dt of `with_derivative`."""
        if not hasattr(self.network, "heads_with_tangent"):
            return *self.heads(z, r, t), self._jvp(z, r, t, dz)
        output, velocity, slope = self.network.heads_with_tangent(z, r, t, *self._direction(dz, t))
        u = self._velocity(output, z, t)
        return u, self._velocity(velocity, z, t), self._slope(slope, u, t, dz)

    def _velocity(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        output = output.to(z.dtype)
        return output if self.prediction == "u" else (z - output) / self._divisor(z, t)  # (5), (6)

    def _slope(self, slope: Tensor, u: Tensor, t: Tensor, dz: Tensor) -> Tensor:
        """Return du/dt from the derivative of the network's output."""
        if self.prediction == "u":
            return slope
        u, t = u.detach()[: len(dz)], t[: len(dz)]
        rising = (expand(t, dz) >= self.t_min).to(dz.dtype)  # derivative of the divisor
        return (dz - slope - rising * u) / self._divisor(dz, t)

    def _jvp(self, z: Tensor, r: Tensor, t: Tensor, dz: Tensor) -> Tensor:
        at = tuple(x[: len(dz)] for x in (z, r, t))
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            return torch.func.jvp(self, at, self._direction(dz, t))[1]

    @staticmethod
    def _direction(dz: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rate = torch.ones_like(t[: len(dz)])
        return dz, 0 * rate, rate  # of z, r and t

    def _divisor(self, z: Tensor, t: Tensor) -> Tensor:
        # clamp, not maximum: at t = t_min its derivative is that of t, not half of it
        return expand(t, z).clamp(min=self.t_min)
