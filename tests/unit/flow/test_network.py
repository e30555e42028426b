from __future__ import annotations

import copy
import shutil
from functools import cache, partial
from typing import Any, Literal

import pytest
import torch
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding

from neuromf.config import Network
from neuromf.flow import AverageVelocity, MeanFlowObjective, MeanFlowUNet, TimeSampler, tangent
from neuromf.flow.compiled import whole_graph
from neuromf.flow.network import Waves
from neuromf.flow.tangent import Pair

SMALL = Network(channels=(8, 16), attention=(False, True), head_channels=(0, 8), residual_blocks=1, norm_groups=4)
MIDDLE = Network(
    channels=(16, 32, 64),
    attention=(False, False, True),
    head_channels=(0, 0, 16),
    residual_blocks=1,
    norm_groups=8,
)
JVPS: tuple[Literal["exact", "finite_difference"], ...] = ("exact", "finite_difference")
TRACED = partial(whole_graph, backend="aot_eager")  # the tracer with autograd's graphs; inductor takes minutes
OUT = ("out.0.weight", "out.0.bias", "out.2.conv.weight", "out.2.conv.bias")


@pytest.fixture
def unet() -> MeanFlowUNet:
    """A small UNet without a single zero weight: MONAI's own start hides every error behind a zero output."""
    torch.manual_seed(0)
    network = MeanFlowUNet(SMALL)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def batch(n: int = 3, side: int = 8, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(1)
    z0, noise = (torch.randn(n, 4, side, side, side, generator=random, dtype=dtype) for _ in range(2))
    r, t = (value.to(dtype) for value in TimeSampler().sample(n, random))
    return z0, noise, r, t


def test_fresh_network_outputs_zero_of_the_same_shape() -> None:
    z = torch.randn(2, 4, 8, 8, 8)
    output = MeanFlowUNet(SMALL)(z, torch.zeros(2), torch.ones(2))
    assert output.shape == z.shape and not output.any()


def test_default_is_the_published_architecture() -> None:
    with torch.device("meta"):
        network = MeanFlowUNet(Network())
    published, ours = 180_500_868, sum(p.numel() for p in network.parameters())
    # without the class and spacing embeddings (and the doubled inputs of the time projections), with that of h
    assert 0.95 * published < ours < published
    assert network.block_out_channels == (64, 128, 256, 512)


@pytest.mark.parametrize("which", ["r", "t"])
def test_output_depends_on_both_times(unet: MeanFlowUNet, which: str) -> None:
    z = torch.randn(1, 4, 8, 8, 8)
    moved = {"r": torch.tensor([0.2]), "t": torch.tensor([0.7])} | {which: torch.tensor([0.5])}
    difference = unet(z, torch.tensor([0.2]), torch.tensor([0.7])) - unet(z, moved["r"], moved["t"])
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("width", [8, 64])
def test_maisi_waves_are_monais_to_the_last_bit(width: int) -> None:
    t = torch.linspace(0, 1, 101)
    assert torch.equal(Waves.of("maisi", width)(t), get_timestep_embedding(1000 * t, width))


def test_the_interval_is_embedded_at_our_frequencies_whatever_the_time_is() -> None:
    ours, maisi = (MeanFlowUNet(SMALL.model_copy(update={"time_embedding": kind})) for kind in ("neuromf", "maisi"))
    t = torch.rand(3)
    assert torch.equal(ours.interval_waves(t), maisi.interval_waves(t))
    assert torch.equal(ours.time_waves(t), ours.interval_waves(t))
    assert not torch.allclose(ours.time_waves(t), maisi.time_waves(t), atol=0.1)
    assert ours.state_dict().keys() == maisi.state_dict().keys()


@pytest.mark.parametrize("prediction", ["x", "u"])
def test_jvp_equals_central_differences(unet: MeanFlowUNet, prediction: str) -> None:
    unet.double()
    z, tangent, _, _ = batch(2, dtype=torch.float64)
    r, t = torch.tensor([0.1, 0.4], dtype=torch.float64), torch.tensor([0.5, 0.9], dtype=torch.float64)
    u = AverageVelocity(unet, prediction)  # type: ignore[arg-type]
    with torch.no_grad():
        _, exact = torch.func.jvp(u, (z, r, t), (tangent, torch.zeros_like(r), torch.ones_like(t)))
        step = 1e-5
        near = (u(z + step * tangent, r, t + step) - u(z - step * tangent, r, t - step)) / (2 * step)
    assert exact.abs().max() > 0.1
    assert torch.allclose(exact, near, atol=1e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("prediction", ["x", "u"])
@pytest.mark.parametrize("embedding", ["neuromf", "maisi"])
def test_error_of_finite_differences_in_float32(prediction: str, embedding: str) -> None:
    """The error that the objective's docstring states."""
    torch.manual_seed(0)
    network = MeanFlowUNet(MIDDLE.model_copy(update={"time_embedding": embedding}))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    z, dz, _, _ = batch(4, side=16)
    t = torch.tensor([0.2, 0.4, 0.6, 0.9])
    u = AverageVelocity(network, prediction)  # type: ignore[arg-type]
    with torch.no_grad():
        exact, near = (MeanFlowObjective(jvp=jvp)._with_derivative(u, z, t / 2, t, dz)[2] for jvp in JVPS)
    error = float((near - exact).norm() / exact.norm())
    if embedding == "neuromf":
        assert error < 0.01
    elif prediction == "u":
        assert error > 0.5


@pytest.mark.parametrize("variant", ["imf", "meanflow"])
@pytest.mark.parametrize("v_head", [False, True])
def test_bf16_is_within_two_percent_of_float32(variant: str, v_head: bool) -> None:
    torch.manual_seed(0)
    network = MeanFlowUNet(MIDDLE, v_head=v_head)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    objective = MeanFlowObjective(variant=variant, v_head=v_head)  # type: ignore[arg-type]
    given = batch(4, side=16)
    full = objective(network, *given)
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(network, *given)
    for name in ("loss", "raw_fm", "raw_mf", "jvp_norm"):
        assert float(getattr(half, name).detach()) == pytest.approx(float(getattr(full, name).detach()), rel=0.02), name
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(output.loss, network.parameters(), materialize_grads=True)])
        for output in (full, half)
    ]
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 0.02


def test_a_head_for_the_velocity(unet: MeanFlowUNet) -> None:
    torch.manual_seed(1)
    network = MeanFlowUNet(SMALL, v_head=True)
    assert set(network.state_dict()) - set(unet.state_dict()) == {f"v_{name}" for name in OUT}
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network.double()
    z, dz, r, t = batch(dtype=torch.float64)
    dr, dt = torch.rand(2, 3, dtype=torch.float64)
    output, velocity = network.heads(z, r, t)
    assert torch.equal(output, network(z, r, t)) and not torch.allclose(output, velocity)
    ours = network.heads_with_tangent(z, r, t, dz, dr, dt)
    expected = torch.func.jvp(network, (z, r, t), (dz, dr, dt))[1]
    for one, other in zip(ours, (output, velocity, expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    MeanFlowObjective(v_head=True)(network, z, dz, r, t).loss.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())
    assert bool(network.v_out[2].conv.weight.grad.any())  # type: ignore[index, union-attr]
    with pytest.raises(ValueError, match="v_head=True"):
        unet.heads(z.float(), r.float(), t.float())


def test_fused_and_plain_attention_agree(unet: MeanFlowUNet) -> None:
    z, _, r, t = batch()
    with torch.no_grad():
        inside, _ = torch.func.jvp(unet, (z, r, t), (z, r, t))
        assert not any(block.use_flash_attention for block in unet._attention)
        outside = unet(z, r, t)
        assert all(block.use_flash_attention for block in unet._attention)
    assert torch.allclose(inside, outside, atol=1e-4)


@pytest.mark.parametrize("variant", ["imf", "meanflow", "rectified_flow"])
@pytest.mark.parametrize("bf16", [False, True])
def test_every_parameter_gets_a_gradient(unet: MeanFlowUNet, variant: str, bf16: bool) -> None:
    objective = MeanFlowObjective(variant=variant)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = objective(unet, *batch())
    output.loss.backward()
    assert torch.isfinite(output.loss)
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
        # a key's bias shifts all scores of a query alike: the softmax, and so the gradient, ignores it
        assert bool(parameter.grad.any()) or name.endswith("to_k.bias"), name


def test_loss_is_finite_on_latents_of_the_published_size() -> None:
    unet = MeanFlowUNet(
        Network(channels=(4, 4, 8), attention=(False,) * 3, head_channels=(0, 0, 8), residual_blocks=1, norm_groups=4)
    )
    for parameter in unet.parameters():  # a fresh network gives 0 and has no derivative
        torch.nn.init.normal_(parameter, std=0.1)
    z0, noise, r, t = batch(2, side=32)
    assert z0.shape == (2, 4, 32, 32, 32)
    with torch.no_grad():
        output = MeanFlowObjective()(unet, z0, noise, r, t)
    # the raw losses: the weighted one lies below 2 whatever happens
    assert 0 < float(output.raw_fm) < 1000 and 0 < float(output.raw_mf) < 1000 and float(output.jvp_norm) > 0


def test_a_side_the_levels_cannot_halve_is_refused(unet: MeanFlowUNet) -> None:
    with pytest.raises(ValueError, match="multiple of 2"):
        unet(torch.randn(1, 4, 8, 9, 8), torch.zeros(1), torch.ones(1))


def loss_and_gradient(network: MeanFlowUNet, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    loss = MeanFlowObjective(**how)(network, *batch(4)).loss
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("recomputing", "objective"),
    [(True, {}), (False, {"fm_rows": "r_equals_t", "p": (1.5, 2, 2, 2)}), (True, {"variant": "rectified_flow"})],
)
def test_a_compiled_step_is_whole_graphs_with_the_same_loss_and_gradients(
    unet: MeanFlowUNet, recomputing: bool, objective: dict[str, Any]
) -> None:
    compiled = copy.deepcopy(unet)
    if recomputing:
        compiled.recompute_activations()
    compiled.compile_passes(TRACED)
    assert compiled.state_dict().keys() == unet.state_dict().keys()
    loss, gradient = loss_and_gradient(unet, **objective)
    its_loss, its_gradient = loss_and_gradient(compiled, **objective, wrap=cache(TRACED))
    torch.testing.assert_close(its_loss, loss, rtol=1e-5, atol=0)
    assert float((its_gradient - gradient).norm() / gradient.norm()) < 1e-5


def test_a_compiled_step_is_compiled_once(unet: MeanFlowUNet) -> None:
    """Neither other data nor the weight of the MeanFlow term, which may rise in the course of a run, compile it anew."""
    unet.compile_passes(TRACED)
    wrap = cache(TRACED)
    loss_and_gradient(unet, wrap=wrap)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for weight in (0.25, 0.5):
            loss_and_gradient(unet, wrap=wrap, mf_weight=weight)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles with a C++ compiler")
def test_inductor_gives_the_same_norm_and_silu_with_tangent_and_gradient() -> None:
    """What inductor makes of its own here; convolutions and products are calls of the same libraries."""
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(2, 4)
    x, dx = torch.randn(2, 2, 4, 4, 4, 4)

    def layers(x: torch.Tensor, dx: torch.Tensor) -> Pair:
        return tangent.silu(tangent.group_norm(norm, Pair(x, dx)))

    found = []
    for function in (layers, torch.compile(layers, fullgraph=True, dynamic=False)):
        norm.zero_grad()
        point = x.clone().requires_grad_()
        value, slope = function(point, dx)
        value.square().sum().backward()
        found.append([value.detach(), slope, point.grad, norm.weight.grad, norm.bias.grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_compiled_network_takes_other_weights_and_back() -> None:
    """As validation swaps the averaged weights in."""
    level = Network(channels=(4,), attention=(False,), head_channels=(4,), residual_blocks=1, norm_groups=2)
    plain, compiled = MeanFlowUNet(level), MeanFlowUNet(level)
    compiled.compile_passes(TRACED)
    own = {name: torch.randn_like(value) for name, value in plain.state_dict().items()}
    other = {name: torch.randn_like(value) for name, value in own.items()}
    z, _, r, t = batch()
    for weights in (own, other, own):
        for network in (plain, compiled):
            network.load_state_dict(weights)
        with torch.no_grad():
            torch.testing.assert_close(compiled(z, r, t), plain(z, r, t), rtol=1e-5, atol=1e-5)
