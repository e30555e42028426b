from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.networks.blocks import Convolution, SpatialAttentionBlock
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import Tensor, nn

from neuromf.config import Network
from neuromf.flow import AverageVelocity, MeanFlowUNet, TimeSampler, tangent
from neuromf.flow.tangent import Pair
from neuromf.training.checkpoint import load_model, model_folder

SHAPE = (2, 8, 4, 4, 4)


def randomised(layer: nn.Module) -> nn.Module:
    random = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random, dtype=torch.float64) * 0.4
    return layer.double()


def residual(**how: bool) -> DiffusionUNetResnetBlock:
    return randomised(DiffusionUNetResnetBlock(3, 8, 6, out_channels=8 if how else 12, norm_num_groups=4, **how))  # type: ignore[return-value]


def pairs(*shapes: tuple[int, ...]) -> list[Pair]:
    random = torch.Generator().manual_seed(1)
    return [Pair(*(torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))) for shape in shapes]


LINEAR, CONV = randomised(nn.Linear(8, 5)), randomised(Convolution(3, 8, 6, kernel_size=3, padding=1, conv_only=True))
NORM = randomised(nn.GroupNorm(2, 8))
ATTENTION = randomised(SpatialAttentionBlock(3, 8, 4, norm_num_groups=2, use_flash_attention=False))
SAME, DOWN, UP = residual(), residual(down=True), residual(up=True)
LAYERS: dict[str, tuple[Callable[..., Pair], Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "linear": (lambda x: tangent.linear(LINEAR, x), LINEAR, ((3, 8),)),
    "convolution": (lambda x: tangent.convolution(CONV, x), CONV, (SHAPE,)),
    "silu": (tangent.silu, nn.functional.silu, (SHAPE,)),
    "group norm": (lambda x: tangent.group_norm(NORM, x), NORM, (SHAPE,)),
    "attention": (lambda x: tangent.attention_block(ATTENTION, x), ATTENTION, (SHAPE,)),  # type: ignore[arg-type]
    "residual": (lambda x, e: tangent.residual_block(SAME, x, e), SAME, (SHAPE, (2, 6))),
    "residual, down": (lambda x, e: tangent.residual_block(DOWN, x, e), DOWN, (SHAPE, (2, 6))),
    "residual, up": (lambda x, e: tangent.residual_block(UP, x, e), UP, (SHAPE, (2, 6))),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_equals_func_jvp(layer: str) -> None:
    ours, function, shapes = LAYERS[layer]
    inputs = pairs(*shapes)
    value, slope = torch.func.jvp(function, *map(tuple, zip(*inputs, strict=True)))
    found = ours(*inputs)
    torch.testing.assert_close(found.value, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.tangent, slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_first_rows_alone_may_have_a_tangent(layer: str) -> None:
    ours, _, shapes = LAYERS[layer]
    inputs = pairs(*shapes)
    whole = ours(*inputs)
    found = ours(*(Pair(x.value, x.tangent[:1]) for x in inputs))
    assert torch.equal(found.value, whole.value)
    torch.testing.assert_close(found.tangent, whole.tangent[:1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", LAYERS)
def test_under_bf16_autocast_each_value_is_the_layers_own_and_each_tangent_float32(layer: str) -> None:
    ours, function, shapes = LAYERS[layer]
    modules = (LINEAR, CONV, NORM, ATTENTION, SAME, DOWN, UP)
    inputs = [Pair(*(x.float() for x in pair)) for pair in pairs(*shapes)]
    for module in modules:
        module.float()
    try:
        _, exact = torch.func.jvp(function, *map(tuple, zip(*inputs, strict=True)))
        ATTENTION.attn.use_flash_attention = True  # as in a pass outside torch.func
        with torch.autocast("cpu", torch.bfloat16):
            value, found = function(*(x.value for x in inputs)), ours(*inputs)
    finally:
        ATTENTION.attn.use_flash_attention = False
        for module in modules:
            module.double()
    assert found.value.dtype == value.dtype and torch.equal(found.value, value)
    assert found.tangent.dtype == torch.float32
    assert float((found.tangent - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("attention", [(False, False, True), (True, False, True), (False, False, False)])
@pytest.mark.parametrize("prediction", ["x", "u"])
@pytest.mark.parametrize("time", ["neuromf", "maisi"])
def test_the_whole_network_equals_func_jvp(attention: tuple[bool, ...], prediction: str, time: str) -> None:
    heads = tuple(4 if one else 0 for one in attention)
    sizes = {"channels": (8, 8, 16), "attention": attention, "head_channels": heads, "norm_groups": 4}
    settings = Network(**sizes, residual_blocks=2, time_embedding=time)  # type: ignore[arg-type]
    network = randomised(MeanFlowUNet(settings))
    u = AverageVelocity(network, prediction)  # type: ignore[arg-type]
    (z, dz), (r, _) = pairs((2, 4, 8, 8, 8), (2,))
    r, t = r.sigmoid() * 0.3, torch.tensor([0.05, 0.9], dtype=torch.float64)
    with torch.no_grad():
        value, slope = torch.func.jvp(u, (z, r, t), (dz, torch.zeros_like(r), torch.ones_like(t)))
    ours, derivative = u.with_derivative(z, r, t, dz)
    torch.testing.assert_close(ours, value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(derivative, slope, rtol=1e-10, atol=1e-10 * float(slope.abs().max()))
    assert ours.requires_grad and not derivative.requires_grad
    ours, first = u.with_derivative(z, r, t, dz[:1])  # the other row without a derivative
    torch.testing.assert_close(ours, value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(first, slope[:1], rtol=1e-10, atol=1e-10 * float(slope.abs().max()))


def test_the_value_has_the_gradient_of_a_plain_pass() -> None:
    settings = Network(
        channels=(8, 16), attention=(False, True), head_channels=(0, 8), residual_blocks=1, norm_groups=4
    )
    network = randomised(MeanFlowUNet(settings))
    (z, dz), (r, t) = pairs((2, 4, 8, 8, 8), (2,))
    arguments = (z, r.sigmoid() * 0.5, 0.5 + t.sigmoid() * 0.5)
    losses = (
        network.with_tangent(*arguments, dz, 0 * r, 0 * t + 1)[0].square().sum(),
        network(*arguments).square().sum(),
    )
    ours, plain = (torch.autograd.grad(loss, list(network.parameters())) for loss in losses)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_under_bf16_autocast_the_tangent_is_float32_and_near_that_of_float32() -> None:
    settings = Network(
        channels=(8, 16), attention=(False, True), head_channels=(0, 8), residual_blocks=1, norm_groups=4
    )
    network = randomised(MeanFlowUNet(settings)).float()
    (z, dz), (r, _) = [Pair(*(x.float() for x in pair)) for pair in pairs((2, 4, 8, 8, 8), (2,))]
    arguments = (z, r.sigmoid() * 0.3, r.sigmoid() * 0.3 + 0.5, dz, 0 * r, 0 * r + 1)
    _, exact = network.with_tangent(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        value, near = network.with_tangent(*arguments)
    assert value.dtype == torch.bfloat16 and near.dtype == torch.float32
    assert float((near - exact).norm() / exact.norm()) < 0.05


def test_bf16_moves_the_point_of_linearisation_of_the_shipped_network_by_a_hundredth() -> None:
    """The tangent is float32, the activations it is taken at are bf16's: docs/methods.md says how far that puts du/dt."""
    model = load_model(model_folder("demo", "imf"))
    u = AverageVelocity(model.network, "x")
    random = torch.Generator().manual_seed(0)
    z, dz = torch.randn(2, 2, *model.latent_shape, generator=random)
    r, t = TimeSampler(r_equals_t=0.0).sample(2, random)
    with torch.no_grad():
        exact = u.with_derivative(z, r, t, dz)
        with torch.autocast("cpu", torch.bfloat16):
            near = u.with_derivative(z, r, t, dz)
    apart = [float((a.float() - b).norm() / b.norm()) for a, b in zip(near, exact, strict=True)]
    assert all(1e-4 < one < 0.02 for one in apart), apart
