"""The objective on a GPU: what it asks of one, seen without any, and what only one can show, skipped where there is none."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from neuromf.config import Network
from neuromf.flow import AverageVelocity, MeanFlowObjective, MeanFlowUNet, TimeSampler, objective, sample
from neuromf.flow.compiled import whole_graph

SMALL = Network(
    channels=(16, 32, 64),
    attention=(False, False, True),
    head_channels=(0, 0, 16),
    residual_blocks=1,
    norm_groups=8,
)
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"fm_rows": "r_equals_t", "p": (1.5, 2.0, 2.0, 2.0)},
    {"v_head": True},
    {"variant": "meanflow"},
    {"variant": "rectified_flow", "channel_weights": (1.0, 2.0, 1.0, 1.0)},
)
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")


def network_of(settings: dict[str, Any]) -> MeanFlowUNet:
    torch.manual_seed(0)
    network = MeanFlowUNet(SMALL, v_head=settings.get("v_head", False))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return network


def batch(rows: int = 4) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(1)
    z0, noise = (torch.randn(rows, 4, 16, 16, 16, generator=random) for _ in range(2))
    return z0, noise, *TimeSampler().sample(rows, random)


# --- without a GPU: tensors that say they are on one and hold no values, so that reading one is an error ---------------


def on_a_pretended_gpu(settings: dict[str, Any], apart: int) -> Tensor:
    """Return the loss of four rows, of which so many have r < t, without values."""
    with FakeTensorMode(), torch.device("cuda"):
        network = MeanFlowUNet(SMALL)
        if settings.get("v_head"):
            network.v_out = network.out  # tensors without values cannot be copied
        network.requires_grad_(False)  # the backward pass would start a GPU's thread
        z0, noise, t = torch.randn(4, 4, 16, 16, 16), torch.randn(4, 4, 16, 16, 16), torch.rand(4)
        with pytest.MonkeyPatch.context() as patch:
            if apart >= 0:
                patch.setattr(objective, "_parted", lambda r, t: (torch.arange(apart, 4), torch.arange(apart)))
            return MeanFlowObjective(**settings)(network, z0, noise, t, t).loss


@pytest.mark.parametrize(("settings", "apart"), list(itertools.product(VARIANTS, (0, 2, 4))))
def test_beyond_which_rows_are_which_nothing_is_read_back(settings: dict[str, Any], apart: int) -> None:
    """A read in the midst of a step would let the GPU idle until the next kernels are launched."""
    loss = on_a_pretended_gpu(settings, apart)
    assert loss.device.type == "cuda" and loss.shape == ()


def test_the_pretended_gpu_would_show_a_read() -> None:
    with pytest.raises(DataDependentOutputException):
        on_a_pretended_gpu({}, apart=-1)


# --- with one ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def float32() -> Iterator[None]:
    """Convolutions and products in float32, not in TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def loss_and_gradient(
    network: MeanFlowUNet, device: str, settings: dict[str, Any], bf16: bool = False
) -> tuple[Tensor, Tensor]:
    network = network.to(device)
    network.zero_grad()
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        loss = MeanFlowObjective(**settings)(network, *(value.to(device) for value in batch())).loss
    loss.backward()
    return loss.detach().cpu(), torch.cat([p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@on_a_gpu
@pytest.mark.parametrize("settings", VARIANTS)
def test_loss_and_gradient_are_the_cpus(settings: dict[str, Any], float32: None) -> None:
    network = network_of(settings)
    loss, gradient = loss_and_gradient(copy.deepcopy(network), "cpu", settings)
    found, its = loss_and_gradient(network, "cuda", settings)
    assert relative(found, loss) < 1e-4 and relative(its, gradient) < 1e-3


@on_a_gpu
@pytest.mark.parametrize("settings", VARIANTS)
def test_bf16_and_tf32_are_within_two_percent(settings: dict[str, Any]) -> None:
    network = network_of(settings)
    loss, gradient = loss_and_gradient(copy.deepcopy(network), "cpu", settings)
    found, its = loss_and_gradient(network, "cuda", settings, bf16=True)
    assert relative(found, loss) < 0.02 and relative(its, gradient) < 0.02


@on_a_gpu
def test_value_and_tangent_are_those_of_func_jvp() -> None:
    network = network_of({}).double().cuda()
    z, dz, r, t = (value.double().cuda() for value in batch())
    u = AverageVelocity(network)
    with torch.no_grad():
        value, slope = torch.func.jvp(u, (z, r, t), (dz, torch.zeros_like(r), torch.ones_like(t)))
    ours, derivative = u.with_derivative(z, r, t, dz)
    torch.testing.assert_close(ours, value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(derivative, slope, rtol=1e-9, atol=1e-9 * float(slope.abs().max()))


@on_a_gpu
@pytest.mark.parametrize("settings", VARIANTS)
def test_a_compiled_step_is_the_plain_one(settings: dict[str, Any], float32: None) -> None:
    network = network_of(settings)
    loss, gradient = loss_and_gradient(copy.deepcopy(network), "cuda", settings)
    network.compile_passes()
    found, its = loss_and_gradient(network, "cuda", {**settings, "wrap": cache(whole_graph)})
    assert relative(found, loss) < 1e-4 and relative(its, gradient) < 1e-3


@on_a_gpu
@pytest.mark.parametrize("settings", VARIANTS)
def test_a_step_waits_for_the_gpu_once(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    network, given = network_of(settings).cuda(), [value.cuda() for value in batch()]
    parted = objective._parted(*given[2:])
    monkeypatch.setattr(objective, "_parted", lambda r, t: parted)
    MeanFlowObjective(**settings)(network, *given).loss.backward()  # loads libraries
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        MeanFlowObjective(**settings)(network, *given).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_a_gpu
@pytest.mark.parametrize("nfe", [1, 5])
def test_samples_are_the_cpus(nfe: int, float32: None) -> None:
    network, noise = network_of({}), batch()[1]
    with torch.no_grad():
        expected = sample(AverageVelocity(copy.deepcopy(network)), noise, nfe)
        found = sample(AverageVelocity(network.cuda()), noise.cuda(), nfe).cpu()
    assert relative(found, expected) < 1e-4
