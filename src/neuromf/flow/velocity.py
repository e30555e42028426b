"""The average velocity u(z, r, t) that a network stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

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
        output = self.network(z, r, t).to(z.dtype)
        if self.prediction == "u":
            return output  # (5)
        # clamp, not maximum: at t = t_min its derivative is that of t, not half of it
        return (z - output) / expand(t, z).clamp(min=self.t_min)  # (6)
