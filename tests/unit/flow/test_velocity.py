from __future__ import annotations

import pytest
import torch

from neuromf.flow import AverageVelocity


def test_u_prediction_is_the_networks_output() -> None:
    z, output = torch.randn(2, 4), torch.randn(2, 4)
    u = AverageVelocity(lambda z, r, t: output, "u")
    assert torch.equal(u(z, torch.zeros(2), torch.ones(2)), output)


def test_x_prediction_divides_by_t_with_a_floor() -> None:
    z, x = torch.randn(3, 4), torch.randn(3, 4)
    u = AverageVelocity(lambda z, r, t: x, t_min=0.1)(z, torch.zeros(3), torch.tensor([0.01, 0.1, 0.5]))
    assert torch.allclose(u, (z - x) / torch.tensor([0.1, 0.1, 0.5])[:, None])


def test_division_is_inside_what_is_differentiated() -> None:
    """For constant x, d/dt (z − x)/t along (ṽ, 0, 1) is (ṽ − u)/t, also at the floor itself."""
    z, x, v = (torch.randn(3, 4, dtype=torch.float64) for _ in range(3))
    r, t = torch.zeros(3, dtype=torch.float64), torch.tensor([0.05, 0.3, 1.0], dtype=torch.float64)
    u, du_dt = torch.func.jvp(
        AverageVelocity(lambda z, r, t: x), (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t))
    )
    assert torch.allclose(du_dt, (v - u) / t[:, None])


def test_output_has_the_type_of_z() -> None:
    for prediction in ("x", "u"):
        u = AverageVelocity(lambda z, r, t: z.bfloat16(), prediction)  # type: ignore[arg-type]
        assert u(torch.randn(2, 4), torch.zeros(2), torch.ones(2)).dtype == torch.float32


def test_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction is 'v'"):
        AverageVelocity(lambda z, r, t: z, "v")  # type: ignore[arg-type]
