from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neuromf.flow import AverageVelocity, GaussianOracle, MeanFlowObjective, interpolate

FACTS = [  # m, s, r, t, floor with tangent v_c, floor with the model's own tangent: facts by Monte Carlo, 4M samples
    (0.5, 0.7, 0.2, 0.6, 0.9011, 1.1171),
    (-1.0, 2.0, 0.1, 0.9, 17.987, 4.704),
]
POWERS = [1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0]
N = 20_000


class Oracle:
    """The network whose average velocity is the exact one of N(m, s²)."""

    def __init__(self, m: float, s: float, r: float, t: float, prediction: str, n: int = N) -> None:
        random = torch.Generator().manual_seed(0)
        self.flow, self.prediction = GaussianOracle(m, s), prediction
        self.z0 = m + s * torch.randn(n, 1, generator=random, dtype=torch.float64)
        self.noise = torch.randn(n, 1, generator=random, dtype=torch.float64)
        self.r, self.t = (torch.full((n,), value, dtype=torch.float64) for value in (r, t))
        self.v_c = self.noise - self.z0
        self.v = self.flow.velocity(interpolate(self.z0, self.noise, self.t), self.t)

    def network(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        u = self.flow.average_velocity(z, r, t)
        return u if self.prediction == "u" else z - t[:, None] * u

    def heads(self, z: Tensor, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        v = self.flow.velocity(z, t)
        return self.network(z, r, t), v if self.prediction == "u" else z - t[:, None] * v

    def run(self, **settings: Any) -> Any:
        objective = MeanFlowObjective(prediction=self.prediction, **settings)  # type: ignore[arg-type]
        return objective(Heads(self.network, self.heads), self.z0, self.noise, self.r, self.t)


class Heads:
    """A network with two heads, (u, v)."""

    def __init__(self, network: Callable[..., Tensor], heads: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.network, self.heads = network, heads

    def __call__(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.network(z, r, t)


@pytest.mark.parametrize("prediction", ["x", "u"])
@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(("m", "s", "r", "t"), [row[:4] for row in FACTS])
class TestClosedForm:
    def test_with_its_own_tangent_V_is_the_velocity(
        self, m: float, s: float, r: float, t: float, p: float, prediction: str
    ) -> None:
        """V = E[v_c | z] sample by sample, so both raw losses are the irreducible one."""
        oracle = Oracle(m, s, r, t, prediction)
        expected = float((oracle.v - oracle.v_c).abs().pow(p).mean())
        for v_head in (False, True):
            output = oracle.run(p=p, v_head=v_head)
            assert float(output.raw_fm) == pytest.approx(expected, rel=1e-9)
            assert float(output.raw_mf) == pytest.approx(expected, rel=1e-9)

    def test_with_the_conditional_tangent_V_spreads_around_it(
        self, m: float, s: float, r: float, t: float, p: float, prediction: str
    ) -> None:
        """u is linear in z with slope a, so V − v_c = (v − v_c)(1 − (t − r) a)."""
        oracle = Oracle(m, s, r, t, prediction)
        z = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        u = oracle.flow.average_velocity(z, oracle.r[:2], oracle.t[:2])
        shrink = 1 - (t - r) * float(u[1] - u[0])
        expected = float(((oracle.v - oracle.v_c) * shrink).abs().pow(p).mean())
        for settings in ({"tangent": "conditional"}, {"variant": "meanflow"}):
            assert float(oracle.run(p=p, **settings).raw_mf) == pytest.approx(expected, rel=1e-9)

    def test_finite_differences_agree(self, m: float, s: float, r: float, t: float, p: float, prediction: str) -> None:
        oracle = Oracle(m, s, r, t, prediction, n=100)
        exact, near = (oracle.run(p=p, jvp=jvp) for jvp in ("exact", "finite_difference"))
        assert float(near.raw_mf) == pytest.approx(float(exact.raw_mf), rel=1e-6)
        assert float(near.jvp_norm) == pytest.approx(float(exact.jvp_norm), rel=1e-6)


@pytest.mark.parametrize(("m", "s", "r", "t", "conditional", "model"), FACTS)
def test_squared_losses_reach_the_known_floors(
    m: float, s: float, r: float, t: float, conditional: float, model: float
) -> None:
    oracle = Oracle(m, s, r, t, "x", n=400_000)
    variance_t, variance_r = ((1 - x) ** 2 * s**2 + x**2 for x in (t, r))
    assert s**2 / variance_t == pytest.approx(model, rel=1e-3)
    assert s**2 * variance_r / variance_t**2 == pytest.approx(conditional, rel=1e-3)
    assert float(oracle.run().raw_mf) == pytest.approx(model, rel=0.01)
    assert float(oracle.run(tangent="conditional").raw_mf) == pytest.approx(conditional, rel=0.01)
    assert float(oracle.run(variant="rectified_flow").raw_fm) == pytest.approx(model, rel=0.01)


class Small(nn.Module):
    """A smooth network in float64 on (B, 2) vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2)).double()
        self.v_out = nn.Linear(16, 2).double()

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.heads(z, r, t)[0]

    def heads(self, z: Tensor, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.layers[:2](torch.cat([z, r[:, None], t[:, None]], dim=1))
        return self.layers[2](hidden), self.v_out(hidden)


def vectors(n: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(2)
    z0, noise = (torch.randn(n, 2, generator=random, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0.2, 1, n, dtype=torch.float64)
    r = torch.where(torch.arange(n) % 2 == 0, 0.3 * t, t)  # rows in any order
    return z0, noise, r, t


def by_hand(network: Small, prediction: str, tangent: str, v_head: bool = False) -> tuple[Tensor, Tensor]:
    """ṽ − v_c and V − v_c, written out with separate evaluations and reverse-mode derivatives."""
    z0, noise, r, t = vectors()
    u = AverageVelocity(network, prediction)  # type: ignore[arg-type]
    z_t, v_c = interpolate(z0, noise, t), noise - z0
    v = u.heads(z_t, r, t)[1] if v_head else u(z_t, t, t)
    direction = v.detach() if tangent == "model" else v_c
    du_dt = torch.autograd.functional.jvp(
        lambda z, s: u(z, r, s), (z_t, t), (direction, torch.ones_like(t)), strict=True
    )[1].detach()
    return v - v_c, u(z_t, r, t) + (t - r)[:, None] * du_dt - v_c


@pytest.mark.parametrize("prediction", ["x", "u"])
@pytest.mark.parametrize("variant", ["imf", "meanflow", "rectified_flow"])
@pytest.mark.parametrize("tangent", ["model", "conditional"])
@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("v_head", [False, True])
def test_loss_and_gradient_are_those_of_the_formula(
    prediction: str, variant: str, tangent: str, p: float, v_head: bool
) -> None:
    network = Small()
    objective = MeanFlowObjective(
        prediction,
        p=p,
        norm_p=0.75,
        mf_weight=0.5,
        tangent=tangent,
        variant=variant,  # type: ignore[arg-type]
        v_head=v_head,
    )
    output = objective(network, *vectors())
    v_head = v_head and variant == "imf"
    fm, mf = by_hand(network, prediction, "conditional" if variant == "meanflow" else tangent, v_head)

    def weighted(error: Tensor) -> Tensor:
        lp = error.abs().pow(p).sum(1)
        return (lp / (lp.detach() + 0.01) ** 0.75).mean()

    loss = {
        "imf": lambda: weighted(fm) + 0.5 * weighted(mf),
        "meanflow": lambda: weighted(mf),
        "rectified_flow": lambda: weighted(fm),
    }[variant]()
    assert float(output.loss.detach()) == pytest.approx(float(loss.detach()), rel=1e-9)
    parameters = list(network.parameters())
    ours, expected = (torch.autograd.grad(x, parameters, materialize_grads=True) for x in (output.loss, loss))
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-12) for a, b in zip(ours, expected, strict=True))
    assert bool(ours[-1].any()) == v_head


@pytest.mark.parametrize("tangent", ["model", "conditional"])
def test_the_flow_matching_term_on_rows_with_r_equal_to_t_only(tangent: str) -> None:
    network, (z0, noise, r, t) = Small(), vectors()
    r = torch.where(torch.arange(len(t)) < len(t) // 2, r, t)
    objective = MeanFlowObjective("u", tangent=tangent, fm_rows="r_equals_t", mf_weight=0.5)  # type: ignore[arg-type]
    output = objective(network, z0, noise, r, t)
    whole = MeanFlowObjective("u", tangent=tangent, mf_weight=0.5)(network, z0, noise, r, t)  # type: ignore[arg-type]
    alone = MeanFlowObjective("u", variant="rectified_flow")(network, z0[r == t], noise[r == t], r[r == t], t[r == t])
    of_all = MeanFlowObjective("u", variant="rectified_flow")(network, z0, noise, r, t)
    expected = whole.loss - of_all.loss + alone.loss
    assert float(output.loss) == pytest.approx(float(expected), rel=1e-9)
    assert float(output.raw_mf) == pytest.approx(float(whole.raw_mf), rel=1e-9)
    assert float(output.raw_fm) == pytest.approx(float(alone.raw_fm), rel=1e-9)
    parameters = list(network.parameters())
    pairs = zip(
        *(torch.autograd.grad(loss, parameters, materialize_grads=True) for loss in (output.loss, expected)),
        strict=True,
    )
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-12) for a, b in pairs)


@pytest.mark.parametrize("variant", ["imf", "meanflow"])
def test_a_batch_without_a_row_of_r_equal_to_t(variant: str) -> None:
    z0, noise, _, t = vectors()
    output = MeanFlowObjective("u", variant=variant, fm_rows="r_equals_t")(Small(), z0, noise, t / 2, t)  # type: ignore[arg-type]
    assert bool(torch.isfinite(output.loss)) and math.isnan(output.raw_fm)


def test_figures_are_unweighted_means() -> None:
    network = Small()
    output = MeanFlowObjective("u", p=(1.0, 3.0), channel_weights=(2.0, 0.5))(network, *vectors())
    fm, mf = by_hand(network, "u", "model")
    expected = torch.stack([mf[:, 0].abs().mean(), mf[:, 1].abs().pow(3).mean()])
    assert torch.allclose(output.per_channel, expected)
    assert float(output.raw_mf) == pytest.approx(float((expected * torch.tensor([2.0, 0.5])).sum().detach()))
    raw_fm = 2 * fm[:, 0].abs().mean() + 0.5 * fm[:, 1].abs().pow(3).mean()
    assert float(output.raw_fm) == pytest.approx(float(raw_fm.detach()))
    v_c = vectors()[1] - vectors()[0]
    assert float(output.cosine) == pytest.approx(float(torch.cosine_similarity(mf.detach() + v_c, v_c).mean()))
    assert not any(value.requires_grad for value in output[1:])
    powers = torch.tensor([1.0, 3.0])
    assert torch.allclose(output.fm_rows, fm.abs().pow(powers).detach())
    assert torch.allclose(output.mf_rows, mf.abs().pow(powers).detach())  # in the batch's order


@pytest.mark.parametrize("p", POWERS)
def test_per_channel_powers_and_weights_agree_with_numpy(p: float) -> None:
    """Channel c has its own power and weight, and the spatial mean its own mask."""
    random = np.random.default_rng(0)
    z0, noise, output = random.normal(size=(3, 2, 3, 4, 5, 6))
    mask = random.random((2, 1, 4, 5, 6)) < 0.6
    powers, weights, q, c = np.array([p, 2.0, 1.0]), np.array([0.5, 1.0, 3.0]), 0.75, 0.01
    error = output - (noise - z0)
    raised = np.abs(error) ** powers[:, None, None, None]
    channels = np.stack([row[:, kept[0]].mean(1) for row, kept in zip(raised, mask, strict=True)])
    lp = channels @ weights
    objective = MeanFlowObjective("u", p=tuple(powers), channel_weights=tuple(weights), norm_p=q, variant="meanflow")
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    given = (torch.from_numpy(x) for x in (z0, noise))
    ours = objective(lambda z, r, t: torch.from_numpy(output), *given, t, t, torch.from_numpy(mask))
    np.testing.assert_allclose(ours.mf_rows, channels, rtol=1e-12)
    np.testing.assert_allclose(ours.raw_mf, lp.mean(), rtol=1e-12)
    np.testing.assert_allclose(ours.loss, (lp / (lp + c) ** q).mean(), rtol=1e-12)


@pytest.mark.parametrize("prediction", ["x", "u"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"tangent": "conditional"}, {"variant": "meanflow"}, {"v_head": True}, {"variant": "rectified_flow"}],
)
def test_the_gradient_at_the_optimum_vanishes_in_expectation(prediction: str, settings: dict[str, Any]) -> None:
    """The oracle plus a smooth disturbance of size θ: over 400,000 draws the derivative by θ at 0 is noise around 0."""
    m, s, r, t = FACTS[0][:4]
    oracle = Oracle(m, s, r, t, prediction, n=400_000)
    theta = torch.zeros(400_000, 2, dtype=torch.float64, requires_grad=True)  # of each draw its own: gives the spread
    ahead = 0.2 * torch.ones_like(theta, requires_grad=False)

    def disturbed(by: Tensor) -> Heads:
        def heads(z: Tensor, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            shape = torch.sin(2 * z + t[:, None]) + 0.5
            u, v = oracle.heads(z, r, t)
            return u + by[:, :1] * shape, v + by[:, 1:] * shape

        return Heads(lambda z, r, t: heads(z, r, t)[0], heads)

    objective = MeanFlowObjective(prediction, adaptive=False, **settings)  # type: ignore[arg-type]
    draws = (oracle.z0, oracle.noise, oracle.r, oracle.t)
    for by, vanishes in ((theta, True), ((theta + ahead), False)):
        (gradient,) = torch.autograd.grad(objective(disturbed(by), *draws).loss, theta)
        mean, error = gradient.mean(0), gradient.std(0) / len(gradient) ** 0.5
        moved = mean.abs() > 4 * error.clamp(min=1e-30)
        assert not moved.any() if vanishes else moved.any()


def test_without_a_weight_the_meanflow_term_is_not_computed() -> None:
    network = Small()
    for v_head in (False, True):
        output = MeanFlowObjective("u", mf_weight=0, v_head=v_head)(network, *vectors())
        fm = by_hand(network, "u", "model")[0] if not v_head else None
        assert math.isnan(output.raw_mf) and math.isnan(output.jvp_norm) and bool(output.mf_rows.isnan().all())
        if fm is not None:
            assert float(output.raw_fm) == pytest.approx(float(fm.square().sum(1).mean().detach()))


def test_with_a_head_for_the_velocity_the_flow_matching_term_costs_no_pass() -> None:
    network, passes = Small(), []
    network.register_forward_pre_hook(lambda *_: passes.append("forward"))
    heads = network.heads
    network.heads = lambda z, r, t: (passes.append(f"heads of {len(z)}"), heads(z, r, t))[1]  # type: ignore[method-assign, func-returns-value]
    MeanFlowObjective("u", v_head=True, jvp="finite_difference")(network, *vectors())
    assert passes.count("heads of 6") == 1  # the only pass with a graph
    assert passes.count("heads of 3") == 1 + 2  # rows with r < t: the tangent's direction, and two for the differences
    assert set(passes) == {"heads of 6", "heads of 3", "forward"}


def test_without_adaptive_weights_the_loss_is_the_raw_sum() -> None:
    output = MeanFlowObjective("u", adaptive=False, mf_weight=0.3)(Small(), *vectors())
    assert float(output.loss) == pytest.approx(float(output.raw_fm + 0.3 * output.raw_mf))


def test_where_r_equals_t_both_terms_agree_and_no_jvp_is_needed() -> None:
    z0, noise, _, t = vectors()
    calls = 0

    def network(z: Tensor, r: Tensor, s: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.sin(z)

    output = MeanFlowObjective("u")(network, z0, noise, t, t)
    assert calls == 1 and float(output.raw_fm) == pytest.approx(float(output.raw_mf))
    assert math.isnan(output.jvp_norm)


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_gradient_is_finite_at_zero_error(p: float, per_channel: bool) -> None:
    z0, noise, _, t = vectors()
    shift = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    objective = MeanFlowObjective("u", p=(p, p) if per_channel else p)
    output = objective(lambda z, r, t: (noise - z0)[:1] + shift, z0[:1], noise[:1], t[:1], t[:1])
    output.loss.backward()
    assert float(output.raw_fm) == 0 and bool(torch.isfinite(shift.grad).all())  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 5, 6), (2, 4, 3, 3, 3)])
def test_any_number_of_spatial_dimensions(shape: tuple[int, ...]) -> None:
    z0, noise = torch.randn(shape), torch.randn(shape)
    t = torch.linspace(0.3, 0.9, shape[0])
    output = MeanFlowObjective(p=(1.0, 2.0, 2.0, 1.5))(lambda z, r, t: 0.1 * z, z0, noise, t / 2, t)
    assert output.loss.shape == () and output.per_channel.shape == (4,) and bool(torch.isfinite(output.loss))


def test_mask_restricts_the_spatial_mean() -> None:
    z0, noise, t = torch.randn(2, 3, 6, 6, 6), torch.randn(2, 3, 6, 6, 6), torch.tensor([0.4, 0.8])
    mask = torch.zeros(2, 1, 6, 6, 6)
    mask[..., :3] = 1
    network: Callable[..., Tensor] = lambda z, r, t: torch.sin(z)  # noqa: E731
    objective = MeanFlowObjective("u")
    inside = objective(network, z0[..., :3], noise[..., :3], t / 2, t)
    masked = objective(network, z0, noise, t / 2, t, mask)
    assert float(masked.loss) == pytest.approx(float(inside.loss), rel=1e-5)
    assert float(objective(network, z0, noise, t / 2, t, 0 * mask).loss) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_whose_mask_is_empty_leaves_the_gradient_of_the_others(dtype: torch.dtype) -> None:
    z0, noise, shift = torch.randn(4, 3, 5, dtype=dtype), torch.randn(4, 3, 5, dtype=dtype), torch.zeros(1, dtype=dtype)
    shift.requires_grad_()
    t, mask = torch.full((4,), 0.5, dtype=dtype), torch.ones(4, 1, 5, dtype=dtype)
    mask[1] = 0
    MeanFlowObjective("u")(lambda z, r, t: z + shift, z0, noise, t / 2, t, mask).loss.backward()
    assert bool(torch.isfinite(shift.grad).all()) and bool(shift.grad.any())  # type: ignore[union-attr, arg-type]


def test_an_x_prediction_below_t_min_is_floored() -> None:
    z0, noise, t = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([1e-4, 0.02])
    output = MeanFlowObjective("x", t_min=0.05)(lambda z, r, t: 0 * z, z0, noise, t / 2, t)
    z_t = interpolate(z0, noise, t)
    expected = (z_t / 0.05 - (noise - z0)).square().mean(0).sum()
    assert float(output.raw_fm) == pytest.approx(float(expected), rel=1e-5)


def test_wrong_calls_are_refused() -> None:
    z0, noise, r, t = vectors()
    with pytest.raises(ValueError, match="r <= t is needed"):
        MeanFlowObjective()(Small(), z0, noise, t, r)
    with pytest.raises(ValueError, match="3 values for 2 channels"):
        MeanFlowObjective(p=(1.0, 2.0, 3.0))(Small(), z0, noise, r, t)
    for wrong in ({"tangent": "data"}, {"jvp": "none"}, {"variant": "pmf"}, {"p": 0.5}, {"p": (2.0, 0.9)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MeanFlowObjective(**wrong)  # type: ignore[arg-type]
